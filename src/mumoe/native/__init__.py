"""Compiled kernels for the parts of the sparse gate where plain PyTorch leaves time on the table.

Optional: `pip install 'mumoe[native]'` for the processor (numba), Triton for CUDA. Everything runs without it;
`mumoe.backends.of` takes them by itself for float32 tensors.

The kernels are exact: they find the support that the dense activation finds, with the same values to 2e-6. They
are registered with `torch.library` under the names ``mumoe::native_*``, so that torch.compile, export and the FLOP
counter see them. They do not differentiate themselves: the caller's autograd function does, with the backward
kernels given here.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Protocol

from torch import Tensor

from mumoe.backends import Backend, Support

__all__ = ["KINDS", "Kernels", "Support", "available", "kernels"]

KINDS = ("entmax15", "sparsemax", "topk")
"""Activations whose support the kernels find."""


class Kernels(Backend, Protocol):
    """The functions of `backends.Backend` for float32 tensors on one device, and three more.

    `support` declines (None) where its sample of the first block has more than a quarter of the entries in the support,
    and where a row's largest logit is not finite; `bag` and its backward refuse an index or offset out of range with
    an IndexError. Results do not depend on the number of threads, but for the matrix products of PyTorch in them.
    """

    def forward_small(
        self,
        x: Tensor,
        weight: Tensor,
        mean: Tensor | None,
        rstd: Tensor | None,
        factor: Tensor,
        *,
        kind: str,
        k: int = 0,
    ) -> tuple[Support, Tensor] | None:
        """`support` without batch statistics and `bag` of its coefficients in one call, for a few rows.

        Returns:
            The support and the (rows, rank) mixture, or None as `support` does.
        """
        ...

    def dense(self, logits: Tensor, kind: str) -> Tensor:
        """The activation of (rows, num_experts) logits in full, ``entmax15`` or ``sparsemax``; processor only.

        It is called where no operator has to be seen, with tensors that have no gradient.
        """
        ...

    def dense_backward(self, coefficients: Tensor, grad: Tensor, kind: str) -> Tensor:
        """The gradient of the logits for the gradient (rows, num_experts) of `dense`."""
        ...


_usable: dict[str, bool] = {}
_loaded: dict[str, Kernels] = {}


def available(device: str = "cpu") -> bool:
    """Whether `kernels` can be had for this device type; the environment variable MUMOE_NATIVE=0 turns all off."""
    if os.environ.get("MUMOE_NATIVE", "1") == "0":
        return False
    if device not in _usable:
        needed = {"cpu": ("numba", "llvmlite"), "cuda": ("triton",)}.get(device, ("",))
        _usable[device] = all(name and importlib.util.find_spec(name) is not None for name in needed)
    return _usable[device]


def kernels(device: str = "cpu") -> Kernels:
    """The backend of a device type; the first call compiles, or loads what an earlier process compiled.

    Raises:
        UserError: If the package that the backend needs is not installed, or there is none for the device.
    """
    if device not in _loaded:
        _loaded[device] = _load(device)
    return _loaded[device]


def _load(device: str) -> Kernels:
    from mumoe.errors import UserError, require

    if device not in ("cpu", "cuda"):
        raise UserError(f"native.kernels: expected the device 'cpu' or 'cuda', got {device!r}. Use plain PyTorch.")
    require("numba" if device == "cpu" else "triton", "native", "native.kernels")
    from mumoe.native import ops

    return ops.registered(device)
