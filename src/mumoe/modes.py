"""Training and evaluation mode within a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "keeping_modes"]


@contextmanager
def keeping_modes(module: nn.Module) -> Iterator[None]:
    """Restore the training flags of a module and its submodules on exit."""
    flags = [(child, child.training) for child in module.modules()]
    try:
        yield
    finally:
        for child, flag in flags:
            child.training = flag


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the training flag of every module is restored on exit."""
    with keeping_modes(module), torch.no_grad():
        module.eval()
        yield
