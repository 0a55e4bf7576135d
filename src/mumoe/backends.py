"""The kernels below the sparse path: plain PyTorch here; `mumoe.native` and Triton offer the same functions.

A backend sees contiguous tensors without gradients. What a support is, and what the kernels compute, is said in
`mumoe.streaming` and `mumoe.sparse`; here are only the ways to do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mumoe import functional
from mumoe.functional import tau2, tau15

__all__ = ["Backend", "Plain", "Support", "block_size", "gram_pays", "moments", "of"]

DENSE_SHARE = 0.25
"""Share of candidates in the first block of experts above which coefficients count as dense."""

_BUFFER = 2**18  # logits held at a time, in elements: 1 MB of float32
_BUCKETS = 64  # every bucket of a row remembers its largest logit


@dataclass(frozen=True)
class Support:
    """The experts with a coefficient above 0, row after row, and what the gradient needs.

    Attributes:
        slack: (nnz,): q = x / 2 - tau for entmax15, whose coefficient is q^2; x - tau for sparsemax and the result of
            the softmax for topk, which are the coefficients.
        indices: Expert (nnz,) int64, ascending in each row.
        offsets: (rows + 1,) int64.
        normalized: Normalized logits (nnz,) at the support.
        mean: (num_experts,) mean of the batch's logits; None without batch statistics.
        var: (num_experts,) their biased variance; None likewise.
        logits: (rows, num_experts) before normalization, kept for the backward in training if they fit in one block.
    """

    slack: Tensor
    indices: Tensor
    offsets: Tensor
    normalized: Tensor
    mean: Tensor | None
    var: Tensor | None
    logits: Tensor | None = None


class Backend(Protocol):
    """What a backend offers."""

    def support(
        self,
        x: Tensor,
        weight: Tensor,
        mean: Tensor | None,
        rstd: Tensor | None,
        *,
        kind: str,
        k: int,
        batch_statistics: bool,
        eps: float,
    ) -> Support | None:
        """Support of every row of ``normalize(x @ weight.T)``, or None where coefficients are dense.

        Args:
            x: (rows, in); centred by the caller where `batch_statistics`.
            weight: (num_experts, in).
            mean: (num_experts,) running mean; None without one.
            rstd: (num_experts,) 1 / standard deviation; None without one.
            kind: ``entmax15``, ``sparsemax`` or ``topk``.
            k: Experts to keep, for ``topk``.
            batch_statistics: Normalize by mean and variance of the batch, and return them.
            eps: Added to the variance.
        """
        ...

    def bag(self, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
        """sum_j values_j factor[indices_j] for each row: (rows, width)."""
        ...

    def bag_backward(
        self, grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients (nnz,) and (num_experts, width) of `bag` for the gradient (rows, width) of its result."""
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
        logits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x and weight from those of the normalized logits at the support, dy (nnz,).

        With `batch_statistics`, mean and variance depend on all logits of an expert: the terms that this adds are
        dense, and are formed for a block of experts at a time or by the Gram matrix of x. `logits` are those of the
        support, if it has them: they save a product.
        """
        ...


def block_size(rows: int, num_experts: int) -> int:
    """Experts at a time: about 1 MB of logits, at least 256, a multiple of the number of buckets."""
    size = max(256, _BUFFER // max(1, rows))
    return min(_whole(size), _whole(num_experts))


def _whole(size: int) -> int:
    return math.ceil(size / _BUCKETS) * _BUCKETS


def gram_pays(rows: int, inputs: int, num_experts: int) -> bool:
    """Whether the Gram matrix of the inputs costs less than going through the logits of all experts again."""
    return 2 * rows * inputs**2 + 2 * inputs**2 * num_experts < 3 * rows * inputs * num_experts


class Plain:
    """Everything in PyTorch operations: any device, float32 and float64."""

    def support(
        self,
        x: Tensor,
        weight: Tensor,
        mean: Tensor | None,
        rstd: Tensor | None,
        *,
        kind: str,
        k: int,
        batch_statistics: bool,
        eps: float,
    ) -> Support | None:
        """See `Backend.support`."""
        search = _Search(len(x), len(weight), kind, k, x)
        means, variances, kept = [], [], None
        for start in range(0, len(weight), search.block):
            part = weight[start : start + search.block]
            logits = search.buffer[:, : len(part)]
            torch.mm(x, part.mT, out=logits)
            if batch_statistics:
                centre, spread = moments(logits)
                means.append(centre)
                variances.append(spread)
                kept = logits.clone() if len(part) == len(weight) else None
                _normalize_(logits, centre, torch.rsqrt(spread + eps))
            elif mean is not None and rstd is not None:
                _normalize_(logits, mean[start : start + search.block], rstd[start : start + search.block])
            if not search.take(start, len(part)):
                return None
        slack, indices, offsets, normalized = search.solve()
        mean, var = (torch.cat(parts) if parts else None for parts in (means, variances))
        return Support(slack, indices, offsets, normalized, mean, var, kept)

    def bag(self, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
        """See `Backend.bag`."""
        return F.embedding_bag(
            indices, factor, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )

    def bag_backward(
        self, grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.bag_backward`."""
        rows = torch.repeat_interleave(offsets.diff())
        grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, factor, indices, offsets[:-1], rows, 0, -1
        )
        return grad_values, self._scatter(values, rows, indices, len(factor), grad)

    def _scatter(self, values: Tensor, rows: Tensor, indices: Tensor, count: int, source: Tensor) -> Tensor:
        """(count, width): sum of values_j source[rows_j] over the j with each index; the order of j is kept."""
        order = torch.argsort(indices, stable=True)
        ends = F.pad(torch.bincount(indices, minlength=count).cumsum(0), (1, 0))
        return self.bag(values[order], rows[order], ends, source)

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
        """See `Backend.gate_backward`."""
        rows = torch.repeat_interleave(offsets.diff())
        if not batch_statistics:
            scaled = dy if rstd is None else dy * rstd[indices]
            return self.bag(scaled, indices, offsets, weight), self._scatter(scaled, rows, indices, len(weight), x)
        assert rstd is not None
        active, place = torch.unique(indices, return_inverse=True)  # the terms of all other experts are zero
        return _batch_backward(x, weight, rstd, active, place, rows, dy, normalized, logits)


