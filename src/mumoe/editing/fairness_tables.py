"""Fairness reports as the tables of the paper: models in rows, metrics in columns (Tables 2 and 8)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from mumoe.editing.subgroup_fairness import METRICS, Estimate, FairnessReport
from mumoe.errors import UserError, unknown_argument
from mumoe.records import Format, render_table

__all__ = ["fairness_table", "subgroup_table"]

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
    names = tuple(METRICS) if metrics is None else metrics
    for name in names:
        if name not in METRICS:
            raise unknown_argument("fairness_table", "metrics", name, METRICS)
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
    places = range(len(first.subgroups))
    header = ["", *(_heading(first, place) for place in places)]
    rows = []
    for model, runs in reports.items():
        groups = [[run.subgroups[place].accuracy for run in _runs(runs)] for place in places]
        rows.append([model, *(_cell(group, intervals) for group in groups)])
    return render_table(header, rows, format)


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
    return f"{mean:.3f}" if only.low is None else f"{mean:.3f} [{only.low:.3f}, {only.high:.3f}]"


def _heading(report: FairnessReport, i: int) -> str:
    group = report.subgroups[i]
    mark = " (target)" if group.subgroup == report.target else ""
    return f"{group.subgroup}{mark}, n={group.count:,}"
