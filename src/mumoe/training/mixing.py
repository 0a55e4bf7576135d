"""Mixup as a function of the seed and the step: it has no state, and is the same on any number of processes.

Neighbours of a batch are mixed with each other, rows 0 and 1, 2 and 3, ..., by one share per optimizer step. A
batch is in random order already. As long as parts and processes get even shares of it, pairs stay together.

Source: Zhang et al. 2018.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mumoe.training.sampler import derived_seed

__all__ = ["mix", "share_of"]


def share_of(alpha: float, seed: int, step: int) -> float:
    """Share of itself that each row keeps at a step: Beta(alpha, alpha), in [0, 1]."""
    return float(np.random.default_rng(derived_seed(seed, step, 2)).beta(alpha, alpha))


def mix(inputs: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The mixed inputs and each row's neighbour's labels, which count by 1 - share.

    The last row of an odd batch is its own neighbour.

    Shape:
        inputs (B, ...) -> the same; labels (B, ...) -> the same.
    """
    rows = torch.arange(len(inputs), device=inputs.device)
    partner = torch.where((rows ^ 1) < len(inputs), rows ^ 1, rows)
    return share * inputs + (1 - share) * inputs[partner], labels[partner]
