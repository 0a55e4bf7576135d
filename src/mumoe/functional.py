"""The mathematics of the layer: gate activations, and contractions that never form the weight tensor.

Letters, the same in every contraction: ``n m`` experts, ``i`` in, ``o`` out, ``r s t`` ranks, leading
dimensions ``...``. The weight tensor W has modes (out, in, level 1 .. level E), and so have lists of factors.

The bias of every expert is folded into the input mode as one more, last, input that is always 1: an input
factor with one row more than x has columns holds it, and it costs an addition, not a concatenation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mumoe.errors import UserError

__all__ = [
    "cp_contract",
    "cp_mixed",
    "dense_contract",
    "entmax",
    "entmax15",
    "hadamard_contract",
    "ring_contract",
    "softrank",
    "sparsemax",
    "topk_softmax",
    "tucker_contract",
]

_FIRST_K = 64  # candidates taken before the size of a support is known; doubled four-fold where it is larger
_FEW = 256  # experts up to which Newton's method on all of them is faster than a selection
_SMALL = 2**14  # logits in all up to which the same holds
_HELD = 2**20  # elements of a contraction's largest result that are held at a time where nothing is saved
_FEWEST_ROWS = 16  # rows at a time at least
_NEWTON_STEPS = 64  # many more than are ever needed
_SOFTRANK_BLOCK = 2**24  # elements of the table that softrank builds at a time


class DenseKernels(Protocol):
    """Compiled forms of entmax15 and sparsemax over the rows of a matrix."""

    def dense(self, logits: Tensor, kind: str) -> Tensor: ...
    def dense_backward(self, coefficients: Tensor, grad: Tensor, kind: str) -> Tensor: ...


dense_kernels: Callable[[Tensor], DenseKernels | None] = lambda tensor: None  # noqa: E731 - `backends` puts its own here
_COMPILED = {1.5: "entmax15", 2.0: "sparsemax"}  # alphas that they know


# ---------------------------------------------------------------------------------------------------------
# Gate activations
# ---------------------------------------------------------------------------------------------------------


def entmax15(logits: Tensor) -> Tensor:
    """Entmax with alpha = 1.5 over the last dimension: the paper's sparse gate activation.

    Solves ``argmax_p <p, x> + H_1.5(p)`` on the simplex exactly: p = max(x / 2 - tau, 0)^2 with the one tau
    for which p sums to 1. Computed in float32 or better, whatever the input's dtype.

    Args:
        logits: Scores. A row may hold -inf (that entry is 0); NaN or +inf makes its row NaN.

    Shape:
        (..., num_experts) -> (..., num_experts), float32 (float64 for float64 input); rows sum to 1.

    Cost: one partial selection per row; derivatives of first and second order in closed form.

    Source: Peters et al. 2019, algorithm 2; Oldfield et al. 2024, section 3.1.
    """
    return _apply_entmax(logits, 1.5)


def sparsemax(logits: Tensor) -> Tensor:
    """Euclidean projection of each row onto the simplex: entmax with alpha = 2.

    Shape:
        (..., num_experts) -> (..., num_experts), float32 or float64; rows sum to 1.

    Source: Martins and Astudillo 2016.
    """
    return _apply_entmax(logits, 2.0)


def entmax(logits: Tensor, alpha: float | Tensor = 1.5) -> Tensor:
    """Entmax for any alpha in (1, 2] over the last dimension; alpha may be learned.

    p = max((alpha - 1) x - tau, 0)^(1 / (alpha - 1)). Alpha 1.5 and 2 given as numbers take the exact
    algorithms; any other alpha is solved by Newton's method from below, which converges monotonically.

    Args:
        logits: Scores.
        alpha: A number, or a tensor of no dimensions that gets a gradient.

    Shape:
        (..., num_experts) -> (..., num_experts), float32 or float64; rows sum to 1.

    Raises:
        UserError: If a number alpha lies outside (1, 2].

    Source: Peters et al. 2019; gradient with respect to alpha: Correia et al. 2019, proposition 1.
    """
    if not isinstance(alpha, Tensor) and not 1 < alpha <= 2:
        raise UserError(f"entmax: expected 1 < alpha <= 2, got {alpha!r}. Use softmax for alpha = 1.")
    return _apply_entmax(logits, alpha)


def topk_softmax(logits: Tensor, k: int) -> Tensor:
    """Softmax over the k largest logits of each row, 0 elsewhere.

    Shape:
        (..., num_experts) -> (..., num_experts), float32 or float64; rows sum to 1.

    Source: Shazeer et al. 2017, eq. 3 and 5, without noise.
    """
    logits = _at_least_float32(logits)
    values, index = torch.topk(logits, min(k, logits.shape[-1]), dim=-1)
    return torch.zeros_like(logits).scatter(-1, index, torch.softmax(values, dim=-1))


def softrank(logits: Tensor, regularization: float = 1.0) -> Tensor:
    """Soft ranks of the logits, scaled to sum to 1: the largest logit has the largest coefficient.

    The soft ranks are the Euclidean projection of ``logits / regularization`` onto the permutahedron, the
    convex hull of all orderings of (1, .., N). A small regularization gives the ranks themselves, which are
    dense: rank / (N (N + 1) / 2). Gradients are exact: inside a block of the projection it is a mean.

    Args:
        logits: Scores.
        regularization: Strength of the smoothing, above 0.

    Shape:
        (..., num_experts) -> (..., num_experts), float32 or float64; rows sum to 1.

    Cost: N^2 operations a row, and blocks of rows in a table of N x N each: for comparisons, not for speed.

    Source: Blondel et al. 2020, proposition 3 (projection by isotonic regression), section 5 (soft rank).
    """
    logits = _at_least_float32(logits)
    size = logits.shape[-1]
    ranks = torch.arange(size, 0, -1, dtype=logits.dtype, device=logits.device)
    ordered, order = torch.sort(logits / regularization, dim=-1, descending=True)
    gap = ordered - ranks
    block = _decreasing_blocks(gap.detach())
    total = torch.zeros_like(gap).scatter_add(-1, block, gap)
    count = torch.zeros_like(gap).scatter_add(-1, block, torch.ones_like(gap))
    pooled = (total / count.clamp(min=1)).gather(-1, block)
    projection = torch.zeros_like(gap).scatter(-1, order, ordered - pooled)
    return projection / (size * (size + 1) / 2)


def _decreasing_blocks(y: Tensor) -> Tensor:
    """Block number of each position in the decreasing isotonic regression of each row (..., n).

    The fit is v_i = min over j <= i of max over k >= i of mean(y_j .. y_k); equal neighbours are a block.
    """
    size = y.shape[-1]
    flat = y.reshape(-1, size)
    if _is_traced(y):
        fit = _isotonic_fit(flat)
    else:
        rows = max(1, _SOFTRANK_BLOCK // (size * size))
        fit = torch.cat([_isotonic_fit(part) for part in flat.split(rows)])
    steps = (fit[..., 1:] != fit[..., :-1]).to(torch.int64).cumsum(-1)
    return F.pad(steps, (1, 0)).reshape(y.shape)


def _isotonic_fit(y: Tensor) -> Tensor:
    size = y.shape[-1]
    sums = F.pad(y.to(torch.float64).cumsum(-1), (1, 0))
    index = torch.arange(size, device=y.device)
    length = index[None, :] - index[:, None] + 1  # (first, last)
    means = (sums[:, None, 1:] - sums[:, :-1, None]) / length.clamp(min=1)
    largest = means.masked_fill(length < 1, -math.inf)
    shift = 1
    while shift < size:  # running maximum over last >= i, by doubling
        largest = torch.maximum(largest, F.pad(largest[..., shift:], (0, shift), value=-math.inf))
        shift *= 2
    return largest.masked_fill(length < 1, math.inf).amin(-2)  # over first <= i


def _apply_entmax(logits: Tensor, alpha: float | Tensor) -> Tensor:
    logits = _at_least_float32(logits)
    if isinstance(alpha, Tensor):
        alpha = alpha.to(logits)
    if not _is_recorded(logits, alpha):
        return _Entmax.forward(logits, alpha)
    result: Tensor = _Entmax.apply(logits, alpha)
    return result


def _is_recorded(logits: Tensor, alpha: float | Tensor) -> bool:
    """Whether somebody differentiates, traces or transforms; if not, calling the function alone is faster."""
    if torch.compiler.is_compiling() or isinstance(alpha, Tensor) or logits.requires_grad:
        return True
    return torch._C._are_functorch_transforms_active()


class _Entmax(torch.autograd.Function):
    """Entmax over the last dimension. Saves its output alone; its backward can be differentiated again."""

    @staticmethod
    def forward(logits: Tensor, alpha: float | Tensor) -> Tensor:
        if isinstance(alpha, Tensor):
            return _entmax_newton(logits, alpha)
        if alpha in _COMPILED and logits.numel() and (kernels := dense_kernels(logits)) is not None:
            flat = logits.reshape(-1, logits.shape[-1])
            return kernels.dense(flat, _COMPILED[alpha]).view(logits.shape)
        if alpha == 1.5:
            return _threshold(logits, tau15, 0.5).square_()
        if alpha == 2.0:
            return _threshold(logits, tau2, 1.0)
        return _entmax_newton(logits, torch.tensor(alpha, dtype=logits.dtype, device=logits.device))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float | Tensor], output: Tensor) -> None:
        alpha = inputs[1]
        ctx.learned = isinstance(alpha, Tensor)
        ctx.alpha = None if ctx.learned else alpha
        ctx.save_for_backward(output, *([alpha] if ctx.learned else []))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        p, *rest = ctx.saved_tensors
        alpha = rest[0] if ctx.learned else ctx.alpha
        grad = grads[0]
        once = not ctx.learned and not torch.is_grad_enabled()
        if once and alpha in _COMPILED and p.numel() and (kernels := dense_kernels(p)) is not None:
            width = p.shape[-1]
            found = kernels.dense_backward(p.reshape(-1, width), grad.reshape(-1, width), _COMPILED[alpha])
            return found.view(p.shape), None
        if once and alpha == 1.5:
            return _entmax15_backward(p, grad), None
        inside = p > 0
        safe = torch.where(inside, p, 1)
        weight = torch.where(inside, _power(safe, 2 - alpha), 0)
        weight = torch.where(p.isnan(), p, weight)
        total = weight.sum(-1, keepdim=True)
        mean = (weight * grad).sum(-1, keepdim=True) / total
        logits_grad = weight * (grad - mean)
        if not ctx.learned:
            return logits_grad, None
        entropy = -torch.where(inside, p * safe.log(), 0)
        share = weight / total
        first = (p - share) / (alpha - 1) ** 2
        second = (entropy - share * entropy.sum(-1, keepdim=True)) / (alpha - 1)
        return logits_grad, (grad * (first + second)).sum()

    @staticmethod
    def vmap(info: Any, in_dims: Any, logits: Tensor, alpha: float | Tensor) -> tuple[Tensor, int]:
        if in_dims[1] is not None:
            raise UserError("entmax: expected one alpha for all rows, got a batch of them. Loop over alpha.")
        moved = logits.movedim(in_dims[0], 0)
        return _Entmax.apply(moved, alpha), 0


def _entmax15_backward(p: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the logits, in as few passes as there are; entries outside the support are 0 by themselves."""
    weight = p.sqrt()
    mean = (weight * grad).sum(-1, keepdim=True).div_(weight.sum(-1, keepdim=True))
    return (grad - mean).mul_(weight)  # in this order equal gradients cancel to the bit