def _batch_backward(
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    active: Tensor,
    place: Tensor,
    rows: Tensor,
    dy: Tensor,
    normalized: Tensor,
    logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients through batch statistics: `place` numbers the experts of the support within `active`."""
    count, rstd = len(active), rstd[active]
    first = dy.new_zeros(count).index_add_(0, place, dy).div_(len(x)).mul_(rstd)
    second = dy.new_zeros(count).index_add_(0, place, dy * normalized).div_(len(x)).mul_(rstd * rstd)
    scaled = dy * rstd[place]
    grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
    order = torch.argsort(place, stable=True)
    entries = rows[order], place[order], scaled[order]
    if gram_pays(len(x), x.shape[1], count):
        _through_gram(x, weight, active, first, second, entries, grad_x, grad_weight)
    else:
        _through_blocks(x, weight, active, first, second, entries, grad_x, grad_weight, logits)
    return grad_x, grad_weight


def moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (n,) of nearly centred logits (rows, n)."""
    mean = logits.mean(0)
    square = torch.mul(logits, logits).mean(0)
    return mean, (square - mean * mean).clamp_(min=0)


def _normalize_(logits: Tensor, mean: Tensor, rstd: Tensor) -> None:
    logits.sub_(mean).mul_(rstd)


def _blocks(active: Tensor, place: Tensor, step: int) -> Iterator[tuple[Tensor, int, int, int]]:
    """Blocks of active experts, where each begins, and the entries (sorted by place) that belong to it."""
    starts = list(range(0, len(active), step))
    ends = torch.searchsorted(place, torch.tensor([*starts[1:], len(active)], device=place.device)).tolist()
    for start, begin, end in zip(starts, [0, *ends], ends, strict=False):
        yield active[start : start + step], start, begin, end


def _through_blocks(
    x: Tensor,
    weight: Tensor,
    active: Tensor,
    first: Tensor,
    second: Tensor,
    entries: tuple[Tensor, Tensor, Tensor],
    grad_x: Tensor,
    grad_weight: Tensor,
    logits: Tensor | None,
) -> None:
    """Form the gradient of the logits of one block of experts at a time."""
    rows, place, scaled = entries
    step = max(256, block_size(len(x), len(active)) // 2)  # their weights are held, too
    buffer = x.new_empty(len(x), step)
    for experts, start, begin, end in _blocks(active, place, step):
        part = weight[experts]
        grad = buffer[:, : len(part)]
        if logits is None:
            torch.mm(x, part.mT, out=grad)
        else:
            grad.copy_(logits[:, experts])
        grad.mul_(-second[start : start + step]).sub_(first[start : start + step])
        grad.index_put_((rows[begin:end], place[begin:end] - start), scaled[begin:end], accumulate=True)
        grad_x.addmm_(grad, part)
        torch.mm(grad.mT, x, out=part)
        grad_weight.index_copy_(0, experts, part)


def _through_gram(
    x: Tensor,
    weight: Tensor,
    active: Tensor,
    first: Tensor,
    second: Tensor,
    entries: tuple[Tensor, Tensor, Tensor],
    grad_x: Tensor,
    grad_weight: Tensor,
) -> None:
    """Form the dense terms by the Gram matrix of the centred x, and the sparse ones by themselves."""
    rows, place, scaled = entries
    gram, total = x.mT @ x, x.new_zeros(x.shape[1], x.shape[1])
    for experts, start, begin, end in _blocks(active, place, max(256, _BUFFER // x.shape[1])):
        part = weight[experts]
        damped = part * second[start : start + len(part), None]
        total.addmm_(part.mT, damped)
        counts = torch.bincount(place[begin:end] - start, minlength=len(part))
        ends = F.pad(counts.cumsum(0), (1, 0))
        direct = F.embedding_bag(
            rows[begin:end], x, ends, mode="sum", per_sample_weights=scaled[begin:end], include_last_offset=True
        )
        grad_weight.index_copy_(0, experts, direct.addmm_(damped, gram, alpha=-1))
        grad_x.sub_(first[start : start + len(part)] @ part)
    back = torch.argsort(rows, stable=True)
    ends = F.pad(torch.bincount(rows, minlength=len(x)).cumsum(0), (1, 0))
    grad_x.add_(
        F.embedding_bag(
            active[place[back]], weight, ends, mode="sum", per_sample_weights=scaled[back], include_last_offset=True
        )
    )
    grad_x.addmm_(x, total, alpha=-1)


class _Search:
    """Candidates of every row while blocks of logits go by.

    Each row remembers the largest logit of each of 64 buckets. These are logits of different experts, so the
    threshold tau that solves the activation on them alone is at most the true one (tau grows with every logit
    that is added): whatever lies at or below it cannot be in the support. For topk the k-th largest of the buckets
    plays that part.
    """

    def __init__(self, rows: int, num_experts: int, kind: str, k: int, like: Tensor) -> None:
        self.block = block_size(rows, num_experts)
        self.kind, self.k, self.count = kind, min(k, num_experts), rows
        self.num_experts = num_experts
        self.buffer = like.new_empty(rows, self.block)
        self.best = like.new_full((rows, _BUCKETS), -math.inf)
        self.bound = like.new_full((rows,), -math.inf)
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self, start: int, width: int) -> bool:
        """Keep the candidates of a block; False if this is the first one and they are dense."""
        if width < self.block:
            self.buffer[:, width:] = -math.inf
        table = self.buffer.view(self.count, -1, _BUCKETS)
        largest = table.amax(1)
        torch.maximum(self.best, largest, out=self.best)
        self._raise_bound()
        hit_rows, hit_buckets = (largest >= self.bound[:, None]).nonzero(as_tuple=True)
        if start == 0 and len(hit_rows) > DENSE_SHARE * largest.numel() and self._dense(width):
            return False
        lines = table[hit_rows, :, hit_buckets]
        which, place = (lines >= self.bound[hit_rows, None]).nonzero(as_tuple=True)
        columns = place * _BUCKETS + hit_buckets[which] + start
        self.found.append((hit_rows[which], columns, lines[which, place]))
        return True

    def _dense(self, width: int) -> bool:
        inside = (self.buffer[:, :width] >= self.bound[:, None]).sum()
        return bool(inside > DENSE_SHARE * self.count * width)

    def _raise_bound(self) -> None:
        """bound (rows,) := a logit that every member of the support reaches or exceeds."""
        if self.kind == "topk":
            if self.k <= _BUCKETS:
                self.bound = self.best.topk(self.k, dim=-1).values[:, -1]
            return
        scale = 0.5 if self.kind == "entmax15" else 1.0
        top = self.best.amax(-1, keepdim=True)
        tau = _newton((self.best - top) * scale, self.kind, steps=4)
        # the margin takes the rounding of tau and of the shift
        self.bound = (top + tau / scale).squeeze(-1) - 1e-5 * (1 + top.squeeze(-1).abs())

    def solve(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Slack, experts, offsets and normalized logits of the support."""
        rows, columns, values = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        inside = values >= self.bound[rows]
        rows, columns, values = rows[inside], columns[inside], values[inside]
        order = torch.argsort(rows * self.num_experts + columns)
        return solve(rows[order], columns[order], values[order], self.count, self.kind, self.k)


def _newton(x: Tensor, kind: str, steps: int) -> Tensor:
    """A lower bound of tau (rows, 1) for rows x with maximum 0, from tau = -1: monotone, never above the solution."""
    tau = torch.full_like(x[:, :1], -1.0)
    for _ in range(steps):
        inside = (x - tau).clamp_(min=0)
        if kind == "entmax15":
            step = (inside.square().sum(-1, keepdim=True) - 1) / (2 * inside.sum(-1, keepdim=True))
        else:
            step = (inside.sum(-1, keepdim=True) - 1) / (inside > 0).sum(-1, keepdim=True)
        tau = tau + step.clamp_(min=0)
    return tau


def solve(
    rows: Tensor, columns: Tensor, values: Tensor, count: int, kind: str, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The activation on candidates, row after row: slack, experts, offsets and logits of the support.

    Rows of similar length are solved together in a padded table.
    """
    lengths = torch.bincount(rows, minlength=count)
    begins = lengths.cumsum(0) - lengths
    place = torch.arange(len(rows), device=rows.device) - begins[rows]
    slack = torch.zeros_like(values)
    longest, low, high = int(lengths.max()), 0, _BUCKETS
    while low < longest:
        chosen = ((lengths > low) & (lengths <= high)).nonzero()[:, 0] if longest > _BUCKETS else None
        if chosen is None or len(chosen):
            _solve_table(rows, place, values, slack, lengths, chosen, min(high, longest), kind, k)
        low, high = high, 4 * high
    keep = slack > 0
    kept = torch.bincount(rows[keep], minlength=count)
    return slack[keep], columns[keep], F.pad(kept.cumsum(0), (1, 0)), values[keep]


def _solve_table(
    rows: Tensor,
    place: Tensor,
    values: Tensor,
    slack: Tensor,
    lengths: Tensor,
    chosen: Tensor | None,
    width: int,
    kind: str,
    k: int,
) -> None:
    """Fill in the slack of the chosen rows (None: all)."""
    if chosen is None:
        member, line, entries = None, rows, values
        count = len(lengths)
    else:
        number = torch.full_like(lengths, -1)
        number[chosen] = torch.arange(len(chosen), device=rows.device)
        member = (number[rows] >= 0).nonzero()[:, 0]
        line, entries, place, count = number[rows[member]], values[member], place[member], len(chosen)
    table = values.new_full((count, width), -math.inf)
    table[line, place] = entries
    top = table.amax(-1, keepdim=True)
    solved = _TABLES[kind](table, top, k)[line, place]
    if member is None:
        slack.copy_(solved)
    else:
        slack[member] = solved


def _entmax15_table(table: Tensor, top: Tensor, k: int) -> Tensor:
    x = ((table - top) * 0.5).clamp_(min=-8)
    tau, _ = tau15(x.sort(dim=-1, descending=True).values)
    return x.sub_(tau).clamp_(min=0)


def _sparsemax_table(table: Tensor, top: Tensor, k: int) -> Tensor:
    x = (table - top).clamp_(min=-8)
    tau, _ = tau2(x.sort(dim=-1, descending=True).values)
    return x.sub_(tau).clamp_(min=0)


def _topk_table(table: Tensor, top: Tensor, k: int) -> Tensor:
    values, index = torch.topk(table, min(k, table.shape[-1]), dim=-1)
    return torch.zeros_like(table).scatter_(-1, index, torch.softmax(values, dim=-1))


_TABLES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "entmax15": _entmax15_table,
    "sparsemax": _sparsemax_table,
    "topk": _topk_table,
}

_plain = Plain()


def of(tensor: Tensor) -> Backend:
    """The fastest backend there is for a tensor."""
    if tensor.dtype == torch.float32 and native_available(tensor.device.type):
        return native_kernels(tensor.device.type)
    return _plain


def native_available(device: str) -> bool:
    """Whether `mumoe.native` has kernels for this device type."""
    from mumoe import native

    return native.available(device)


def native_kernels(device: str) -> Backend:
    """Those kernels, compiled or loaded at the first call."""
    from mumoe import native

    return native.kernels(device)


def _dense_kernels(tensor: Tensor) -> functional.DenseKernels | None:
    """Compiled dense activations for a tensor that nobody watches; None: plain PyTorch."""
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not native_available("cpu"):
        return None
    if type(tensor) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_compiling() or tensor.is_meta:
        return None
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return None
    return native_kernels("cpu")  # type: ignore[return-value]


functional.dense_kernels = _dense_kernels
