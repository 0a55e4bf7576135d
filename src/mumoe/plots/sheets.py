"""Sheets of images: tiles with two lines of text below, headings, credits; thumbnails as files beside them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mumoe.files import write_bytes

if TYPE_CHECKING:
    from PIL import Image

    from mumoe.data.base import ImageData

__all__ = ["Sheet", "encoded", "font", "shortened", "thumbnail", "wrapped", "write_thumbnails"]

INK, PALE, STRIP, WHITE = "#1a1a1a", "#5f6368", "#20242a", "#ffffff"
GREEN, RED = "#7dff6b", "#ff9d8f"
"""On a dark strip."""

MARGIN, BAND, LINE = 14, 30, 15
"""Pixels around a sheet, of the strip below a tile, and between two small lines of text."""


class Sheet:
    """A white image, drawn on by pixel positions.

    Args:
        width: Its width in pixels.
        height: Its height without the footer.
        footer: Paragraphs at the bottom, such as credits.
    """

    def __init__(self, width: int, height: int, footer: Sequence[str]) -> None:
        from PIL import Image, ImageDraw

        lines = wrapped(footer, width - 2 * MARGIN, 11)
        self.image = Image.new("RGB", (width, height + LINE * len(lines) + MARGIN), "white")
        self._pen = ImageDraw.Draw(self.image)
        for number, line in enumerate(lines):
            self.text((MARGIN, height + LINE * number), line, 11, PALE)

    def text(self, corner: tuple[int, int], text: str, points: int, colour: str = INK, width: int = 0) -> None:
        """Write one line, cut to a width in pixels if one is given."""
        self._pen.text(corner, shortened(text, width, points) if width else text, fill=colour, font=font(points))

    def tile(self, corner: tuple[int, int], picture: Image.Image, name: str, below: str, colour: str) -> None:
        """A thumbnail over a strip with its name and a line in a colour."""
        (x, y), size = corner, picture.width
        self.image.paste(picture, (x, y))
        self._pen.rectangle((x, y + size, x + size - 1, y + size + BAND - 1), fill=STRIP)
        self._pen.rectangle((x, y, x + size - 1, y + size + BAND - 1), outline="#c8ccd1")
        self.text((x + 4, y + size + 1), name, 11, WHITE, size - 8)
        self.text((x + 4, y + size + LINE), below, 11, colour, size - 8)

    def box(self, corner: tuple[int, int], size: tuple[int, int], colour: str) -> None:
        """A filled rectangle; nothing if a side is 0."""
        (x, y), (width, height) = corner, size
        if width > 0 and height > 0:
            self._pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)

    def save(self, path: Path) -> None:
        """Write it as PNG."""
        write_bytes(path, encoded(self.image, "PNG"))


def write_thumbnails(folder: Path, data: ImageData, images: Iterable[int], size: int) -> dict[int, Image.Image]:
    """Write FOLDER/thumbnails/IMAGE.png for each image of the data; returns them."""
    (folder / "thumbnails").mkdir()
    opened = {image: thumbnail(data.open_image(image), size) for image in sorted(set(images))}
    for image, picture in opened.items():
        (folder / "thumbnails" / f"{image}.png").write_bytes(encoded(picture, "PNG"))
    return opened


def thumbnail(picture: Image.Image, size: int) -> Image.Image:
    """The whole image on a white square."""
    from PIL import Image, ImageOps

    small = ImageOps.contain(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), "white")
    square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return square


def encoded(picture: Image.Image, kind: str) -> bytes:
    """The bytes of a file of this kind, such as ``PNG``."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True)
    return buffer.getvalue()


def font(points: int) -> Any:
    """The default font at a size."""
    from PIL import ImageFont

    return ImageFont.load_default(points)


def shortened(text: str, width: int, points: int) -> str:
    """The text cut to a width in pixels, with an ellipsis where something is missing."""
    measure: Callable[[str], float] = font(points).getlength
    if measure(text) <= width:
        return text
    while text and measure(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def wrapped(paragraphs: Sequence[str], width: int, points: int) -> list[str]:
    """Lines of paragraphs broken at words to fit a width in pixels."""
    measure: Callable[[str], float] = font(points).getlength
    lines: list[str] = []
    for paragraph in paragraphs:
        line = ""
        for word in paragraph.split():
            if line and measure(f"{line} {word}") > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    return [line for line in lines if line]
