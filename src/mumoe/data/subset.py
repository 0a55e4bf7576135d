"""Some images of a set, as a new set."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mumoe.data.base import ImageData

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SelectedImages", "subset"]


@dataclass(frozen=True)
class SelectedImages:
    """Opens some images of a set; picklable.

    Attributes:
        images: Opens the images of the whole set.
        rows: Position in the whole set of each image.
        fingerprint: Hex digest of the pixels that it opens, in order.
    """

    images: Callable[[int], Image.Image]
    rows: tuple[int, ...]
    fingerprint: str

    def __call__(self, index: int) -> Image.Image:
        return self.images(self.rows[index])


def subset(data: ImageData, rows: npt.NDArray[np.int64]) -> ImageData:
    """The images at these positions, in this order, with their labels, splits, ids and attributes.

    Args:
        data: The set.
        rows: (images,) positions; a repeated position gets another id, such as ``cat.png#2``.
    """
    places = tuple(rows.tolist())
    base = getattr(data.open_image, "fingerprint", data.fingerprint)
    pixels, content = (hashlib.sha256(repr((part, places)).encode()).hexdigest() for part in (base, data.fingerprint))
    return replace(
        data,
        labels=data.labels[rows],
        split=data.split[rows],
        ids=_ids(data.ids, places),
        open_image=SelectedImages(data.open_image, places, pixels),
        fingerprint=content,
        attributes={name: replace(column, codes=column.codes[rows]) for name, column in data.attributes.items()},
        problems=(),
    )


def _ids(ids: Sequence[str], places: Sequence[int]) -> tuple[str, ...]:
    """The ids of these positions, the second and later ones of a position numbered."""
    times: Counter[int] = Counter()
    found = []
    for place in places:
        times[place] += 1
        found.append(ids[place] if times[place] == 1 else f"{ids[place]}#{times[place]}")
    return tuple(found)
