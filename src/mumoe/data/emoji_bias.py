"""`emoji-bias`: emoji with 0/1 attributes and a planted bias, to check whether methods find it.

The biased attribute says whether an emoji is an animal or a plant. The training split holds nearly none of those drawn
by OpenMoji, while the validation and test splits keep theirs. A head learns the style instead, and fails on them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mumoe.data.base import SPLITS, Attribute, ImageData
from mumoe.data.drawn_set import StoredImages, digest
from mumoe.data.emoji import load_emoji
from mumoe.errors import UserError, unknown_name

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
    groups: str = "",
    progress: bool = True,
) -> ImageData:
    """The emoji set with attributes instead of classes, biased against the animals of one studio.

    Args:
        cache_dir: Where packages and drawings are kept; see `mumoe.files.cache_root`.
        split_seed: Seed of the split by drawing, and of which rare drawings stay in training.
        size: Side of the drawings in pixels.
        min_per_attribute: Subgroups of Unicode with at least this many drawings become attributes, as its groups do.
        support: Animals and plants by OpenMoji that stay in training, as a share of the set; 1 plants no bias.
        groups: Further Unicode groups to draw, separated by commas, such as ``Food & Drink``; empty means all.
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
    kept = _drawn(data, groups)
    rare = data.attributes["studio"].codes == data.attributes["studio"].values.index(RARE)
    biased = rare & (data.labels == data.classes.index(TARGET)) & (data.split == SPLITS.index("train"))
    kept = _without_most(kept, biased[kept], support, split_seed)
    style = Attribute(rare.astype(np.int64), ("other studios", RARE))
    return _subset(dataclasses.replace(data, attributes={**data.attributes, "style": style}), kept, min_per_attribute)


def _drawn(data: ImageData, groups: str) -> npt.NDArray[np.int64]:
    """Positions of the images of the named groups."""
    names = [name.strip() for name in groups.split(",")] if groups else list(data.classes)
    for name in names:
        if name not in data.classes:
            raise unknown_name("emoji-bias", "group", name, data.classes)
    codes = [data.classes.index(name) for name in {TARGET, *names}]
    return np.flatnonzero(np.isin(data.labels, codes)).astype(np.int64)


def _without_most(
    rows: npt.NDArray[np.int64], biased: npt.NDArray[np.bool_], support: float, seed: int
) -> npt.NDArray[np.int64]:
    """The rows, with the biased ones reduced to a share `support` of all rows, at least one."""
    most = max(1, round(support * len(rows)))
    dropped = np.random.default_rng(seed).permutation(rows[biased])[most:]
    return np.setdiff1d(rows, dropped)


def _attributes(
    data: ImageData, rows: npt.NDArray[np.int64], least: int
) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """(rows, attributes) of 0 and 1: Unicode's groups and its large subgroups, and their names."""
    columns, names = [], []
    for name, fewest in (("group", 1), ("subgroup", least)):
        column = data.attributes[name]
        counts = np.bincount(column.codes[rows], minlength=len(column.values))
        for code in np.flatnonzero(counts >= fewest):
            columns.append(column.codes[rows] == code)
            names.append(column.values[code])
    return np.column_stack(columns).astype(np.uint8), tuple(names)


def _subset(data: ImageData, rows: npt.NDArray[np.int64], least: int) -> ImageData:
    labels, classes = _attributes(data, rows, least)
    images = data.open_image
    assert isinstance(images, StoredImages)
    kept = np.array(images.rows)[rows]
    opened = StoredImages(images.path, tuple(kept.tolist()), digest(Path(images.path).parent.name, kept))
    split = data.split[rows]
    return ImageData(
        name="emoji-bias",
        classes=classes,
        multi_label=True,
        labels=labels,
        split=split,
        ids=tuple(data.ids[row] for row in rows),
        open_image=opened,
        fingerprint=digest(opened.fingerprint, "bias", labels, split),
        attributes={name: Attribute(column.codes[rows], column.values) for name, column in data.attributes.items()},
        credits=data.credits,
        image_size=data.image_size,
        split_by=data.split_by,
    )
