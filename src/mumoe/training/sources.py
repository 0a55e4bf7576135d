"""Where batches come from: a matrix of cached features, image files through loader workers, or tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mumoe.data.base import ImageData
from mumoe.data.text import TextData
from mumoe.errors import JobError, reason_of
from mumoe.training.sampler import Indices, derived_seed

__all__ = ["BatchSource", "FeatureSource", "ImageSource", "TextSource", "label_tensor"]

_KEEP_ON_DEVICE = 1 << 30


class BatchSource(Protocol):
    """Batches for the training loop and the evaluation."""

    def stream(self, batches: Sequence[Indices], epoch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of each batch, on the device; `epoch` None means no augmentation."""


def label_tensor(labels: npt.NDArray[Any]) -> Tensor:
    """Class positions as int64, or 0/1 rows as float32."""
    return torch.from_numpy(labels.astype(np.float32 if labels.ndim == 2 else np.int64))


class FeatureSource:
    """Rows of a feature matrix, without a loader: a gather from memory, or from the mapped file.

    Args:
        features: (num_images, num_features) floats, usually a memory map; batches are float32.
        labels: As in `ImageData`.
        device: Device of the batches; if it is an accelerator, a matrix below one GiB is copied there once.
    """

    def __init__(
        self, features: npt.NDArray[np.float32], labels: npt.NDArray[Any], device: torch.device | str = "cpu"
    ) -> None:
        self.features, self.labels = features, label_tensor(labels)
        self.device = torch.device(device)
        self._held: Tensor | None = None
        if self.device.type != "cpu" and features.nbytes <= _KEEP_ON_DEVICE:
            self._held = torch.from_numpy(np.array(features, dtype=np.float32)).to(self.device)

    def stream(self, batches: Sequence[Indices], epoch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (B, num_features) and labels of each batch."""
        for batch in batches:
            rows = torch.from_numpy(batch)
            yield self._rows(rows), self.labels[rows].to(self.device)

    def _rows(self, rows: Tensor) -> Tensor:
        if self._held is not None:
            return self._held[rows.to(self.device)]
        return torch.from_numpy(np.asarray(self.features[rows.numpy()], dtype=np.float32)).to(self.device)


class ImageSource:
    """Images opened and transformed by loader workers, bit-identical for any number of them.

    The randomness of an image's augmentation is derived from (seed, epoch, image), never from a worker's
    own generator.

    Args:
        data: The images.
        train_transform: PIL image to tensor, with augmentation.
        transform: PIL image to tensor, without.
        seed: Seed of the augmentation.
        workers: Loader processes (0: in this process).
        device: Device of the batches.
    """

    def __init__(
        self,
        data: ImageData,
        train_transform: Callable[[Any], Tensor],
        transform: Callable[[Any], Tensor],
        *,
        seed: int,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data, self.seed, self.workers = data, seed, workers
        self.train_transform, self.transform = train_transform, transform
        self.device = torch.device(device)

    def stream(self, batches: Sequence[Indices], epoch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (B, 3, H, W) and labels of each batch."""
        transform = self.transform if epoch is None else self.train_transform
        images = _Images(self.data, transform, self.seed, epoch)
        loader = DataLoader(
            images,
            batch_sampler=_Listed(batches),
            num_workers=self.workers,
            collate_fn=_collate,
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=self.device.type == "cuda",
        )
        labels = label_tensor(self.data.labels)
        for inputs, rows in loader:
            if isinstance(inputs, str):
                raise JobError(f"{self.data.name}: {inputs}")
            yield inputs.to(self.device, non_blocking=True), labels[rows].to(self.device, non_blocking=True)


class TextSource:
    """Windows of a memory-mapped text, without a loader.

    In training the grid of windows is shifted by an amount that is a function of (seed, epoch).

    Args:
        data: The text.
        seed: Seed of the shifts.
        device: Device of the batches.
    """

    def __init__(self, data: TextData, *, seed: int, device: torch.device | str = "cpu") -> None:
        self.data, self.seed, self.device = data, seed, torch.device(device)

    def stream(self, batches: Sequence[Indices], epoch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens (B, context) and the tokens that follow each (B, context), of each batch."""
        shift = 0 if epoch is None else derived_seed(self.seed, epoch, 3) % self.data.context
        for batch in batches:
            windows = [self.data.window(int(row), shift) for row in batch]
            tokens = torch.from_numpy(np.stack(windows)) if windows else torch.empty(0, self.data.context + 1).long()
            tokens = tokens.to(self.device)
            yield tokens[:, :-1], tokens[:, 1:]


class _Images(Dataset[tuple[Tensor | str, int]]):
    """An image by index, augmented with its own random state; or the reason why it cannot be loaded."""

    def __init__(self, data: ImageData, transform: Callable[[Any], Tensor], seed: int, epoch: int | None) -> None:
        self.data, self.transform, self.seed, self.epoch = data, transform, seed, epoch

    def __getitem__(self, index: int) -> tuple[Tensor | str, int]:
        try:
            image = self.data.open_image(index)
            if self.epoch is None:
                return self.transform(image), index
            with _own_randomness(derived_seed(self.seed, self.epoch, index, 1)):
                return self.transform(image), index
        except Exception as error:
            # A worker's exception would be shown with the worker's traceback.
            why = reason_of(error, 200)
            return f"expected to open and transform {self.data.ids[index]!r}, got {why}. Repair or remove it.", index


class _Listed(Iterable[list[int]]):
    """Batches that are already made, as a batch sampler."""

    def __init__(self, batches: Sequence[Indices]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)


def _collate(items: list[tuple[Tensor | str, int]]) -> tuple[Tensor | str, Tensor]:
    images = [image for image, _ in items if isinstance(image, Tensor)]
    rows = torch.tensor([index for _, index in items], dtype=torch.int64)
    if len(images) < len(items):
        return next(image for image, _ in items if isinstance(image, str)), rows
    return torch.stack(images) if images else torch.empty(0), rows


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seed python, numpy and torch inside, and restore their states afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002 (what augmentations use)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
