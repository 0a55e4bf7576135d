"""The gate without a (rows, num_experts) matrix: logits in blocks of experts, of which only the support is kept.

For entmax15 with x = logits / 2, an expert is in a row's support if and only if x > tau, and tau grows with every
logit that is looked at. So while blocks of logits are processed, a lower bound of tau discards nearly all of them,
exactly; what is left is solved by the Newton method of the dense gate. Sparsemax, topk and relu_topk likewise.

Batch normalization: every block holds the full batch, so its statistics are those of the dense gate. The gradient of
the logits is zero outside the support except for two low-rank terms, which come from mean and variance. Saved for the
backward are the input, the support and the statistics. A second derivative goes through the dense gate.

`mumoe.kernels` computes the same faster; `gating.takes_sparse` decides when this module is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mumoe import functional, kernels
from mumoe.coefficients import SparseCoefficients, bag, full_precision, segment_rows, segment_sum, transposed_bag
from mumoe.functional import BUCKETS

__all__ = ["Plan", "Support", "sparse_coefficients"]

BLOCK = 2**18
"""Logits held at a time, in elements: 1 MB of float32 stays in the cache of a core."""

FEWEST = 256
"""Experts of a block at least; those of a block in the backward, where more are no faster and take more memory."""

NEARLY_ALL = 0.8
"""Share of experts with an entry from which the backward multiplies by all of them, which saves copies of weights: at
shares of 0.8 to 1 a training step took 1 to 8 % less (64 to 1,024 rows, 1,024 and 2,048 experts, one thread)."""

ALPHAS = {"entmax15": 1.5, "sparsemax": 2.0}


@dataclass(frozen=True)
class Plan:
    """How logits become coefficients.

    Attributes:
        kind: ``entmax15``, ``sparsemax``, ``topk`` or ``relu_topk``.
        k: Experts to keep, for the last two.
        mean: (num_experts,) what is subtracted from the logits; None for nothing.
        rstd: (num_experts,) what they are multiplied by afterwards; None for nothing.
        eps: Added to the variance of the batch, whose statistics then normalize the logits before they are multiplied
            by `rstd`; None for `mean` and `rstd` alone.
    """

    kind: str
    k: int
    mean: Tensor | None = None
    rstd: Tensor | None = None
    eps: float | None = None

    def shifted(self, bias: Tensor) -> Plan:
        """The same on logits that lack the router's bias; the statistics of a batch subtract it in any case."""
        if self.eps is not None:
            return self
        mean = -bias if self.mean is None else self.mean - bias
        return Plan(self.kind, self.k, mean, torch.ones_like(bias) if self.rstd is None else self.rstd)

    def dense(self, logits: Tensor) -> Tensor:
        """The matrix of coefficients, in operations that can be differentiated any number of times."""
        if self.eps is not None:
            centred = logits - logits.mean(0)
            logits = centred * torch.rsqrt(centred.square().mean(0) + self.eps)
            logits = logits if self.rstd is None else logits * self.rstd
        elif self.mean is not None and self.rstd is not None:
            logits = (logits - self.mean) * self.rstd
        if self.kind in ALPHAS:
            return functional.entmax(logits, ALPHAS[self.kind])
        return (functional.topk_softmax if self.kind == "topk" else functional.relu_topk)(logits, self.k)


@dataclass(frozen=True)
class Support:
    """The experts with a coefficient above 0, row after row, and what the gradient needs.

    Attributes:
        slack: (nnz,): q = x / 2 - tau for entmax15, whose coefficient is q^2; the coefficients of the other kinds.
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
    logits: Tensor | None


def sparse_coefficients(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, dense_share: float
) -> tuple[SparseCoefficients, Support] | None:
    """Coefficients of ``normalize(x @ weight.T + bias)`` by their support.

    Args:
        x: (rows, in), float32 or float64, at least one row.
        weight: (num_experts, in) of the same dtype.
        bias: (num_experts,) or None.
        plan: Normalization and activation.
        dense_share: Share of experts in the support above which the dense gate is used.

    Returns:
        The coefficients and their support; None where they are dense, or a logit that matters is not finite.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = x.detach().contiguous() if plan.eps is None else x.detach() - x.detach().mean(0)
        shifted = plan if bias is None else plan.shifted(bias.detach())
        find = _find if (compiled := kernels.of(rows)) is None else compiled.support
        found = find(
            rows, weight.detach().contiguous(), shifted.mean, shifted.rstd, plan.kind, plan.k, plan.eps, dense_share
        )
        if found is None:
            return None
        support = Support(*found)
        if torch.is_grad_enabled():
            values: Tensor = _Values.apply(x, weight, bias, support, plan)
        else:
            values = support.slack.square() if plan.kind == "entmax15" else support.slack
    return SparseCoefficients(values, support.indices, support.offsets, len(weight), x.dtype), support


