"""The order of the images, as a pure function of (seed, epoch): a checkpoint need not store it.

An epoch of n images is cut into ceil(n / batch_size) batches of equal size (to one image), so that no batch
is larger than requested and none is tiny: batch-normalized gates never see a batch of one. In the same way
a batch is cut into accumulated parts, and a part into the shares of the processes, of an even number of images each
but the last: the neighbours that mixup mixes stay together.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from mumoe.errors import UserError
from mumoe.training.config import TrainConfig

__all__ = ["batches_per_epoch", "derived_seed", "epoch_batches", "least_rows", "shares"]

Indices = npt.NDArray[np.int64]


def derived_seed(*parts: int) -> int:
    """A 63-bit seed out of several numbers (seed, epoch, image, ...), well mixed."""
    state = np.random.SeedSequence(parts).generate_state(2, np.uint32)
    return (int(state[0]) << 31) ^ int(state[1])


def batches_per_epoch(count: int, batch_size: int, least: int = 1) -> int:
    """Number of batches that `count` images make.

    Raises:
        UserError: If there are fewer than `least` images for a batch.
    """
    number = math.ceil(count / batch_size)
    if number == 0 or count // number < least:
        raise UserError(
            f"train: expected at least {least} images in a batch, got {count} images in {number} batches "
            f"of {batch_size}. Use a larger `batch_size` or fewer parts (`accumulate`)."
        )
    return number


def least_rows(config: TrainConfig, processes: int) -> int:
    """Rows that a batch needs, so that each accumulated part on each process has two."""
    return 2 * config.accumulate * processes


def epoch_batches(indices: Indices, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """One epoch's batches: a permutation of `indices`, cut into equal pieces."""
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
    order = indices[torch.randperm(len(indices), generator=generator).numpy()]
    return np.array_split(order, math.ceil(len(order) / batch_size))


def shares(batch: Indices, parts: int, processes: int, rank: int) -> list[Indices]:
    """The share of one process in each accumulated part of a batch."""
    return [part[slice(*_pairs_of(len(part), processes, rank))] for part in np.array_split(batch, parts)]


def _pairs_of(count: int, processes: int, rank: int) -> tuple[int, int]:
    """Begin and end of a process's share of `count` rows, cut between pairs of neighbours."""
    pairs = -(-count // 2)
    return 2 * (rank * pairs // processes), min(2 * ((rank + 1) * pairs // processes), count)
