"""Runs as the editing verbs see them: a head on features, one 0/1 attribute of it, and subgroups of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe.data.base import ImageData
from mumoe.editing.files import load_edits
from mumoe.editing.splits import Rows, Splits
from mumoe.editing.stack import EditStack
from mumoe.errors import UserError, unknown_name
from mumoe.layers import MuMoE
from mumoe.models.heads import Head

if TYPE_CHECKING:
    from mumoe.training.run import RunFolder

__all__ = ["BLOCK", "EditingRun", "Problem", "check_edits", "edited_head", "open_run"]

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
    """

    path: Path
    head: Head
    layer: MuMoE | None
    data: ImageData
    features: npt.NDArray[np.float32]

    def require_layer(self, who: str) -> MuMoE:
        """The layer.

        Raises:
            UserError: If the head has no experts that make the logits.
        """
        if self.layer is None:
            raise UserError(
                f"{who}: expected a MuMoE layer that makes the logits, got a {type(self.head.layer).__name__} head "
                f"in {self.path}. Train one with --head CPMuMoE-r256-e128 --position final."
            )
        return self.layer

    @torch.no_grad()
    def inputs(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """(rows, num_features) as the layer sees them."""
        return self.head.prepare(torch.from_numpy(np.asarray(self.features[rows], dtype=np.float32)))

    def batches(self, rows: npt.NDArray[np.int64], report: Callable[[int], None] | None = None) -> Iterator[Tensor]:
        """Inputs of the layer in blocks of bounded size; `report` is called with the rows done before each."""
        for start in range(0, len(rows), BLOCK):
            if report is not None:
                report(start)
            yield self.inputs(rows[start : start + BLOCK])

    @torch.no_grad()
    def logits(self, rows: npt.NDArray[np.int64], head: int) -> npt.NDArray[np.float64]:
        """(rows,) logits of one output, with whatever edits are applied."""
        parts = [self.head.finish(self.head.layer(self.inputs(part)))[:, head] for part in _blocks(rows)]
        return torch.cat(parts).double().numpy()

    @torch.no_grad()
    def outputs(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(rows, classes) logits, with whatever edits are applied."""
        parts = [self.head.finish(self.head.layer(self.inputs(part))) for part in _blocks(rows)]
        return torch.cat(parts).float().numpy()

    @torch.no_grad()
    def coefficients(self, rows: npt.NDArray[np.int64], who: str) -> tuple[Tensor, ...]:
        """One (rows, N_e) tensor per level."""
        layer = self.require_layer(who)
        parts = [layer.coefficients(self.inputs(part)) for part in _blocks(rows)]
        return tuple(torch.cat(level) for level in zip(*parts, strict=True))

    def problem(self, head: str, sensitive: str, *, who: str) -> Problem:
        """One 0/1 attribute with a sensitive one.

        Raises:
            UserError: If the run is single-label, or a name is unknown (the nearest is offered).
        """
        data = self.data
        if not data.multi_label:
            raise UserError(
                f"{who}: expected a run on 0/1 attributes, got single labels in {data.name}. "
                "A correction shifts one attribute's logit; train on a multi-label set."
            )
        if head not in data.classes:
            raise unknown_name(who, "head", head, data.classes)
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

    def subgroup(self, train: Rows, target: tuple[int, str], who: str) -> npt.NDArray[np.int64]:
        """Positions of a subgroup's training images.

        Args:
            train: Labels and sensitive values of the training images, in the order of `rows`.
            target: (label, sensitive value).
            who: The caller, named in errors.

        Raises:
            UserError: If no image has this sensitive value (the nearest is offered), or no training image is in the
                subgroup.
        """
        label, value = target
        values = set(self.values[self.known].tolist())
        if value not in values:
            raise unknown_name(who, f"value of {self.sensitive}", value, values)
        inside = (train.y_true == label) & (train.sensitive_features == value)
        if not inside.any():
            raise UserError(
                f"{who}: expected training images with {self.head}={label} and {self.sensitive}={value}, got none. "
                "Choose a subgroup that has training images."
            )
        return self.rows("train")[inside]

    @property
    def splits(self) -> Splits:
        """The data's splits, without images of unknown sensitive value."""
        return Splits(self.rows("train"), self.rows("val"), self.rows("test"))


def open_run(run: str | Path, *, progress: bool = True) -> EditingRun:
    """Load a run's head, data and features; those of a fine-tuned run come from its own backbone.

    Raises:
        UserError: If the path is no run, or its data has changed.
        JobError: If it has no whole checkpoint.
    """
    from mumoe.training import load_head
    from mumoe.training.inputs import load_inputs

    path = _one(run).path
    head, config, facts = load_head(path)
    if config.mode == "finetune":
        data, features = _finetuned(path, config, progress)
    else:
        inputs = load_inputs(config, progress=progress)
        assert inputs.features is not None
        data, features = inputs.data, inputs.features
    if data.fingerprint != facts["data"]["fingerprint"]:
        raise UserError(f"{path}: expected the data that it was trained on, got a changed {data.name}. Restore it.")
    layer = head.layer if isinstance(head.layer, MuMoE) and head.classifier is None else None
    return EditingRun(path, head, layer, data, features)


def check_edits(
    run: str | Path, *, do: Sequence[str] = (), files: Sequence[str | Path] = (), who: str = "check_edits"
) -> None:
    """Refuse edits that a run's head has no place for, before its weights, data or features are read.

    Args:
        run: Folder of the run.
        do: Edits as texts, see `mumoe.editing.texts`.
        files: Files of edits; that they are of this run is checked when they are loaded.
        who: The caller, named in errors.

    Raises:
        UserError: If the head has no experts that make the logits, a text is no edit, a file cannot be read, or an
            edit names an expert, level or output that does not exist.
        JobError: If the run's facts are damaged.
    """
    from mumoe.costs import spec_costs
    from mumoe.editing.files import read_edit_file
    from mumoe.editing.texts import parse_edit

    folder = _one(run)
    config, facts = folder.config(), folder.facts()
    classes = tuple(facts.get("classes", ()))
    found = spec_costs(config.head, int(facts.get("num_features", 1)), len(classes)) if config.head else None
    if found is None or config.mode not in ("features", "finetune"):
        return
    if not found.num_experts or found.kind == "sparse-moe" or config.position != "final":
        raise UserError(
            f"{who}: expected a MuMoE layer that makes the logits, got the head {config.head!r} "
            f"(--position {config.position}) in {folder.path}. "
            "Train one with --head CPMuMoE-r256-e128 --position final."
        )
    edits = [edit for file in files for edit in read_edit_file(file).edits.values()]
    for edit in [*edits, *(parse_edit(text, classes, who=who) for text in do)]:
        edit.check(found.num_experts, len(classes))


def _one(run: str | Path) -> RunFolder:
    from mumoe.training.run import find_run

    folders = find_run(run)
    if len(folders) > 1:
        names = ", ".join(folder.path.name for folder in folders[:4])
        raise UserError(f"{run}: expected one run, got {len(folders)} ({names}). Name one of them.")
    return folders[0]


def edited_head(run: EditingRun, edits: str | Path | EditStack) -> Head:
    """The run's head with edits folded into its factors: an ordinary head, to save, export and run anywhere."""
    import copy

    layer = run.require_layer("edited_head")
    stack = edits if isinstance(edits, EditStack) else load_edits(edits, layer)
    head = copy.deepcopy(run.head)
    head.layer = stack.fold()
    return head.eval()


def _finetuned(path: Path, config: Any, progress: bool) -> tuple[ImageData, npt.NDArray[np.float32]]:
    from mumoe.models.features import extract_features
    from mumoe.training import load_run
    from mumoe.training.inputs import load_images

    data = load_images(config)
    model: Any = load_run(path)[0]
    folder = config.cache_dir or None
    found = extract_features(data, model.backbone, cache_dir=folder, workers=config.workers, progress=progress)
    return data, found.x


def _sensitive(data: ImageData, name: str, who: str) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.bool_]]:
    """Values and whether they are known, from an attribute or another 0/1 label of the set."""
    if name in data.attributes:
        attribute = data.attributes[name]
        values = np.array([*attribute.values, "unknown"], dtype=np.str_)
        return values[attribute.codes], attribute.codes >= 0
    if name in data.classes:
        return data.labels[:, data.classes.index(name)].astype(np.str_), np.ones(len(data), dtype=np.bool_)
    raise unknown_name(who, "sensitive attribute", name, [*data.attributes, *data.classes])


def _blocks(rows: npt.NDArray[np.int64], size: int = BLOCK) -> list[npt.NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, max(1, len(rows)), size)]


def describe_target(target: Mapping[str, Any]) -> str:
    """A subgroup in words: ``Blond_Hair=1, Male=1``."""
    return f"{target['head']}={target['label']}, {target['sensitive']}={target['value']}"
