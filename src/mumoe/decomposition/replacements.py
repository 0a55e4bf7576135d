"""Replacements of an MLP: mixtures of sparse experts, the transcoders they are compared with, and dense baselines.

All of them compute, in units in which inputs and outputs have a root mean square of 1,

    y = mixture(x, a(x)) + S x + b

with a gate a that keeps the k largest positive logits (or entmax), an optional linear path S that starts at zero, and a
bias b that starts at the mean output. They differ in the mixture:

- ``cp-linear``: U ((C' a) * (V x)), linear experts held as CP factors (`MuMoE`); the gate is the only nonlinearity.
  Its experts may be on several levels, each with a gate of its own: U ((C_1' a_1) * .. * (C_E' a_E) * (V x)), where
  every combination of one expert per level is a linear map of its own.
- ``hadamard``: (C' a) * (D z), z being a gated hidden layer of its own (MxD, Oldfield et al. 2025, arXiv 2505.21364).
- ``cp``, ``tucker``, ``tr``: an MLP of two layers of experts under one gate (`MuMoEBlock`), with entmax.
- ``transcoder``, ``skip-transcoder``: C' a, a vector for each expert; the second has the linear path.
- ``linear``, ``dense``: no experts; the linear path alone, or an MLP of the original's kind trained from scratch.

Sizes come from one budget of parameters, that of a transcoder with ``width`` times as many features as the MLP has
inputs; the sizes of ``linear`` and ``dense`` are fixed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from mumoe.coefficients import Coefficients
from mumoe.decomposition.levels import joined, split
from mumoe.errors import UserError, check_levels, check_size, unknown_name
from mumoe.gating import Gate
from mumoe.layers import MuMoE, MuMoEBlock
from mumoe.models.surgery.parts import Parts
from mumoe.specs import closest_rank

__all__ = ["KINDS", "SPARSE", "Kind", "Replacement", "Shape", "build", "check_experts", "shape_for"]

WHO = "decompose"
BLOCK_EXPERTS = 512
"""Experts of the kinds that are blocks, whose rank follows from the budget."""
LATER_SPREAD = 0.5
"""Standard deviation around 1 of the expert vectors of later levels at the start. Measured for (1024, 1024) experts and
k = 16 of layer 10 of SmolLM2, 500,000 tokens, learning rate 0.002: error .121 and 10 % of experts never used; with
random directions on both levels .132 and 51 %, with all vectors around 1 (spread 1) .126 and 6 %."""
MOST_COMBINATIONS = 2**62
"""Combinations of experts that a number of 64 bits tells apart."""


@dataclass(frozen=True)
class Kind:
    """One kind of replacement.

    Attributes:
        about: What it is, in a few words.
        sparse: Its gate keeps k experts.
        skip: It has a linear path.
        additive: Its output is a sum over experts, to which each contributes one term.
        factorization: That of its mixture; empty for none.
    """

    about: str
    sparse: bool = False
    skip: bool = False
    additive: bool = False
    factorization: str = ""


KINDS = {
    "cp-linear": Kind("linear experts as CP factors, with a linear path", True, True, True, "cp"),
    "hadamard": Kind("experts that scale the outputs of one gated MLP (MxD)", True, False, True, "hadamard"),
    "cp": Kind("an MLP of CP experts, entmax", factorization="cp"),
    "tucker": Kind("an MLP of Tucker experts, entmax", factorization="tucker"),
    "tr": Kind("an MLP of tensor-ring experts, entmax", factorization="tr"),
    "transcoder": Kind("one vector for each feature", True, False, True),
    "skip-transcoder": Kind("one vector for each feature, with a linear path", True, True, True),
    "linear": Kind("one matrix (control)", skip=True),
    "dense": Kind("the same MLP, trained from scratch (control)"),
}

SPARSE = tuple(name for name, kind in KINDS.items() if kind.sparse)


@dataclass(frozen=True)
class Shape:
    """Sizes of a replacement; everything that `build` needs besides the nonlinearity.

    Attributes:
        kind: A name in `KINDS`.
        in_features, hidden_features, out_features: Of the MLP.
        gated: Whether the MLP is gated, as in Llama.
        experts: Number of experts, or of each of several levels; 0 for none.
        rank: Rank of the mixture; 0 for none.
        k: Experts that the gate keeps, of each level; 0 for entmax, and without a gate.
    """

    kind: str
    in_features: int
    hidden_features: int
    out_features: int
    gated: bool
    experts: int | tuple[int, ...] = 0
    rank: int = 0
    k: int = 0

    @property
    def levels(self) -> tuple[int, ...]:
        """Experts of each level; empty for none."""
        if isinstance(self.experts, tuple):
            return self.experts
        return (self.experts,) if self.experts else ()

    @property
    def total(self) -> int:
        """Experts of all levels."""
        return sum(self.levels)

    @property
    def shown(self) -> str:
        """``2,113``, or ``1,024 x 1,024`` of several levels."""
        return " x ".join(f"{size:,}" for size in self.levels) or "0"

    def place(self, column: int) -> tuple[int, int]:
        """Level and number of the expert in a column of the joined coefficients."""
        level = 0
        while column >= self.levels[level]:
            column -= self.levels[level]
            level += 1
        return level, column

    def column(self, expert: int | tuple[int, int]) -> int:
        """Column of an expert in the joined coefficients.

        Args:
            expert: Its number, or (level, number); on several levels the latter.

        Raises:
            UserError: If there is no such expert.
        """
        several = len(self.levels) > 1
        if several and not isinstance(expert, tuple):
            raise UserError(
                f"{WHO}: expected an expert as (level, number), got {expert!r}. Use (0, {expert!r}) for the first "
                "level."
            )
        level, number = expert if isinstance(expert, tuple) else (0, expert)
        if not 0 <= level < len(self.levels):
            raise UserError(f"{WHO}: expected a level in 0..{len(self.levels) - 1}, got {level}. Use one of these.")
        if not 0 <= number < self.levels[level]:
            of = f" of level {level}" if several else ""
            raise UserError(
                f"{WHO}: expected an expert{of} in 0..{self.levels[level] - 1}, got {number}. Use one of these."
            )
        return sum(self.levels[:level]) + number


class Features(nn.Module):
    """A gate and one output vector for each expert: the sparse layer of a transcoder. y = C' a."""

    def __init__(self, in_features: int, out_features: int, gate: Gate) -> None:
        super().__init__()
        self.in_features, self.out_features, self.num_experts = in_features, out_features, gate.num_experts
        self.gate = gate
        self.vectors = nn.Parameter(torch.empty(gate.num_experts[0], out_features))

    def contract(self, x: Tensor, coefficients: list[Coefficients]) -> Tensor:
        """(rows, in) and one `Coefficients` -> (rows, out); x itself is not read."""
        return coefficients[0] @ self.vectors


