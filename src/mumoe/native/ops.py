"""The kernels as operators of PyTorch, ``mumoe::native_*``, and the backends that call them.

An operator costs some 30 microseconds of dispatch. So a backend calls a kernel directly where nobody watches, and
through its operator under torch.compile, export, the FLOP counter or any other dispatch mode. An operator cannot
decline: where the kernel does, it computes the dense activation and returns that in sparse form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from mumoe import functional
from mumoe.backends import Support
from mumoe.native import Kernels

__all__ = ["Backend", "registered"]


class Implementation(Protocol):
    """The functions of one device: those of `Kernels`, with positional arguments."""

    support: Callable[..., Support | None]
    bag: Callable[..., Tensor]
    bag_backward: Callable[..., tuple[Tensor, Tensor]]
    gate_backward: Callable[..., tuple[Tensor, Tensor]]
    forward_small: Callable[..., tuple[Support, Tensor] | None]
    dense: Callable[[Tensor, str], Tensor]
    dense_backward: Callable[[Tensor, Tensor, str], Tensor]


def _implementation(device: str) -> Any:
    if device == "cpu":
        from mumoe.native import cpu

        return cpu
    from mumoe.native import cuda

    return cuda


def _dense_support(
    x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor | None, kind: str, k: int, batch: bool, eps: float
) -> Support:
    """The same by the dense activation, also for rows that are not finite."""
    logits = x @ weight.t()
    mean_out = var_out = None
    if batch:
        var_out, mean_out = torch.var_mean(logits, 0, correction=0)
        logits = (logits - mean_out) * (var_out + eps).rsqrt()
    elif mean is not None and rstd is not None:
        logits = (logits - mean) * rstd
    slack, inside = _dense_activation(logits, kind, k)
    rows, indices = inside.nonzero(as_tuple=True)
    offsets = torch.searchsorted(rows, torch.arange(x.shape[0] + 1, device=x.device))
    return Support(slack[rows, indices], indices, offsets, logits[rows, indices], mean_out, var_out)


def _dense_activation(logits: Tensor, kind: str, k: int) -> tuple[Tensor, Tensor]:
    """Slack, and where the support is; a row that is not finite is all support, and NaN."""
    if kind == "topk":
        slack = functional.topk_softmax(logits, k)
    else:
        p = functional.entmax15(logits) if kind == "entmax15" else functional.sparsemax(logits)
        slack = p.sqrt() if kind == "entmax15" else p
    lost = slack.isnan().any(-1, keepdim=True)
    slack = torch.where(lost, math.nan, slack)
    return slack, (slack > 0) | lost


@torch.library.custom_op("mumoe::native_support", mutates_args=(), device_types=("cpu", "cuda"))
def native_support(
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    kind: str,
    k: int,
    batch_statistics: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = (x, weight, mean, rstd, kind, k, batch_statistics, eps)
    found = _implementation(x.device.type).support(*arguments)
    result = _dense_support(*arguments) if found is None else found
    none = x.new_empty(0)  # results may share memory: an operator's must not
    slack, indices, normalized = result.slack.clone(), result.indices.clone(), result.normalized.clone()
    mean_out = none if result.mean is None else result.mean
    var_out = none.clone() if result.var is None else result.var
    return slack, indices, result.offsets.clone(), normalized, mean_out, var_out


@native_support.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    kind: str,
    k: int,
    batch_statistics: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    total = torch.library.get_ctx().new_dynamic_size()
    statistics = weight.shape[0] if batch_statistics else 0
    return (
        x.new_empty(total),
        x.new_empty(total, dtype=torch.int64),
        x.new_empty(x.shape[0] + 1, dtype=torch.int64),
        x.new_empty(total),
        x.new_empty(statistics),
        x.new_empty(statistics),
    )


@torch.library.custom_op("mumoe::native_bag", mutates_args=(), device_types=("cpu", "cuda"))
def native_bag(values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
    result: Tensor = _implementation(values.device.type).bag(values, indices, offsets, factor)
    return result


@native_bag.register_fake
def _(values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
    return factor.new_empty(offsets.shape[0] - 1, factor.shape[1])


@torch.library.custom_op("mumoe::native_bag_backward", mutates_args=(), device_types=("cpu", "cuda"))
def native_bag_backward(
    grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    first, second = _implementation(values.device.type).bag_backward(grad, values, indices, offsets, factor)
    return first, second


@native_bag_backward.register_fake
def _(grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(factor)


@torch.library.custom_op("mumoe::native_gate_backward", mutates_args=(), device_types=("cpu", "cuda"))
def native_gate_backward(
    x: Tensor,
    weight: Tensor,
    rstd: Tensor | None,
    indices: Tensor,
    offsets: Tensor,
    dy: Tensor,
    normalized: Tensor,
    batch_statistics: bool,
) -> tuple[Tensor, Tensor]:
    run = _implementation(x.device.type).gate_backward
    first, second = run(x, weight, rstd, indices, offsets, dy, normalized, batch_statistics)
    return first, second


@native_gate_backward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    rstd: Tensor | None,
    indices: Tensor,
    offsets: Tensor,
    dy: Tensor,
    normalized: Tensor,
    batch_statistics: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


OPERATORS = (native_support, native_bag, native_bag_backward, native_gate_backward)
for _operator in OPERATORS:
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(_operator, _device, torch.float32)


@register_flop_formula(torch.ops.mumoe.native_support)
def _support_flops(x_shape: Any, weight_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """The gate's product; what screening saves is not taken off."""
    return int(2 * x_shape[0] * x_shape[1] * weight_shape[0])


