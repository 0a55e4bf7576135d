"""Compiled kernels for the sparse gate, and the choice between them. Everything also runs without kernels.

A module of kernels has four functions: `support` and `support_backward`, `bag` and `bag_backward`. `cpu` needs numba
(``pip install 'mumoe[native]'``) and is chosen for float32 tensors on the CPU unless ``MUMOE_NATIVE=0``. `cuda`
needs Triton and is chosen only with ``MUMOE_TRITON=1``: it has passed its tests in Triton's interpreter, but has never
run on a GPU.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["of"]

NEEDED = {"cpu": "numba", "cuda": "triton"}
"""Package that the kernels of a device type import."""


def of(tensor: Tensor) -> ModuleType | None:
    """The kernels for a tensor; None if plain PyTorch is used."""
    device = tensor.device.type
    if tensor.dtype != torch.float32 or device not in NEEDED:
        return None
    wanted = os.environ.get("MUMOE_TRITON") == "1" if device == "cuda" else os.environ.get("MUMOE_NATIVE") != "0"
    return _load(device) if wanted else None


@functools.cache
def _load(device: str) -> ModuleType | None:
    """The module, compiled at the first call or loaded from the cache of an earlier process."""
    if importlib.util.find_spec(NEEDED[device]) is None:
        return None
    try:
        return importlib.import_module(f"mumoe.kernels.{device}")
    except ImportError as error:  # such as a numba that does not support the installed numpy
        warnings.warn(f"mumoe.kernels: {NEEDED[device]} does not load ({error}). Plain PyTorch is used.", stacklevel=2)
        return None
