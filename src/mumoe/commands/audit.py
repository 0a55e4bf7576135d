"""`mumoe audit`: which groups of images, by experts and by named attributes, the model gets wrong more often."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from mumoe.commands.open_run import RunOptions, opened, require_run, settings_of
from mumoe.files import check_writable
from mumoe.parsing import Argument

if TYPE_CHECKING:
    from mumoe.editing.auditing import RunAudit
    from mumoe.editing.group_audit import Audit, Finding
    from mumoe.plots.finding_sheet import Pictured

__all__ = ["Options", "run"]

WHO = "mumoe audit"

MERGED = 3
"""Overlapping groups that are named below a finding."""


@dataclass(frozen=True)
class Options(RunOptions):
    """Rank groups of images, by experts and by named attributes, by their excess of errors over the rest."""

    COMMON: ClassVar = {"target": "Blond_Hair", "split": "val", "top": "20", "images": "0", "propose": "edits"}

    target: str = ""
    """attribute to audit in a multi-label run (a single-label run is audited class by class)"""
    split: str = "val"
    """train, val or test; choosing edits on the test split would make its numbers optimistic"""
    threshold: float = 0.1
    """coefficient from which an expert handles an image"""
    pairs: bool = True
    """test pairs of experts, and of values of two attributes, too"""
    min_rows: int = 10
    """images that a group must have; if no group has as many, classes are pooled, then the number is lowered"""
    alpha: float = 0.05
    """level of significance after correction"""
    correction: Literal["fdr", "holm"] = "fdr"
    """fdr: share of false alarms; holm: chance of any"""
    merge: float = 0.5
    """overlap from which a group is listed under one that ranks above it: common images over those of the smaller
    (0: never)"""
    top: int = 10
    """findings of each ranking to show"""
    images: int = 5
    """wrong images to name and to show for each finding, beside as many right ones (0: none, and nothing is written)"""
    out: Annotated[str, Argument(("-o", "--out"))] = ""
    """folder for the audit and the sheet of these images (empty: RUN/audit/SPLIT, or RUN/audit/TARGET-SPLIT)"""
    propose: str = ""
    """folder for one edit file for each significant finding shown (multi-label)"""
    json: bool = False
    """print JSON instead"""


def run(options: Options) -> None:
    """Audit and print."""
    require_run(options.run)
    if options.propose:
        check_writable(Path(options.propose) / "finding-1.json", who=WHO, remedy="Choose another folder for --propose.")
    settings = settings_of(options, "split", "threshold", "pairs", "min_rows", "alpha", "correction", "merge")
    found = opened(options, WHO, experts=True).audit(options.target, **settings)
    written = found.propose(options.propose, options.top) if options.propose else []
    experts = found.pictured(options.top, options.images)
    named = found.pictured(options.top, options.images, by="attributes")
    paths = found.write([*experts, *named], options.out) if options.images else []
    sheet = next((path for path in paths if path.suffix == ".png"), None)
    if options.json:
        content = {**found.to_dict(), "pictures": None if sheet is None else str(sheet)}
        sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")
        return
    lines = [f"By experts: {found.headline()}", *_floor(found, options)]
    lines += [line for item in experts for line in _lines(found, item)]
    if found.by_attributes:
        lines += [f"By named attributes: {found.by_attributes.headline()}", *_floor(found.by_attributes, options)]
        lines += [line for item in named for line in _lines(found, item)]
    if sheet is None and options.images:
        lines.append(f"No pictures: {found.audited.run.data.name} is a set of features without images.")
    sys.stdout.write("\n".join([*lines, *(f"Written: {path}" for path in [*written, *paths])]) + "\n")


def _floor(found: Audit, options: Options) -> list[str]:
    """How the groups were made large enough, where they were not."""
    if not found.pooled:
        return []
    least = f"no group has {options.min_rows} images of one class: "
    floor = f", and --min-rows lowered to {found.min_rows}" if found.min_rows < options.min_rows else ""
    return [f"  {least}all classes are pooled{floor} (each class is compared with itself)"]


def _lines(found: RunAudit, item: Pictured) -> list[str]:
    """A finding in words, the groups merged into it, and the ids of its wrong images."""
    finding, data = item.finding, found.audited.run.data
    mark = "" if finding.p_corrected <= found.alpha else " (not significant)"
    single = finding.label is not None and not data.multi_label
    name = f" = {found.labels[finding.label]}" if single else ""  # type: ignore[index]
    ids = [data.ids[image] for image in item.wrong]
    merged = [f"    overlapping: {_names(finding)}"] if finding.merged else []
    return [f"  {finding}{name}{mark}", *merged, *([f"    wrong: {', '.join(ids)}"] if ids else [])]


def _names(finding: Finding) -> str:
    """The first groups merged into a finding, and how many more there are."""
    names = [f"{other.group_in_words()} ({other.rows} rows)" for other in finding.merged]
    more = [f"{len(names) - MERGED} more"] if len(names) > MERGED else []
    return "; ".join([*names[:MERGED], *more])
