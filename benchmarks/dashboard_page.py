"""Tables of docs/dashboard.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Record = Mapping[str, Any]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def setting(records: Mapping[str, Record]) -> str:
    """The machine and the runs."""
    record = records["dashboard"]
    found = record["machine"]
    return (
        f"`{record['command']}`: {found['processor']}, {found['cores']} cores, torch {found['versions']['torch']}, "
        f"{record['threads']} thread{'s' * (record['threads'] > 1)}; head of the large runs: {record['layer']}."
    )


def start(records: Mapping[str, Record]) -> str:
    """Start-up time, memory, and the slowest answer."""
    head = ["run", "experts", "images", "there after, s", "of the processor, s", "load", "peak memory, MB"]
    lines = [_row(*head, "slowest answer, ms"), _row("---", *["--:"] * 7)]
    for row in records["dashboard"]["settings"]:
        cells = [row["setting"], f"{row['experts']:,}", f"{row['images']:,}", f"{row['start_seconds']:.1f}"]
        cells += [f"{row['start_cpu_seconds']:.1f}", f"{row['load_average']:.1f}"]
        cells += ["" if row["peak_megabytes"] is None else f"{row['peak_megabytes']:,.0f}"]
        lines.append(_row(*cells, _milliseconds(row["slowest_ms"])))
    return "\n".join(lines)


def answers(records: Mapping[str, Record]) -> str:
    """Median milliseconds of each interaction: the server's answer, then on the screen."""
    settings = records["dashboard"]["settings"]
    lines = [_row("what is asked", *(f"{row['setting']}, ms" for row in settings))]
    lines.append(_row("---", *["--:"] * len(settings)))
    for part, where in (("interactions", ""), ("in_the_browser", "in Chromium: ")):
        found = [{name: item["median_ms"] for name, item in row[part].items()} for row in settings]
        for name in dict.fromkeys(name for table in found for name in table):
            cells = [_milliseconds(table[name]) if name in table else "" for table in found]
            lines.append(_row(where + name, *cells))
    return "\n".join(lines)


TABLES: dict[str, Callable[[Mapping[str, Record]], str]] = {
    "dashboard-setting": setting,
    "dashboard-start": start,
    "dashboard-answers": answers,
}
