"""An `ImageData` as a torch data set for loader workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mumoe.data.base import ImageData
from mumoe.data.decode import ImageError

__all__ = ["ImageDataset"]


class ImageDataset(Dataset[tuple[Any, Tensor, int]]):
    """Images of an `ImageData` as (image, target, index), where index is the position in the whole set.

    Only what a worker needs is kept, so that it pickles for spawned workers when the transform does.

    Args:
        data: The set.
        part: A split, or positions in the set.
        transform: From an RGB PIL image to what the model takes; None gives the PIL image.

    Shape:
        target: () int64, or (num_classes,) float32 when multi-label.

    Raises:
        ImageError: From an item whose image cannot be read any more or whose transform fails: one line with
            its id, also when it comes out of a worker.
    """

    def __init__(
        self,
        data: ImageData,
        part: Literal["train", "val", "test"] | npt.ArrayLike,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        indices = data.indices(part) if isinstance(part, str) else np.asarray(part, np.int64)  # type: ignore[arg-type]
        self.name, self.indices, self.transform = data.name, indices, transform
        self.open_image = data.open_image
        self.ids = np.array([data.ids[index] for index in indices], dtype=object)
        targets = torch.from_numpy(data.labels[indices])
        self.targets = targets.float() if data.multi_label else targets.long()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Any, Tensor, int]:
        index = int(self.indices[position])
        try:
            image = self.open_image(index)
            if self.transform is not None:
                image = self.transform(image)
        except Exception as error:
            words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise ImageError(
                f"{self.name}: expected to read the image {self.ids[position]!r}, got: {words}. "
                "It was readable, or not looked into, when the set was loaded (verify='full' does)."
            ) from error
        return image, self.targets[position], index
