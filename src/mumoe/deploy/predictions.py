"""Labels of images with the experts behind them.

A MuMoE head in final position computes each logit as a sum over experts, a_n (W_n z)_label, where a_n is the
expert's coefficient on this image and W_n its weight matrix (its bias included). The contribution of an
expert is its term of that sum, without approximation: the terms of all experts add up to the logit. If a linear
layer follows the head (penultimate), a logit is not a sum over experts, so that only coefficients are given. A
head without experts has neither.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mumoe.baselines import SparseMoE
from mumoe.data.decode import EXTENSIONS, ImageError, as_rgb, damage, read_image
from mumoe.data.layout import files_below
from mumoe.devices import host
from mumoe.errors import UserError
from mumoe.layers import MuMoE
from mumoe.models.heads import Head
from mumoe.records import Record, record

if TYPE_CHECKING:
    from PIL import Image

    from mumoe.deploy.model import ImageClassifier

__all__ = [
    "ExpertShare",
    "LabelScore",
    "Prediction",
    "expert_terms",
    "explain",
    "find_images",
    "largest_experts",
    "note",
    "predict_files",
]


@dataclass(frozen=True)
class ExpertShare:
    """The share of one expert in a label.

    Attributes:
        index: The expert; one number per level in a hierarchy.
        coefficient: a_n in [0, 1], the product over levels in a hierarchy.
        contribution: a_n (W_n z)_label, its term of the label's logit; None where logits are no such sum.
        name: What the expert was named; empty if nothing. In a hierarchy the names of its levels.
    """

    index: int | tuple[int, ...]
    coefficient: float
    contribution: float | None
    name: str = ""


@dataclass(frozen=True)
class LabelScore:
    """A label of an image.

    Attributes:
        label: Name of the class or attribute.
        probability: In [0, 1].
        logit: The logit from which the probability is computed.
        experts: Those with the largest coefficients, in descending order.
    """

    label: str
    probability: float
    logit: float
    experts: tuple[ExpertShare, ...]


@record
class Prediction(Record):
    """The labels of one image.

    Attributes:
        image: Path, or a name.
        labels: Likeliest first; for attributes, those with at least the threshold probability, possibly none.
        likeliest: The first of all labels; None if the image could not be read.
        error: Why the image could not be read, in a few words; empty if it was read.
    """

    image: str
    labels: tuple[LabelScore, ...]
    likeliest: LabelScore | None = None
    error: str = ""

    def headline(self) -> str:
        if self.likeliest is None:
            return f"{self.image}: {self.error}"
        return f"{self.image}: {self.likeliest.label} ({self.likeliest.probability:.4f})"

    def rows(self) -> list[dict[str, Any]]:
        """One row per label and expert behind it, or per label of a head without experts."""
        return [
            {"label": label.label, "probability": label.probability, "logit": label.logit, **share}
            for label in self.labels
            for share in map(_columns, label.experts or (None,))
        ]


def _columns(share: ExpertShare | None) -> dict[str, Any]:
    if share is None:
        return {}
    named = {"name": share.name} if share.name else {}
    return {"expert": share.index, **named, "coefficient": share.coefficient, "contribution": share.contribution}


def note(model: ImageClassifier) -> str:
    """What the experts of a model's predictions mean, in one sentence."""
    layer = model.head.layer
    if not isinstance(layer, MuMoE | SparseMoE):
        return f"The head {model.spec} has no experts."
    if model.head.classifier is not None:
        return (
            "The head is followed by a linear layer: experts have coefficients, but no share of a logit of their own."
        )
    return "An expert's contribution is its term of the logit; the terms of all experts add up to it."


@torch.inference_mode()
def explain(
    model: ImageClassifier,
    images: Tensor,
    names: Sequence[str] | None = None,
    *,
    top: int = 3,
    experts: int = 3,
    threshold: float = 0.5,
) -> list[Prediction]:
    """Labels, probabilities and experts of preprocessed images.

    Args:
        model: The model.
        images: From its transform.
        names: Names of the images; by default their positions.
        top: Number of labels to return, if the classes exclude each other.
        experts: Number of experts for each label.
        threshold: Lowest probability of a predicted attribute, if an image has several labels.

    Shape:
        images (B, 3, H, W); returns B predictions.

    Raises:
        UserError: If a number is out of range.
    """
    _check_numbers(top, experts, threshold)
    called = [str(row) for row in range(len(images))] if names is None else list(names)
    z = model.head.prepare(model.backbone(images.to(next(model.parameters()).device)))
    logits = model.head.finish(model.head.layer(z))
    probabilities = model.probabilities(logits)
    coefficients = _coefficients(model.head, z)
    found = []
    for row, name in enumerate(called):
        order = probabilities[row].argsort(descending=True, stable=True).tolist()
        sure = [label for label in order if float(probabilities[row, label]) >= threshold]
        chosen = sure if model.multi_label else order[:top]
        shares = _shares(model, z[row], [a[row] for a in coefficients], [order[0], *chosen], experts)
        scores = [
            LabelScore(model.classes[label], float(probabilities[row, label]), float(logits[row, label]), share)
            for label, share in zip([order[0], *chosen], shares, strict=True)
        ]
        found.append(Prediction(name, tuple(scores[1:]), scores[0]))
    return found


def _check_numbers(top: int = 3, experts: int = 3, threshold: float = 0.5) -> None:
    if top < 1:
        raise UserError(f"predict: expected top >= 1, got {top}. Leave it out for 3.")
    if experts < 0:
        raise UserError(f"predict: expected experts >= 0, got {experts}. Leave it out for 3.")
    if not 0 <= threshold <= 1:
        raise UserError(f"predict: expected a threshold in 0..1, got {threshold}. Leave it out for 0.5.")


