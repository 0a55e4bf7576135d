"""The tables of docs/benchmarks.md, complexity.md and dashboard.md, written from results/*.json between markers.

    python -m benchmarks.pages

A block of a page begins with ``<!-- table NAME -->`` and ends with ``<!-- end -->``; what is
between is replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import complexity_page, dashboard_page, measuring

DOCS = measuring.HERE.parent / "docs"
PAGES = ("benchmarks.md", "complexity.md", "dashboard.md")
FIGURES = "results/complexity"
"""Folder of the figures beside the pages."""

Records = Mapping[str, Mapping[str, Any]]

NAMES = {
    "floor": "floor",
    "plain": "plain",
    "literal": "plain, appendix's order",
    "torch": "ours, PyTorch",
    "native": "ours, native",
    "linear": "`nn.Linear`",
    "matched": "linear, as many parameters",
    "soft": "dense soft MoE",
    "tensorly": "`tensorly`, then dense",
    "sparse-moe": "`SparseMoE`, top 2",
    "mlp": "dense MLP",
    "dense": 'ours, `route="dense"`',
}
KINDS = {"forward": "forward", "both": "forward + backward"}
FACTORIZATIONS = {"cp": "CP", "tucker": "Tucker", "tt": "TT", "tr": "TR"}


def load(folder: Path = measuring.RESULTS) -> dict[str, dict[str, Any]]:
    """Every record of a folder, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns are text and the others numbers."""
    rule = ["---" if column < left else "--:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


# Numbers --------------------------------------------------------------------------------------------------


def ms(seconds: float | None) -> str:
    """Milliseconds with three digits."""
    return "" if seconds is None else digits(seconds * 1e3)


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def megabytes(count: float | None) -> str:
    """10^6 bytes."""
    return "" if count is None else digits(max(0.0, count / 1e6))


def times(value: float | None) -> str:
    """A ratio."""
    return "" if value is None else f"{digits(value)}x"


def median(row: Mapping[str, Any], name: str) -> float | None:
    """Seconds of a rival, or None where it was not measured."""
    found = row["seconds"].get(name)
    return None if found is None else found["median"]


def ratio(row: Mapping[str, Any], over: str, under: str) -> float | None:
    """Median of one over that of another."""
    above, below = median(row, over), median(row, under)
    return None if above is None or below is None else above / below


# Tables ---------------------------------------------------------------------------------------------------


def machine(records: Records) -> str:
    """One line for each record: on what and how it was measured."""
    lines = []
    known = {name: record for name, record in records.items() if "machine" in record}
    for record in known.values():
        found = record["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        lines.append(
            f"- `{record['command']}`: {found['processor']}, {found['cores']} cores, {found['instructions']}, "
            f"{found['memory_gib']} GiB, {found['system']}; {versions}."
        )
    quick = [f"`{name}`" for name, record in known.items() if record["mode"] == "quick"]
    if quick:
        lines += ["", f"A quick look, with few repeats and not all sizes: {', '.join(quick)}."]
    return "\n".join(lines)


def _rows(records: Records, part: str) -> list[Mapping[str, Any]]:
    return [row for row in records.get("layer", {}).get("rows", ()) if row["part"] == part]


def _size(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['batch']:,}", f"{row['experts']:,}", KINDS[row["kind"]], str(row["threads"])]


def summary(records: Records) -> str:
    """The layer beside the plain one on one thread: seconds and memory of a forward and of a training step."""
    rows: dict[tuple[int, int], list[str]] = {}
    for row in _rows(records, "sizes"):
        if row["threads"] != 1:
            continue
        found = min(filter(None, (median(row, name) for name in ("torch", "native"))), default=None)
        plain, peaks = median(row, "plain"), row.get("peak_bytes", {})
        cells = [ms(plain), ms(found), times(plain / found if plain and found else None)]
        if row["kind"] == "both":
            ours = [peaks[name] for name in ("torch", "native") if name in peaks]
            cells += [megabytes(peaks.get("plain")), megabytes(min(ours, default=None))]
        rows.setdefault((row["batch"], row["experts"]), []).extend(cells)
    head = [
        "batch",
        "experts",
        "forward: plain, ms",
        "ours, ms",
        "plain / ours",
        "training step: plain, ms",
        "ours, ms",
    ]
    head += ["plain / ours", "its memory: plain, MB", "ours, MB"]
    body = [[f"{batch:,}", f"{experts:,}", *cells] for (batch, experts), cells in rows.items()]
    return table(head, [[*cells, *[""] * (len(head) - len(cells))] for cells in body], left=0)


def sizes(records: Records) -> str:
    """The layer against the plain one and the floor."""
    head = ["batch", "experts", "pass", "threads", "support", *(f"{NAMES[n]}, ms" for n in ("floor", "plain"))]
    head += ["ours, PyTorch, ms", "ours, native, ms", "plain / PyTorch", "plain / native", "best / floor"]
    rows = []
    for row in _rows(records, "sizes"):
        best = min((ratio(row, name, "floor") or 1e9 for name in ("torch", "native")), default=None)
        cells = [*_size(row), f"{row['support']:.0f}", *(ms(median(row, n)) for n in ("floor", "plain"))]
        cells += [ms(median(row, "torch")), ms(median(row, "native"))]
        cells += [times(ratio(row, "plain", "torch")), times(ratio(row, "plain", "native")), times(best)]
        rows.append(cells)
    return table(head, rows, left=0)


def memory(records: Records) -> str:
    """Peak memory beyond inputs, parameters and gradients."""
    rows = []
    for row in records.get("layer", {}).get("rows", ()):
        found = row.get("peak_bytes", {})
        if "plain" not in found:
            continue
        least = min(found[name] for name in ("torch", "native") if name in found)
        cells = [FACTORIZATIONS[row["factorization"]] + (", zero gate" if row["gate_init"] == "zeros" else "")]
        cells += _size(row)[:3] + [megabytes(found.get(name)) for name in ("plain", "torch", "native")]
        rows.append([*cells, times(found["plain"] / max(1, least))])
    head = ["layer", "batch", "experts", "pass", "plain, MB", "ours, PyTorch, MB", "ours, native, MB", "plain / ours"]
    return table(head, rows)


def factorizations(records: Records) -> str:
    """Tucker, TT and TR against their own floor."""
    rows = []
    for row in _rows(records, "factorizations"):
        if row["threads"] != 1:
            continue
        cells = [f"{FACTORIZATIONS[row['factorization']]}, rank {row['rank']}", *_size(row)[:3]]
        cells += [ms(median(row, name)) for name in ("floor", "plain", "torch", "native")]
        rows.append([*cells, times(ratio(row, "torch", "floor")), times(ratio(row, "native", "floor"))])
    head = ["layer", "batch", "experts", "pass", "floor, ms", "plain, ms", "ours, PyTorch, ms"]
    return table([*head, "ours, native, ms", "PyTorch / floor", "native / floor"], rows)


def others(records: Records) -> str:
    """Other layers of as many parameters."""
    rows = []
    for experts in dict.fromkeys(row["experts"] for row in _rows(records, "others")):
        both = {row["kind"]: row for row in _rows(records, "others") if row["experts"] == experts}
        some = next(iter(both.values()))
        for name in (*some["seconds"], *some["missing"]):
            about = NAMES.get(name, f"`{name}`") + (f": {some['about'][name]}" if name in some["about"] else "")
            if name in some["missing"]:
                rows.append([f"{experts:,}", f"{about}: not measured, {some['missing'][name]}", "", "", ""])
                continue
            count = f"{some['parameters'][name]:,}"
            rows.append([f"{experts:,}", about, count, *(ms(median(both[kind], name)) for kind in KINDS)])
    head = ["experts of ours", "layer, 768 -> 768, batch 256", "parameters", "forward, ms", "forward + backward, ms"]
    return table(head, rows, left=2)


def dense(records: Records) -> str:
    """Ways that hold the weight tensor in full."""
    rows = []
    for row in _rows(records, "dense"):
        for name in row["seconds"]:
            cells = [NAMES[name], *_size(row)[1:3], f"{row['parameters'].get(name, 0):,}", ms(median(row, name))]
            rows.append([*cells, times(ratio(row, name, "torch"))])
    return table(["layer", "experts", "pass", "parameters", "ms", "over ours, PyTorch"], rows)


def block(records: Records) -> str:
    """An MLP and the block that replaces it."""
    rows = []
    for row in _rows(records, "block"):
        for name in row["seconds"] if row["threads"] == 1 else ():
            experts = "" if name == "mlp" else f"{row['experts']:,}"
            cells = [NAMES[name], experts, _size(row)[2], f"{row['parameters'][name]:,}", ms(median(row, name))]
            cells += [times(ratio(row, name, "mlp")), times(ratio(row, "dense", name))]
            rows.append([*cells, megabytes(row.get("peak_bytes", {}).get(name))])
    head = ["layer", "experts", "pass", "parameters", "ms", "over the MLP", "dense route / it", "peak, MB"]
    return table(head, rows)


def zero(records: Records) -> str:
    """A gate that starts at zero: every coefficient is 1 / experts."""
    rows = []
    for row in _rows(records, "zero"):
        cells = [*_size(row)[1:3], *(ms(median(row, name)) for name in ("plain", "torch", "native"))]
        rows.append([*cells, times(ratio(row, "torch", "plain")), times(ratio(row, "native", "plain"))])
    head = [
        "experts",
        "pass",
        "plain, ms",
        "ours, PyTorch, ms",
        "ours, native, ms",
        "PyTorch / plain",
        "native / plain",
    ]
    return table(head, rows, left=0)


def extraction(records: Records) -> str:
    """Images per second of a backbone."""
    rows = []
    for row in records.get("features", {}).get("extraction", ()):
        speed = row["images_per_second"]
        cells = [f"`{row['backbone']}`", str(row["threads"]), str(row["workers"]), digits(speed["bare"])]
        rows.append([*cells, digits(speed["ours"]), times(speed["ours"] / speed["bare"])])
    head = ["backbone", "threads", "workers", "bare timm loop, images/s", "`extract_features`, images/s", "ours / bare"]
    return table(head, rows)


def training(records: Records) -> str:
    """Waiting for data in `train` on cached features."""
    rows = [
        [f"`{row['head']}`", str(row["batch"]), ms(row["step_seconds"]), f"{row['waiting_share']:.1%}"]
        for row in records.get("features", {}).get("training", ())
    ]
    return table(["head, 768 -> 1000", "batch", "step, ms", "of it waiting for data"], rows)


def interventions(records: Records) -> str:
    """All experts ablated in one pass."""
    rows = []
    for row in records.get("interventions", {}).get("settings", ()):
        cells = [f"`{row['layer']}`, {row['in_features']} -> {row['out_features']}", f"{row['images']:,}"]
        cells += [digits(row["evaluation_seconds"]), digits(row["interventions_seconds"])]
        rows.append([*cells, times(row["interventions_over_evaluation"]), times(row["plain_over_interventions"])])
    head = [
        "layer",
        "images",
        "one evaluation, s",
        "all interventions, s",
        "over one evaluation",
        "plain method over ours",
    ]
    return table(head, rows)


def startup(records: Records) -> str:
    """Seconds of wrong calls and of a small verb."""
    rows = []
    for row in records.get("startup", {}).get("calls", ()):
        large = ", ".join(row.get("imports", ())) or "none"
        rows.append([row["call"], digits(row["median"]), times(row["over_import_torch"]), large])
    return table(["call", "seconds", "over `import torch`", "large packages imported"], rows)


TABLES: dict[str, Callable[[Records], str]] = {
    "machine": machine,
    "summary": summary,
    "sizes": sizes,
    "memory": memory,
    "factorizations": factorizations,
    "others": others,
    "dense": dense,
    "block": block,
    "zero": zero,
    "extraction": extraction,
    "training": training,
    "interventions": interventions,
    "startup": startup,
    **complexity_page.TABLES,
    **dashboard_page.TABLES,
}


# Pages ----------------------------------------------------------------------------------------------------

_BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, records: Records, tables: Mapping[str, Callable[[Records], str]] = TABLES) -> str:
    """The page with every table replaced, by what `tables` makes of the records."""

    def one(found: re.Match[str]) -> str:
        return f"{found[1]}\n{tables[found[2]](records)}\n\n{found[3]}"

    return _BLOCK.sub(one, text)


def main(results: Path = measuring.RESULTS, docs: Path = DOCS) -> None:
    """Write both pages and the figures."""
    records = load(results)
    for name in PAGES:
        path = docs / name
        path.write_text(fill(path.read_text(encoding="utf-8"), records), encoding="utf-8")
    if "complexity" in records:
        complexity_page.draw(records["complexity"], docs / FIGURES)


if __name__ == "__main__":
    main()
