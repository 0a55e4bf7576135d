"""The mathematics of the layer: gate activations, and contractions that never form the weight tensor.

Letters, the same in every contraction: ``n m`` experts, ``i`` in, ``o`` out, ``r s t`` ranks, leading
dimensions ``...``. The weight tensor W has modes (out, in, level 1 .. level E), and so have lists of factors.

The bias of every expert is folded into the input mode as one more, last, input that is always 1: an input
factor with one row more than x has columns holds it, and it costs an addition, not a concatenation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mumoe.calling import on_tensors
from mumoe.errors import UserError

__all__ = [
    "cp_contract",
    "dense_contract",
    "entmax",
    "entmax15",
    "hadamard_contract",
    "mutual_information",
    "relu_topk",
    "ring_contract",
    "softrank",
    "sparsemax",
    "topk_softmax",
    "tucker_contract",
]

BUCKETS = 64
"""Groups of a row's experts whose largest logits give a first lower bound of the threshold."""

_LONG_ROW = 512  # entries of a row from which that bound saves more than it costs
_CONVERGED = {torch.float32: 2e-7, torch.float64: 1e-15}  # steps of the threshold below this are rounding
_HELD = 2**20  # elements of a contraction's largest result that are held at a time where nothing is saved
_FEWEST_ROWS = 16  # rows at a time at least
_SOFTRANK_BLOCK = 2**24  # elements of the table that softrank builds at a time


# ---------------------------------------------------------------------------------------------------------
# Gate activations
# ---------------------------------------------------------------------------------------------------------


@on_tensors
def entmax15(logits: Tensor) -> Tensor:
    """Entmax with alpha = 1.5 over the last dimension: the paper's sparse gate activation.

    Solves ``argmax_p <p, x> + H_1.5(p)`` on the simplex exactly: p = max(x / 2 - tau, 0)^2 with the one tau
    for which p sums to 1. Computed in float32 or better, regardless of the input's dtype.

    Args:
        logits: Scores. A row may hold -inf (that entry is 0); NaN or +inf makes its row NaN.

    Shape:
        (..., num_experts) -> (..., num_experts), float32 (float64 for float64 input); rows sum to 1.

    Cost: one partial selection per row; derivatives of first and second order in closed form.

    Source: Peters et al. 2019, algorithm 2; Oldfield et al. 2024, section 3.1.
    """
    return _apply_entmax(logits, 1.5)


@on_tensors
def sparsemax(logits: Tensor) -> Tensor:
    """Euclidean projection of each row onto the simplex: entmax with alpha = 2.

    Shape:
        (..., num_experts) -> (..., num_experts), float32 or float64; rows sum to 1.

    Source: Martins and Astudillo 2016.
    """
    return _apply_entmax(logits, 2.0)


