"""Shared by the sets of drawings: stored pixels, options, columns, and how they become an `ImageData`."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mumoe.data.base import Attribute, ImageData
from mumoe.data.splits import holdout_split
from mumoe.errors import UserError, unknown_name
from mumoe.files import read_array

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DrawnOptions", "StoredImages", "columns_of", "digest", "drawn_data", "hold_out", "select"]


@dataclass(frozen=True)
class StoredImages:
    """Opens images of one memory-mapped ``.npy`` file of shape (n, height, width, 3), uint8.

    Attributes:
        path: The file.
        rows: Its row for every image of the set.
        fingerprint: Hex digest of the pixels that it opens, in order. Sets that differ only in labels or splits
            have the same digest, so they can share features.
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
    pixels: npt.NDArray[np.uint8] = read_array(Path(path), mapped=True)
    return pixels


def digest(*parts: object) -> str:
    """SHA-256 over texts and arrays, each with its length, as hex digits."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else str(part).encode()
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()


@dataclass(frozen=True)
class DrawnOptions:
    """Options of a set of drawings.

    Attributes:
        split_by: How the split is made.
        label: The attribute to predict.
        size: Side of the drawings in pixels.
        min_per_class: Classes with fewer drawings are left out.
        held_out: The designer whose drawings are the test split, if the split is by designer; None for the default.
        fractions: Shares of train, val and test.
        seed: Seed of the split.
    """

    split_by: str
    label: str
    size: int
    min_per_class: int
    held_out: str | None
    fractions: tuple[float, float, float]
    seed: int

    def check(
        self, who: str, *, splits: Sequence[str], labels: Sequence[str], designer: str, names: Sequence[str], least: int
    ) -> None:
        """Reject options that are unknown, out of range or in conflict.

        Args:
            who: Prefix of the messages.
            splits: The values of `split_by`; the one equal to `designer` holds out a designer.
            labels: The values of `label`.
            designer: The attribute that names the designers.
            names: The designers.
            least: The default of `min_per_class`, for the message.

        Raises:
            UserError: For the first option that is wrong.
        """
        if self.split_by not in splits:
            raise unknown_name(who, "split_by", self.split_by, splits)
        if self.label not in labels:
            raise unknown_name(who, "label", self.label, labels)
        if not 8 <= self.size <= 1024:
            raise UserError(f"{who}: expected size between 8 and 1024 pixels, got {self.size}. The default is 96.")
        if self.min_per_class < 1:
            raise UserError(
                f"{who}: expected min_per_class of at least 1, got {self.min_per_class}. The default is {least}."
            )
        if self.split_by == self.label == designer:
            others = " or ".join(split for split in splits if split != designer)
            raise UserError(
                f"{who}: expected another label with split_by={designer!r}, got label={designer!r}. Split by {others}."
            )
        if self.held_out is not None and self.held_out not in names:
            raise unknown_name(who, f"held_out {designer}", self.held_out, names)
        if self.held_out is not None and self.split_by != designer:
            raise UserError(
                f"{who}: expected held_out with split_by={designer!r} only, got split_by={self.split_by!r}. "
                "Leave one of them out."
            )


def columns_of(rows: Sequence[Any], names: Sequence[str], fixed: Mapping[str, tuple[str, ...]]) -> dict[str, Attribute]:
    """One attribute for each named field of the rows.

    Args:
        rows: Records with these fields.
        names: The fields.
        fixed: The values of some fields; any other text in them is unknown. The values of the other fields are
            their texts, in order of appearance.
    """
    columns = {}
    for name in names:
        texts = [str(getattr(row, name)) for row in rows]
        values = fixed.get(name) or tuple(dict.fromkeys(texts))
        place = {value: code for code, value in enumerate(values)}
        columns[name] = Attribute(np.array([place.get(text, -1) for text in texts], np.int64), values)
    return columns


def select(
    who: str, columns: Mapping[str, Attribute], options: DrawnOptions
) -> tuple[npt.NDArray[np.int64], dict[str, Attribute]]:
    """The drawings whose class is known and large enough, and their attributes.

    Returns:
        Positions of the drawings, and every column restricted to them, without unused values.

    Raises:
        UserError: If no class has enough drawings.
    """
    column = columns[options.label]
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.values))
    kept = np.flatnonzero((column.codes >= 0) & (counts[column.codes] >= options.min_per_class))
    if not kept.size:
        raise UserError(
            f"{who}: expected classes of {options.label} with {options.min_per_class} images, "
            f"got at most {int(counts.max())}. Lower min_per_class."
        )
    return kept, {name: _reduced(column, kept) for name, column in columns.items()}


def _reduced(column: Attribute, kept: npt.NDArray[np.int64]) -> Attribute:
    """The column restricted to the kept images, without unused values."""
    codes = column.codes[kept]
    present = np.unique(codes[codes >= 0])
    lookup = np.full(len(column.values) + 1, -1, np.int64)
    lookup[present] = np.arange(len(present))
    return Attribute(lookup[codes], tuple(column.values[k] for k in present))


def hold_out(
    who: str, designer: str, attributes: Mapping[str, Attribute], options: DrawnOptions, default: str
) -> npt.NDArray[np.int8]:
    """A split that tests on the images of one designer; train and val share the others.

    Raises:
        UserError: If the fractions leave nothing for train, or the designer has no image of the set.
    """
    fractions = options.fractions
    if min(fractions) < 0 or fractions[0] == 0:
        raise UserError(
            f"{who}: expected fractions >= 0 that leave some for train, got {fractions}. Use (0.7, 0.1, 0.2)."
        )
    column, chosen = attributes[designer], options.held_out or default
    if chosen not in column.values:
        raise unknown_name(who, f"held_out {designer} with such images", chosen, column.values)
    return holdout_split(
        column.codes,
        column.values.index(chosen),
        val_fraction=fractions[1] / (fractions[0] + fractions[1]),
        seed=options.seed,
        labels=attributes[options.label].codes,
    )


def drawn_data(
    who: str,
    folder: Path,
    places: npt.NDArray[np.int64],
    *,
    attributes: Mapping[str, Attribute],
    split: npt.NDArray[np.int8],
    ids: tuple[str, ...],
    credits: tuple[str, ...],
    options: DrawnOptions,
    split_by: str,
) -> ImageData:
    """The data set of the drawings at `places` of the folder's ``images.npy``.

    Args:
        who: Name of the set.
        folder: A sealed folder; its name contains a key of its pixels.
        places: Row of ``images.npy`` for every image.
        attributes: Columns over these images.
        split: Split of each image.
        ids: Name of each image.
        credits: Attribution and licences.
        options: The chosen options.
        split_by: How the split was made, in a few words.
    """
    images = StoredImages(str(folder / "images.npy"), tuple(places.tolist()), digest(folder.name, places))
    labels = attributes[options.label].codes
    return ImageData(
        name=who,
        classes=attributes[options.label].values,
        multi_label=False,
        labels=labels,
        split=split,
        ids=ids,
        open_image=images,
        fingerprint=digest(images.fingerprint, options.label, labels, split),
        attributes=attributes,
        credits=credits,
        image_size=options.size,
        split_by=split_by,
    )
