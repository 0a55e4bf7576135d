"""Devices: names of the devices of this machine, and the widest float type that each computes in."""

from __future__ import annotations

import torch
from torch import Tensor

from mumoe.errors import UserError, nearest

__all__ = ["AUTO", "available", "host", "resolve", "wide", "widest"]

AUTO = "auto"
"""The accelerator of this machine where there is one, else the CPU."""

WITHOUT_FLOAT64 = {"mps"}
"""Types of devices that have no float64."""


def available() -> list[str]:
    """The devices of this machine by name, the CPU first.

    >>> available()[0]
    'cpu'
    """
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if other is not None and other.type not in ("cuda", "mps"):
        names += [f"{other.type}:{index}" for index in range(torch.accelerator.device_count())]
    return names


def resolve(name: str | torch.device = AUTO, *, who: str = "mumoe") -> torch.device:
    """The device of a name: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or another type that torch has here.

    Raises:
        UserError: If this machine has no such device, or the name is not that of a device.

    >>> resolve("cpu")
    device(type='cpu')
    """
    found = available()
    if str(name) == AUTO:
        return torch.device(found[1].partition(":")[0] if len(found) > 1 else "cpu")
    types = {device.partition(":")[0] for device in found}
    if str(name) in {*found, *types}:
        return torch.device(name)
    close = nearest(str(name), [AUTO, *types])
    remedy = f"Did you mean {close!r}?" if close and close[:2] == str(name)[:2] else "Use auto or cpu."
    raise UserError(f"{who}: expected a device of this machine (auto, {', '.join(found)}), got {str(name)!r}. {remedy}")


def widest(device: str | torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none."""
    return torch.float32 if torch.device(device).type in WITHOUT_FLOAT64 else torch.float64


def wide(tensor: Tensor) -> Tensor:
    """A tensor in the widest float of its device, on that device."""
    return tensor.to(widest(tensor.device))


def host(tensor: Tensor) -> Tensor:
    """A tensor in float64 on the CPU, detached: for arithmetic that needs full precision on any device."""
    return tensor.detach().cpu().double()
