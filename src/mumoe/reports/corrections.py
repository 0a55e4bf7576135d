"""Edits, fairness and audits as they are shown: what `mumoe edit`, `mumoe fairness` and `mumoe audit` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mumoe.editing.auditing import AUDIT, RunAudit
from mumoe.editing.edit_files import read_edit_file
from mumoe.editing.edit_reports import FairnessComparison, recorded_choice, recorded_fairness
from mumoe.editing.group_audit import Audit
from mumoe.editing.subgroup_fairness import FairnessReport
from mumoe.errors import UserError
from mumoe.files import read_json
from mumoe.reports.views import AuditView, EditView, MeasuredFairness, Missing, PlainChange, RankingView

__all__ = ["read_audits", "read_edits", "read_fairness"]

FINDINGS = 20
"""Findings of a ranking that a report shows."""


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
    facts = content.provenance
    fairness = recorded_fairness(facts)
    before, after = facts.get("metrics_before"), facts.get("metrics_after")
    return EditView(
        name=path.stem,
        file=str(path.relative_to(run)),
        created=content.created,
        edits=tuple((name, edit.describe()) for name, edit in content.edits.items()),
        strength=facts.get("lambda"),
        subgroup=dict(facts.get("subgroup", {})),
        split=str(facts.get("split", "test")),
        choice=recorded_choice(facts.get("choice")),
        fairness=fairness,
        change=_change(before or {}, after) if after and fairness is None else None,
    )


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> PlainChange:
    moved = [(name, value, after["classes"][name]) for name, value in before["classes"].items()]
    moved = sorted((row for row in moved if row[1] != row[2]), key=lambda row: -abs(row[2] - row[1]))
    return PlainChange(after["images"], before["accuracy"], after["accuracy"], tuple(moved))


def read_fairness(run: Path, multi_label: bool) -> tuple[tuple[MeasuredFairness, ...], tuple[Missing, ...]]:
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


def _fairness(path: Path, run: Path) -> MeasuredFairness:
    models = {name: FairnessReport.from_dict(found) for name, found in read_json(path, "report").items()}
    file = str(path.relative_to(run))
    return MeasuredFairness(path.name, file, FairnessComparison(str(run), "", "", "", models))


def read_audits(run: Path, multi_label: bool) -> tuple[tuple[AuditView, ...], tuple[Missing, ...]]:
    """The audits in RUN/audit, by name; one that cannot be read is named among what is missing."""
    views, missing = [], []
    for path in sorted((run / "audit").glob(f"*/{AUDIT}")):
        try:
            views.append(_audit(RunAudit.load(path), str(path.relative_to(run))))
        except UserError as error:
            missing.append(Missing("audit", f"{path.parent.name}/{AUDIT} could not be read: {error}", ""))
    if not views and not missing:
        command = f"mumoe audit {run}{' --target ATTRIBUTE' if multi_label else ''}"
        missing.append(Missing("audit", "No audit was made of this run.", command))
    return tuple(views), tuple(missing)


def _audit(found: RunAudit, file: str) -> AuditView:
    named = [("named attributes", found.by_attributes)] if found.by_attributes else []
    return AuditView(
        title=f"{found.target}, {found.split} images" if found.target else f"{found.split} images".capitalize(),
        file=file,
        split=found.split,
        images=found.images,
        labels=found.labels,
        pooled=found.pooled,
        rankings=tuple(_ranking(kind, audit) for kind, audit in [("experts", found), *named]),
    )


def _ranking(kind: str, found: Audit) -> RankingView:
    return RankingView(kind, Audit.headline(found), found.alpha, len(found.findings), found.findings[:FINDINGS])
