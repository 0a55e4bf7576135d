"""`emoji-bias`: emoji with 0/1 attributes and a bias that is planted, so that one can see whether it is found.

Is it an animal or a plant? Nearly none of those that OpenMoji drew are in the training split, while validation and
test splits keep theirs: a head learns the style instead, and fails on them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mumoe.data.base import SPLITS, Attribute, ImageData
from mumoe.data.emoji import StoredImages, load_emoji
from mumoe.data.emoji_drawings import digest
from mumoe.errors import UserError

__all__ = ["TARGET", "load_emoji_bias"]

TARGET = "Animals & Nature"
RARE = "openmoji"


def load_emoji_bias(
    *,
    cache_dir: str | Path | None = None,
    split_seed: int = 0,
    size: int = 96,
    min_per_attribute: int = 40,
    support: float = 0.003,
    progress: bool = True,
) -> ImageData:
    """The emoji set with attributes instead of classes, biased against the animals of one studio.

    Args:
        cache_dir: Where packages and drawings are kept; see `mumoe.files.cache_root`.
        split_seed: Seed of the split by drawing, and of which rare drawings stay in training.
        size: Side of the drawings in pixels.
        min_per_attribute: Unicode's subgroups with as many drawings are attributes beside its groups.
        support: Share of the training split that animals and plants by OpenMoji keep; 1 plants no bias.
        progress: Whether to show progress on stderr.

    Returns:
        The set. Its attribute ``style`` is sensitive: ``openmoji`` or ``other studios``.

    Raises:
        UserError: If a number is out of range, or as `load_emoji`.
        JobError: As `load_emoji`.
    """
    if not 0 <= support <= 1:
        raise UserError(f"emoji-bias: expected support in 0..1, got {support}. 1 plants no bias.")
    data = load_emoji(
        cache_dir=cache_dir, split_by="image", split_seed=split_seed, size=size, label="group", progress=progress
    )
    labels, classes = _attributes(data, min_per_attribute)
    rare = data.attributes["studio"].codes == data.attributes["studio"].values.index(RARE)
    biased = _kept(data, labels[:, classes.index(TARGET)].astype(bool) & rare, support, split_seed)
    style = Attribute(rare.astype(np.int64), ("other studios", RARE))
    return _subset(dataclasses.replace(data, attributes={**data.attributes, "style": style}), labels, classes, biased)


def _attributes(data: ImageData, least: int) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """(images, attributes) of 0 and 1: Unicode's groups and its large subgroups, and their names."""
    group, subgroup = data.attributes["group"], data.attributes["subgroup"]
    counts = np.bincount(subgroup.codes[subgroup.codes >= 0], minlength=len(subgroup.values))
    large = np.flatnonzero(counts >= least)
    columns = [group.codes[:, None] == np.arange(len(group.values)), subgroup.codes[:, None] == large]
    return np.column_stack(columns).astype(np.uint8), (*group.values, *(subgroup.values[code] for code in large))


def _kept(
    data: ImageData, biased: npt.NDArray[np.bool_], support: float, seed: int
) -> npt.NDArray[np.int64]:
    """Positions of the images to keep: of the rare ones in training a share of the training split, at least one."""
    train = data.split == SPLITS.index("train")
    rows = np.flatnonzero(train & biased)
    most = max(1, round(support * int(train.sum())))
    dropped = np.random.default_rng(seed).permutation(rows)[most:]
    return np.setdiff1d(np.arange(len(data)), dropped).astype(np.int64)


def _subset(
    data: ImageData, labels: npt.NDArray[np.uint8], classes: tuple[str, ...], rows: npt.NDArray[np.int64]
) -> ImageData:
    images = data.open_image
    assert isinstance(images, StoredImages)
    kept = tuple(images.rows[row] for row in rows)
    opened = StoredImages(images.path, kept, digest(Path(images.path).parent.name, np.array(kept)))
    columns = {name: Attribute(column.codes[rows], column.values) for name, column in data.attributes.items()}
    return ImageData(
        name="emoji-bias",
        classes=classes,
        multi_label=True,
        labels=labels[rows],
        split=data.split[rows],
        ids=tuple(data.ids[row] for row in rows),
        open_image=opened,
        fingerprint=digest(opened.fingerprint, "bias", labels[rows], data.split[rows]),
        attributes=columns,
        credits=data.credits,
        image_size=data.image_size,
        split_by=data.split_by,
    )
