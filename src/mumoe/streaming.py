"""The gate without a (rows, num_experts) matrix: logits of a block of experts at a time, and the support alone kept.

For entmax15 with x = logits / 2, an expert is in a row's support if and only if x > tau, and tau grows with every
logit that is looked at. So while blocks of logits go by, a lower bound of tau discards nearly all of them, exactly;
what is left is solved by the same closed form as the dense gate. Sparsemax and topk likewise.

Batch normalization: every block holds the full batch, so its statistics are those of the dense gate. The gradient of
the logits is zero outside the support but for two terms, by way of mean and variance, that have low rank; see
`backends.Backend.gate_backward`. Saved for it are the input, the support and the statistics. A second derivative is
taken through the dense gate.

The layers come here by themselves; where coefficients turn out dense (a gate that starts at zero), or where their
matrix is asked for, the dense gate answers. Both give the same numbers to rounding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe import backends, functional
from mumoe.blocked import BlockedSoftmax, statistics
from mumoe.gating import BatchNorm, Entmax15, Gate, Softmax, Sparsemax, TopK, full_precision
from mumoe.sparse import SparseCoefficients, segment_rows, segment_sum

__all__ = ["ALONE", "Coefficients", "coefficients", "forced", "has_hooks", "mixtures"]

Coefficients = Tensor | SparseCoefficients | BlockedSoftmax

_KINDS: dict[type[nn.Module], str] = {Entmax15: "entmax15", Sparsemax: "sparsemax", TopK: "topk"}
_FEWEST = 512  # experts of a level below which the dense gate is as fast
_SMALLEST = 2**16  # logits in all below which it is, too
_LARGEST = 2**24  # logits in all above which softmax goes block by block: 64 MB a matrix of float32
ALONE = 2
"""Rows up to which calls cost more than numbers, and the support is solved in Python's floats."""
_forced: str | None = None


@contextlib.contextmanager
def forced(path: str | None) -> Iterator[None]:
    """Within the context, take the path ``dense`` or ``sparse`` wherever it is possible: for tests."""
    global _forced
    before, _forced = _forced, path
    try:
        yield
    finally:
        _forced = before


def coefficients(gate: Gate, x: Tensor) -> Sequence[Coefficients]:
    """Coefficients of every level, sparse where that is the faster way; (rows, in_features) in."""
    if not _possible(gate, x):
        levels: tuple[Tensor, ...] = gate(x)
        return levels
    return [_level(gate, level, x) for level in range(len(gate.num_experts))]


def mixtures(gate: Gate, x: Tensor, factors: Sequence[Tensor]) -> list[Tensor] | None:
    """Coefficients @ factor of every level for a row or two without gradients, in as few calls as there are.

    Shape:
        x (rows, in_features), factors[e] (num_experts[e], rank) -> one (rows, rank) per level; or None where that is
        not possible, or more than a row's 64 largest logits would have to be looked at.
    """
    if _forced or not _alone(x) or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return None
    if not _possible(gate, x):
        return None
    levels = zip(gate.norms, gate.activations, gate.weights, factors, strict=True)
    backend = backends.of(x)
    found = [_mixture(backend, x, *level) for level in levels]
    return None if any(mixed is None for mixed in found) else found  # type: ignore[return-value]


def _mixture(
    backend: Any, x: Tensor, norm: nn.Module, activation: nn.Module, weight: Tensor, factor: Tensor
) -> Tensor | None:
    kind = _KINDS.get(type(activation))
    if kind is None or type(weight) is not nn.Parameter or not weight.dtype == factor.dtype == x.dtype:
        return None
    mean = rstd = None
    if type(norm) is BatchNorm:
        mean, var = norm.running_mean, norm.running_var
        if norm.training or mean is None or var is None or mean.dtype != x.dtype:
            return None
        rstd = torch.rsqrt(var + norm.eps)
    elif type(norm) is not nn.Identity:
        return None
    k = activation.k if isinstance(activation, TopK) else 0
    if isinstance(backend, backends.Plain):
        return _plain_mixture(x, weight, mean, rstd, kind, k, factor)
    found = backend.forward_small(x, weight, mean, rstd, factor, kind=kind, k=k)
    return None if found is None else found[1]


def _possible(gate: Gate, x: Tensor) -> bool:
    """Whether anybody could tell the difference: hooks, tracing, transforms and subclasses see the dense gate."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
        return False
    most, rows = max(gate.num_experts), len(x)
    large = most >= _FEWEST and most * rows >= _SMALLEST
    if _forced == "dense" or rows == 0 or not (_forced or large or _alone(x)):
        return False
    if x.is_meta or torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return False
    return type(gate) is Gate and not _watched(gate) and not _counting()


def _alone(x: Tensor) -> bool:
    return len(x) <= ALONE and x.device.type == "cpu" and not torch.is_grad_enabled()


def _watched(gate: Gate) -> bool:
    return has_hooks(gate, *gate.norms, *gate.activations)


def has_hooks(*modules: nn.Module) -> bool:
    """Whether somebody watches these modules being called."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


