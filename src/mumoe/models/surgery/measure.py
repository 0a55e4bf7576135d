"""How many rows a forward puts through each target, and the FLOPs of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mumoe.errors import UserError
from mumoe.models.surgery.handle import put_modules
from mumoe.models.surgery.hooks import quiet
from mumoe.models.surgery.plan import Plan
from mumoe.models.surgery.readers import Watched

__all__ = ["call", "measure"]


def call(model: nn.Module, arguments: Any) -> Any:
    """The model on a tensor, a tuple of arguments, or a mapping of them by name."""
    if isinstance(arguments, Mapping):
        return model(**arguments)
    return model(*arguments) if isinstance(arguments, tuple | list) else model(arguments)


def measure(plan: Plan, example: Any) -> Plan:
    """The plan with the rows of every target and the FLOPs of the model on an example; as it is without one.

    Raises:
        UserError: If the model does not take the example, or reads more of a target than its replacement has.
    """
    if example is None:
        return plan
    watched = {target.name: Watched(target.module, target.parts.channels_first) for target in plan.targets}
    stands = {name: watched[target.name] for target in plan.targets for name in target.names}
    originals = {name: target.module for target in plan.targets for name in target.names}
    try:
        with quiet(plan.model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            put_modules(plan.model, stands)
            call(plan.model, example)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError, AttributeError) as error:
        for name, stand in watched.items():
            if stand.reads and isinstance(error, AttributeError):
                raise UserError(
                    f"plan: expected modules that are only called, got {name!r}, whose {stand.reads[-1]!r} the model "
                    "reads. Leave it out."
                ) from error
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"plan: expected an example that {type(plan.model).__name__} takes, got: {reason}. "
            "Give one batch, a tuple of arguments, or a dict of them."
        ) from error
    finally:
        put_modules(plan.model, originals)
    targets = tuple(replace(target, rows=watched[target.name].rows) for target in plan.targets)
    return replace(plan, targets=targets, flops=counter.get_total_flops() // 2)