class Hidden(nn.Module):
    """The hidden layer of an MLP: act(E x + e), or act(E x + e) * (U x) of a gated one."""

    def __init__(self, in_features: int, hidden_features: int, act: nn.Module, gated: bool) -> None:
        super().__init__()
        self.first = nn.Linear(in_features, hidden_features)
        self.second = nn.Linear(in_features, hidden_features, bias=False) if gated else None
        self.act = copy.deepcopy(act)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.act(self.first(x))
        return h if self.second is None else h * self.second(x)


class Replacement(nn.Module):
    """A module in an MLP's place.

    Args:
        shape: Its sizes.
        act: Nonlinearity of hidden layers, that of the MLP.

    Attributes:
        mixture: `MuMoE`, `MuMoEBlock` or `Features`; None for the kinds without experts.
        hidden: What `hadamard`'s mixture and `dense` read instead of x; None for the others.
        in_scale, out_scale: Root mean squares of inputs and outputs of the MLP, by which both are divided.
        mean_coefficients: (experts,) means over training rows, of all levels; NaN before `Fit` has measured them.

    Shape:
        (..., in_features) -> (..., out_features), in the units of the MLP.
    """

    in_scale: Tensor
    out_scale: Tensor
    mean_coefficients: Tensor

    def __init__(self, shape: Shape, act: nn.Module) -> None:
        super().__init__()
        kind = KINDS[shape.kind]
        self.shape, self.kind = shape, kind
        self.mixture = _mixture(shape, act)
        hidden = shape.kind in ("hadamard", "dense")
        self.hidden = Hidden(shape.in_features, shape.hidden_features, act, shape.gated) if hidden else None
        last = shape.kind == "dense"
        self.last = nn.Linear(shape.hidden_features, shape.out_features, bias=False) if last else None
        self.skip = nn.Linear(shape.in_features, shape.out_features, bias=False) if kind.skip else None
        self.bias = nn.Parameter(torch.zeros(shape.out_features))
        self.register_buffer("in_scale", torch.ones(()))
        self.register_buffer("out_scale", torch.ones(()))
        self.register_buffer("mean_coefficients", torch.full((shape.total,), torch.nan))
        self.reset_parameters()

    @property
    def gate(self) -> Gate | None:
        return None if self.mixture is None else self.mixture.gate

    @property
    def parameters_count(self) -> int:
        """Learnable parameters, gate and biases included."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights again; the linear path starts at 0, and so do the outputs of mixtures other than blocks."""
        for part in (self.gate, self.hidden):
            for module in part.modules() if part is not None else ():
                reset = getattr(module, "reset_parameters", None)
                if module is not part and callable(reset):
                    reset()
        self.bias.zero_()
        if self.skip is not None:
            self.skip.weight.zero_()
        if self.last is not None:
            self.last.weight.zero_()
        if isinstance(self.mixture, Features):
            _unit_(self.mixture.vectors.normal_())
            self.mixture.vectors.mul_(0.0 if self.skip is not None else 0.1)
        elif isinstance(self.mixture, MuMoE):
            self._reset_factors(self.mixture)
        elif self.mixture is not None:
            self.mixture._draw_layers()

    def _reset_factors(self, mixture: MuMoE) -> None:
        """Expert vectors of random directions, so that no two experts start alike; the output starts at 0.

        Those of later levels start around 1, over the sum of coefficients that is expected: at first a hierarchy is
        nearly the mixture of its first level, and each combination differs a little.
        """
        part: Any = mixture.factorization
        _unit_(part.expert_factor_0.uniform_(-1, 1))
        if self.shape.kind == "hadamard":
            part.in_factor.zero_()
            return
        part.expert_factor_0.mul_((self.shape.rank / self.shape.in_features) ** 0.5)
        for level, size in enumerate(self.shape.levels[1:], 1):
            factor = getattr(part, f"expert_factor_{level}")
            factor.normal_(1.0, LATER_SPREAD).div_(_coefficient_sum(size, self.shape.k))
        part.in_factor.uniform_(-1, 1).div_(self.shape.in_features**0.5)
        part.out_factor.zero_()

    # Forward ----------------------------------------------------------------------------------------------------

    def coefficients(self, x: Tensor) -> Coefficients | None:
        """What the gate gives for rows of the MLP's input (rows, in_features); None without a gate.

        Of several levels, one matrix whose columns are those of the first level, then those of the next ones.
        """
        return self.coefficients_of(x / self.in_scale)

    def coefficients_of(self, x: Tensor) -> Coefficients | None:
        """The same for rows in units of root mean square 1."""
        return None if self.mixture is None else joined(self.mixture.gate(x))

    def contract(self, x: Tensor, a: Coefficients | None) -> Tensor:
        """The output for coefficients given instead of the gate's: (rows, in), (rows, experts) -> (rows, out)."""
        return self.contract_of(x / self.in_scale, a) * self.out_scale

    def contract_of(self, x: Tensor, a: Coefficients | None) -> Tensor:
        """The same in units of root mean square 1, float32."""
        return self._contract(x, None if a is None else split(a, self.shape.levels))

    def contract_levels(self, x: Tensor, levels: list[Coefficients]) -> Tensor:
        """`contract` with a matrix (rows, experts) for each level."""
        return self._contract(x / self.in_scale, levels) * self.out_scale

    def _contract(self, x: Tensor, levels: list[Coefficients] | None) -> Tensor:
        y = self.rest_of(x)
        if self.mixture is not None and levels is not None:
            read = x if self.hidden is None else self.hidden(x)
            y = y + self.mixture.contract(_like(read, self.bias), levels).to(y.dtype)
        return y

    def rest_of(self, x: Tensor) -> Tensor:
        """The part that belongs to no expert: linear path, dense MLP and bias."""
        y = self.bias.to(torch.promote_types(x.dtype, torch.float32)).expand(*x.shape[:-1], -1)
        if self.skip is not None:
            y = y + self.skip(x).to(y.dtype)
        if self.last is not None and self.hidden is not None:
            y = y + self.last(self.hidden(x)).to(y.dtype)
        return y

    def rest(self, x: Tensor) -> Tensor:
        """`rest_of` in the units of the MLP."""
        return self.rest_of(x / self.in_scale) * self.out_scale

    def output_of(self, x: Tensor) -> tuple[Tensor, Coefficients | None]:
        """Output and coefficients, in units of root mean square 1."""
        levels = None if self.mixture is None else list(self.mixture.gate(x))
        return self._contract(x, levels), None if levels is None else joined(levels)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = self.output_of(rows / self.in_scale)[0] * self.out_scale
        return y.reshape(*x.shape[:-1], -1).to(x.dtype)

    # Constraints of the training --------------------------------------------------------------------------------

    @property
    def _normed(self) -> Tensor | None:
        """Expert vectors that keep their norm of 1: those of ``hadamard``, whose scale the gate already controls."""
        if self.shape.kind != "hadamard" or not isinstance(self.mixture, MuMoE):
            return None
        found: Tensor = self.mixture.factorization.expert_factor_0  # type: ignore[assignment]
        return found

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Remove the part of the gradient along vectors that keep their norm."""
        c = self._normed
        if c is not None and c.grad is not None:
            c.grad.sub_((c.grad * c).sum(1, keepdim=True) * c)

    @torch.no_grad()
    def renormalize(self) -> None:
        """Set vectors that keep their norm back to 1."""
        if (c := self._normed) is not None:
            _unit_(c)


def _like(x: Tensor, parameter: Tensor) -> Tensor:
    """x in the dtype of the weights, as layers require; autocast casts again inside."""
    return x if x.dtype == parameter.dtype else x.to(parameter.dtype)


def _unit_(vectors: Tensor) -> None:
    vectors.div_(vectors.norm(dim=1, keepdim=True).clamp_(min=1e-12))


def _coefficient_sum(experts: int, k: int) -> float:
    """Expected sum of the k largest of so many standard normal logits, of those above 0."""
    normal = NormalDist()
    return experts * normal.pdf(normal.inv_cdf(1 - min(k / experts, 0.5)))


def _mixture(shape: Shape, act: nn.Module) -> Features | MuMoE | MuMoEBlock | None:
    kind = KINDS[shape.kind]
    if not shape.experts:
        return None
    if not kind.sparse:
        return MuMoEBlock(
            shape.in_features,
            shape.hidden_features,
            shape.out_features,
            lambda: copy.deepcopy(act),
            num_experts=shape.levels,
            factorization=kind.factorization,
            rank=shape.rank,
        )
    gate = Gate(shape.in_features, shape.levels, "relu_topk", "none", options={"k": shape.k})
    if not kind.factorization:
        return Features(shape.in_features, shape.out_features, gate)
    read = shape.hidden_features if shape.kind == "hadamard" else shape.in_features
    rank = shape.rank or None
    return MuMoE(read, shape.out_features, shape.levels, kind.factorization, rank, bias=False, gate=gate)


def build(shape: Shape, act: nn.Module) -> Replacement:
    """A replacement of these sizes at random weights.

    Raises:
        UserError: If the kind is unknown.
    """
    if shape.kind not in KINDS:
        raise unknown_name(WHO, "kind", shape.kind, KINDS)
    return Replacement(shape, act)


# Sizes ------------------------------------------------------------------------------------------------------


def check_experts(experts: int | Sequence[int], kind: str) -> int | tuple[int, ...]:
    """Number of experts, or of each of several levels; 0: what meets the budget. One level alone is a number.

    Raises:
        UserError: If the kind is unknown, a number is below 1, the kind has one level only, or there are too many
            combinations to number.
    """
    if kind not in KINDS:
        raise unknown_name(WHO, "kind", kind, KINDS)
    if not isinstance(experts, Sequence):
        return check_size(experts, "experts", WHO) if experts else 0
    sizes = check_levels(experts, WHO)
    if len(sizes) == 1:
        return sizes[0]
    if kind != "cp-linear":
        raise UserError(
            f"{WHO}: expected one number of experts for kind {kind!r}, got {sizes}. Experts on several levels are for "
            "cp-linear."
        )
    if math.prod(sizes) > MOST_COMBINATIONS:
        raise UserError(f"{WHO}: expected at most 2^62 combinations of experts, got {sizes}. Use fewer levels.")
    return sizes


def shape_for(
    kind: str, parts: Parts, *, width: float = 8.0, experts: int | Sequence[int] = 0, rank: int = 0, k: int = 32
) -> tuple[Shape, int]:
    """Sizes of a kind at a budget of parameters, and the budget.

    Args:
        kind: A name in `KINDS`.
        parts: The MLP's.
        width: Budget: parameters of a transcoder with so many features for each input of the MLP.
        experts: Number of experts, or of each level (``cp-linear``); 0: the number that meets the budget.
        rank: Rank of ``cp-linear`` (0: twice the inputs, or what meets the budget if experts are given), and of the
            blocks (0: what meets the budget).
        k: Experts that a sparse gate keeps, of each level.

    Raises:
        UserError: If the kind is unknown, a number is out of range, or the budget is too small.
    """
    if kind not in KINDS:
        raise unknown_name(WHO, "kind", kind, KINDS)
    if isinstance(width, bool) or not isinstance(width, int | float) or not width > 0:
        raise UserError(f"{WHO}: expected `width` above 0, got {width!r}. 8 is usual.")
    experts = check_experts(experts, kind)
    if rank:
        check_size(rank, "rank", WHO)
    check_size(k, "k", WHO)
    into, between, out = parts.widths if len(parts.widths) == 3 else (*parts.widths[:1], 0, *parts.widths[1:])
    base = Shape(kind, into, between, out, parts.kind == "gated mlp")
    features = max(round(width * into), 1)
    budget = _count(replace(base, kind="transcoder", experts=features, k=1))
    found = _fitting(base, budget, experts, rank, k)
    if found.k and min(found.levels) < found.k:
        raise UserError(
            f"{WHO}: expected at least as many experts as k == {k}, got {min(found.levels)} of {kind}. "
            "Lower `k`, or raise `width`."
        )
    return found, budget


def _fitting(base: Shape, budget: int, experts: int | tuple[int, ...], rank: int, k: int) -> Shape:
    kind = KINDS[base.kind]
    if base.kind in ("linear", "dense"):
        return base
    if not kind.sparse:
        shape = replace(base, experts=experts or BLOCK_EXPERTS)
        return replace(shape, rank=rank) if rank else _solved(shape, "rank", budget)
    shape = replace(base, k=k)
    if base.kind == "cp-linear":
        if experts and not rank:
            return _solved(replace(shape, experts=experts), "rank", budget)
        shape = replace(shape, rank=rank or 2 * base.in_features)
    return replace(shape, experts=experts) if experts else _solved(shape, "experts", budget)


def _solved(shape: Shape, name: str, budget: int) -> Shape:
    """The shape with the value of one size whose parameters come closest to a budget."""

    def sized(value: int) -> Shape:
        return replace(shape, rank=value) if name == "rank" else replace(shape, experts=value)

    return sized(closest_rank(lambda value: _count(sized(value)), budget, f"{WHO}: {shape.kind}", "Raise `width`."))


def _count(shape: Shape) -> int:
    with torch.device("meta"):
        return Replacement(shape, nn.Identity()).parameters_count
