"""The emoji set: the same Unicode characters, drawn by six studios.

A real, many-class image set that package registries carry: a label hierarchy (Unicode group, subgroup,
character), a style (the studio) and, for people, skin tone and gender. The drawings come from pinned npm
packages of SVG icons, are drawn once on white into the cache, and keep their licences: see `CREDITS`.

Flags and the bare skin-tone swatches are left out, as are a few drawings that a package defines only as the
mirror image of another. A random split of images shares characters between its splits, so that a model may
recognize a character it was trained on in another style; the split by character is the honest one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mumoe.data.base import Attribute, ImageData
from mumoe.data.emoji_drawings import GENDERS, STUDIOS, TONE_VALUES, Row, digest, drawings, read_rows
from mumoe.data.splits import group_split, holdout_split, stratified_split
from mumoe.errors import UserError, unknown_name
from mumoe.files import cache_root

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ATTRIBUTES", "CREDITS", "SPLIT_BY", "TRAIN_OPTIONS", "StoredImages", "load_emoji"]

ATTRIBUTES = ("group", "subgroup", "character", "studio", "skin_tone", "gender")
SPLIT_BY = ("image", "character", "studio")
TRAIN_OPTIONS: dict[str, Any] = {"split_by": "image", "size": 96}
"""Defaults of `mumoe train --data emoji`: the options of `mumoe demo`."""

CREDITS = tuple(f"{studio.credit} (through npm {studio.package.name} {studio.package.version})" for studio in STUDIOS)


@dataclass(frozen=True)
class StoredImages:
    """Opens images of one memory-mapped ``.npy`` file of shape (n, height, width, 3), uint8.

    Attributes:
        path: The file.
        rows: Its row for every image of the set.
        fingerprint: Hex digest of the pixels that it opens, in order. Sets that differ in labels or splits
            alone have the same one, and so can share features.
    """

    path: str
    rows: tuple[int, ...]
    fingerprint: str

    def __call__(self, index: int) -> Image.Image:
        """The image as an RGB PIL image."""
        from PIL import Image

        return Image.fromarray(np.array(_pixels(self.path)[self.rows[index]]))


@functools.lru_cache(maxsize=4)
def _pixels(path: str) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return pixels


def load_emoji(
    *,
    cache_dir: str | Path | None = None,
    split_by: Literal["image", "character", "studio"] = "character",
    split_seed: int = 0,
    size: int = 96,
    label: str = "subgroup",
    min_per_class: int = 40,
    skin_tones: bool = False,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    held_out: str | None = None,
    progress: bool = True,
) -> ImageData:
    """The emoji set: about 8,700 drawings, or 17,000 with skin tones.

    The first call fetches six npm packages (9 MB) and draws them, which takes some seconds; later calls read
    the cache, and need no network.

    Args:
        cache_dir: Where the packages and drawings are kept; see `mumoe.files.cache_root`.
        split_by: ``character`` keeps every character, with its skin tones and gender variants, in one split:
            the honest choice. ``image`` splits drawings at random, so that a character is often in train
            in one style and in test in another. ``studio`` tests on the style of the studio `held_out`.
        split_seed: Seed of the split.
        size: Side of the drawings in pixels.
        label: The attribute to predict, out of `ATTRIBUTES`; drawings where it is unknown are left out.
        min_per_class: Classes with fewer drawings are left out.
        skin_tones: Whether to draw the skin-tone variants of people and hands too.
        fractions: Shares of train, val and test; with ``studio`` the first two share what is not held out.
        held_out: The studio that is the test split; None takes openmoji. Only with ``studio``.
        progress: Whether to show progress on stderr.

    Returns:
        The set with the attributes of `ATTRIBUTES`: ``skin_tone`` is unknown (-1) for characters without
        tones, ``gender`` for those that are not people. It is the gender that Unicode gives the character;
        old studios drew many neutral characters as men or women.

    Raises:
        UserError: For an unknown name, a size or count out of range, or when npm or a package is missing.
        JobError: If the packages cannot be fetched, have another hash, or cannot be drawn.
    """
    _check(split_by, size, label, min_per_class, held_out)
    root = cache_root(cache_dir)
    folder = drawings(root, size, skin_tones, progress)
    rows = read_rows(folder)
    columns = _columns(rows)
    kept = _kept(columns[label], min_per_class)
    if not kept.size:
        largest = int(np.bincount(columns[label].codes[columns[label].codes >= 0]).max())
        raise UserError(
            f"emoji: expected classes of {label} with {min_per_class} images, got at most {largest}. "
            "Lower min_per_class."
        )
    attributes = {name: _reduced(column, kept) for name, column in columns.items()}
    labels = attributes[label].codes
    keys = [rows[row].group_key for row in kept]
    split = _split(split_by, keys, labels, attributes["studio"], held_out, fractions, split_seed)
    images = StoredImages(str(folder / "images.npy"), tuple(kept.tolist()), digest(folder.name, kept))
    return ImageData(
        name="emoji",
        classes=attributes[label].values,
        multi_label=False,
        labels=labels,
        split=split,
        ids=tuple(f"{rows[row].studio}/{rows[row].code}" for row in kept),
        open_image=images,
        fingerprint=digest(images.fingerprint, label, labels, split),
        attributes=attributes,
        credits=CREDITS,
        image_size=size,
        split_by=f"by {split_by}" + (f" ({held_out or 'openmoji'} in test)" if split_by == "studio" else ""),
    )


def _check(split_by: str, size: int, label: str, min_per_class: int, held_out: str | None) -> None:
    if split_by not in SPLIT_BY:
        raise unknown_name("emoji", "split_by", split_by, SPLIT_BY)
    if label not in ATTRIBUTES:
        raise unknown_name("emoji", "label", label, ATTRIBUTES)
    if not 8 <= size <= 1024:
        raise UserError(f"emoji: expected size between 8 and 1024 pixels, got {size}. The default is 96.")
    if min_per_class < 1:
        raise UserError(f"emoji: expected min_per_class of at least 1, got {min_per_class}. The default is 40.")
    if split_by == label == "studio":
        raise UserError(
            "emoji: expected another label with split_by='studio', got label='studio'. Split by image or character."
        )
    studios = [studio.name for studio in STUDIOS]
    if held_out is not None and held_out not in studios:
        raise unknown_name("emoji", "held_out studio", held_out, studios)
    if held_out is not None and split_by != "studio":
        raise UserError(
            f"emoji: expected held_out with split_by='studio' only, got split_by={split_by!r}. Leave one of them out."
        )


def _split(
    split_by: str,
    keys: Sequence[str],
    labels: npt.NDArray[np.int64],
    studio: Attribute,
    held_out: str | None,
    fractions: tuple[float, float, float],
    seed: int,
) -> npt.NDArray[np.int8]:
    if split_by == "image":
        return stratified_split(labels, fractions=fractions, seed=seed)
    if split_by == "character":
        return group_split(np.unique(keys, return_inverse=True)[1], fractions=fractions, seed=seed, labels=labels)
    if min(fractions) < 0 or fractions[0] == 0:
        raise UserError(
            f"emoji: expected fractions from 0 that leave some for train, got {fractions}. Give (0.7, 0.1, 0.2), say."
        )
    chosen = held_out or "openmoji"
    if chosen not in studio.values:
        raise unknown_name("emoji", "held_out studio with such images", chosen, studio.values)
    return holdout_split(
        studio.codes,
        studio.values.index(chosen),
        val_fraction=fractions[1] / (fractions[0] + fractions[1]),
        seed=seed,
        labels=labels,
    )


def _kept(column: Attribute, min_per_class: int) -> npt.NDArray[np.int64]:
    """Positions of the images whose class is known and large enough."""
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.values))
    return np.flatnonzero((column.codes >= 0) & (counts[column.codes] >= min_per_class))


def _reduced(column: Attribute, kept: npt.NDArray[np.int64]) -> Attribute:
    """The column over the kept images, without values that none of them has."""
    codes = column.codes[kept]
    present = np.unique(codes[codes >= 0])
    lookup = np.full(len(column.values) + 1, -1, np.int64)
    lookup[present] = np.arange(len(present))
    return Attribute(lookup[codes], tuple(column.values[k] for k in present))


def _columns(rows: Sequence[Row]) -> dict[str, Attribute]:
    fixed = {"studio": tuple(s.name for s in STUDIOS), "skin_tone": TONE_VALUES, "gender": GENDERS}
    columns = {}
    for name in ATTRIBUTES:
        texts = [str(getattr(row, name)) for row in rows]
        values = fixed.get(name) or tuple(dict.fromkeys(texts))
        place = {value: code for code, value in enumerate(values)}
        columns[name] = Attribute(np.array([place.get(text, -1) for text in texts], np.int64), values)
    return columns