@register_flop_formula(torch.ops.mumoe.native_bag)
def _bag_flops(values: Any, indices: Any, offsets: Any, factor: Any, *args: Any, **kwargs: Any) -> int:
    return int(2 * values[0] * factor[1])


@register_flop_formula(torch.ops.mumoe.native_bag_backward)
def _bag_backward_flops(grad: Any, values: Any, indices: Any, offsets: Any, factor: Any, **kwargs: Any) -> int:
    return int(4 * values[0] * factor[1])


@register_flop_formula(torch.ops.mumoe.native_gate_backward)
def _gate_backward_flops(
    x: Any, weight: Any, rstd: Any, indices: Any, offsets: Any, dy: Any, normalized: Any, batch: bool, **kwargs: Any
) -> int:
    """With batch statistics the cheaper of the two ways, all experts active: an upper bound."""
    (rows, width), experts, entries = x, weight[0], dy[0]
    sparse = 4 * entries * width
    if not batch:
        return int(sparse)
    gram = 4 * rows * width**2 + 4 * width**2 * experts + sparse
    return int(min(gram, 6 * rows * width * experts))


def _watched(x: Tensor) -> bool:
    """Whether something must see an operator."""
    if torch.compiler.is_compiling():
        return True
    return _get_current_dispatch_mode() is not None or type(x) not in (Tensor, torch.nn.Parameter)


def _exact(device: str) -> AbstractContextManager[Any]:
    """No autocast around the matrix products; entering a context that changes nothing costs as much as a kernel."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class Backend(Kernels):
    """The kernels of one device type. See `Kernels` for what each does."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.direct: Implementation = _implementation(device)

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
        if _watched(x):
            *found, m, v = native_support(x, weight, mean, rstd, kind, k, batch_statistics, eps)
            return Support(*found, *((m, v) if batch_statistics else (None, None)))
        with torch.no_grad(), _exact(self.device):
            return self.direct.support(x, weight, mean, rstd, kind, k, batch_statistics, eps)

    def bag(self, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
        if _watched(values):
            return native_bag(values, indices, offsets, factor)
        with torch.no_grad(), _exact(self.device):
            return self.direct.bag(values, indices, offsets, factor)

    def bag_backward(
        self, grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        if _watched(grad):
            return native_bag_backward(grad, values, indices, offsets, factor)
        with torch.no_grad(), _exact(self.device):
            return self.direct.bag_backward(grad, values, indices, offsets, factor)

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
        logits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        arguments = (x, weight, rstd, indices, offsets, dy, normalized, batch_statistics)
        if _watched(x):
            return native_gate_backward(*arguments)
        with torch.no_grad(), _exact(self.device):
            return self.direct.gate_backward(*arguments, logits)

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
        if not _watched(x):
            if not torch.is_grad_enabled() and not torch.is_autocast_enabled(self.device):
                return self.direct.forward_small(x, weight, mean, rstd, factor, kind, k)
            with torch.no_grad(), _exact(self.device):
                return self.direct.forward_small(x, weight, mean, rstd, factor, kind, k)
        found = self.support(x, weight, mean, rstd, kind=kind, k=k)
        assert found is not None
        values = found.slack.square() if kind == "entmax15" else found.slack
        return found, self.bag(values, found.indices, found.offsets, factor)

    def dense(self, logits: Tensor, kind: str) -> Tensor:
        return self.direct.dense(logits, kind)

    def dense_backward(self, coefficients: Tensor, grad: Tensor, kind: str) -> Tensor:
        return self.direct.dense_backward(coefficients, grad, kind)


def registered(device: str) -> Kernels:
    """The backend of a device type whose package is installed."""
    return Backend(device)