@on_tensors
def entmax(logits: Tensor, alpha: float | Tensor = 1.5) -> Tensor:
    """Entmax for any alpha in (1, 2] over the last dimension; alpha may be learned.

    p = max((alpha - 1) x - tau, 0)^(1 / (alpha - 1)). Alpha 1.5 and 2 given as numbers use the exact algorithms; any
    other alpha is solved by Newton's method from below, which converges monotonically.

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


@on_tensors
def topk_softmax(logits: Tensor, k: int, normalize: bool = True) -> Tensor:
    """Softmax over the k largest logits of each row, 0 elsewhere.

    Args:
        logits: Scores.
        k: Number of experts to keep; all of them if there are fewer.
        normalize: If False, the softmax runs over all logits before the k largest are kept, so that a row sums to
            at most 1.

    Shape:
        (..., num_experts) -> (..., num_experts), float32 or float64; rows sum to 1.

    Source: Shazeer et al. 2017, eq. 3 and 5, without noise.
    """
    logits = _at_least_float32(logits)
    values, index = torch.topk(logits, min(k, logits.shape[-1]), dim=-1)
    if normalize:
        kept = torch.softmax(values, dim=-1)
    else:
        kept = (values - torch.logsumexp(logits, dim=-1, keepdim=True)).exp()
    return torch.zeros_like(logits).scatter(-1, index, kept)


@on_tensors
def relu_topk(logits: Tensor, k: int) -> Tensor:
    """The k largest logits of each row as they are, where they are positive; 0 elsewhere. Rows are not normalized.

    Shape:
        (..., num_experts) -> (..., num_experts), float32 or float64, at least 0. A row with NaN or +inf is NaN.

    Source: Oldfield et al. 2025 (arXiv 2505.21364), section 3.
    """
    logits = _at_least_float32(logits)
    values, index = torch.topk(logits, min(k, logits.shape[-1]), dim=-1)
    values = torch.where(values.isposinf(), torch.nan, values)
    return torch.zeros_like(logits).scatter(-1, index, values.relu())


@on_tensors
def softrank(logits: Tensor, regularization: float = 1.0, normalize: bool = True) -> Tensor:
    """Soft ranks of the logits, scaled to sum to 1: the largest logit has the largest coefficient.

    The soft ranks are the Euclidean projection of ``logits / regularization`` onto the permutahedron, the
    convex hull of all orderings of (1, .., N). A small regularization gives the ranks themselves, which are
    dense: rank / (N (N + 1) / 2). Gradients are exact: inside a block of the projection it is a mean.

    Args:
        logits: Scores.
        regularization: Strength of the smoothing, above 0.
        normalize: If False, the soft ranks themselves, which sum to N (N + 1) / 2.

    Shape:
        (..., num_experts) -> (..., num_experts), float32 or float64; rows sum to 1 if normalized.

    Cost: N^2 operations a row, and blocks of rows in a table of N x N each: meant for comparisons, not for speed.

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
    return projection / (size * (size + 1) / 2) if normalize else projection


def _decreasing_blocks(y: Tensor) -> Tensor:
    """Block number of each position in the decreasing isotonic regression of each row (..., n).

    The fit is v_i = min over j <= i of max over k >= i of mean(y_j .. y_k); equal neighbours are a block.
    """
    size = y.shape[-1]
    flat = y.reshape(-1, size)
    if is_traced(y):
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
    result: Tensor = _entmax_function().apply(logits, alpha)
    return result


class _Entmax(torch.autograd.Function):
    """Entmax over the last dimension. Saves its output alone; its derivatives can be differentiated again."""

    @staticmethod
    def forward(logits: Tensor, alpha: float | Tensor) -> Tensor:
        top = logits.amax(-1, keepdim=True)
        x = (logits - top) * (alpha - 1)
        tau = threshold(x, alpha, lambda values: values.sum(-1, keepdim=True), _first_bound(x, alpha))
        inside = (x - tau).clamp_(min=0)
        if isinstance(alpha, Tensor) or alpha not in (1.5, 2.0):
            p = torch.where(inside > 0, inside ** (1 / (alpha - 1)), inside)
            return p / p.sum(-1, keepdim=True)
        return inside.square_() if alpha == 1.5 else inside

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float | Tensor], output: Tensor) -> None:
        alpha = inputs[1]
        saved = (output, alpha) if isinstance(alpha, Tensor) else (output,)
        ctx.alpha = None if isinstance(alpha, Tensor) else alpha
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        p, *rest = ctx.saved_tensors
        alpha, (grad,) = rest[0] if rest else ctx.alpha, grads
        by_logits = _entmax_slope(p, alpha, grad) if ctx.needs_input_grad[0] else None
        by_alpha = (grad * _entmax_by_alpha(p, alpha)).sum() if rest and ctx.needs_input_grad[1] else None
        return by_logits, by_alpha

    @staticmethod
    def vmap(info: Any, in_dims: Any, logits: Tensor, alpha: float | Tensor) -> tuple[Tensor, int]:
        if in_dims[1] is not None:
            raise UserError("entmax: expected one alpha for all rows, got a batch of them. Loop over alpha.")
        moved = logits.movedim(in_dims[0], 0)
        return _entmax_function().apply(moved, alpha), 0


