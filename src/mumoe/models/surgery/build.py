"""The module that takes a target's place: fresh, or an exact copy of its layers in every expert."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from mumoe.layers import MuMoE
from mumoe.models.blocks import MLPBlock, MuMoEGatedBlock
from mumoe.models.surgery.hooks import drop_hooks
from mumoe.models.surgery.parts import Parts, as_linear
from mumoe.models.surgery.targets import LayerOptions, Target

__all__ = ["INITS", "build"]

INITS = ("random", "upcycle")

LAYERS = {"linear": ("factorization",), "mlp": ("fc1", "fc2"), "gated mlp": ("fc_gate", "fc1", "fc2")}
"""Kind -> where the replacement has the factorization of each linear layer."""


def build(target: Target, init: str = "random", sigma: float = 0.0) -> nn.Module:
    """The replacement, on the target's device, in its dtype and training mode; the target is left as it is.

    Warns, with the module's name, where the rank does not suffice to copy its layers exactly.
    """
    module = _random(target.parts, target.options)
    if init == "upcycle":
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            _copy_layers(module, target, sigma)
        for warning in said:
            warnings.warn(f"{target.name}: {warning.message}", warning.category, stacklevel=4)
    return module.train(target.module.training)


def _random(parts: Parts, options: LayerOptions) -> nn.Module:
    sizes: Any = parts.widths
    if options.out_features is not None:
        sizes = (*sizes[:-1], options.out_features)
    ranks = list(options.ranks)
    shared: dict[str, Any] = {
        "num_experts": options.num_experts,
        "factorization": options.factorization,
        "rank": ranks[0] if parts.kind == "linear" else ranks,
        "bias": options.bias,
        "gate": copy.deepcopy(options.gate),
        "norm": options.norm,
        "gate_options": options.gate_options,
        "gate_init": options.gate_init,
        "device": parts.like.device,
        "dtype": parts.like.dtype,
    }
    if parts.kind == "linear":
        return MuMoE(*sizes, **shared)
    shared |= {"drop": _joined([parts.drop]), "channels_first": parts.channels_first}
    if parts.kind == "mlp":
        return MLPBlock(*sizes, act_layer=lambda: _joined([parts.act, *parts.inner]), **shared)
    inner = _joined(parts.inner) if parts.inner else None
    return MuMoEGatedBlock(*sizes, act_layer=lambda: _joined([parts.act]), inner=inner, **shared)


def _joined(modules: Sequence[nn.Module]) -> nn.Module:
    """Copies of the modules as one, without their hooks."""
    copies = [drop_hooks(copy.deepcopy(module)) for module in modules]
    return copies[0] if len(copies) == 1 else nn.Sequential(*copies)


def _copy_layers(module: nn.Module, target: Target, sigma: float) -> None:
    """Put a copy of each linear layer into every expert of its factorization."""
    options = target.options
    layers = zip(LAYERS[target.parts.kind], target.parts.linears, options.ranks, strict=True)
    for name, linear, rank in layers:
        copied = MuMoE.from_linear(
            as_linear(linear), options.num_experts, options.factorization, rank, sigma=sigma, bias=options.bias
        )
        setattr(module, name, copied.factorization)
