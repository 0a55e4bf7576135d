"""Training and evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "keeping_modes"]


@contextmanager
def keeping_modes(module: nn.Module) -> Iterator[None]:
    """Put the training flag of a module and of all modules inside back afterwards."""
    flags = [(child, child.training) for child in module.modules()]
    try:
        yield
    finally:
        for child, flag in flags:
            child.training = flag


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without a graph; every module's training flag is put back afterwards."""
    with keeping_modes(module), torch.no_grad():
        module.eval()
        yield
