"""The MuMoE layers of a network as plain values, and back: what a saved network needs besides its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from mumoe.errors import UserError
from mumoe.factorizations import FACTORIZATIONS, Factorization
from mumoe.gating import GATES, Gate
from mumoe.layers import MuMoE, MuMoEBlock
from mumoe.models.surgery.parts import read_parts
from mumoe.models.surgery.planning import Plan
from mumoe.models.surgery.targets import LayerOptions, Target

__all__ = ["describe_layers", "rebuild_layers"]


def describe_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Name -> how to build each MuMoE layer and block of a network, as JSON values.

    Raises:
        UserError: If a gate or factorization is not registered under a name.
    """
    return {
        name: _describe(name, module)
        for name, module in model.named_modules()
        if isinstance(module, MuMoE | MuMoEBlock)
    }


def _describe(name: str, module: MuMoE | MuMoEBlock) -> dict[str, Any]:
    factors, gate = module.parts, module.gate
    options = LayerOptions(
        num_experts=module.num_experts,
        factorization=_registered(name, factors[0]),
        ranks=tuple(dict(part.ranks) or None for part in factors),
        gate=_gate_name(name, gate),
        norm=gate.norm,
        gate_options=gate.options,
        gate_init=gate.init,
        bias=factors[0].bias,
        out_features=module.out_features,
    )
    return asdict(options)


def _registered(name: str, part: Factorization) -> str:
    for known, kind in FACTORIZATIONS.items():
        if kind is type(part):
            return known
    raise UserError(
        f"save: expected a registered factorization in {name!r}, got {type(part).__name__}. "
        "Register it with mumoe.register_factorization."
    )


def _gate_name(name: str, gate: Gate) -> str:
    if gate.name not in GATES:
        raise UserError(
            f"save: expected a registered gate in {name!r}, got {gate.name}. Register it with mumoe.register_gate."
        )
    return gate.name


def rebuild_layers(model: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the described layers, with random weights, into a network of the original architecture.

    Raises:
        UserError: If the network has no module of a name, or one that cannot be replaced.
        TypeError, KeyError, ValueError: If a description is not one that `describe_layers` made.
    """
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    targets = []
    for name, values in layers.items():
        parts = read_parts(modules[name]) if name in modules else None
        if parts is None:
            raise UserError(f"load: expected a linear layer or an MLP named {name!r} in {type(model).__name__}.")
        names = tuple(other for other, module in modules.items() if module is modules[name])
        targets.append(Target(names, modules[name], parts, _options(values)))
    Plan(model, tuple(targets)).apply()


def _options(values: Mapping[str, Any]) -> LayerOptions:
    """Options from JSON values, with lists turned into tuples."""
    known = dict(values)
    known["num_experts"] = tuple(known["num_experts"])
    known["ranks"] = tuple(known["ranks"])
    return LayerOptions(**known)
