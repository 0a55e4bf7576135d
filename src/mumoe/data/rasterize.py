"""Draw many SVG images into one array on disk, with one worker process per core.

The workers run `mumoe.data.drawing` as a script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mumoe.data import drawing
from mumoe.data.drawing import REPORT_EVERY
from mumoe.errors import JobError
from mumoe.files import new_array
from mumoe.progress import Progress

__all__ = ["draw_all"]

MOST_WORKERS = 8


def draw_all(svgs: Sequence[str], size: int, path: Path, *, who: str, progress: bool = True) -> None:
    """Draw the images into a new ``.npy`` file of uint8, in order.

    Shape:
        the array is (len(svgs), size, size, 3), RGB.

    Raises:
        JobError: If an image cannot be drawn.
    """
    new_array(path, np.uint8, (len(svgs), size, size, 3)).flush()
    listing = path.with_suffix(".jsonl")
    with listing.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(svg) + "\n" for svg in svgs)
    count = min(_cores(), MOST_WORKERS, -(-len(svgs) // REPORT_EVERY))
    command = [sys.executable, "-P", drawing.__file__, str(listing), str(path)]
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
    """Add the images that a worker reports to the bar, until it ends."""
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
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
