"""The module that takes a target's place: fresh, or an exact copy of its layers in every expert."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from mumoe.layers import MuMoE, MuMoEBlock, MuMoEGatedBlock
from mumoe.models.surgery.hooks import drop_hooks
from mumoe.models.surgery.parts import Parts, as_linear
from mumoe.models.surgery.targets import LayerOptions, Target

__all__ = ["INITS", "build"]

INITS = ("random", "upcycle")


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


def _random(parts: Parts, options: LayerOptions) -> MuMoE | MuMoEBlock:
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
    shared |= {"act_layer": lambda: _joined([parts.act]), "channels_first": parts.channels_first}
    shared["drop"] = (_joined(parts.inner), _joined([parts.drop]))
    in_features, hidden_features, out_features = sizes
    block = MuMoEBlock if parts.kind == "mlp" else MuMoEGatedBlock
    return block(in_features, hidden_features, out_features, **shared)


def _joined(modules: Sequence[nn.Module]) -> nn.Module:
    """Copies of the modules as one, without their hooks; the identity for none."""
    copies = [drop_hooks(copy.deepcopy(module)) for module in modules]
    return nn.Sequential(*copies) if len(copies) > 1 else (copies or [nn.Identity()])[0]


def _copy_layers(module: MuMoE | MuMoEBlock, target: Target, sigma: float) -> None:
    """Put a copy of each linear layer into every expert of its factorization."""
    options = target.options
    layers = zip(module.LAYERS, target.parts.linears, options.ranks, strict=True)
    for name, linear, rank in layers:
        copied = MuMoE.from_linear(
            as_linear(linear), options.num_experts, options.factorization, rank, sigma=sigma, bias=options.bias
        )
        setattr(module, name, copied.factorization)
