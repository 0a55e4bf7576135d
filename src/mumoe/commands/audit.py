"""`mumoe audit`: which experts handle the images that the model gets wrong, when nobody named a subgroup."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mumoe.data.base import SPLITS
from mumoe.errors import UserError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from mumoe.editing.audit import Finding
    from mumoe.editing.runs import EditingRun

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Rank experts and their combinations by how far below the rest the accuracy of their images is."""

    run: Annotated[str, tyro.conf.Positional]
    """folder of the run"""
    head: str = ""
    """attribute to audit in a multi-label run (a single-label run is audited class by class)"""
    split: str = "val"
    """train, val or test; choosing edits by the test split would spoil it"""
    threshold: float = 0.1
    """coefficient from which an expert handles an image"""
    pairs: bool = True
    """look at pairs of experts too"""
    min_rows: int = 10
    """images that a group must have"""
    alpha: float = 0.05
    """level of significance after correction"""
    correction: Literal["fdr", "holm"] = "fdr"
    """fdr: share of false alarms; holm: chance of any"""
    top: int = 10
    """findings to show"""
    images: int = 5
    """ids of wrong images to name for each finding (0: none)"""
    propose: str = ""
    """folder for one edit file for each significant finding shown (multi-label)"""
    json: bool = False
    """print JSON instead"""
    quiet: bool = False
    """show no progress"""


def run(options: Options) -> None:
    """Audit and print."""
    import torch

    from mumoe.editing.audit import audit, handled
    from mumoe.editing.runs import open_run

    if options.split not in SPLITS:
        raise unknown_name("mumoe audit", "split", options.split, SPLITS)
    opened = open_run(options.run, progress=not options.quiet)
    opened.require_layer("mumoe audit")
    rows = opened.data.indices(options.split)  # type: ignore[arg-type]
    if not len(rows):
        raise UserError(f"mumoe audit: expected images in the {options.split} split, got none. Take another.")
    labels, right = _outcomes(opened, options, rows)
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
    if options.json:
        sys.stdout.write(json.dumps(found.to_dict(), allow_nan=False) + "\n")
        return
    lines = [
        f"{len(found.significant)} of {found.comparisons:,} groups are right less often than the rest "
        f"({options.correction}, alpha {options.alpha:g}), on {len(rows):,} {options.split} images of {options.run}"
    ]
    for finding in found.findings[: options.top]:
        mark = "" if finding.p_corrected <= options.alpha else " (not significant)"
        name = "" if opened.data.multi_label else f" = {opened.data.classes[finding.label]}"
        lines.append(f"  {finding}{name}{mark}")
        wrong = handled(a, finding.experts, options.threshold) & (labels == finding.label) & ~right
        ids = [opened.data.ids[int(rows[i])] for i in torch.nonzero(wrong)[: options.images, 0].tolist()]
        lines += [f"    wrong: {', '.join(ids)}"] if ids else []
    sys.stdout.write("\n".join([*lines, *(f"Written: {path}" for path in written)]) + "\n")


def _outcomes(opened: EditingRun, options: Options, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(rows,) true labels, and whether the prediction is right."""
    import torch

    data = opened.data
    if not data.multi_label:
        if options.head:
            raise UserError("mumoe audit: expected no --head for a single-label run, got one. Leave it out.")
        with torch.no_grad():
            guess = opened.head.finish(opened.head.layer(opened.inputs(rows))).argmax(1)
        labels = torch.from_numpy(data.labels[rows].astype("int64"))
        return labels, guess == labels
    if options.head not in data.classes:
        raise unknown_name("mumoe audit", "head", options.head, data.classes)
    position = data.classes.index(options.head)
    labels = torch.from_numpy(data.labels[rows, position].astype("int64"))
    return labels, torch.from_numpy(opened.logits(rows, position) > 0) == labels.bool()


def _propose(opened: EditingRun, options: Options, findings: Sequence[Finding]) -> list[Path]:
    """Write one edit file per finding, its mean coefficients from training images."""
    import torch

    from mumoe.editing.audit import propose
    from mumoe.editing.files import save_edits
    from mumoe.editing.stack import EditStack

    data, folder = opened.data, Path(options.propose)
    if not data.multi_label:
        raise UserError("mumoe audit: expected a multi-label run to propose edits for, got a single-label one.")
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
