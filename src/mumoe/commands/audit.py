"""`mumoe audit`: which experts handle the images that the model gets wrong, when nobody named a subgroup."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from mumoe.commands.opening import opened as open_verb
from mumoe.commands.opening import require_run
from mumoe.data.base import SPLITS
from mumoe.errors import UserError, unknown_name
from mumoe.files import check_writable
from mumoe.parsing import Argument

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from mumoe.editing.audit import Audit, Finding
    from mumoe.editing.runs import EditingRun
    from mumoe.plots.finding_sheet import Pictured

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Rank experts and their combinations by how far below the rest the accuracy of their images is."""

    COMMON: ClassVar = {
        "head": "Blond_Hair",
        "split": "val",
        "top": "20",
        "images": "0",
        "propose": "edits",
    }
    """Shown first in help, with an example of each."""

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of a run, or of the job that holds it"""
    head: Annotated[str, Argument(("--target",))] = ""
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
    pictures: Annotated[str, Argument(("-o", "--out"))] = ""
    """folder for the sheet of these images (empty: RUN/audit/SPLIT, or RUN/audit/HEAD-SPLIT)"""
    propose: str = ""
    """folder for one edit file for each significant finding shown (multi-label)"""
    json: bool = False
    """print JSON instead"""
    data: str = ""
    """the data where they are now, e.g. folder:/new/place (empty: where the run found them)"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    quiet: bool = False
    """show no progress"""


def run(options: Options) -> None:
    """Audit and print."""
    require_run(options.run)
    from mumoe.editing.audit import audit
    from mumoe.editing.runs import check_edits

    if options.split not in SPLITS:
        raise unknown_name("mumoe audit", "split", options.split, SPLITS)
    check_edits(options.run, who="mumoe audit")
    opened = open_verb(options, "mumoe audit", experts=True).editing()
    opened.require_layer("mumoe audit")
    rows = opened.data.indices(options.split)  # type: ignore[arg-type]
    if not len(rows):
        raise UserError(f"mumoe audit: expected images in the {options.split} split, got none. Take another.")
    labels, said = _outcomes(opened, options, rows)
    right = said == labels
    a = opened.coefficients(rows, "mumoe audit")
    found = audit(
        a,
        right,
        labels,
        threshold=options.threshold,
        pairs=options.pairs,
        min_rows=options.min_rows,
        alpha=options.alpha,
        correction=options.correction,
    )
    written = _propose(opened, options, found.significant[: options.top]) if options.propose else []
    shown = [_pictured(finding, a, labels, right, rows, options) for finding in found.findings[: options.top]]
    sheet = _sheet(opened, options, shown, rows, said)
    if options.json:
        content = {**found.to_dict(), "pictures": None if sheet is None else str(sheet)}
        sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")
        return
    lines = [
        f"{len(found.significant)} of {found.comparisons:,} groups are right less often than the rest "
        f"({options.correction}, alpha {options.alpha:g}), on {len(rows):,} {options.split} images of {opened.path}",
        *_floor(found, options),
    ]
    for item in shown:
        finding = item.finding
        mark = "" if finding.p_corrected <= options.alpha else " (not significant)"
        single = finding.label is not None and not opened.data.multi_label
        name = f" = {opened.data.classes[finding.label]}" if single else ""  # type: ignore[index]
        lines.append(f"  {finding}{name}{mark}")
        ids = [opened.data.ids[image] for image in item.wrong]
        lines += [f"    wrong: {', '.join(ids)}"] if ids else []
    if sheet is None and options.images:
        lines.append(f"No pictures: {opened.data.name} is a set of features without images.")
    paths = [*written, *([sheet] if sheet else [])]
    sys.stdout.write("\n".join([*lines, *(f"Written: {path}" for path in paths)]) + "\n")