class _EntmaxWithJvp(_Entmax):
    """The same with forward-mode derivatives, which torch.compile does not trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        p, *rest = ctx.saved_tensors
        alpha, (logits, learned) = rest[0] if rest else ctx.alpha, tangents
        found = torch.zeros_like(p) if logits is None else _entmax_slope(p, alpha, logits)
        return found if not rest or learned is None else found + learned * _entmax_by_alpha(p, alpha)


def _entmax_function() -> type[_Entmax]:
    return _Entmax if torch.compiler.is_compiling() else _EntmaxWithJvp


def _entmax_slope(p: Tensor, alpha: float | Tensor, vector: Tensor) -> Tensor:
    """The Jacobian of entmax by its logits, which is symmetric, times a vector."""
    if not isinstance(alpha, Tensor) and alpha == 1.5 and not torch.is_grad_enabled():
        weight = p.sqrt()  # 0 outside the support, where the square root has no derivative
    else:
        inside = p > 0
        weight = torch.where(inside, torch.where(inside, p, 1) ** (2 - alpha), 0)
        weight = torch.where(p.isnan(), p, weight)
    mean = (weight * vector).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    return (vector - mean) * weight  # in this order equal entries cancel exactly


def _entmax_by_alpha(p: Tensor, alpha: float | Tensor) -> Tensor:
    """The derivative of every coefficient by alpha: Correia et al. 2019, proposition 1."""
    inside = p > 0
    safe = torch.where(inside, p, 1)
    weight = torch.where(inside, safe ** (2 - alpha), 0)
    share = weight / weight.sum(-1, keepdim=True)
    entropy = -torch.where(inside, p * safe.log(), 0)
    first = (p - share) / (alpha - 1) ** 2
    return first + (entropy - share * entropy.sum(-1, keepdim=True)) / (alpha - 1)


def threshold(
    x: Tensor,
    alpha: float | Tensor,
    total: Callable[[Tensor], Tensor],
    start: float | Tensor = -1.0,
    steps: int = 64,
) -> Tensor:
    """The tau with total(max(x - tau, 0)^(1 / (alpha - 1))) = 1 for each row.

    Newton's method on the norm of the slack, a convex function of tau: from a lower bound it never overshoots, and
    every step is a lower bound, too.

    Args:
        x: (alpha - 1) times the logits, shifted so that the maximum of each row is 0.
        alpha: In (1, 2].
        total: Sums values shaped like x over each row; the result broadcasts against x.
        start: A lower bound of tau; -1 is always one.
        steps: Maximum number of steps; if it stops before convergence, the result is a lower bound.
    """
    power = 1 / (alpha - 1)
    fixed, tau = not _may_branch(x), torch.zeros_like(total(x)) + start
    moving = torch.ones_like(tau, dtype=torch.bool)
    for _ in range(min(steps, _traced_steps(x.shape[-1])) if fixed else steps):
        slack = (x - tau).clamp_(min=0)
        if isinstance(alpha, Tensor) or alpha not in (1.5, 2.0):
            slope = torch.where(slack > 0, slack ** (power - 1), 0)
            mass, slope = total(slope * slack), total(slope)
            step = (mass - mass ** (1 - 1 / power)) / slope
        elif alpha == 1.5:
            slope = total(slack)
            mass = total(slack.square_())
            step = (mass - mass.sqrt()) / slope
        else:
            mass, slope = total(slack), total((slack > 0).to(x.dtype))
            step = (mass - 1) / slope
        tau = torch.where(moving, tau + step, tau)
        moving = moving & (step > _CONVERGED[x.dtype])  # so that the numbers of a row do not depend on the others
        if not fixed and not bool(moving.any()):
            break
    return tau


def _traced_steps(size: int) -> int:
    """Number of steps that is enough for Newton's method where it must not read values."""
    return 8 + int(size).bit_length()


def _first_bound(x: Tensor, alpha: float | Tensor) -> float | Tensor:
    """A lower bound of tau from the largest entry of each of 64 groups, for long rows: tau grows with every entry."""
    size = x.shape[-1]
    if size < _LONG_ROW or isinstance(alpha, Tensor) or not _may_branch(x):
        return -1.0
    whole = size // BUCKETS * BUCKETS
    largest = x[..., :whole].unflatten(-1, (-1, BUCKETS)).amax(-2)
    bound = threshold(largest, alpha, lambda values: values.sum(-1, keepdim=True))
    return (bound - 1e-5).clamp_(min=-1)


