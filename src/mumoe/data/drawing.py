"""Draw an SVG image as pixels. As a script, draw every n-th image of a listing into an array on disk.

`mumoe.data.rasterize` runs the script once per core. It imports numpy, Pillow and resvg alone, so that it starts fast.
"""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["REPORT_EVERY", "draw"]

REPORT_EVERY = 16
"""Images between two lines of the script's progress report."""


def draw(svg: str, size: int) -> npt.NDArray[np.uint8]:
    """Draw one square SVG image on white.

    Shape:
        returns (size, size, 3), RGB.
    """
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as image:
        return np.asarray(image.convert("RGB"))


def _work(listing: str, path: str, first: int, step: int) -> None:
    """Draw every `step`-th image of the listing; print the number drawn since the last report."""
    pixels = np.load(path, mmap_mode="r+")
    unreported = 0
    with open(listing, encoding="utf-8") as lines:
        for row, line in enumerate(lines):
            if row % step == first:
                pixels[row] = draw(json.loads(line), pixels.shape[1])
                unreported += 1
            if unreported == REPORT_EVERY:
                sys.stdout.write(f"{unreported}\n")
                sys.stdout.flush()
                unreported = 0
    pixels.flush()
    sys.stdout.write(f"{unreported}\n")


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