def _floor(found: Audit, options: Options) -> list[str]:
    """How the groups were made large enough, where they were not."""
    if not found.pooled:
        return []
    least = f"no group has {options.min_rows} images of one class: "
    floor = f", and --min-rows lowered to {found.min_rows}" if found.min_rows < options.min_rows else ""
    return [f"  {least}all classes are pooled{floor} (each class is compared with itself)"]


def _outcomes(opened: EditingRun, options: Options, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(rows,) true labels, and the model's."""
    import torch

    data = opened.data
    if not data.multi_label:
        if options.head:
            raise UserError("mumoe audit: expected no --target for a single-label run, got one. Leave it out.")
        guess = torch.from_numpy(opened.outputs(rows).argmax(1))
        labels = torch.from_numpy(data.labels[rows].astype("int64"))
        return labels, guess
    if options.head not in data.classes:
        raise unknown_name("mumoe audit", "head", options.head, data.classes)
    position = data.classes.index(options.head)
    labels = torch.from_numpy(data.labels[rows, position].astype("int64"))
    return labels, torch.from_numpy(opened.logits(rows, position) > 0).long()


def _pictured(
    finding: Finding,
    a: Sequence[Tensor],
    labels: Tensor,
    right: Tensor,
    rows: npt.NDArray[np.int64],
    options: Options,
) -> Pictured:
    """A finding with some of its images, wrong and right."""
    from mumoe.editing.audit import handled
    from mumoe.plots.finding_sheet import Pictured, spread

    inside = handled(a, finding.experts, options.threshold)
    if finding.label is not None:
        inside &= labels == finding.label
    wrong, good = rows[(inside & ~right).numpy()], rows[(inside & right).numpy()]
    return Pictured(finding, spread(wrong, options.images), spread(good, options.images), len(wrong), len(good))


def _sheet(
    opened: EditingRun, options: Options, shown: Sequence[Pictured], rows: npt.NDArray[np.int64], said: Tensor
) -> Path | None:
    """Draw the images of the findings; None where there are none to draw."""
    import numpy as np

    from mumoe.models.feature_files import NoImages
    from mumoe.plots.finding_sheet import write_findings

    data = opened.data
    if not options.images or isinstance(data.open_image, NoImages):
        return None
    names = [f"not {options.head}", options.head] if data.multi_label else data.classes
    guesses = np.full(len(data), -1, dtype=np.int64)
    guesses[rows] = said.numpy()
    name = "".join(c if c.isalnum() or c in "-_=" else "_" for c in options.head)
    folder = opened.path / "audit" / "-".join(part for part in (name, options.split) if part)
    title = f"Experts whose images go wrong, {data.name}, {options.split} images"
    return write_findings(options.pictures or folder, shown, data, guesses, names, alpha=options.alpha, title=title)


def _propose(opened: EditingRun, options: Options, findings: Sequence[Finding]) -> list[Path]:
    """Write one edit file per finding, its mean coefficients from training images."""
    import torch

    from mumoe.editing.audit import propose
    from mumoe.editing.files import save_edits
    from mumoe.editing.stack import EditStack

    data, folder = opened.data, Path(options.propose)
    if not data.multi_label:
        raise UserError("mumoe audit: expected a multi-label run to propose edits for, got a single-label one.")
    check_writable(folder / "finding-1.json", who="mumoe audit", remedy="Choose another folder for --propose.")
    folder.mkdir(parents=True, exist_ok=True)
    train = data.indices("train")
    position = data.classes.index(options.head)
    a = opened.coefficients(train, "mumoe audit")
    labels = torch.from_numpy(data.labels[train, position].astype("int64"))
    written = []
    for number, finding in enumerate(findings, 1):
        stack = EditStack(opened.require_layer("mumoe audit"))
        stack.add(propose(finding, a, labels, head=position, threshold=options.threshold), f"finding-{number}")
        path = folder / f"finding-{number}.json"
        about = {"run": str(opened.path), "head": options.head, "split": options.split, "finding": str(finding)}
        save_edits(path, stack, about)
        written.append(path)
    return written