def _counting() -> bool:
    """Whether a mode such as a FLOP counter sees every operation: it is to see the plain ones."""
    return torch._C._len_torch_dispatch_stack() > 0


def _level(gate: Gate, level: int, x: Tensor) -> Coefficients:
    norm, activation, weight = gate.norms[level], gate.activations[level], gate.weights[level]
    if type(norm) not in (BatchNorm, nn.Identity) or type(weight) is not nn.Parameter:
        return gate.level(level, x)
    batch = isinstance(norm, BatchNorm) and norm.training
    if isinstance(norm, BatchNorm) and (norm.running_mean is None or (batch and len(x) < 2)):
        return gate.level(level, x)
    size = len(x) * len(weight)
    found: Coefficients | None = None
    if type(activation) is Softmax:
        found = _blocked_level(x, weight, norm, batch) if _forced == "sparse" or size >= _LARGEST else None
    elif type(activation) in _KINDS and _forced is None and not batch and _alone(x):
        found = _row_by_row(x, weight, norm, activation) if len(weight) > 32 else None
    elif type(activation) in _KINDS and (_forced == "sparse" or (len(weight) >= _FEWEST and size >= _SMALLEST)):
        found = _sparse_level(x, weight, norm, activation)
    return gate.level(level, x) if found is None else found


def _blocked_level(x: Tensor, weight: Tensor, norm: nn.Module, batch: bool) -> BlockedSoftmax:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    dtype = x.dtype
    with full_precision(x):
        x, weight = x.to(wide), weight.to(wide)
        if not isinstance(norm, BatchNorm):
            return BlockedSoftmax(x, weight, None, None, None, False, 0.0, dtype)
        if not batch:
            return BlockedSoftmax(x, weight, None, *_running(norm, wide), False, norm.eps, dtype)
        with torch.no_grad():
            centre = x.mean(0)
            mean, var = statistics(x - centre, weight)
            norm.remember(mean + weight @ centre, var, len(x))
        return BlockedSoftmax(x, weight, centre, mean, torch.rsqrt(var + norm.eps), True, norm.eps, dtype)


def _sparse_level(x: Tensor, weight: Tensor, norm: nn.Module, activation: nn.Module) -> SparseCoefficients | None:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    with full_precision(x):
        x, weight = x.to(wide).contiguous(), weight.to(wide).contiguous()
        batch = isinstance(norm, BatchNorm) and norm.training
        centre = x.detach().mean(0) if batch else None
        rows = x.detach() if centre is None else x.detach() - centre
        mean, rstd = _running(norm, wide) if isinstance(norm, BatchNorm) and not batch else (None, None)
        eps = norm.eps if isinstance(norm, BatchNorm) else 0.0
        kind, k = _KINDS[type(activation)], getattr(activation, "k", 0)
        support = backends.of(rows).support(
            rows, weight.detach(), mean, rstd, kind=kind, k=k, batch_statistics=batch, eps=eps
        )
        if support is None:
            return None
        if isinstance(norm, BatchNorm) and batch:
            assert support.mean is not None
            assert support.var is not None
            assert centre is not None
            norm.remember(support.mean + weight.detach() @ centre, support.var, len(x))
            rstd = torch.rsqrt(support.var + eps)
        plan = _Plan(kind, k, batch, eps, mean, len(weight))
        found = (support.slack, support.indices, support.offsets, support.normalized)
        values: Tensor = _Values.apply(x, weight, rstd, *found, centre, support.logits, plan)
    return SparseCoefficients(values, support.indices, support.offsets, len(weight), x.dtype)


