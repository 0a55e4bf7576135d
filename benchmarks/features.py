"""Feature extraction against a bare timm loop, and how long training on cached features waits for its data.

    python -m benchmarks.features [--full]

Images are drawn once and kept as JPEG files in memory; both loops open, resize and normalize them with the backbone's
own preprocessing, on the same processes. The bare loop is the usual hand-written one: a DataLoader, `torch.no_grad`,
the timm model, and a list of outputs joined at the end. `extract_features` hashes the weights, writes the file and
reads it back as well.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.measuring import Options, Work
from mumoe.data.base import ImageData
from mumoe.models.backbones import Backbone, create_backbone
from mumoe.models.features import extract_features
from mumoe.training.config import TrainConfig
from mumoe.training.jobs import train
from mumoe.training.sources import FeatureSource

HEADS = ("linear", "CPMuMoE-r256-e128", "CPMuMoE-r512-e1024")


class Images:
    """Opens JPEG files held in memory; soft random pictures of about the size of ImageNet's."""

    def __init__(self, count: int, size: tuple[int, int] = (375, 500)) -> None:
        from PIL import Image

        generator = np.random.default_rng(0)
        self.files = []
        for _ in range(count):
            coarse = generator.integers(0, 256, (size[0] // 25, size[1] // 25, 3), dtype=np.uint8)
            picture, buffer = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC), io.BytesIO()
            picture.save(buffer, "JPEG", quality=90)
            self.files.append(buffer.getvalue())

    def __call__(self, index: int) -> Any:
        from PIL import Image

        return Image.open(io.BytesIO(self.files[index])).convert("RGB")


def image_set(count: int) -> ImageData:
    """Images without meaning, all of one class."""
    zeros = np.zeros(count, np.int64)
    ids = tuple(map(str, range(count)))
    return ImageData("drawn", ("one",), False, zeros, zeros.astype(np.int8), ids, Images(count), f"drawn {count}")


class Files(torch.utils.data.Dataset[Tensor]):
    """What a hand-written loop reads."""

    def __init__(self, data: ImageData, transform: Any) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        opened: Tensor = self.transform(self.data.open_image(index))
        return opened


@torch.no_grad()
def bare_loop(data: ImageData, backbone: Backbone, batch_size: int, workers: int) -> Tensor:
    """The features by the hand-written loop."""
    loader: Any = torch.utils.data.DataLoader(Files(data, backbone.transform()), batch_size, num_workers=workers)
    model = backbone.model.eval()
    return torch.cat([model(images) for images in loader])


def extraction(backbone: str, images: int, workers: int, threads: int, seconds: float) -> dict[str, Any]:
    """Images per second of both loops, taken in turn; run it in a fresh process."""
    torch.set_num_threads(threads)
    network, data = create_backbone(backbone, pretrained=False), image_set(images)

    def ours() -> np.ndarray[Any, Any]:
        with tempfile.TemporaryDirectory() as folder:
            found = extract_features(data, network, cache_dir=folder, workers=workers, progress=False)
            return np.array(found.x)

    def bare() -> Tensor:
        return bare_loop(data, network, 64, workers)

    difference = float(np.abs(ours() - bare().numpy()).max())
    taken = measuring.in_turn({"bare": Work(bare), "ours": Work(ours)}, seconds, least=2)
    return {
        "backbone": backbone,
        "images": images,
        "workers": workers,
        "threads": threads,
        "largest_difference": float(f"{difference:.2g}"),
        "images_per_second": {name: round(images / found["median"], 2) for name, found in taken.items()},
        "seconds": taken,
    }


# Training on cached features ------------------------------------------------------------------------------


class Clock:
    """Seconds spent in making batches, and in everything else between two of them."""

    def __init__(self) -> None:
        self.waiting = self.working = 0.0
        self.steps = 0

    def watch(self, stream: Iterator[Any]) -> Iterator[Any]:
        """The same stream, timed."""
        end = None
        while True:
            start = time.perf_counter()
            if end is not None:
                self.working += start - end
            try:
                batch = next(stream)
            except StopIteration:
                return
            end = time.perf_counter()
            self.waiting, self.steps = self.waiting + end - start, self.steps + 1
            yield batch


def waiting(head: str, rows: int, width: int, classes: int, epochs: int) -> dict[str, Any]:
    """Share of a training step in which the loop waits for its batch; run it in a fresh process."""
    torch.set_num_threads(1)
    clock, stream = Clock(), FeatureSource.stream

    def timed(self: FeatureSource, batches: Sequence[Any], epoch: int | None) -> Iterator[Any]:
        found = stream(self, batches, epoch)
        return found if epoch is None else clock.watch(found)

    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, rows)
    ids, split = tuple(map(str, range(rows))), np.zeros(rows, np.int8)
    names = tuple(map(str, range(classes)))
    data = ImageData("drawn", names, False, labels, split, ids, Images(0), "drawn features")
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(FeatureSource, "stream", timed):
        path = Path(folder) / "x.npy"
        np.save(path, generator.standard_normal((rows, width), dtype=np.float32))
        features = np.load(path, mmap_mode="r")
        config = TrainConfig(head=head, epochs=epochs, out=str(Path(folder) / "run"), eval_every=0)
        train(config, data=data, features=features, progress=False)
    return {
        "head": head,
        "images": rows,
        "num_features": width,
        "classes": classes,
        "batch": config.batch_size,
        "steps": clock.steps,
        "step_seconds": float(f"{(clock.waiting + clock.working) / clock.steps:.4g}"),
        "waiting_share": float(f"{clock.waiting / (clock.waiting + clock.working):.3g}"),
    }


def main(asked: Options) -> None:
    """Measure and write the record."""
    threads = measuring.thread_counts()
    if asked.full:
        wanted = [("efficientnet-lite0", 512, 0, t, 60.0) for t in threads]
        wanted += [("efficientnet-lite0", 512, 1, 1, 60.0)] * (len(threads) > 1)
        wanted += [("vit_small_patch16_224", 128, 0, t, 60.0) for t in threads]
        training = [(head, 50_000, 768, 1000, 1) for head in HEADS]
    else:
        wanted = [("efficientnet-lite0", 64, 0, threads[-1], 5.0)]
        training = [(head, 10_000, 768, 1000, 1) for head in HEADS[:2]]
    extracted, trained = [], []
    for row in measuring.fresh(extraction, wanted):
        extracted.append(row)
        print(
            "{backbone}, {threads} threads, {workers} workers: images/s {images_per_second}".format(**row), flush=True
        )
    for row in measuring.fresh(waiting, training):
        trained.append(row)
        print("{head}: {waiting_share:.1%} of {step_seconds:.3g} s a step waiting for data".format(**row), flush=True)
    measuring.write("features", asked, {"extraction": extracted, "training": trained})


if __name__ == "__main__":
    main(measuring.options(__doc__ or ""))
