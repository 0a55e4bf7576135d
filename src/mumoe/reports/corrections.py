"""Edits and fairness as they are shown: what `mumoe edit` and `mumoe fairness` wrote beside a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mumoe.editing.edit_files import read_edit_file
from mumoe.editing.subgroup_fairness import METRICS, Estimate, FairnessReport, SubgroupResult
from mumoe.editing.subgroups import Subgroup
from mumoe.errors import UserError
from mumoe.files import read_json
from mumoe.reports.views import EditView, FairnessView, MetricRow, Missing, PlainChange, SubgroupRow

__all__ = ["fairness_view", "read_edits", "read_fairness"]


def fairness_view(
    before: FairnessReport | None, after: FairnessReport, *, title: str, file: str, head: str = "", sensitive: str = ""
) -> FairnessView:
    """Subgroups and metrics of the model `after`, beside those of the model `before` it was edited, if it was."""
    old = {_named(found.subgroup): found.accuracy for found in before.subgroups} if before else {}
    metrics = before.metrics if before else {}
    return FairnessView(
        title=title,
        file=file,
        subgroups=tuple(_subgroup(found, old.get(_named(found.subgroup)), after.target) for found in after.subgroups),
        metrics=tuple(
            MetricRow(name, heading, metrics.get(name), after.metrics[name])
            for name, heading in METRICS.items()
            if name in after.metrics
        ),
        rows=after.rows,
        resamples=after.bootstrap.resamples,
        confidence=after.bootstrap.confidence,
        edited=before is not None,
        head=head,
        sensitive=sensitive,
    )


def _named(group: Subgroup) -> tuple[str, str]:
    return str(group.label), str(group.sensitive)


def _subgroup(found: SubgroupResult, before: Estimate | None, target: Subgroup) -> SubgroupRow:
    (label, sensitive), after = _named(found.subgroup), found.accuracy
    difference = None if before is None else after.value - before.value
    return SubgroupRow(label, sensitive, found.count, before, after, difference, (label, sensitive) == _named(target))


def read_edits(run: Path) -> tuple[tuple[EditView, ...], tuple[Missing, ...]]:
    """The edit files in RUN/edits, by name; a file that cannot be read is named among what is missing."""
    views, missing = [], []
    for path in sorted((run / "edits").glob("*.json")):
        try:
            views.append(_edit(path, run))
        except (UserError, KeyError, TypeError, ValueError) as error:
            missing.append(Missing("edits", f"{path.name} could not be read: {error}", ""))
    if not views and not missing:
        reason = "No edits were made to this run."
        missing.append(Missing("edits", reason, f"mumoe edit {run} --do ablate:0"))
    return tuple(views), tuple(missing)


def _edit(path: Path, run: Path) -> EditView:
    content = read_edit_file(path)
    facts, file = content.provenance, str(path.relative_to(run))
    before, after = facts.get("metrics_before"), facts.get("metrics_after")
    fairness = change = None
    subgroup = dict(facts.get("subgroup", {}))
    named = {name: str(subgroup.get(name, "")) for name in ("head", "sensitive")}
    if isinstance(after, Mapping) and "subgroups" in after:
        old = FairnessReport.from_dict(before) if before else None
        fairness = fairness_view(old, FairnessReport.from_dict(after), title=path.stem, file=file, **named)
    elif isinstance(after, Mapping):
        change = _change(before or {}, after)
    return EditView(
        name=path.stem,
        file=file,
        created=content.created,
        edits=tuple((name, edit.describe()) for name, edit in content.edits.items()),
        strength=facts.get("lambda"),
        subgroup=subgroup,
        split=str(facts.get("split", "test")),
        choice=facts.get("choice"),
        fairness=fairness,
        change=change,
    )


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> PlainChange:
    moved = [(name, value, after["classes"][name]) for name, value in before["classes"].items()]
    moved = sorted((row for row in moved if row[1] != row[2]), key=lambda row: -abs(row[2] - row[1]))
    return PlainChange(after["images"], before["accuracy"], after["accuracy"], tuple(moved))


def read_fairness(run: Path, multi_label: bool) -> tuple[tuple[FairnessView, ...], tuple[Missing, ...]]:
    """Reports that ``mumoe fairness RUN .. --json > RUN/fairness.json`` left (any RUN/fairness*.json)."""
    if not multi_label:
        reason = "Subgroup metrics need a run on 0/1 attributes; this one has single labels."
        return (), (Missing("fairness", reason, ""),)
    views, missing = [], []
    for path in sorted(run.glob("fairness*.json")):
        try:
            views.append(_fairness(path, run))
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            missing.append(Missing("fairness", f"{path.name} could not be read: {error}", ""))
    if not views and not missing:
        command = f"mumoe fairness {run} --target ATTRIBUTE --sensitive ATTRIBUTE --json > {run / 'fairness.json'}"
        missing.append(Missing("fairness", "The accuracy of subgroups was not measured.", command))
    return tuple(views), tuple(missing)


def _fairness(path: Path, run: Path) -> FairnessView:
    reports = [FairnessReport.from_dict(found) for found in read_json(path, "report").values()]
    before = reports[0] if len(reports) > 1 else None
    return fairness_view(before, reports[-1], title=path.name, file=str(path.relative_to(run)))
