"""Corrupted copies of an image set: gaussian noise, blur and low contrast in three severities, for tests of shift.

Every corruption keeps the size of the image. Noise is a function of the seed and the image's id alone, so that an image
is corrupted the same way in every split and order.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from mumoe.data.base import ImageData
from mumoe.data.subset import SelectedImages, subset
from mumoe.errors import UserError, require, unknown_name

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["CORRUPTIONS", "Corruption", "corrupted"]

Rng = np.random.Generator


@dataclass(frozen=True)
class Corruption:
    """A corruption of an image, and its strength at severities 1, 2 and 3.

    Attributes:
        text: What it does, with the unit of `amounts`.
        amounts: One for each severity.
        apply: (RGB image, amount, generator) -> RGB image of the same size.
    """

    text: str
    amounts: tuple[float, ...]
    apply: Callable[[Image.Image, float, Rng], Image.Image]


def _noise(image: Image.Image, deviation: float, rng: Rng) -> Image.Image:
    pil = require("PIL.Image", "vision", "corrupted")
    pixels = np.asarray(image, dtype=np.float32)
    noisy = pixels + 255 * deviation * rng.standard_normal(pixels.shape, dtype=np.float32)
    found: Image.Image = pil.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    return found


def _blur(image: Image.Image, radius: float, rng: Rng) -> Image.Image:
    filters = require("PIL.ImageFilter", "vision", "corrupted")
    return image.filter(filters.GaussianBlur(radius * min(image.size)))


def _low_contrast(image: Image.Image, factor: float, rng: Rng) -> Image.Image:
    enhance = require("PIL.ImageEnhance", "vision", "corrupted")
    found: Image.Image = enhance.Contrast(image).enhance(factor)
    return found


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian-noise": Corruption("standard deviation, of a range of 1", (0.06, 0.12, 0.24), _noise),
    "blur": Corruption("radius of a gaussian blur, as a share of the shorter side", (0.01, 0.02, 0.04), _blur),
    "low-contrast": Corruption("factor of the contrast around the mean grey", (0.5, 0.25, 0.12), _low_contrast),
}
"""Corruptions by name."""


@dataclass(frozen=True)
class CorruptedImages:
    """Opens corrupted images; picklable.

    Attributes:
        images: Opens the images themselves.
        seeds: One number for each image.
        name: Name of the corruption.
        severity: 1, 2 or 3.
        fingerprint: Hex digest of the pixels that it opens, in order.
    """

    images: Callable[[int], Image.Image]
    seeds: tuple[int, ...]
    name: str
    severity: int
    fingerprint: str

    def __call__(self, index: int) -> Image.Image:
        kind = CORRUPTIONS[self.name]
        rng = np.random.default_rng(self.seeds[index])
        return kind.apply(self.images(index).convert("RGB"), kind.amounts[self.severity - 1], rng)


def corrupted(data: ImageData, rows: npt.NDArray[np.int64], name: str, severity: int, *, seed: int = 0) -> ImageData:
    """Some images of a set, corrupted.

    Args:
        data: The set.
        rows: Positions of the images.
        name: Name of the corruption, one of `CORRUPTIONS`.
        severity: 1, 2 or 3.
        seed: Seed of the noise.

    Raises:
        UserError: If there is no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise unknown_name("corrupted", "corruption", name, CORRUPTIONS)
    if not 1 <= severity <= len(CORRUPTIONS[name].amounts):
        raise UserError(f"corrupted: expected a severity of 1, 2 or 3, got {severity}.")
    clean = subset(data, rows)
    seeds = tuple(zlib.crc32(f"{seed} {identity}".encode()) for identity in clean.ids)
    images = cast(SelectedImages, clean.open_image)
    parts = (seeds, name, CORRUPTIONS[name].amounts[severity - 1])
    pixels, content = (
        hashlib.sha256(repr((base, *parts)).encode()).hexdigest() for base in (images.fingerprint, clean.fingerprint)
    )
    opened = CorruptedImages(images, seeds, name, severity, pixels)
    return replace(clean, name=f"{data.name}, {name} {severity}", open_image=opened, fingerprint=content)
