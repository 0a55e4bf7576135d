"""Thumbnails of a report: each image of a data set once, whichever experts show it."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path

from mumoe.analysis.drawing import thumbnail
from mumoe.analysis.files import write_bytes
from mumoe.data.base import ImageData
from mumoe.progress import Progress
from mumoe.reports.views import ImageView, RunView

__all__ = ["Thumbnails"]

SIDE = 96
"""Side of a thumbnail in pixels."""


@dataclass
class Thumbnails:
    """The thumbnails that pages ask for, by folder of their data set.

    Attributes:
        drawn: Image set and positions to draw, by folder.
        copied: Files to copy, by path.
    """

    drawn: dict[str, tuple[ImageData, set[int]]]
    copied: dict[str, str]

    @staticmethod
    def none() -> Thumbnails:
        """No thumbnails yet."""
        return Thumbnails({}, {})

    def source(self, view: RunView, data: ImageData | None, item: ImageView) -> str:
        """Path of an image's thumbnail below the report, which will be there after `write`."""
        folder = f"images/{view.facts.fingerprint[:10]}"
        if item.file:
            path = f"{folder}/{item.image}{Path(item.file).suffix}"
            self.copied[path] = item.file
            return path
        assert data is not None
        self.drawn.setdefault(folder, (data, set()))[1].add(item.image)
        return f"{folder}/{item.image}.webp"

    def write(self, out: Path, *, progress: bool = False) -> None:
        """Draw and copy them into a report's folder."""
        total = sum(len(images) for _, images in self.drawn.values())
        with Progress("Drawing thumbnails", total, enabled=progress) as bar:
            for folder, (data, images) in self.drawn.items():
                (out / folder).mkdir(parents=True, exist_ok=True)
                for image in sorted(images):
                    (out / folder / f"{image}.webp").write_bytes(_webp(data, image))
                    bar.advance()
        for path, file in self.copied.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            if Path(file).is_file():
                shutil.copyfile(file, out / path)
            else:
                write_bytes(out / path, _blank())


def _webp(data: ImageData, image: int) -> bytes:
    buffer = io.BytesIO()
    thumbnail(data.open_image(image), SIDE).save(buffer, "WEBP", quality=80, method=2)
    return buffer.getvalue()


def _blank() -> bytes:
    """What stands for a thumbnail whose file is gone."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "#dddddd").save(buffer, "PNG")
    return buffer.getvalue()
