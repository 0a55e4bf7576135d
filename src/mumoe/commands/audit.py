"""`mumoe audit`: which experts handle the images that the model gets wrong, when nobody named a subgroup."""

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
    from mumoe.plots.finding_sheet import Pictured

__all__ = ["Options", "run"]

WHO = "mumoe audit"


@dataclass(frozen=True)
class Options(RunOptions):
    """Rank experts and their combinations by how far below the rest the accuracy of their images is."""

    COMMON: ClassVar = {"target": "Blond_Hair", "split": "val", "top": "20", "images": "0", "propose": "edits"}

    target: str = ""
    """attribute to audit in a multi-label run (a single-label run is audited class by class)"""
    split: str = "val"
    """train, val or test; choosing edits by the test split would spoil it"""
    threshold: float = 0.1
    """coefficient from which an expert handles an image"""
    pairs: bool = True
    """look at pairs of experts too"""
    min_rows: int = 10
    """images that a group must have; where no group has as many, classes are pooled, then the number is lowered"""
    alpha: float = 0.05
    """level of significance after correction"""
    correction: Literal["fdr", "holm"] = "fdr"
    """fdr: share of false alarms; holm: chance of any"""
    top: int = 10
    """findings to show"""
    images: int = 5
    """wrong images to name and to show for each finding, beside as many right ones (0: none)"""
    out: Annotated[str, Argument(("-o", "--out"))] = ""
    """folder for the sheet of these images (empty: RUN/audit/SPLIT, or RUN/audit/TARGET-SPLIT)"""
    propose: str = ""
    """folder for one edit file for each significant finding shown (multi-label)"""
    json: bool = False
    """print JSON instead"""


def run(options: Options) -> None:
    """Audit and print."""
    require_run(options.run)
    if options.propose:
        check_writable(Path(options.propose) / "finding-1.json", who=WHO, remedy="Choose another folder for --propose.")
    settings = settings_of(options, "split", "threshold", "pairs", "min_rows", "alpha", "correction")
    found = opened(options, WHO, experts=True).audit(options.target, **settings)
    written = found.propose(options.propose, options.top) if options.propose else []
    shown = found.pictured(options.top, options.images)
    sheet = found.write_sheet(shown, options.out) if options.images else None
    if options.json:
        content = {**found.to_dict(), "pictures": None if sheet is None else str(sheet)}
        sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")
        return
    lines = [found.headline(), *_floor(found, options), *(line for item in shown for line in _lines(found, item))]
    if sheet is None and options.images:
        lines.append(f"No pictures: {found.audited.run.data.name} is a set of features without images.")
    paths = [*written, *([sheet] if sheet else [])]
    sys.stdout.write("\n".join([*lines, *(f"Written: {path}" for path in paths)]) + "\n")


def _floor(found: RunAudit, options: Options) -> list[str]:
    """How the groups were made large enough, where they were not."""
    if not found.pooled:
        return []
    least = f"no group has {options.min_rows} images of one class: "
    floor = f", and --min-rows lowered to {found.min_rows}" if found.min_rows < options.min_rows else ""
    return [f"  {least}all classes are pooled{floor} (each class is compared with itself)"]


def _lines(found: RunAudit, item: Pictured) -> list[str]:
    """A finding in words, and the ids of its wrong images."""
    finding, data = item.finding, found.audited.run.data
    mark = "" if finding.p_corrected <= found.alpha else " (not significant)"
    single = finding.label is not None and not data.multi_label
    name = f" = {found.labels[finding.label]}" if single else ""  # type: ignore[index]
    ids = [data.ids[image] for image in item.wrong]
    return [f"  {finding}{name}{mark}", *([f"    wrong: {', '.join(ids)}"] if ids else [])]
