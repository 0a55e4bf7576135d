"""What every process of test_shares runs, started by torchrun: extractions in turn, and how each of them ended.

Argument: a folder. Each process writes ``RANK.json`` there: case -> what it extracted, or the error that it raised.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from mumoe.data.base import ImageData
from mumoe.errors import JobError
from mumoe.models import features
from mumoe.models.backbones import create_backbone
from mumoe.training.distributed import leave

COUNT, BATCH = 11, 2


def images(log: Path | None = None, broken: int = -1) -> ImageData:
    """Eleven images of noise; each that is opened is written down in `log`."""

    def open_image(index: int) -> Image.Image:
        if log is not None:
            with log.open("a") as file:
                file.write(f"{index}\n")
        if index == broken:
            raise OSError("image file is truncated")
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (70, 60, 3), dtype=np.uint8))

    zeros, ids = np.zeros(COUNT, np.int64), tuple(f"noise/{k}" for k in range(COUNT))
    return ImageData("noise", ("a",), False, zeros, zeros.astype(np.int8), ids, open_image, f"noise {broken}")


def extract(data: ImageData, cache: Path, together: bool = True) -> features.Features:
    backbone = create_backbone("test_efficientnet", pretrained=False, image_size=64)
    return features.extract_features(
        data, backbone, cache_dir=cache, batch_size=BATCH, together=together, progress=False
    )


def _cases(folder: Path, rank: int) -> dict[str, Callable[[], features.Features]]:
    def full() -> features.Features:
        """The process that writes finds no room after two batches."""
        whole = features._fill

        def fill(path: Path, shape: Any, outputs: Any, progress: bool) -> None:
            next(outputs), next(outputs)
            raise OSError(28, "No space left on device")

        features._fill = fill
        try:
            return extract(images(), folder / "full")
        finally:
            features._fill = whole

    return {
        "shared": lambda: extract(images(folder / f"opened-{rank}"), folder / "cache"),
        "again": lambda: extract(images(folder / f"opened-again-{rank}"), folder / "cache"),
        "apart": lambda: extract(images(), folder / f"apart-{rank}"),
        "one has it": lambda: extract(images(), folder / f"{'cache' if rank else 'new'}"),
        "broken": lambda: extract(images(broken=2), folder / "broken"),
        "full": full,
        "after": lambda: extract(images(), folder / "after"),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ended = dist.get_rank(), {}
    for name, case in _cases(folder, rank).items():
        try:
            found = case()
            ended[name] = {"extracted": found.extracted, "path": str(found.path)}
        except Exception as error:
            kind = "JobError" if isinstance(error, JobError) else type(error).__name__
            ended[name] = {"error": f"{kind}: {error}"}
    (folder / f"{rank}.json").write_text(json.dumps(ended))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
