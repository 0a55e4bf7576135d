"""Draw many SVG pictures into one array on disk, with one worker process per core.

The workers run this file as a script, so that they load no more than numpy, Pillow and resvg.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from mumoe.progress import Progress

__all__ = ["draw", "draw_all"]

MOST_WORKERS = 8
REPORT_EVERY = 16


def draw(svg: str, size: int) -> npt.NDArray[np.uint8]:
    """One square SVG picture on white.

    Shape:
        returns (size, size, 3), RGB.
    """
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as image:
        return np.asarray(image.convert("RGB"))


def draw_all(svgs: Sequence[str], size: int, path: Path, *, who: str, progress: bool = True) -> None:
    """Draw the pictures into a new ``.npy`` file of uint8, in their order.

    Shape:
        the array is (len(svgs), size, size, 3), RGB.

    Raises:
        JobError: If a picture cannot be drawn.
    """
    from mumoe.progress import Progress

    np.lib.format.open_memmap(path, "w+", np.uint8, (len(svgs), size, size, 3)).flush()
    listing = path.with_suffix(".jsonl")
    with listing.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(svg) + "\n" for svg in svgs)
    count = min(_cores(), MOST_WORKERS, -(-len(svgs) // REPORT_EVERY))
    command = [sys.executable, "-P", __file__, str(listing), str(path)]
    workers = [
        subprocess.Popen([*command, str(k), str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for k in range(count)
    ]
    with (
        Progress(f"Drawing images at {size} px", len(svgs), enabled=progress) as bar,
        ThreadPoolExecutor(max(count, 1)) as pool,
    ):
        try:
            list(pool.map(lambda worker: _follow(worker, bar, who), workers))
        finally:
            for worker in workers:
                worker.kill()
    listing.unlink()


def _follow(worker: subprocess.Popen[str], bar: Progress, who: str) -> None:
    """Count what a worker reports, until it ends."""
    from mumoe.errors import JobError

    assert worker.stdout is not None
    assert worker.stderr is not None
    with worker:
        for line in worker.stdout:
            bar.advance(int(line))
        said = worker.stderr.read().splitlines()
    if worker.returncode:
        reason = said[-1] if said else f"exit status {worker.returncode}"
        raise JobError(f"{who}: expected resvg to draw every picture, got: {reason}. Install resvg-py==0.5.0.")


def _cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _work(listing: str, path: str, first: int, step: int) -> None:
    """Draw every `step`-th picture of the listing, reporting how many at a time."""
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
