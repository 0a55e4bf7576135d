"""Decode any image file that is common in data sets to 8-bit RGB, or raise one error that names the file.

Image formats leave these points open; they are decided here:

- Transparency (palette, RGBA, LA, or a transparent colour) is composited on white.
- Sixteen-bit grey is scaled from 0..65535 to 0..255; Pillow alone would clip it to white. Images of 32-bit
  integers or floats have no agreed range: 0..1 (floats), 0..255 (floats) and 0..65535 are recognized as such,
  anything else is stretched from its own minimum to its own maximum.
- An animation gives its first frame. The orientation in the EXIF data is applied.
- A truncated file is an error instead of an image with a grey bottom. So is an image of more than `MAX_PIXELS` pixels.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mumoe.errors import JobError, reason_of, require
from mumoe.files import regular_size

require("PIL", "vision", "mumoe.data")

from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: E402

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "MAX_PIXELS",
    "ImageError",
    "as_rgb",
    "damage",
    "decode",
    "open_header",
    "read_image",
]

MAX_PIXELS = 89_478_485
"""Larger images are rejected: one of this size already takes 268 MB when decoded. It is Pillow's own limit."""

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"}
)
"""Extensions (lower case) of the files that count as images in a folder."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Formats that Pillow may detect, regardless of a file's extension. EPS is left out: it would run Ghostscript."""

_ORIENTATION = 0x0112


class ImageError(JobError):
    """An image that cannot be read. The message is one line and names the file.

    A loader worker passes an exception on by calling its class with the worker's whole traceback as text.
    This class keeps only its last line, so that the message stays one line.
    """

    def __init__(self, message: str) -> None:
        if "Traceback (most recent call last)" in message:
            message = message.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(message)


def read_image(source: str | os.PathLike[str] | bytes, *, name: str = "") -> Image.Image:
    """Decode an image to RGB, upright, eight bits, its original size.

    Args:
        source: A path, or the bytes of a file.
        name: Name of the image in errors; by default its path.

    Raises:
        ImageError: If the file is missing, empty, truncated, too large, or not an image.
    """
    called = name or ("an image in memory" if isinstance(source, bytes) else os.fspath(source))
    try:
        data = source if isinstance(source, bytes) else _content(Path(source))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode(data)
    except Exception as error:
        raise ImageError(
            f"read_image: expected an image in {called!r}, got: {damage(error)}. Replace or remove it."
        ) from error


def _content(path: Path) -> bytes:
    regular_size(path)
    return path.read_bytes()


def as_rgb(image: Image.Image) -> Image.Image:
    """An image in memory as RGB, upright, eight bits.

    Raises:
        ImageError: If its file turns out to be damaged.
    """
    try:
        return _rgb(_upright(image))
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"as_rgb: expected an image, got: {damage(error)}. Replace or remove it.") from error


def decode(data: bytes) -> Image.Image:
    """`read_image` without its error handling, and without silencing Pillow's warnings; safe to call from threads.

    Raises:
        Exception: Any error of Pillow; `damage` describes it.
    """
    if not data:
        raise EOFError("the file is empty")
    with open_header(io.BytesIO(data)) as image:
        image.load()
        return _rgb(_upright(image))


def open_header(file: IO[bytes]) -> Image.Image:
    """Open an image without decoding it; raise if its header declares too many pixels.

    Raises:
        Exception: Any error of Pillow, including `Image.DecompressionBombError`.
    """
    image = Image.open(file, formats=_formats())
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    """The FORMATS that the installed Pillow supports."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def damage(error: Exception) -> str:
    """In a few words, what is wrong with a file that failed to decode."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder"
    if isinstance(error, MemoryError):
        return "too little memory to decode it"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS} pixels"
    if "truncated" in str(error).lower():
        return "the image is truncated"
    return reason_of(error) if isinstance(error, EOFError) and str(error) else f"damaged ({reason_of(error)})"


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, unless the EXIF data cannot be parsed."""
    try:
        turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    if image.mode == "RGB":
        return image.copy()
    return image.convert("RGB")


def _eight_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Grey values of any depth as 0..255; see the top of the module for which range is assumed."""
    grey = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled = (grey - low) * (255.0 / max(high - low, 1e-30))
    return np.rint(scaled).astype(np.uint8)
