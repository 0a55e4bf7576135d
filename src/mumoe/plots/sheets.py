"""Small parts of sheets of images: thumbnails, text that fits, colours."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["encoded", "font", "shortened", "thumbnail", "wrapped"]

INK, PALE, STRIP, WHITE = "#1a1a1a", "#5f6368", "#20242a", "#ffffff"
GREEN, RED = "#7dff6b", "#ff9d8f"
"""On a dark strip."""


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