# Derivatives ----------------------------------------------------------------------------------------------


class _Values(torch.autograd.Function):
    """The coefficients (nnz,) at a support that was found before, as a function of x, weight and bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, support: Support, plan: Plan) -> Tensor:
        entries = (support.slack, support.indices, support.offsets, support.normalized)
        ctx.save_for_backward(x, weight, bias, *entries, support.var, support.logits, plan.rstd)
        ctx.plan = plan
        return support.slack.square() if plan.kind == "entmax15" else support.slack.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, slack, indices, offsets, normalized, var, logits, rstd = ctx.saved_tensors
        plan, wanted, rows = ctx.plan, ctx.needs_input_grad[:3], segment_rows(offsets)
        with full_precision(x):
            if torch.is_grad_enabled():
                values = plan.dense(F.linear(x, weight, bias))[rows, indices]
                inputs = [t for t, want in zip((x, weight, bias), wanted, strict=True) if want]
                found = iter(torch.autograd.grad(values, inputs, grads[0], create_graph=True, allow_unused=True))
                return *(next(found) if want else None for want in wanted), None, None
            dy = _through_activation(plan.kind, slack, grads[0], rows, len(offsets) - 1)
            scale = None if var is None else rstd
            if var is not None:
                rstd = torch.rsqrt(var + plan.eps)
            if scale is not None:
                rstd, normalized = rstd * scale, normalized / scale[indices].square()
            raw = dy if rstd is None else dy * rstd[indices]
            rows_of_x = x if var is None else x - x.mean(0)
            grad_x, grad_weight = _sparse_products(raw, indices, offsets, rows_of_x, weight, *wanted[:2])
            if var is not None:
                _add_statistics(rows_of_x, weight, rstd, indices, dy, normalized, logits, grad_x, grad_weight)
            return grad_x, grad_weight, _by_bias(raw, indices, bias, var) if wanted[2] else None, None, None


def _by_bias(raw: Tensor, indices: Tensor, bias: Tensor, var: Tensor | None) -> Tensor:
    """Batch statistics cancel the bias: it has no effect and no gradient."""
    return torch.zeros_like(bias) if var is not None else segment_sum(raw, indices, len(bias))


def _through_activation(kind: str, slack: Tensor, grad: Tensor, rows: Tensor, count: int) -> Tensor:
    """Gradient (nnz,) of the normalized logits at the support, from that of the coefficients."""
    if kind == "relu_topk":
        return grad
    share = torch.ones_like(slack) if kind == "sparsemax" else slack
    mean = segment_sum(share * grad, rows, count) / segment_sum(share, rows, count)
    return share * (grad - mean[rows])


def _sparse_products(
    raw: Tensor, indices: Tensor, offsets: Tensor, x: Tensor, weight: Tensor, by_x: bool, by_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """d @ weight and d.T @ x for the sparse (rows, num_experts) matrix d of the values `raw`; None if not wanted."""
    if (compiled := kernels.of(x)) is not None:
        found: tuple[Tensor | None, Tensor | None] = compiled.support_backward(
            raw, indices, offsets, x, weight, by_x, by_weight
        )
        return found
    grad_x = bag(raw, indices, offsets, weight.contiguous()) if by_x else None
    return grad_x, transposed_bag(raw, indices, offsets, x.contiguous(), len(weight)) if by_weight else None


def _add_statistics(
    z: Tensor,
    weight: Tensor,
    rstd: Tensor,
    indices: Tensor,
    dy: Tensor,
    normalized: Tensor,
    logits: Tensor | None,
    grad_x: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    """Subtract the gradient through the batch's mean and variance, in place.

    For logits l = z g and y = (l - mean) rstd: dl = rstd (dy - m1 - y m2), with m1, m2 the means of dy and dy y over
    the batch. An expert without an entry has dy = m1 = m2 = 0. The rows of z are centred, so that m1 has no part in
    the gradient of g. With S = z'z and M = G' diag(rstd^2 m2) G the term of m2 is (rstd^2 m2) G S in the gradient of G
    and z M in that of z; where the logits are cheaper than these, they are formed again, block by block.
    """
    rows, width = z.shape
    scale, experts = rstd / rows, len(weight)
    first = segment_sum(dy, indices, experts) * scale
    second = segment_sum(dy * normalized, indices, experts) * scale * rstd
    active = torch.bincount(indices, minlength=experts).nonzero()[:, 0]
    every = len(active) > NEARLY_ALL * experts
    active = torch.arange(experts, device=z.device) if every else active
    by_gram = 2 * rows * width**2 + 2 * width**2 * len(active) < (3 - (logits is not None)) * rows * width * len(active)
    gram, inner = (z.mT @ z, z.new_zeros(width, width)) if by_gram else (z, z)
    for part in active.split(FEWEST):
        some: Any = slice(int(part[0]), int(part[0]) + len(part)) if every else part
        g = weight[some]
        if grad_x is not None:
            grad_x.sub_(first[some] @ g)
        if by_gram or logits is None:
            damped = g * second[some, None]
        if by_gram:
            inner.addmm_(g.mT, damped)
            left, right = damped, gram
        else:
            block = z @ damped.mT if logits is None else logits[:, some] * second[some]
            left, right = block.mT, z
            if grad_x is not None:
                grad_x.addmm_(block, g, alpha=-1)
        if grad_weight is not None and every:
            grad_weight[some].addmm_(left, right, alpha=-1)
        elif grad_weight is not None:
            grad_weight.index_add_(0, part, left @ right, alpha=-1)
    if by_gram and grad_x is not None:
        grad_x.addmm_(z, inner, alpha=-1)


# The search in PyTorch ------------------------------------------------------------------------------------


def _find(
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    kind: str,
    k: int,
    eps: float | None,
    dense_share: float,
) -> tuple[Tensor | None, ...] | None:
    """As `kernels.cpu.support`, for any device and dtype."""
    search, statistics, kept = _Search(x, len(weight), kind, k, dense_share), [], None
    for some, logits in search.blocks(x, weight):
        if eps is not None:
            kept = logits.clone() if logits.shape[1] == len(weight) else None
            statistics.append(_moments(logits))
            logits.sub_(statistics[-1][0]).mul_(torch.rsqrt(statistics[-1][1] + eps))
            if rstd is not None:
                logits.mul_(rstd[some])
        elif mean is not None and rstd is not None:
            logits.sub_(mean[some]).mul_(rstd[some])
        if not search.take(some.start, logits.shape[1]):
            return None
    if not bool(search.best.amax(-1).isfinite().all()):
        return None
    means, variances = (torch.cat(parts) for parts in zip(*statistics, strict=True)) if statistics else (None, None)
    return *search.solve(), means, variances, kept


def _moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (n,) of nearly centred logits (rows, n)."""
    mean = logits.mean(0)
    return mean, (logits.square().mean(0) - mean * mean).clamp_(min=0)


