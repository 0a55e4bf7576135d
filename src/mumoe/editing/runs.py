"""Runs as the editing verbs see them: a head on features, one 0/1 attribute of it, and subgroups of the images."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe.coefficients import SparseCoefficients
from mumoe.costs import spec_costs
from mumoe.data.base import ImageData
from mumoe.data.columns import find_value
from mumoe.devices import host
from mumoe.editing.choose import LabelledRows
from mumoe.editing.expert_edits import ExpertEdit
from mumoe.editing.stack import EditStack
from mumoe.errors import UserError, unknown_argument
from mumoe.layers import MuMoE
from mumoe.models.heads import Head
from mumoe.progress import DELAY, Progress
from mumoe.training.opening import StoredRun

__all__ = ["BLOCK", "EditingRun", "Problem", "check_editable", "edited_head", "editing_run"]

BLOCK = 4096
"""Rows that are computed at a time."""


@dataclass(frozen=True)
class EditingRun:
    """A trained run on multi-label data, ready to be measured and edited.

    Attributes:
        path: Its folder.
        head: The trained head, features to logits.
        layer: The MuMoE layer that makes the logits, or None for a head without experts.
        data: Labels, splits and attributes.
        features: (images, num_features), the input of the head.
        progress: Whether to show progress on stderr.
    """

    path: Path
    head: Head
    layer: MuMoE | None
    data: ImageData
    features: npt.NDArray[np.float32]
    progress: bool = False

    def require_layer(self, who: str) -> MuMoE:
        """The layer.

        Raises:
            UserError: If the head has no experts that make the logits.
        """
        if self.layer is None:
            raise UserError(
                f"{who}: expected a MuMoE layer that makes the logits, got a {type(self.head.layer).__name__} head "
                f"in {self.path}. Train one with the head CPMuMoE-r256-e128 in position final."
            )
        return self.layer

    @torch.no_grad()
    def inputs(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """(rows, num_features) as the layer sees them, on its device."""
        features = torch.from_numpy(np.asarray(self.features[rows], dtype=np.float32))
        return self.head.prepare(features.to(self.head.mean.device))

    def batches(
        self, rows: npt.NDArray[np.int64], report: Callable[[int], None] | None = None, doing: str = ""
    ) -> Iterator[Tensor]:
        """Inputs of the layer in blocks of bounded size, at least one.

        Args:
            rows: Positions of the images.
            report: Gets the rows done before each block.
            doing: What is done with them, for the progress; empty shows none.
        """
        with Progress(doing, len(rows), enabled=bool(doing) and self.progress, delay=DELAY) as bar:
            for start in range(0, max(1, len(rows)), BLOCK):
                if report is not None:
                    report(start)
                part = rows[start : start + BLOCK]
                yield self.inputs(part)
                bar.advance(len(part))

    def logits(self, rows: npt.NDArray[np.int64], head: int) -> npt.NDArray[np.float64]:
        """(rows,) logits of one output, with the edits that are applied."""
        logits: npt.NDArray[np.float64] = self._outputs(rows, lambda y: host(y[:, head])).numpy()
        return logits

    def outputs(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(rows, classes) logits, with the edits that are applied."""
        return self._outputs(rows, lambda y: y.float().cpu()).numpy()

    @torch.no_grad()
    def _outputs(self, rows: npt.NDArray[np.int64], kept: Callable[[Tensor], Tensor]) -> Tensor:
        """What is kept of each block's logits."""
        head, batches = self.head, self.batches(rows, doing="Computing logits")
        return torch.cat([kept(head.finish(head.layer(x))) for x in batches])

    def answers(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | npt.NDArray[np.uint8]:
        """(rows,) classes, or (rows, attributes) of 0 and 1, with the edits that are applied."""
        if self.data.multi_label:
            return self._outputs(rows, lambda y: (y > 0).byte().cpu()).numpy()
        return self._outputs(rows, lambda y: y.argmax(1).cpu()).numpy()

    @torch.no_grad()
    def coefficients(
        self, rows: npt.NDArray[np.int64], who: str, least: float = -math.inf
    ) -> tuple[SparseCoefficients, ...]:
        """The coefficients other than 0 that reach `least`, one (rows, N_e) per level, on the CPU."""
        layer = self.require_layer(who)
        batches = self.batches(rows, doing="Computing coefficients")
        parts = [[level.at_least(least).to("cpu") for level in layer.gate(x)] for x in batches]
        return tuple(map(SparseCoefficients.joined, zip(*parts, strict=True)))

    def problem(self, head: str, sensitive: str, *, who: str) -> Problem:
        """One 0/1 attribute with a sensitive one.

        Raises:
            UserError: If the run is single-label, or a name is unknown (the nearest is suggested).
        """
        data = self.data
        if not data.multi_label:
            raise UserError(
                f"{who}: expected a run on 0/1 attributes, got single labels in {data.name}. "
                "A correction shifts one attribute's logit; train on a multi-label set."
            )
        if head not in data.classes:
            raise unknown_argument(who, "target", head, data.classes)
        names, known = _sensitive(data, sensitive, who)
        position = data.classes.index(head)
        return Problem(head, position, data.labels[:, position].astype(np.int64), sensitive, names, known, data)


@dataclass(frozen=True)
class Problem:
    """Labels of one head and sensitive values of all images.

    Attributes:
        head: Name of the head.
        position: Its output.
        labels: (images,) 0 or 1.
        sensitive: Name of the sensitive attribute.
        values: (images,) sensitive value.
        known: (images,) whether there is one.
        data: The set.
    """

    head: str
    position: int
    labels: npt.NDArray[np.int64]
    sensitive: str
    values: npt.NDArray[np.str_]
    known: npt.NDArray[np.bool_]
    data: ImageData

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Positions of a split's images whose sensitive value is known."""
        found = self.data.indices(split)  # type: ignore[arg-type]
        return found[self.known[found]]

    def labelled(self, split: str) -> LabelledRows:
        """Labels and sensitive values of `rows`."""
        rows = self.rows(split)
        return LabelledRows(self.labels[rows], self.values[rows])

    def subgroup(self, split: str, target: tuple[int, str], who: str) -> npt.NDArray[np.int64]:
        """Positions of a subgroup's images in a split.

        Args:
            split: The split.
            target: (label, sensitive value).
            who: The caller, named in errors.

        Raises:
            UserError: If it has none there.
        """
        (label, value), rows = target, self.rows(split)
        found = rows[(self.labels[rows] == label) & (self.values[rows] == value)]
        if not len(found):
            raise UserError(
                f"{who}: expected {split} images with {self.head}={label} and {self.sensitive}={value}, got none. "
                f"Choose a subgroup that has {split} images."
            )
        return found

    def value(self, asked: object, *, who: str) -> str:
        """A sensitive value as the data writes it; 1, yes and true are one, and so are 0, no and false.

        Raises:
            UserError: If there is no such value; the nearest is suggested.
        """
        values = list(dict.fromkeys(self.values[self.known].tolist()))
        place = find_value(values, asked)
        if place is None:
            raise unknown_argument(who, "value", asked, values)
        return values[place]

    def left_out(self, *splits: str) -> str:
        """How many images of these splits have no known sensitive value, in words; "" if all have one."""
        counts = {split: len(self.data.indices(split)) - len(self.rows(split)) for split in splits}  # type: ignore[arg-type]
        parts = [f"{count:,} {split}" for split, count in counts.items() if count]
        return f"{self.sensitive} is unknown for {', '.join(parts)} images, left out" if parts else ""


def editing_run(run: StoredRun) -> EditingRun:
    """A run's head, data and features; those of a fine-tuned run come from its own backbone.

    Raises:
        UserError: If its data differ, or it does not know its backbone.
        JobError: If it has no intact checkpoint.
    """
    head, inputs = run.head, run.inputs
    assert inputs.features is not None
    layer = head.layer if isinstance(head.layer, MuMoE) and head.classifier is None else None
    return EditingRun(run.path, head, layer, inputs.data, inputs.features, run.progress)


def check_editable(run: StoredRun, edits: Iterable[ExpertEdit] = (), *, who: str) -> None:
    """Refuse edits that do not fit a run's head, before its weights, data or features are read.

    Raises:
        UserError: If the head has no experts that make the logits, or an edit does not fit it.
    """
    config, facts = run.config, run.facts
    outputs = len(facts.get("classes", ()))
    found = spec_costs(config.head, int(facts.get("num_features", 1)), outputs) if config.head else None
    if found is None or config.mode not in ("features", "finetune"):
        return
    if not found.num_experts or found.kind == "sparse-moe" or config.position != "final":
        raise UserError(
            f"{who}: expected a MuMoE layer that makes the logits, got the head {config.head!r} in position "
            f"{config.position} in {run.path}. Train one with the head CPMuMoE-r256-e128 in position final."
        )
    for edit in edits:
        edit.check(found.num_experts, outputs)


def edited_head(head: Head, stack: EditStack) -> Head:
    """A head with edits folded into its factors: an ordinary head, to save, export and run anywhere."""
    edited = copy.deepcopy(head)
    edited.layer = stack.fold()
    return edited.eval()


def _sensitive(data: ImageData, name: str, who: str) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.bool_]]:
    """Values and whether they are known, from an attribute or another 0/1 label of the set."""
    column = data.column(name)
    if column is None:
        raise unknown_argument(who, "sensitive", name, data.column_names)
    values = np.array([*column.values, "unknown"], dtype=np.str_)
    return values[column.codes], column.codes >= 0
