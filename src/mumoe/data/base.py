"""The common form of every data set: images by index, labels, attributes and disjoint splits.

A loader returns one `ImageData`. Training, analysis and editing read nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from mumoe.errors import JobError
from mumoe.printable import printable

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SPLITS", "Attribute", "ImageData", "NoImages", "SplitName"]

SPLITS = ("train", "val", "test")
"""Names of the splits; `ImageData.split` holds their positions."""

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Attribute:
    """One column that names subgroups, such as the studio of an emoji or CelebA's ``Male``.

    Attributes:
        codes: (num_images,) int64; ``values[codes[i]]`` is image i's value; -1 means unknown.
        values: The names of the values.
    """

    codes: npt.NDArray[np.int64]
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(map(printable, self.values)))


@dataclass(frozen=True)
class NoImages:
    """Stands in for the images of a set that has features only."""

    path: str

    def __call__(self, index: int) -> Image.Image:
        raise JobError(
            f"features: expected an image, got a set with features only ({self.path}). "
            "Give the image set itself to show, augment or fine-tune on images."
        )


@dataclass(frozen=True)
class ImageData:
    """A labelled image set whose images are opened one at a time. All its names are `printable`.

    Attributes:
        name: The name that the user gave, such as ``emoji`` or ``folder:PATH``.
        classes: Names of the classes (single-label) or of the 0/1 targets (multi-label).
        multi_label: Whether `labels` holds one 0/1 row per image.
        labels: (num_images,) int64, or (num_images, num_classes) uint8 when multi-label.
        split: (num_images,) int8, position in `SPLITS`.
        ids: A stable name per image (relative path or key), unique within the set.
        open_image: Index to an RGB PIL image of the original size. Must be picklable for loader workers.
        fingerprint: Hex digest that changes whenever an image, label, attribute or split does.
        attributes: Subgroup columns by name.
        credits: Licence and attribution lines that figures and pages showing these images must carry.
        problems: One line for each file that was left out or repaired, for the message after loading.
        image_size: Side of the images in pixels if all are of one size; 0 if they differ or it is unknown.
        split_by: How the split was made, in a few words.
    """

    name: str
    classes: tuple[str, ...]
    multi_label: bool
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
    split: npt.NDArray[np.int8]
    ids: tuple[str, ...]
    open_image: Callable[[int], Image.Image]
    fingerprint: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    credits: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    image_size: int = 0
    split_by: str = ""

    def __post_init__(self) -> None:
        for name in ("classes", "ids", "credits", "problems"):
            object.__setattr__(self, name, tuple(map(printable, getattr(self, name))))
        object.__setattr__(self, "name", printable(self.name))
        object.__setattr__(self, "attributes", {printable(key): column for key, column in self.attributes.items()})

    def __len__(self) -> int:
        return len(self.ids)

    def describe(self) -> str:
        """A summary in one line: images and their size, classes, the split and its sizes, unknown values."""
        size = f" of {self.image_size} px" if self.image_size else ""
        what = "attributes" if self.multi_label else "classes"
        parts = ", ".join(f"{name} {int((self.split == place).sum()):,}" for place, name in enumerate(SPLITS))
        unknown = {name: int((column.codes < 0).sum()) for name, column in self.attributes.items()}
        without = [f"{name} for {count:,}" for name, count in unknown.items() if count]
        return (
            f"{self.name}: {len(self):,} images{size}, {len(self.classes):,} {what}; "
            f"split {self.split_by or 'as given'}: {parts}" + (f"; unknown: {', '.join(without)}" if without else "")
        )

    @property
    def column_names(self) -> tuple[str, ...]:
        """Columns that define subgroups: the attributes, and the 0/1 targets of a multi-label set."""
        return tuple(dict.fromkeys([*self.attributes, *(self.classes if self.multi_label else ())]))

    def column(self, name: str) -> Attribute | None:
        """The values of the column `name`; None if it is not in `column_names`."""
        if name in self.attributes or name not in self.column_names:
            return self.attributes.get(name)
        return Attribute(self.labels[:, self.classes.index(name)].astype(np.int64), ("0", "1"))

    def indices(self, split: SplitName) -> npt.NDArray[np.int64]:
        """Positions of the images of one split, in the order of the set."""
        return np.flatnonzero(self.split == SPLITS.index(split)).astype(np.int64)
