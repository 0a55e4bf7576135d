"""Tables and figure of docs/complexity.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.complexity import AXES, KINDS, Point, series
from mumoe.plots.style import COLOURS, GRID, INK, MARKERS, PALE, save_figure

NAMES = {"cp": "CP", "tr": "TR", "tucker": "Tucker", "mlp": "dense MLP", "sparse-moe": "SparseMoE, top 2"}
OURS = ("cp", "tr", "tucker")
Record = Mapping[str, Any]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def setting(records: Mapping[str, Record]) -> str:
    """The base, the ranks and what was left out."""
    record = records["complexity"]
    base = ", ".join(
        f"{value:,} {name}" if name != "width" else f"width {value}" for name, value in record["base"].items()
    )
    ranks = ", ".join(f"{NAMES[kind]} {first} and {second}" for kind, (first, second) in record["ranks"].items())
    found = record["machine"]
    return (
        f"Base setting: {base}. Ranks of the two layers of a block there: {ranks}. Left out: steps whose weights, "
        f"gradients and moments need more than {record['most_bytes'] / 2**30:.2g} GiB.\n\n"
        f"`{record['command']}`: {found['processor']}, {found['instructions']}, torch {found['versions']['torch']}, "
        "one thread, float32."
    )


def exponents(records: Mapping[str, Record]) -> str:
    """Fitted exponents beside those of the formulas."""
    head = "| grows with | layer | time, fitted | time, last two points | multiply-adds | memory, fitted |"
    lines = [f"{head} memory, formula |", "| --- | --- | --: | --: | --: | --: | --: |"]
    for row in records["complexity"]["exponents"]:
        names = ("time", "time_last", "time_formula", "memory", "memory_formula")
        cells = " | ".join(_number(row[name]) for name in names)
        lines.append(f"| {row['axis']} | {NAMES[row['kind']]} | {cells} |")
    return "\n".join(lines)


def points(records: Mapping[str, Record]) -> str:
    """Every measured point."""
    lines = [f"| experts | width | depth | tokens |{''.join(f' {NAMES[kind]}, ms / MB |' for kind in KINDS)}"]
    lines.append("| " + " | ".join(["--:"] * (4 + len(KINDS))) + " |")
    for row in records["complexity"]["rows"]:
        cells = [f"{row[axis]:,}" for axis in AXES]
        for kind in KINDS:
            if kind not in row["seconds"]:
                cells.append("left out")
                continue
            size = row["bytes"].get(kind)
            cells.append(f"{row['seconds'][kind] * 1e3:,.1f}" + ("" if size is None else f" / {size / 1e6:,.0f}"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def losses(records: Mapping[str, Record]) -> str:
    """Where a block of ours takes longer or more memory than the dense MLP or the sparse experts."""
    record = records["complexity"]
    base = Point(**record["base"])
    lines = []
    for axis in AXES:
        sweep = series(record["rows"], base, axis)
        for rival in ("mlp", "sparse-moe"):
            for measure, unit in (("seconds", "time"), ("bytes", "memory")):
                said = [text for kind in OURS if (text := _loss(sweep, axis, kind, rival, measure))]
                if said:
                    lines.append(f"- {axis.capitalize()}, {unit}, against {NAMES[rival]}: {'; '.join(said)}.")
    return "\n".join(lines) or "Nowhere in the settings measured."


def _loss(sweep: list[Mapping[str, Any]], axis: str, kind: str, rival: str, measure: str) -> str:
    compared = {row[axis]: row[measure][kind] / row[measure][rival] for row in sweep if rival in row[measure]}
    lost = {value: over for value, over in compared.items() if over > 1.0}
    if not lost:
        return ""
    where = (
        f"at all {len(compared)} values" if len(lost) == len(compared) else "at " + ", ".join(f"{v:,}" for v in lost)
    )
    worst = max(lost, key=lambda value: lost[value])
    return f"{NAMES[kind]} loses {where} (most at {worst:,}: {lost[worst]:.2f}x)"


TABLES: dict[str, Callable[[Mapping[str, Record]], str]] = {
    "complexity-setting": setting,
    "complexity-exponents": exponents,
    "complexity-points": points,
    "complexity-losses": losses,
}


# The figure -----------------------------------------------------------------------------------------------


def draw(record: Record, folder: Path) -> None:
    """Write the figure: time and peak memory of a step against each of the four, both axes logarithmic."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(14, 6.6), layout="constrained")
    panels = figure.subplots(2, len(AXES), sharex="col", sharey="row")
    base = Point(**record["base"])
    for column, axis in enumerate(AXES):
        for row, (measure, scale) in enumerate((("seconds", 1e3), ("bytes", 1e-6))):
            _panel(panels[row][column], record, base, axis, measure, scale)
        panels[1][column].set_xlabel(axis, fontsize=10, color=INK)
    panels[0][0].set_ylabel("training step, ms", fontsize=10, color=INK)
    panels[1][0].set_ylabel("peak memory of a step, MB", fontsize=10, color=INK)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(KINDS), frameon=False, fontsize=10)
    held = ", ".join(f"{name} {value:,}" for name, value in record["base"].items())
    figure.suptitle(f"One training step; what is not varied: {held}", fontsize=12, color=INK, x=0.01, ha="left")
    numbers = {"base": record["base"], "rows": record["rows"]}
    save_figure(figure, folder / "scaling", numbers)


def _panel(panel: Any, record: Record, base: Point, axis: str, measure: str, scale: float) -> None:
    sweep = series(record["rows"], base, axis)
    for position, kind in enumerate(KINDS):
        x = [row[axis] for row in sweep if kind in row[measure]]
        y = [row[measure][kind] * scale for row in sweep if kind in row[measure]]
        style = "-" if kind in OURS else "--"
        panel.plot(x, y, style, color=COLOURS[position], marker=MARKERS[position], ms=5, lw=1.6, label=NAMES[kind])
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    values = [row[axis] for row in sweep]
    panel.set_xticks(values, [f"{value:,}" for value in values], rotation=30 if len(values) > 5 else 0)
    panel.minorticks_off()
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(PALE)
    panel.grid(color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(colors=INK, labelsize=9)