class _Search:
    """Candidates of every row while blocks of logits are processed.

    Each row remembers the largest logit of each of 64 buckets. These are logits of different experts, so the
    threshold tau that solves the activation on them alone is at most the true one (tau grows with every logit
    that is added): anything at or below it cannot be in the support. For topk the k-th largest of the buckets
    plays that role.
    """

    def __init__(self, x: Tensor, num_experts: int, kind: str, k: int, dense_share: float) -> None:
        self.kind, self.k, self.rows, self.num_experts = kind, min(k, num_experts), len(x), num_experts
        self.dense_share = dense_share
        step = max(FEWEST, BLOCK // len(x))
        self.step = min(math.ceil(step / BUCKETS), math.ceil(num_experts / BUCKETS)) * BUCKETS
        self.buffer = x.new_empty(len(x), self.step)
        self.best = x.new_full((len(x), BUCKETS), -math.inf)
        self.bound = x.new_full((len(x), 1), -math.inf)
        if kind == "relu_topk":  # nothing at or below 0 counts
            self.best.zero_()
            self.bound.zero_()
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def blocks(self, x: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The raw logits of each block of experts, in a buffer that is reused."""
        for start in range(0, len(weight), self.step):
            part = weight[start : start + self.step]
            logits = self.buffer[:, : len(part)]
            self.buffer[:, len(part) :] = -math.inf
            yield slice(start, start + len(part)), torch.mm(x, part.mT, out=logits)

    def take(self, start: int, width: int) -> bool:
        """Keep the candidates of a block; False if this is the first one and they are dense."""
        table = self.buffer.view(self.rows, -1, BUCKETS)
        largest = table.amax(1)
        torch.maximum(self.best, largest, out=self.best)
        self._raise_bound()
        hit_rows, hit_buckets = (largest >= self.bound).nonzero(as_tuple=True)
        if start == 0 and len(hit_rows) > self.dense_share * largest.numel() and self._is_dense(width):
            return False
        lines = table[hit_rows, :, hit_buckets]
        which, place = (lines >= self.bound[hit_rows]).nonzero(as_tuple=True)
        columns = place * BUCKETS + hit_buckets[which] + start
        self.found.append((hit_rows[which], columns, lines[which, place]))
        return True

    def _is_dense(self, width: int) -> bool:
        return int((self.buffer[:, :width] >= self.bound).sum()) > self.dense_share * self.rows * width

    def _raise_bound(self) -> None:
        """bound (rows, 1) := a logit that every member of the support reaches or exceeds."""
        if self.kind in ALPHAS:
            scale = ALPHAS[self.kind] - 1
            top = self.best.amax(-1, keepdim=True)
            start = ((self.bound - top) * scale).nan_to_num_(nan=-1.0).clamp_(min=-1)  # NaN: nothing but -inf so far
            tau = functional.threshold((self.best - top) * scale, scale + 1, _sum_rows, start, steps=4)
            # the margin covers the rounding of tau and of the shift
            self.bound = torch.fmax(self.bound, top + tau / scale - 1e-5 * (1 + top.abs()))
        elif self.k <= BUCKETS:
            self.bound = torch.maximum(self.bound, self.best.topk(self.k, dim=-1).values[:, -1:])

    def solve(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Slack, experts, offsets and normalized logits of the support."""
        rows, columns, values = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        inside = values >= self.bound[rows, 0]
        rows, columns, values = rows[inside], columns[inside], values[inside]
        slack = self._slack(rows, values)
        inside = slack > 0
        order = torch.argsort((rows * self.num_experts + columns)[inside])
        slack, rows, columns, values = (t[inside][order] for t in (slack, rows, columns, values))
        offsets = F.pad(torch.bincount(rows, minlength=self.rows).cumsum(0), (1, 0))
        return slack, columns, offsets, values

    def _slack(self, rows: Tensor, values: Tensor) -> Tensor:
        """The activation on all candidates; 0 for those outside of the support."""
        top = self.best.amax(-1)[rows]
        if self.kind in ALPHAS:
            x = (values - top).mul_(ALPHAS[self.kind] - 1)
            total: Callable[[Tensor], Tensor] = lambda t: segment_sum(t, rows, self.rows)[rows]  # noqa: E731
            return (x - functional.threshold(x, ALPHAS[self.kind], total)).clamp_(min=0)
        kept = self._largest(rows, values)
        if self.kind == "relu_topk":
            return values.relu() * kept
        shares = (values - top).exp_() * kept
        return shares / segment_sum(shares, rows, self.rows)[rows]

    def _largest(self, rows: Tensor, values: Tensor) -> Tensor:
        """Which candidates are among the k largest of their row."""
        order = torch.argsort(values, descending=True, stable=True)
        order = order[torch.argsort(rows[order], stable=True)]
        counts = torch.bincount(rows, minlength=self.rows)
        place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows[order]]
        return torch.zeros_like(rows, dtype=torch.bool).index_put_((order,), place < self.k)


def _sum_rows(values: Tensor) -> Tensor:
    return values.sum(-1, keepdim=True)