def _coefficients(head: Head, z: Tensor) -> tuple[Tensor, ...]:
    """(B, num_experts[e]) of every level, or nothing for a head without experts."""
    return head.layer.coefficients(z) if isinstance(head.layer, MuMoE | SparseMoE) else ()


def _shares(
    model: ImageClassifier, z: Tensor, levels: Sequence[Tensor], labels: Sequence[int], most: int
) -> list[tuple[ExpertShare, ...]]:
    """The experts of one image for each label; the same experts each time, with their shares of that label."""
    head, chosen = model.head, largest_experts(levels, most)
    if not chosen:
        return [()] * len(labels)
    terms = None if head.classifier is not None else expert_terms(head.layer, z, levels, [index for index, _ in chosen])
    return [
        tuple(
            ExpertShare(
                index[0] if len(index) == 1 else index,
                a,
                None if terms is None else float(terms[row, label]),
                model.expert_name(index),
            )
            for row, (index, a) in enumerate(chosen)
        )
        for label in labels
    ]


def largest_experts(levels: Sequence[Tensor], most: int) -> list[tuple[tuple[int, ...], float]]:
    """The combinations of one expert per level with the largest products of coefficients, zeros left out.

    The largest products contain only the `most` largest coefficients of each level, since none is negative.
    """
    if not levels or not most:
        return []
    firsts = [host(a).sort(descending=True, stable=True) for a in levels]
    kept = [list(zip(a[:most].tolist(), n[:most].tolist(), strict=True)) for a, n in firsts]
    found = [
        (tuple(n for _, n in combination), math.prod(a for a, _ in combination))
        for combination in itertools.product(*kept)
    ]
    found.sort(key=lambda item: (-item[1], item[0]))
    return [(index, a) for index, a in found[:most] if a > 0]


def expert_terms(
    layer: torch.nn.Module, z: Tensor, levels: Sequence[Tensor], indices: Sequence[tuple[int, ...]]
) -> Tensor:
    """(len(indices), out_features): each expert's a_n (W_n z + b_n), by the layer's own contraction."""
    if isinstance(layer, SparseMoE):
        rows = [_sparse_term(layer, z, levels[0], index[0]) for index in indices]
        return torch.stack(rows)
    assert isinstance(layer, MuMoE)
    alone = []
    for level, a in enumerate(levels):
        chosen = torch.tensor([index[level] for index in indices], device=a.device)
        alone.append(torch.zeros(len(indices), len(a), dtype=a.dtype, device=a.device))
        alone[-1].scatter_(1, chosen[:, None], a[chosen][:, None])
    return layer.contract(z.expand(len(indices), -1), alone)


def _sparse_term(layer: SparseMoE, z: Tensor, a: Tensor, index: int) -> Tensor:
    bias = layer.expert_bias(index)
    term = layer.expert_weight(index) @ z
    return a[index] * (term if bias is None else term + bias)


# Files ----------------------------------------------------------------------------------------------------


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The given files, and all images inside the given folders, each folder in order of path.

    Raises:
        UserError: If no path is given, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        closed: list[str] = []
        inside = sorted(file for file in files_below(path, closed) if file.suffix.lower() in EXTENSIONS)
        if closed:
            raise UserError(f"predict: expected folders that can be listed, got {closed[0]}. Change its permissions.")
        if not inside:
            raise UserError(f"predict: expected images in the folder {str(path)!r}, got none. Check the path.")
        found += inside
    if not found:
        raise UserError("predict: expected images or folders of images, got none. Give at least one.")
    return found


def predict_files(
    model: ImageClassifier,
    images: Sequence[str | os.PathLike[str] | Image.Image],
    *,
    batch_size: int = 16,
    **shown: Any,
) -> Iterator[Prediction]:
    """Predictions of image files or PIL images, in their order; one that cannot be read has `error` and no label.

    Args:
        model: The model.
        images: Image files, in any format of `mumoe.data.decode`, or images, named by their position.
        batch_size: Images that go through the model at a time.
        shown: `top`, `experts` and `threshold`, as in `explain`.

    Raises:
        UserError: If a number is out of range.
    """
    _check_numbers(**shown)
    if batch_size < 1:
        raise UserError(f"predict: expected batch_size >= 1, got {batch_size}. Leave it out for 16.")
    return _predict(model, images, batch_size, shown)


def _predict(
    model: ImageClassifier, images: Sequence[Any], batch_size: int, shown: Mapping[str, Any]
) -> Iterator[Prediction]:
    transform = model.transform
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        names = [_name(image, start + row) for row, image in enumerate(part)]
        read = [_read(image, transform) for image in part]
        whole = [(name, image) for name, image in zip(names, read, strict=True) if isinstance(image, Tensor)]
        found: list[Prediction] = []
        if whole:
            batch = torch.stack([image for _, image in whole])
            found = explain(model, batch, [name for name, _ in whole], **shown)
        good = iter(found)
        for name, image in zip(names, read, strict=True):
            yield next(good) if isinstance(image, Tensor) else Prediction(name, (), error=image)


def _name(image: Any, position: int) -> str:
    """The path of an image; for one in memory, the file that it was opened from, else its position."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return str(getattr(image, "filename", "") or position)


def _read(image: Any, transform: Callable[[Any], Tensor]) -> Tensor | str:
    """A preprocessed image, or in a few words why there is none."""
    try:
        return transform(read_image(image) if isinstance(image, str | os.PathLike) else as_rgb(image))
    except ImageError as error:
        return damage(error.__cause__) if isinstance(error.__cause__, Exception) else str(error)
