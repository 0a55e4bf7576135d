"""Thumbnails of a report: those that are shown together share one file, so that a page loads few files.

A page shows a thumbnail as an image whose frame is moved over the shared file. One file for each list of images,
instead of one for each image, keeps thousands of experts quick to write, to send and to scroll through.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mumoe.data.base import ImageData
from mumoe.errors import JobError, require
from mumoe.plots.sheets import thumbnail
from mumoe.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageView", "Sprites", "Tile"]

SIDE = 96
"""Side of a thumbnail in pixels."""

COLUMNS = 20
"""Thumbnails side by side in a file."""

KEPT = 2048
"""Thumbnails kept in memory, 28 kB each: images that several experts process are opened once."""


@dataclass(frozen=True)
class ImageView:
    """One image of an expert.

    Attributes:
        image: Its position in the data set.
        label: Its class, or its targets.
        coefficient: The expert's coefficient, in [0, 1].
        file: A thumbnail that exists already, or empty: it is drawn from the data set.
    """

    image: int
    label: str
    coefficient: float
    file: str = ""


@dataclass(frozen=True)
class Tile:
    """One thumbnail on a page: the file relative to the report, where in it, and what it shows."""

    src: str
    x: int
    y: int
    label: str
    coefficient: float


@dataclass
class Sprites:
    """The files of thumbnails that pages refer to; drawn when all pages are written.

    Attributes:
        files: Image set and images of each file, by path below the report.
    """

    files: dict[str, tuple[ImageData | None, tuple[ImageView, ...]]] = field(default_factory=dict)

    def tiles(self, path: str, data: ImageData | None, images: Sequence[ImageView]) -> list[Tile]:
        """Thumbnails of a list of images, in one file at this path."""
        self.files[path] = (data, tuple(images))
        return [
            Tile(path, n % COLUMNS * SIDE, n // COLUMNS * SIDE, item.label, item.coefficient)
            for n, item in enumerate(images)
        ]

    def write(self, out: Path, *, progress: bool = False) -> None:
        """Draw all files into a report's folder."""
        openers: dict[int, Callable[[int], Image.Image]] = {}
        with Progress("Drawing thumbnails", len(self.files), enabled=progress) as bar:
            for path, (data, images) in self.files.items():
                if data is not None and id(data) not in openers:
                    openers[id(data)] = _opener(data)
                (out / path).parent.mkdir(parents=True, exist_ok=True)
                (out / path).write_bytes(_encoded(images, openers.get(id(data))))
                bar.advance()


def _opener(data: ImageData) -> Callable[[int], Image.Image]:
    return functools.lru_cache(KEPT)(lambda image: thumbnail(data.open_image(image), SIDE))


def _encoded(images: Sequence[ImageView], opened: Callable[[int], Image.Image] | None) -> bytes:
    """The thumbnails in rows, as the bytes of a WebP file."""
    from PIL import Image

    columns, rows = min(len(images), COLUMNS), -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
    for n, item in enumerate(images):
        sheet.paste(_drawn(item, opened), (n % COLUMNS * SIDE, n // COLUMNS * SIDE))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=80, method=2)
    return buffer.getvalue()


def _drawn(item: ImageView, opened: Callable[[int], Image.Image] | None) -> Image.Image:
    """A thumbnail from its file, or from the data set; grey if a file is missing."""
    from PIL import Image

    if not item.file:
        assert opened is not None
        return opened(item.image)
    try:
        return thumbnail(require("mumoe.data.decode", "vision", "report").read_image(item.file), SIDE)
    except JobError:
        return Image.new("RGB", (SIDE, SIDE), "#dddddd")
