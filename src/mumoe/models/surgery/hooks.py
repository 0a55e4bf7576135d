"""The hooks of modules: silent while we try things out, counted for the table, left out of copies.

A hook that computes a layer's weight before each forward (`torch.nn.utils.weight_norm`, `spectral_norm`, `prune`) is
part of what the layer computes and always runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["count_hooks", "drop_hooks", "evaluating", "has_computing_hook", "quiet"]

_COMPUTING = (prune.BasePruningMethod, SpectralNorm, WeightNorm)
_KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL = tuple(f"_global{kind}" for kind in _KINDS)


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without anybody's hooks; hooks and every module's training flag are put back afterwards."""
    kept = [(child, kind, child.__dict__[kind]) for child in module.modules() for kind in _KINDS]
    everywhere = [(kind, dict(getattr(torch_module, kind))) for kind in _GLOBAL]
    try:
        for child, kind, hooks in kept:
            child.__dict__[kind] = _computing(hooks)
        for kind, _ in everywhere:
            getattr(torch_module, kind).clear()
        with evaluating(module):
            yield
    finally:
        for child, kind, hooks in kept:
            child.__dict__[kind] = hooks
        for kind, shared in everywhere:
            getattr(torch_module, kind).update(shared)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's training flag is put back afterwards."""
    flags = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, flag in flags:
            child.training = flag


def count_hooks(module: nn.Module) -> int:
    """Hooks on a module and everything inside, without those that compute weights."""
    tables = [child.__dict__[kind] for child in module.modules() for kind in _KINDS]
    return sum(len(hooks) - len(_computing(hooks)) for hooks in tables)


def has_computing_hook(module: nn.Module) -> bool:
    """Whether a hook of torch computes a weight of this module before each forward."""
    return bool(_computing(module._forward_pre_hooks))


def drop_hooks(module: nn.Module) -> nn.Module:
    """Remove the hooks of a copy, but for those that compute weights; returns the module."""
    for child in module.modules():
        for kind in _KINDS:
            child.__dict__[kind] = _computing(child.__dict__[kind])
    return module


def _computing(hooks: dict[int, Any]) -> OrderedDict[int, Any]:
    return OrderedDict((key, hook) for key, hook in hooks.items() if isinstance(hook, _COMPUTING))