def _power(base: Tensor, exponent: float | Tensor) -> Tensor:
    if isinstance(exponent, Tensor):
        return base**exponent
    if exponent == 0.5:
        return base.sqrt()
    return torch.ones_like(base) if exponent == 0 else base**exponent


def _threshold(logits: Tensor, solve: Any, scale: float) -> Tensor:
    """max(scale * (x - max) - tau, 0), with tau from the largest entries of each row alone where possible."""
    top = logits.amax(-1, keepdim=True)
    if _is_traced(logits):
        ordered = torch.sort(logits, dim=-1, descending=True).values
        tau, _ = solve((ordered - top) * scale)
        return ((logits - top) * scale - tau).clamp(min=0)
    if logits.shape[-1] <= _FEW or logits.numel() <= _SMALL:
        return _slack_by_newton((logits - top).mul_(scale), scale)
    tau = _tau_of_largest(logits.reshape(-1, logits.shape[-1]), solve, scale)
    if tau is None:
        return _slack_by_newton((logits - top).mul_(scale), scale)
    return (logits - top).mul_(scale).sub_(tau.reshape(top.shape)).clamp_(min=0)


def _slack_by_newton(x: Tensor, scale: float) -> Tensor:
    """max(x - tau, 0) for rows x with maximum 0, of entmax15 (scale 0.5) or sparsemax (1).

    Newton's method from tau = -1 never overshoots, and ends where no step is left but rounding.
    """
    tau = torch.full_like(x[..., :1], -1.0)
    slack = x + 1
    for _ in range(_NEWTON_STEPS):
        slack.clamp_(min=0)
        if scale == 0.5:
            excess = torch.linalg.vector_norm(slack, dim=-1, keepdim=True).square_().sub_(1)
            step = excess.div_(slack.sum(-1, keepdim=True)).mul_(0.5)
        else:
            step = slack.sum(-1, keepdim=True).sub_(1).div_((slack > 0).sum(-1, keepdim=True))
        tau.add_(step)
        torch.sub(x, tau, out=slack)
        if not bool((step > 2e-7).any()):
            break
    return slack.clamp_(min=0)