def _may_branch(x: Tensor) -> bool:
    """Whether control flow may depend on values: not under tracing, and not where reading one waits for a device."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return torch._C._get_tracing_state() is None and not torch._C._len_torch_dispatch_stack()


def is_traced(x: Tensor) -> bool:
    """Whether the operations are recorded instead of, or beside, being computed."""
    if torch.compiler.is_compiling() or x.is_meta or torch._C._get_tracing_state() is not None:
        return True
    return bool(torch._C._are_functorch_transforms_active()) or torch._C._len_torch_dispatch_stack() > 0


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


# ---------------------------------------------------------------------------------------------------------
# Contractions
# ---------------------------------------------------------------------------------------------------------


@on_tensors
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
    joint = _outer([a if isinstance(a, Tensor) else a.to_dense() for a in coefficients])
    flat = weight.reshape(joint.shape[-1], *weight.shape[-2:])
    width = x.shape[-1]
    mixed = (joint[:, :, None] * x[:, None, :]).flatten(1)
    y = mixed @ flat[..., :width].transpose(1, 2).reshape(-1, flat.shape[1])
    return y + joint @ flat[..., width] if flat.shape[-1] > width else y


@on_tensors
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
    width = x.shape[-1]
    hidden = F.linear(x, in_factor[:width].mT, in_factor[width] if len(in_factor) > width else None)
    for a, factor in zip(coefficients, expert_factors, strict=True):
        hidden = hidden * (a @ factor)
    return F.linear(hidden, out_factor)


@on_tensors
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


@on_tensors
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


@on_tensors
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
    if torch.is_grad_enabled() or x.requires_grad or is_traced(x) or len(x) <= step:
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


# ---------------------------------------------------------------------------------------------------------
# Information of experts about labels
# ---------------------------------------------------------------------------------------------------------


@on_tensors
def mutual_information(coefficients: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    """Mutual information of label and expert in nats, where a row with label c picks expert n with probability a_n.

    I = sum_{c,n} J_cn log(J_cn / (p_c q_n)) with J = mean over rows of y a', p and q its sums over experts and labels.
    With several labels a row, the mean over labels of the information of "has it or not". Estimated on few rows it is
    too large; as a term of a loss it is computed on the rows of a batch. Tokens count as rows, and their tags as
    labels.

    Args:
        coefficients: a, at least 0, with rows that sum to 1; differentiable.
        labels: The label of each row, or 0 and 1 for each label; negative ones are unknown and do not count.
        num_labels: Number of labels.

    Shape:
        coefficients (..., num_experts), labels (...) int or (..., num_labels) -> scalar in float32 or better.

    >>> a = torch.eye(4)
    >>> round(float(mutual_information(a, torch.arange(4), 4)), 4) == round(math.log(4), 4)
    True
    """
    a = coefficients.flatten(0, -2) if coefficients.ndim > 2 else coefficients
    with torch.autocast(a.device.type, enabled=False):
        a = a if a.dtype == torch.float64 else a.float()
        if labels.ndim < coefficients.ndim:
            labels = labels.reshape(-1)
            a, labels = a[labels >= 0], labels[labels >= 0]
            joint = a.new_zeros(num_labels, a.shape[1]).index_add(0, labels, a) / max(len(a), 1)
            return _information(joint[None])
        labels = labels.reshape(-1, num_labels)
        known = (labels >= 0).sum(0).clamp(min=1)[:, None]
        joint = torch.stack([(labels == value).to(a.dtype).mT @ a / known for value in (0, 1)], dim=1)
        return _information(joint) / num_labels


def _information(joint: Tensor) -> Tensor:
    """Mutual information of the last two dimensions, summed over the first; its gradient is finite at zeros."""
    first, second = joint.sum(-1, keepdim=True), joint.sum(-2, keepdim=True)
    return (joint * ((joint + _TINY).log() - (first + _TINY).log() - (second + _TINY).log())).sum()


_TINY = 1e-9
