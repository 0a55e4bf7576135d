"""Edits and fairness as they are shown: what `mumoe edit` and `mumoe fairness` wrote beside a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mumoe.editing.fairness import METRICS
from mumoe.errors import UserError
from mumoe.files import read_json
from mumoe.reports.views import EditView, Estimated, FairnessView, MetricRow, Missing, PlainChange, SubgroupRow

__all__ = ["fairness_view", "read_edits", "read_fairness"]

Report = Mapping[str, Any]
"""A `FairnessReport` as `to_dict` writes it."""


def fairness_view(
    before: Report | None, after: Report, *, title: str, file: str = "", head: str = "", sensitive: str = ""
) -> FairnessView:
    """Subgroups and metrics of one model, or before and after edits.

    Args:
        before: Report of the model as it was trained; None shows `after` alone.
        after: Report of the model that is shown.
        title: Whose they are.
        file: Where they come from.
        head: The attribute that is predicted.
        sensitive: The sensitive attribute.
    """
    old = {_group(entry): entry["accuracy"] for entry in before["subgroups"]} if before else {}
    return FairnessView(
        title=title,
        file=file,
        subgroups=tuple(_subgroup(entry, old.get(_group(entry)), after["target"]) for entry in after["subgroups"]),
        metrics=tuple(
            MetricRow(name, heading, _metric(before, name), _metric(after, name))
            for name, heading in METRICS.items()
            if name in after["metrics"]
        ),
        rows=after["rows"],
        resamples=after["bootstrap"]["resamples"],
        confidence=after["bootstrap"]["confidence"],
        edited=before is not None,
        head=head,
        sensitive=sensitive,
    )


def _group(entry: Mapping[str, Any]) -> tuple[str, str]:
    return str(entry["subgroup"]["label"]), str(entry["subgroup"]["sensitive"])


def _subgroup(entry: Mapping[str, Any], old: Mapping[str, Any] | None, target: Mapping[str, Any]) -> SubgroupRow:
    label, sensitive = _group(entry)
    after = _estimate(entry["accuracy"])
    before = None if old is None else _estimate(old)
    return SubgroupRow(
        label=label,
        sensitive=sensitive,
        count=entry["count"],
        before=before,
        after=after,
        difference=None if before is None else after.value - before.value,
        target=(label, sensitive) == (str(target["label"]), str(target["sensitive"])),
    )


def _metric(report: Report | None, name: str) -> Estimated | None:
    return _estimate(report["metrics"][name]) if report and name in report["metrics"] else None


def _estimate(found: Mapping[str, Any]) -> Estimated:
    return Estimated(found["value"], found.get("low"), found.get("high"))


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
    from mumoe.editing.files import read_edit_file

    content = read_edit_file(path)
    facts, file = content.provenance, str(path.relative_to(run))
    before, after = facts.get("metrics_before"), facts.get("metrics_after")
    measured = isinstance(after, Mapping)
    grouped = measured and "subgroups" in after  # type: ignore[operator]
    subgroup = dict(facts.get("subgroup", {}))
    named = {name: str(subgroup.get(name, "")) for name in ("head", "sensitive")}
    return EditView(
        name=path.stem,
        file=file,
        created=content.created,
        edits=tuple((name, edit.describe()) for name, edit in content.edits.items()),
        strength=facts.get("lambda"),
        subgroup=subgroup,
        split=str(facts.get("split", "test")),
        choice=facts.get("choice"),
        fairness=fairness_view(before, after, title=path.stem, file=file, **named) if grouped else None,  # type: ignore[arg-type]
        change=_change(before, after) if measured and not grouped else None,  # type: ignore[arg-type]
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
    reports: Sequence[Report] = list(read_json(path, "gather").values())
    before = reports[0] if len(reports) > 1 else None
    return fairness_view(before, reports[-1], title=path.name, file=str(path.relative_to(run)))