def _tau_of_largest(logits: Tensor, solve: Any, scale: float) -> Tensor | None:
    """Tau per row; rows whose support may reach beyond the entries looked at are solved again with more.

    None where these are many, as with a gate that starts at zero: then all entries at once are faster.
    """
    size, k = logits.shape[-1], min(_FIRST_K, logits.shape[-1])
    values = torch.topk(logits, k, dim=-1).values
    tau, support = solve((values - values[:, :1]) * scale)
    while k < size:
        again = (support == k).nonzero()[:, 0]
        if not len(again):
            break
        if 4 * len(again) > len(logits):
            return None
        k = min(4 * k, size)
        values = torch.topk(logits[again], k, dim=-1).values
        tau[again], support[again] = solve((values - values[:, :1]) * scale)
    return tau


def tau15(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Threshold and support size (rows, 1) of entmax15 for rows in descending order that begin with 0."""
    count = _counts(ordered)
    mean = ordered.cumsum(-1) / count
    spread = (ordered * ordered).cumsum(-1) - count * mean * mean
    tau = mean - ((1 - spread) / count).clamp(min=0).sqrt()
    support = (tau <= ordered).sum(-1, keepdim=True)
    tau = tau.gather(-1, (support - 1).clamp(min=0))
    inside = (ordered - tau).clamp(min=0)  # one Newton step takes the rounding of the running sums out
    tau = tau + (inside.square().sum(-1, keepdim=True) - 1) / (2 * inside.sum(-1, keepdim=True))
    return tau, support.squeeze(-1)


def tau2(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Threshold and support size of sparsemax, as `tau15`."""
    count = _counts(ordered)
    tau = (ordered.cumsum(-1) - 1) / count
    support = (tau < ordered).sum(-1, keepdim=True)
    tau = tau.gather(-1, (support - 1).clamp(min=0))
    inside = (ordered - tau).clamp(min=0)
    tau = tau + (inside.sum(-1, keepdim=True) - 1) / (inside > 0).sum(-1, keepdim=True)
    return tau, support.squeeze(-1)


def _counts(ordered: Tensor) -> Tensor:
    return torch.arange(1, ordered.shape[-1] + 1, dtype=ordered.dtype, device=ordered.device)


def _entmax_newton(logits: Tensor, alpha: Tensor) -> Tensor:
    """Entmax of any alpha. Newton from tau = max - 1, where the sum is at least 1: monotone, no overshoot."""
    x = (logits - logits.amax(-1, keepdim=True)) * (alpha - 1)
    power = 1 / (alpha - 1)
    tau = torch.full_like(x[..., :1], -1.0)
    steps = 8 + math.ceil(math.log(x.shape[-1]))  # the sum falls by e or so a step, then quadratically
    for _ in range(steps):
        inside = (x - tau).clamp(min=0)
        slope = inside ** (power - 1)
        slope = torch.where(inside > 0, slope, 0)
        value = (slope * inside).sum(-1, keepdim=True) - 1
        step = value / (power * slope.sum(-1, keepdim=True))
        tau = tau + step.clamp(min=0)
        if not _is_traced(x) and not bool((step > 1e-7 * (1 + tau.abs())).any()):
            break
    inside = (x - tau).clamp(min=0)
    p = torch.where(inside > 0, inside**power, inside)
    return p / p.sum(-1, keepdim=True)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _is_traced(x: Tensor) -> bool:
    """Whether control flow must not depend on values: under torch.compile, export, or on the meta device."""
    return torch.compiler.is_compiling() or x.is_meta


# ---------------------------------------------------------------------------------------------------------
# Contractions
# ---------------------------------------------------------------------------------------------------------


def dense_contract(x: Tensor, coefficients: Sequence[Tensor], weight: Tensor) -> Tensor:
    """The definition of the layer: mix experts that are held in full.

    y_o = sum_{n_1 .. n_E} prod_e a_e[n_e] sum_i W[n_1, .., n_E, o, i] x_i

    Args:
        x: Input features.
        coefficients: One tensor per expert level.
        weight: All experts, levels first; the last input column is the bias if there is one more than x has.

    Shape:
        x (rows, in); coefficients[e] (rows, N_e); weight (N_1, .., N_E, out, in [+ 1]); returns (rows, out).

    Cost: out * in * prod(N_e) multiply-adds and in * prod(N_e) memory per row.

    Source: Oldfield et al. 2024, eq. 1.
    """
    joint = _outer(coefficients)
    flat = weight.reshape(joint.shape[-1], *weight.shape[-2:])
    width = x.shape[-1]
    mixed = (joint[:, :, None] * x[:, None, :]).flatten(1)
    y = mixed @ flat[..., :width].transpose(1, 2).reshape(-1, flat.shape[1])
    return y + joint @ flat[..., width] if flat.shape[-1] > width else y


def cp_contract(x: Tensor, coefficients: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
    """Mix linear experts held as CP factors; the dense weight is never formed.

    y_o = sum_r O[o,r] * prod_e(sum_n a_e[n] N_e[n,r]) * sum_i I[i,r] x_i

    Args:
        x: Input features.
        coefficients: One tensor per expert level.
        factors: O, I, N_1 .. N_E, each (size of its mode, rank).

    Shape:
        x (rows, in); coefficients[e] (rows, N_e); returns (rows, out).

    Cost: rank * (sum(N_e) + in + out) multiply-adds per row.

    Source: Oldfield et al. 2024, eq. 2 and 7.
    """
    out_factor, in_factor, *expert_factors = factors
    mixed = [a @ factor for a, factor in zip(coefficients, expert_factors, strict=True)]
    return cp_mixed(x, mixed, out_factor, in_factor)


def cp_mixed(x: Tensor, mixed: Sequence[Tensor], out_factor: Tensor, in_factor: Tensor) -> Tensor:
    """The end of `cp_contract`, where the experts of each level are mixed already.

    Shape:
        x (rows, in); mixed[e] = a_e @ N_e (rows, rank); out_factor (out, rank); in_factor (in [+ 1], rank);
        returns (rows, out).

    Source: Oldfield et al. 2024, eq. 7.
    """
    hidden = _project(x, in_factor)
    for vector in mixed:
        hidden = hidden * vector
    return F.linear(hidden, out_factor)


def hadamard_contract(
    x: Tensor, coefficients: Sequence[Tensor], in_factor: Tensor, expert_factors: Sequence[Tensor]
) -> Tensor:
    """Mix linear experts that scale the outputs of one matrix: CP whose output factor is the identity.

    y_o = prod_e(sum_n a_e[n] N_e[n,o]) * sum_i I[i,o] x_i

    Args:
        x: Input features.
        coefficients: One tensor per expert level.
        in_factor: I (in [+ 1], out).
        expert_factors: N_1 .. N_E, each (N_e, out).

    Shape:
        x (rows, in); coefficients[e] (rows, N_e); returns (rows, out).

    Cost: out * (sum(N_e) + in) multiply-adds per row.

    Source: Oldfield et al. 2025 (arXiv 2505.21364), with one bias per expert.
    """
    y = _project(x, in_factor)
    for a, factor in zip(coefficients, expert_factors, strict=True):
        y = y * (a @ factor)
    return y


def tucker_contract(x: Tensor, coefficients: Sequence[Tensor], core: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Mix linear experts held as a Tucker core and its factors.

    y_o = sum_{r s t..} O[o,r] C[r,s,t..] (sum_i I[i,s] x_i) prod_e (sum_n a_e[n] N_e[n,t_e])

    The expert levels are contracted with the core first, all in one matrix product, so that memory grows with
    rank_out * rank_in and not with the product of the levels' ranks.

    Args:
        x: Input features.
        coefficients: One tensor per expert level.
        core: (rank_out, rank_in, rank_1, .., rank_E).
        factors: O, I, N_1 .. N_E, each (size of its mode, its rank).

    Shape:
        x (rows, in); coefficients[e] (rows, N_e); returns (rows, out).

    Cost: rank_in in + sum(rank_e N_e) + rank_out rank_in prod(rank_e) + rank_out rank_in + rank_out out
    multiply-adds per row.

    Source: Oldfield et al. 2024, eq. 3 and 8.
    """
    out_factor, in_factor, *expert_factors = factors
    hidden = _project(x, in_factor)
    mixed = _outer([a @ factor for a, factor in zip(coefficients, expert_factors, strict=True)])
    step = _rows_at_a_time(hidden, math.prod(core.shape[:2]))
    if step is None:
        return F.linear(_through_core(mixed, hidden, core), out_factor)
    parts = zip(mixed.split(step), hidden.split(step), strict=True)
    return F.linear(torch.cat([_through_core(*part, core) for part in parts]), out_factor)


def _through_core(mixed: Tensor, hidden: Tensor, core: Tensor) -> Tensor:
    """(rows, ranks of the experts), (rows, rank_in) -> (rows, rank_out)."""
    matrices = F.linear(mixed, core.reshape(-1, mixed.shape[-1])).unflatten(-1, core.shape[:2])
    return torch.bmm(matrices, hidden.unsqueeze(-1)).squeeze(-1)


def ring_contract(x: Tensor, coefficients: Sequence[Tensor], cores: Sequence[Tensor]) -> Tensor:
    """Mix linear experts held as tensor-ring cores; a tensor train is the ring whose closing bond is 1.

    y_o = trace(G_out[o] (sum_i x_i G_in[i]) prod_e (sum_n a_e[n] G_e[n]))

    Args:
        x: Input features.
        coefficients: One tensor per expert level.
        cores: G_out, G_in, G_1 .. G_E, each (size of its mode, rank before, rank after); the rank before
            G_out is the rank after G_E. The mode comes first so that every step is a plain matrix product.

    Shape:
        x (rows, in); coefficients[e] (rows, N_e); returns (rows, out).

    Cost: r_2 in r_3 + sum(r_e N_e r_{e+1}) + the products of the small matrices + r_1 r_2 out multiply-adds.

    Source: Oldfield et al. 2024, eq. 4 and 9.
    """
    out_core, in_core, *expert_cores = cores
    chain: Tensor | None = None
    for a, core in zip(coefficients, expert_cores, strict=True):
        matrix = (a @ core.flatten(1)).unflatten(-1, core.shape[1:])
        chain = matrix if chain is None else torch.bmm(chain, matrix)
    assert chain is not None
    step = _rows_at_a_time(x, in_core[0].numel())
    if step is None:
        return _close(x, chain, out_core, in_core)
    parts = zip(x.split(step), chain.split(step), strict=True)
    return torch.cat([_close(*part, out_core, in_core) for part in parts])


def _close(x: Tensor, chain: Tensor, out_core: Tensor, in_core: Tensor) -> Tensor:
    """The ring of x, the product of the levels' matrices (rows, r, s), and both large cores: (rows, out)."""
    hidden = _project(x, in_core.flatten(1)).unflatten(-1, in_core.shape[1:])
    closed = torch.bmm(hidden, chain).transpose(1, 2)  # many times faster than the transposed product
    return F.linear(closed.flatten(1), out_core.flatten(1))


def _rows_at_a_time(x: Tensor, width: int) -> int | None:
    """Rows whose `width` numbers each stay in the cache; None: all at once, as where something is saved or traced."""
    step = max(_FEWEST_ROWS, _HELD // width)
    if torch.is_grad_enabled() or _is_recorded(x, 0.0) or x.is_meta or len(x) <= step:
        return None
    return step


def _project(x: Tensor, factor: Tensor) -> Tensor:
    """x against a (in [+ 1], rank) factor, whose last row is the bias if there is one more than x has."""
    width = x.shape[-1]
    if factor.shape[0] == width:
        return x @ factor
    return torch.addmm(factor[width], x, factor[:width])


def _outer(vectors: Sequence[Tensor]) -> Tensor:
    """Row-wise outer product (rows, n_1), .., (rows, n_E) -> (rows, n_1 * .. * n_E)."""
    joint = vectors[0]
    for vector in vectors[1:]:
        joint = (joint[:, :, None] * vector[:, None, :]).flatten(1)
    return joint
