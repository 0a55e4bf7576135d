"""Fairness reports as the tables of the paper: models in rows, metrics in columns (Tables 2 and 8)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from mumoe.editing.fairness import METRICS, Estimate, FairnessReport, metric_names
from mumoe.errors import UserError, unknown_name

__all__ = ["fairness_table", "render_table", "subgroup_table"]

Format = Literal["markdown", "text"]
Runs = FairnessReport | Sequence[FairnessReport]


def fairness_table(
    reports: Mapping[str, Runs],
    *,
    parameters: Mapping[str, int] | None = None,
    format: Format = "markdown",
    metrics: tuple[str, ...] | None = None,
    intervals: bool = True,
) -> str:
    """One row per model, one column per metric, in the paper's order; a missing value is ``-``.

    Args:
        reports: Model name to its report. Several reports of one model (seeds) become mean ± standard
            deviation (of the sample), a single one its value with the bootstrap interval.
        parameters: Learnable parameters by model name, for the last column.
        format: ``markdown`` for a page, ``text`` for a terminal.
        metrics: Names of the columns, all by default.
        intervals: False leaves intervals and deviations out.

    Raises:
        UserError: If there is no report, or a format or metric is unknown.
    """
    if not reports:
        raise UserError("fairness_table: expected at least one report, got none. Evaluate a model first.")
    names = metric_names(metrics)
    header = ["", *(METRICS[name] for name in names), *(["# params (↓)"] if parameters else [])]
    rows = []
    for model, runs in reports.items():
        cells = [_cell(_metric(_runs(runs), name), intervals) for name in names]
        count = [f"{parameters[model]:,}" if model in parameters else "-"] if parameters else []
        rows.append([model, *cells, *count])
    return render_table(header, rows, format)


def subgroup_table(reports: Mapping[str, Runs], *, format: Format = "markdown", intervals: bool = True) -> str:
    """Accuracy of each subgroup (columns, with its size) under each model (rows): Figure 16 as numbers."""
    if not reports:
        raise UserError("subgroup_table: expected at least one report, got none. Evaluate a model first.")
    first = _runs(next(iter(reports.values())))[0]
    header = ["", *(_heading(first, i) for i in range(len(first.subgroups)))]
    rows = [
        [
            model,
            *(
                _cell([run.subgroups[i].accuracy for run in _runs(runs)], intervals)
                for i in range(len(first.subgroups))
            ),
        ]
        for model, runs in reports.items()
    ]
    return render_table(header, rows, format)


def render_table(header: Sequence[str], rows: Iterable[Sequence[str]], format: Format = "markdown") -> str:
    """A table with aligned columns: first column to the left, the others to the right.

    Raises:
        UserError: If the format is unknown.
    """
    if format not in ("markdown", "text"):
        raise unknown_name("render_table", "format", format, ["markdown", "text"])
    lines = [list(header), *(list(row) for row in rows)]
    if format == "markdown":
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    text = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    if format == "text":
        rule = ["-" * width for width in widths]
        return "\n".join("  ".join(line).rstrip() for line in [text[0], rule, *text[1:]]) + "\n"
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [text[0], rule, *text[1:]]) + "\n"


def _runs(runs: Runs) -> Sequence[FairnessReport]:
    return [runs] if isinstance(runs, FairnessReport) else runs


def _metric(runs: Sequence[FairnessReport], name: str) -> list[Estimate]:
    return [run.metrics[name] for run in runs if name in run.metrics]


def _cell(estimates: Sequence[Estimate], intervals: bool) -> str:
    if not estimates:
        return "-"
    mean = statistics.fmean(estimate.value for estimate in estimates)
    if not intervals:
        return f"{mean:.3f}"
    if len(estimates) > 1:
        return f"{mean:.3f} ± {statistics.stdev(estimate.value for estimate in estimates):.3f}"
    only = estimates[0]
    return f"{mean:.3f}" if only.low != only.low else f"{mean:.3f} [{only.low:.3f}, {only.high:.3f}]"


def _heading(report: FairnessReport, i: int) -> str:
    group = report.subgroups[i]
    mark = " (target)" if group.subgroup == report.target else ""
    return f"{group.subgroup}{mark}, n={group.count:,}"
