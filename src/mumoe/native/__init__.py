"""Compiled kernels for the parts of the sparse gate where plain PyTorch leaves time on the table.

Optional: `pip install 'mumoe[native]'` for the processor (numba), Triton for CUDA. Everything runs without it.

    backend = native.kernels(x.device.type) if native.available(x.device.type) and x.dtype == torch.float32 else plain

The kernels are exact: they find the support that the dense activation finds, with the same values to 2e-6. They
are registered with `torch.library` under the names ``mumoe::native_*``, so that torch.compile, export and the FLOP
counter see them. They do not differentiate themselves: the caller's autograd function does, with the backward
kernels given here.
"""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ["KINDS", "Kernels", "Support", "available", "kernels"]

KINDS = ("entmax15", "sparsemax", "topk")
"""Activations whose support the kernels find."""


class Support(NamedTuple):
    """The entries of a gate that are not zero, row after row, and what the backward needs.

    Attributes:
        slack: x / 2 - tau for entmax15 (p = slack^2), x - tau for sparsemax (p = slack), p itself for topk.
        indices: Experts, int64, ascending within a row.
        offsets: Start of each row in the arrays above and their end, int64.
        normalized: Logits at the support after normalization.
        mean: Column means of the logits of x as given, with batch statistics, else None.
        var: Their biased variances, with batch statistics, else None.

    Shape:
        slack, indices, normalized (nnz,); offsets (rows + 1,); mean, var (experts,).
    """

    slack: Tensor
    indices: Tensor
    offsets: Tensor
    normalized: Tensor
    mean: Tensor | None
    var: Tensor | None


class Kernels(Protocol):
    """The functions that a backend offers. All tensors float32 and contiguous, on one device; indices int64."""

    def support(
        self,
        x: Tensor,
        weight: Tensor,
        mean: Tensor | None,
        rstd: Tensor | None,
        *,
        kind: str,
        k: int = 0,
        batch_statistics: bool = False,
        eps: float = 1e-5,
    ) -> Support | None:
        """Sparse activation of normalize(x @ weight.T), a block of experts at a time; (rows, experts) is never held.

        Args:
            x: Inputs; centred by their column mean where batch statistics are used.
            weight: One row per expert.
            mean, rstd: Subtracted from, and multiplied to, the logits; None for no normalization. Ignored with
                batch statistics, which normalize by the batch's own mean and 1 / sqrt(var + eps).
            kind: One of `KINDS`.
            k: Entries per row for ``topk``; more than there are experts means all.

        Returns:
            None where a sparse representation does not pay or does not exist, for the caller to go dense: more than
            a quarter of the entries of the first block are within reach of the support, or a row's maximum is
            not finite (NaN, infinite, or all entries -inf). Under torch.compile and export never None.

        Shape:
            x (rows, in), weight (experts, in), mean and rstd (experts,).

        Raises:
            ValueError: If a shape or dtype is not as above.
        """
        ...

    def bag(self, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
        """Per row, the sum of values_j * factor[indices_j].

        Shape:
            values, indices (nnz,), offsets (rows + 1,), factor (experts, rank); returns (rows, rank).

        Raises:
            IndexError: If an index or offset is out of range.
        """
        ...

    def bag_backward(
        self, grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of `bag` for values and factor, the same bits whatever the number of threads.

        Shape:
            grad (rows, rank); returns (nnz,) and (experts, rank).
        """
        ...

    def gate_backward(
        self,
        x: Tensor,
        weight: Tensor,
        rstd: Tensor | None,
        indices: Tensor,
        offsets: Tensor,
        dy: Tensor,
        normalized: Tensor,
        batch_statistics: bool,
    ) -> tuple[Tensor, Tensor]:
        """Gradients for x and weight from those of the normalized logits at the support.

        With batch statistics the gradient through mean and variance is included, in closed form; experts outside
        every row's support get exactly zero and cost nothing.

        Args:
            dy: Gradient of each normalized logit at the support.
            normalized: Those logits.

        Shape:
            dy, normalized (nnz,); returns (rows, in) and (experts, in).
        """
        ...

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
