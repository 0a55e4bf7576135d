"""What a head's layer sees of cached features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe.training.sources import FeatureSource

if TYPE_CHECKING:
    from mumoe.models.heads import Head
    from mumoe.training.inputs import Inputs

__all__ = ["layer_batches"]


def layer_batches(
    head: Head, inputs: Inputs, rows: npt.NDArray[np.int64], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of the head's layer, with the labels, batch by batch.

    Args:
        head: A head on features.
        inputs: Its data, with features.
        rows: Positions of the images.
        size: Images of a batch.

    Shape:
        yields (batch, in_features), on the device of the head, and labels (batch,) or (batch, targets).
    """
    assert inputs.features is not None
    source = FeatureSource(inputs.features, inputs.data.labels, head.mean.device)
    batches = [np.ascontiguousarray(rows[start : start + size]) for start in range(0, len(rows), size)]
    for features, labels in source.stream(batches, None):
        with torch.no_grad():
            yield head.prepare(features), labels