def _row_by_row(x: Tensor, weight: Tensor, norm: nn.Module, activation: nn.Module) -> SparseCoefficients | None:
    """A few rows without gradients: all logits, but the activation on a list of the largest."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    kind, k = _KINDS[type(activation)], getattr(activation, "k", 0)
    mean, rstd = _running(norm, wide) if isinstance(norm, BatchNorm) else (None, None)
    x, weight, dtype = x.to(wide), weight.to(wide), x.dtype
    backend = backends.of(x)
    if not isinstance(backend, backends.Plain):
        return _compiled_rows(backend, x, weight, mean, rstd, kind, k, dtype)
    with full_precision(x):
        found = _solve_rows(x, weight, mean, rstd, kind, k)
    if found is None:
        return None
    values, indices, ends = found
    return SparseCoefficients(
        torch.tensor(values, dtype=wide), torch.tensor(indices), torch.tensor(ends), len(weight), dtype
    )


def _solve_rows(
    x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor | None, kind: str, k: int
) -> tuple[list[float], list[int], list[int]] | None:
    """Values, experts and offsets of the support of a few rows, as lists."""
    logits = torch.mm(x, weight.t())
    if mean is not None and rstd is not None:
        logits.sub_(mean).mul_(rstd)
    values: list[float] = []
    indices: list[int] = []
    ends = [0]
    for row in logits:
        found = _solve_row(row, kind, k)
        if found is None:
            return None
        for place, value in sorted(found):
            indices.append(place)
            values.append(value)
        ends.append(len(indices))
    return values, indices, ends


def _plain_mixture(
    x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor | None, kind: str, k: int, factor: Tensor
) -> Tensor | None:
    found = _solve_rows(x, weight, mean, rstd, kind, k)
    if found is None:
        return None
    values, indices, ends = found
    return backends.of(x).bag(torch.tensor(values, dtype=x.dtype), torch.tensor(indices), torch.tensor(ends), factor)


def _compiled_rows(
    backend: backends.Backend,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    kind: str,
    k: int,
    dtype: torch.dtype,
) -> SparseCoefficients | None:
    found = backend.support(
        x.contiguous(), weight.contiguous(), mean, rstd, kind=kind, k=k, batch_statistics=False, eps=0.0
    )
    if found is None:
        return None
    values = found.slack * found.slack if kind == "entmax15" else found.slack
    return SparseCoefficients(values, found.indices, found.offsets, len(weight), dtype)


def _solve_row(logits: Tensor, kind: str, k: int) -> list[tuple[int, float]] | None:
    """(expert, coefficient) of one row's support; None if it has an entry that is not finite, or is large."""
    many = min(k if kind == "topk" else 64, len(logits))
    largest, places = torch.topk(logits, many)
    top, *_ = ordered = largest.tolist()
    if not math.isfinite(top):
        return None
    if kind == "topk":
        shares = [math.exp(value - top) for value in ordered]
        total = math.fsum(shares)
        return [(place, share / total) for place, share in zip(places.tolist(), shares, strict=True)]
    scale = 0.5 if kind == "entmax15" else 1.0
    x = [(value - top) * scale for value in ordered]
    tau, support = _tau_of_list(x, kind)
    if support == many < len(logits):
        return None
    power = 2 if kind == "entmax15" else 1
    return [(place, (value - tau) ** power) for place, value in zip(places.tolist()[:support], x, strict=False)]


def _tau_of_list(x: Sequence[float], kind: str) -> tuple[float, int]:
    """Threshold and size of the support of descending numbers that begin with 0."""
    tau, total, squares = -1.0, 0.0, 0.0
    for count, value in enumerate(x, 1):
        total += value
        squares += value * value
        if kind == "entmax15":
            mean = total / count
            candidate = mean - math.sqrt(max(0.0, (1 - (squares - total * mean)) / count))
        else:
            candidate = (total - 1) / count
        if candidate >= value:
            return tau, count - 1
        tau = candidate
    return tau, len(x)


def _running(norm: BatchNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.to(dtype), torch.rsqrt(norm.running_var.to(dtype) + norm.eps)


class _Plan:
    """How the coefficients were made, for the backward."""

    def __init__(self, kind: str, k: int, batch: bool, eps: float, mean: Tensor | None, num_experts: int) -> None:
        self.kind, self.k, self.batch, self.eps, self.mean = kind, k, batch, eps, mean
        self.num_experts = num_experts

    def dense(self, x: Tensor, weight: Tensor, rstd: Tensor | None) -> Tensor:
        """The matrix of coefficients, in operations that can be differentiated any number of times."""
        logits = F.linear(x, weight)
        if self.batch:
            centred = logits - logits.mean(0)
            logits = centred * torch.rsqrt(centred.square().mean(0) + self.eps)
        elif rstd is not None:
            assert self.mean is not None
            logits = (logits - self.mean) * rstd
        if self.kind == "topk":
            return functional.topk_softmax(logits, self.k)
        return functional.entmax15(logits) if self.kind == "entmax15" else functional.sparsemax(logits)


class _Values(torch.autograd.Function):
    """The coefficients (nnz,) at a support that was found before, as a function of x and weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        rstd: Tensor | None,
        slack: Tensor,
        indices: Tensor,
        offsets: Tensor,
        normalized: Tensor,
        centre: Tensor | None,
        logits: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, rstd, slack, indices, offsets, normalized, centre, logits)
        ctx.plan = plan
        return slack * slack if plan.kind == "entmax15" else slack.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd, slack, indices, offsets, normalized, centre, logits = ctx.saved_tensors
        plan, nothing = ctx.plan, (None,) * 8
        rows = segment_rows(offsets)
        if torch.is_grad_enabled():
            values = plan.dense(x, weight, rstd)[rows, indices]
            wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
            found = iter(torch.autograd.grad(values, wanted, grads[0], create_graph=True))
            return *(next(found) if tensor.requires_grad else None for tensor in (x, weight)), *nothing
        share = torch.ones_like(slack) if plan.kind == "sparsemax" else slack
        count = len(offsets) - 1
        mean = segment_sum(share * grads[0], rows, count) / segment_sum(share, rows, count)
        dy = share * (grads[0] - mean[rows])
        inputs = x if centre is None else x - centre
        grad_x, grad_weight = backends.of(x).gate_backward(
            inputs, weight, rstd, indices, offsets, dy, normalized, plan.batch, logits
        )
        return grad_x, grad_weight, *nothing
