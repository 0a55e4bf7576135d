"""How many rows a forward puts through each target, and the FLOPs of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mumoe.errors import UserError
from mumoe.models.surgery.parts import evaluating
from mumoe.models.surgery.plan import Plan

__all__ = ["call", "measure"]


def call(model: nn.Module, arguments: Any) -> Any:
    """The model on a tensor, a tuple of arguments, or a mapping of them by name."""
    if isinstance(arguments, Mapping):
        return model(**arguments)
    return model(*arguments) if isinstance(arguments, tuple | list) else model(arguments)


def measure(plan: Plan, example: Any) -> Plan:
    """The plan with the rows of every target and the FLOPs of the model on an example; as it is without one.

    Raises:
        UserError: If the model does not take the example.
    """
    if example is None:
        return plan
    rows = dict.fromkeys((target.name for target in plan.targets), 0)

    def counting(name: str, channels_first: bool) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            rows[name] += output.numel() // output.shape[1 if channels_first else -1]

        return hook

    handles = [
        target.module.register_forward_hook(counting(target.name, target.parts.channels_first))
        for target in plan.targets
    ]
    try:
        with evaluating(plan.model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(plan.model, example)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"plan: expected an example that {type(plan.model).__name__} takes, got: {reason}. "
            "Give one batch, a tuple of arguments, or a dict of them."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    targets = tuple(replace(target, rows=rows[target.name]) for target in plan.targets)
    return replace(plan, targets=targets, flops=counter.get_total_flops() // 2)
