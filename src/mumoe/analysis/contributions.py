"""A layer's output as the sum of what its units contribute, so that one of them can be taken out cheaply.

The output of a mixture of linear experts is y = sum_n a_n W_n z. In every factorization it is also one matrix
times a short vector: y = O h, where the *latent* h is the sum of one part per expert,

    CP      h = sum_n a_n (N[n] * (I' z))            TR, TT  h = sum_n a_n (G_n' (G_in z))    (flattened)
    Tucker  h = sum_n a_n C_n (I' z)                 dense   h = y itself, O the identity

so ablating expert n changes y by exactly O v with v = a_n h_n(z), and only in rows with a_n > 0. A hierarchy is
linear in each level, and in each combination of levels. What a neuron of a linear layer contributes has the same
form. `Opened` lists the (row, unit) pairs that contribute, and what is removed with each.
"""

from __future__ import annotations

import contextlib
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mumoe.analysis.settings import MODES, Mode
from mumoe.baselines import HighRankLinear, SparseMoE
from mumoe.devices import host
from mumoe.errors import UserError, unknown_name
from mumoe.factorizations import CP, Factorization, TensorRing, Tucker
from mumoe.layers import MuMoE

__all__ = [
    "ABLATABLE",
    "ContributingPairs",
    "ExpertParts",
    "Form",
    "GroupedParts",
    "NeuronParts",
    "Opened",
    "Parts",
    "combine",
    "contributing_pairs",
    "form_of",
    "parts_of",
    "rows_of_pairs",
]

MOST_PAIRS = 1_000_000
"""Pairs of a row and a combination of experts that are taken apart together."""

ABLATABLE = (MuMoE, SparseMoE, HighRankLinear)
"""Layers whose units can be ablated."""


@dataclass(frozen=True)
class Opened:
    """One batch, taken apart.

    Attributes:
        logits: (rows, out) output before any intervention.
        row, unit: (pairs,) which unit contributes to which row, row after row.
        silent: (pairs,) whether nothing else contributes to the row, so that exact zeros remain.
        scale: (rows,) how large the terms are whose sum is an output: what rounding errors are relative to.
        vectors: From chosen pairs to their v, (pairs, width); `Parts.project` turns it into what is removed from the
            output.
        bounds: From chosen pairs to a bound on ||v||, where that costs less than v.
    """

    logits: Tensor
    row: Tensor
    unit: Tensor
    silent: Tensor
    scale: Tensor
    vectors: Callable[[Tensor], Tensor]
    bounds: Callable[[Tensor], Tensor] | None = None

    def reach(self, pairs: Tensor) -> Tensor:
        """(pairs,) bound on how far v moves outputs: |O v|_c - |O v|_j <= reach * Parts.distances[c, j]."""
        return self.vectors(pairs).norm(dim=1) if self.bounds is None else self.bounds(pairs)


class Parts(ABC):
    """How one layer's output is the sum of its units' contributions.

    Attributes:
        num_units: Number of units that can be ablated.
        out_features: Width of the output.
        width: Width of the vectors v.
    """

    num_units: int
    out_features: int
    width: int

    def pieces(self, x: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """A batch in parts that can be taken apart in bounded memory."""
        return [(x, labels)]

    @abstractmethod
    def open(self, x: Tensor, first_row: int) -> Opened:
        """Take a batch (rows, in) apart; `first_row` numbers its rows for seeded draws."""

    @abstractmethod
    def plain(self, x: Tensor, unit: int | None, first_row: int) -> Tensor:
        """The layer's output (rows, out) by the plain method, with a unit ablated or with none."""

    def output(self) -> Tensor | None:
        """O as (out, width), or None for the identity."""
        return None

    def project(self, vectors: Tensor) -> Tensor:
        """What is removed from the output with these vectors, (pairs, out)."""
        matrix = self.output()
        return vectors if matrix is None else F.linear(vectors, matrix)

    def distances(self) -> Tensor:
        """(out, out) D with |(O v)_c - (O v)_j| <= reach(v) D[c, j] for every v."""
        matrix = self.output()
        if matrix is None:
            return torch.full((self.out_features, self.out_features), 2.0**0.5)
        wide = host(matrix)
        squares = wide.square().sum(1)
        gram = squares[:, None] + squares[None] - 2 * wide @ wide.mT
        return gram.clamp_(min=0).sqrt_().to(matrix)

    def norms(self) -> Tensor:
        """(out,) with |(O v)_c| <= reach(v) norms[c] for every v."""
        matrix = self.output()
        return torch.ones(self.out_features) if matrix is None else matrix.norm(dim=1)


def parts_of(layer: torch.nn.Module, *, level: int | None = None, mode: Mode = "zero", seed: int = 0) -> Parts:
    """The units of a layer: experts of a MuMoE or SparseMoE layer, neurons of a HighRankLinear.

    Args:
        layer: The layer.
        level: Level whose experts are the units; None uses the only level, or all combinations of a hierarchy.
        mode: What replaces an ablated expert, see `MODES`.
        seed: Seed of the images that ``resampled`` draws.

    Raises:
        UserError: For another kind of layer, a level that does not exist, or a mode the layer does not have.
    """
    if mode not in MODES:
        raise unknown_name("parts_of", "mode", mode, MODES)
    if isinstance(layer, MuMoE):
        return ExpertParts(layer, level=level, mode=mode, seed=seed)
    if not isinstance(layer, SparseMoE | HighRankLinear):
        raise UserError(
            f"parts_of: expected a MuMoE, SparseMoE or HighRankLinear layer, got {type(layer).__name__}. "
            "Ablate inside a MuMoEBlock with the model that holds it."
        )
    if mode != "zero" or level not in (None, 0):
        raise UserError(
            f"parts_of: expected mode='zero' and no level for {type(layer).__name__}, got mode={mode!r}, "
            f"level={level}. Only MuMoE layers have more."
        )
    return GroupedParts(layer) if isinstance(layer, SparseMoE) else NeuronParts(layer)


# Experts of a MuMoE layer


class Form(ABC):
    """h = close(hidden(z), one vector a_e @ table_e per level), linear in each of them; y = matrix h."""

    tables: list[Tensor]
    matrix: Tensor

    @abstractmethod
    def hidden(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def close(self, hidden: Tensor, vectors: Sequence[Tensor]) -> Tensor: ...

    def bound(self, hidden: Tensor, mixed: Sequence[Tensor], level: int, table: Tensor) -> Tensor | None:
        """(rows, experts) bound on ||close(..)|| with each row of `table` at this level, or None if there is none."""
        return None


class _CPForm(Form):
    def __init__(self, part: CP) -> None:
        self.matrix, self._in, *self.tables = part.factors

    def hidden(self, x: Tensor) -> Tensor:
        return _project(x, self._in)

    def close(self, hidden: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        for vector in vectors:
            hidden = hidden * vector
        return hidden

    def bound(self, hidden: Tensor, mixed: Sequence[Tensor], level: int, table: Tensor) -> Tensor:
        """The norms themselves: sums of squares of products are products of squares, summed."""
        others = self.close(hidden, [*mixed[:level], *mixed[level + 1 :]])
        return (others.square() @ table.square().mT).sqrt_()


class _RingForm(Form):
    def __init__(self, part: TensorRing) -> None:
        out_core, self._in, *self._cores = (core.movedim(0, 1) for core in part.cores)
        self.matrix, self.tables = out_core.flatten(1), [core.flatten(1) for core in self._cores]
        self._spectral: tuple[Tensor, Tensor] | None = None

    def hidden(self, x: Tensor) -> Tensor:
        return _project(x, self._in.flatten(1))

    def bound(self, hidden: Tensor, mixed: Sequence[Tensor], level: int, table: Tensor) -> Tensor | None:
        """||H G|| <= ||H|| ||G|| in a layer of one level."""
        if len(mixed) > 1:
            return None
        if self._spectral is None or self._spectral[0] is not table:
            norms = torch.linalg.matrix_norm(table.unflatten(-1, self._cores[0].shape[1:]), ord=2)
            self._spectral = (table, norms)
        return hidden.norm(dim=1)[:, None] * self._spectral[1]

    def close(self, hidden: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        shapes = [core.shape[1:] for core in self._cores]
        chain = vectors[0].unflatten(-1, shapes[0])
        for vector, shape in zip(vectors[1:], shapes[1:], strict=True):
            chain = torch.bmm(chain, vector.unflatten(-1, shape))
        matrix = hidden.unflatten(-1, self._in.shape[1:])
        return torch.bmm(chain.transpose(1, 2), matrix.transpose(1, 2)).flatten(1)


class _TuckerForm(Form):
    def __init__(self, part: Tucker) -> None:
        self.matrix, self._in, *self.tables = part.factors
        self._core = part.core

    def hidden(self, x: Tensor) -> Tensor:
        return _project(x, self._in)

    def close(self, hidden: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        joint = vectors[0]
        for vector in vectors[1:]:
            joint = (joint[:, :, None] * vector[:, None, :]).flatten(1)
        mixed = F.linear(joint, self._core.reshape(-1, joint.shape[-1])).unflatten(-1, self._core.shape[:2])
        return torch.bmm(mixed, hidden.unsqueeze(-1)).squeeze(-1)


class _WholeForm(Form):
    """Experts that are kept whole: the vectors are the coefficients themselves."""

    def __init__(self, layer: MuMoE) -> None:
        self._layer, weight = layer, next(layer.parameters())
        self.tables = [torch.eye(n, dtype=weight.dtype, device=weight.device) for n in layer.num_experts]

    def hidden(self, x: Tensor) -> Tensor:
        return x

    def close(self, hidden: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return self._layer.contract(hidden, vectors)


def _project(x: Tensor, factor: Tensor) -> Tensor:
    width = x.shape[-1]
    return x @ factor if factor.shape[0] == width else torch.addmm(factor[width], x, factor[:width])


def form_of(part: Factorization) -> Form | None:
    """The factored form, or None for a factorization that has none."""
    for kind, form in ((CP, _CPForm), (TensorRing, _RingForm), (Tucker, _TuckerForm)):
        if isinstance(part, kind):
            return form(part)  # type: ignore[arg-type]
    return None


@dataclass(frozen=True)
class ContributingPairs:
    """Non-zero coefficients of a batch: row, expert of each level, product of the coefficients, and `silent`."""

    row: Tensor
    experts: list[Tensor]
    value: Tensor
    silent: Tensor


def rows_of_pairs(coefficients: Sequence[Tensor], most: int = MOST_PAIRS) -> list[int]:
    """Consecutive numbers of rows that have at most about `most` combinations of experts, at least one row each."""
    counts = math.prod((a > 0).sum(1) for a in coefficients)
    assert isinstance(counts, Tensor)
    place = (counts.cumsum(0) - counts) // most
    sizes: list[int] = place.unique_consecutive(return_counts=True)[1].tolist()
    return sizes or [0]


def contributing_pairs(coefficients: Sequence[Tensor]) -> ContributingPairs:
    """Every row with every combination of experts whose coefficients are all above 0."""
    row, first = coefficients[0].nonzero(as_tuple=True)
    experts, value = [first], coefficients[0][row, first]
    for a in coefficients[1:]:
        other_row, other = a.nonzero(as_tuple=True)
        counts = torch.bincount(other_row, minlength=len(a))
        starts = counts.cumsum(0) - counts
        repeats = counts[row]
        left = torch.arange(len(row), device=row.device).repeat_interleave(repeats)
        ends = repeats.cumsum(0) - repeats
        right = starts[row[left]] + torch.arange(len(left), device=row.device) - ends[left]
        row, experts = row[left], [*(e[left] for e in experts), other[right]]
        value = value[left] * a[row, experts[-1]]
    alone = torch.bincount(row, minlength=len(coefficients[0])) == 1
    return ContributingPairs(row, experts, value, alone[row])


class ExpertParts(Parts):
    """Experts of one level of a MuMoE layer, or combinations of all levels."""

    POOL = 1024
    """Rows of the first batch from which ``resampled`` draws."""

    def __init__(self, layer: MuMoE, *, level: int | None = None, mode: Mode = "zero", seed: int = 0) -> None:
        levels = len(layer.num_experts)
        if level is not None and not 0 <= level < levels:
            raise UserError(
                f"parts_of: expected a level in 0..{levels - 1}, got {level}. The layer has {levels} of them."
            )
        self.layer, self.mode, self.seed = layer, mode, seed
        self.level = 0 if level is None and levels == 1 else level
        self.sizes = layer.num_experts if self.level is None else (layer.num_experts[self.level],)
        self.num_units = int(torch.tensor(self.sizes).prod())
        self.out_features = layer.out_features
        form = form_of(layer.factorization)
        self._form: Form = form or _WholeForm(layer)
        self._matrix = None if form is None else form.matrix
        self.width = self.out_features if self._matrix is None else self._matrix.shape[1]
        self._pool: Tensor | None = None
        self._last: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def output(self) -> Tensor | None:
        return self._matrix

    def pieces(self, x: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        if self._pool is None:
            self._pool = x[: self.POOL].clone()
        sizes = [len(x)] if self.level is not None else rows_of_pairs(self._coefficients(x))
        if len(sizes) == 1:
            return [(x, labels)]
        return zip(x.split(sizes), labels.split(sizes), strict=True)

    def open(self, x: Tensor, first_row: int) -> Opened:
        if self._pool is None:
            self._pool = x[: self.POOL].clone()
        form, a = self._form, [level.to(x.dtype) for level in self._coefficients(x)]
        found = contributing_pairs(a if self.level is None else [a[self.level]])
        unit = combine(found.experts, self.sizes)
        hidden = form.hidden(x)
        mixed = [_mix(level, table) for level, table in zip(a, form.tables, strict=True)]
        latent = form.close(hidden, mixed)
        scale = latent.norm(dim=1)
        if self._matrix is not None:
            scale = scale * self._matrix.norm(dim=1).max()
        pool = form.hidden(self._pool) if self.mode == "resampled" else hidden
        batch = _Batch(self, hidden, mixed, found, pool, self._drawn(first_row + found.row, unit))
        silent = found.silent if self.mode == "zero" else torch.zeros_like(found.silent)
        return Opened(self.project(latent), found.row, unit, silent, scale, batch.vectors, batch.reach)

    def _coefficients(self, x: Tensor) -> tuple[Tensor, ...]:
        """The gate's coefficients, computed once for the current batch."""
        if self._last is None or self._last[0] is not x:
            self._last = (x, self.layer.coefficients(x))
        return self._last[1]

    def _drawn(self, row: Tensor, unit: Tensor) -> Tensor:
        """Row of the pool whose answer replaces each pair's: a hash of seed, row and unit."""
        assert self._pool is not None
        if self.mode != "resampled":
            return torch.zeros_like(row)
        mixed = row * 0x9E3779B1 + unit * 0x85EBCA77 + (self.seed + 1) * 0xC2B2AE3D
        for shift in (15, 13, 16):
            mixed = ((mixed ^ (mixed >> shift)) * 0x2C1B3C6D) & 0x7FFFFFFFFFFF
        return mixed % len(self._pool)

    def split(self, unit: int) -> tuple[int, ...]:
        """The experts, one per level, of a unit's flat position."""
        experts: list[int] = []
        for size in reversed(self.sizes):
            unit, expert = divmod(unit, size)
            experts.insert(0, expert)
        return tuple(experts)

    def plain(self, x: Tensor, unit: int | None, first_row: int) -> Tensor:
        a = self._coefficients(x)
        if unit is None:
            return self.layer.contract(x, a)
        experts = self.split(unit)
        if self.mode == "zero":
            chosen = experts if self.level is None else experts[0]
            with self.layer.ablate([chosen], level=self.level):
                return self.layer.contract(x, a)
        if self.mode == "mean" and self.level is not None:
            return self.layer.contract(x, _averaged(a, self.level, experts[0]))
        return self._replaced(x, a, experts, unit, first_row)

    def _replaced(self, x: Tensor, a: Sequence[Tensor], experts: tuple[int, ...], unit: int, first_row: int) -> Tensor:
        """y - a_n (the expert's answer) + a_n (its replacement)."""
        whole = [level.clone() for level in a]
        levels = range(len(whole)) if self.level is None else [self.level]
        for level, expert in zip(levels, experts, strict=True):
            whole[level] = torch.zeros_like(a[level])
            whole[level][:, expert] = a[level][:, expert]
        said = self.layer.contract(x, whole)
        if self.mode == "mean":
            average = [w.sum(1, keepdim=True).expand_as(w) / w.shape[1] for w in whole]
            return self.layer.contract(x, a) - said + self.layer.contract(x, average)
        assert self._pool is not None
        rows = first_row + torch.arange(len(x), device=x.device)
        other = self._pool[self._drawn(rows, torch.full_like(rows, unit))]
        return self.layer.contract(x, a) - said + self.layer.contract(other, whole)


def _averaged(a: Sequence[Tensor], level: int, expert: int) -> list[Tensor]:
    """Coefficients with an expert's share divided evenly among all of its level."""
    changed = [part.clone() for part in a]
    share = changed[level][:, expert].clone()
    changed[level][:, expert] = 0
    changed[level] += share[:, None] / changed[level].shape[1]
    return changed


def combine(experts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Flat position of each combination of experts."""
    unit = experts[0]
    for expert, size in zip(experts[1:], sizes[1:], strict=True):
        unit = unit * size + expert
    return unit


def _mix(a: Tensor, table: Tensor) -> Tensor:
    """a @ table, over the non-zero coefficients alone where these are few."""
    rows, experts = a.nonzero(as_tuple=True)
    if len(rows) * 8 > a.numel():
        return a @ table
    offsets = torch.bincount(rows, minlength=len(a)).cumsum(0)
    starts = torch.cat([offsets.new_zeros(1), offsets[:-1]])
    return F.embedding_bag(experts, table, starts, mode="sum", per_sample_weights=a[rows, experts])


@dataclass
class _Batch:
    """Pairs of a batch, with what their vectors are computed from."""

    parts: ExpertParts
    hidden: Tensor
    mixed: list[Tensor]
    found: ContributingPairs
    pool: Tensor
    drawn: Tensor

    def vectors(self, pairs: Tensor) -> Tensor:
        row, mode, own = self.found.row[pairs], self.parts.mode, self._tables
        tables = [table[e[pairs]] for table, e in zip(own, self.found.experts, strict=True)]
        hidden = self.hidden[row]
        if mode == "mean" and len(tables) == 1:
            said = self._close(hidden, row, [tables[0] - own[0].mean(0)])
        else:
            said = self._close(hidden, row, tables)
        if mode == "mean" and len(tables) > 1:
            means = [table.mean(0).expand_as(rows) for table, rows in zip(own, tables, strict=True)]
            said = said - self._close(hidden, row, means)
        if mode == "resampled":
            said = said - self._close(self.pool[self.drawn[pairs]], row, tables)
        return said * self.found.value[pairs, None]

    def reach(self, pairs: Tensor) -> Tensor:
        if self._bounds is None:
            return self.vectors(pairs).norm(dim=1)
        return self._bounds[self.found.row[pairs], self.found.experts[0][pairs]] * self.found.value[pairs]

    @functools.cached_property
    def _bounds(self) -> Tensor | None:
        """(rows, experts) bound on the vector of a coefficient of 1."""
        level, mode = self.parts.level, self.parts.mode
        if level is None or mode == "resampled":
            return None
        table = self._tables[0]
        table = table - table.mean(0) if mode == "mean" else table
        return self.parts._form.bound(self.hidden, self.mixed, level, table)

    @property
    def _tables(self) -> list[Tensor]:
        tables, level = self.parts._form.tables, self.parts.level
        return tables if level is None else [tables[level]]

    def _close(self, hidden: Tensor, row: Tensor, tables: list[Tensor]) -> Tensor:
        level = self.parts.level
        if level is None:
            return self.parts._form.close(hidden, tables)
        others = [mixed[row] for mixed in self.mixed]
        return self.parts._form.close(hidden, [*others[:level], tables[0], *others[level + 1 :]])


# Layers that MuMoE is compared with


class GroupedParts(Parts):
    """Experts of a sparse mixture whose weights are held whole; each computes the rows that chose it."""

    def __init__(self, layer: SparseMoE) -> None:
        self.layer, self.num_units = layer, layer.num_experts[0]
        self.out_features = self.width = layer.out_features

    def open(self, x: Tensor, first_row: int) -> Opened:
        (a,) = self.layer.coefficients(x)
        found = contributing_pairs([a.to(x.dtype)])
        logits = self.layer(x)
        vectors = functools.partial(self._vectors, x, found)
        return Opened(logits, found.row, found.experts[0], found.silent, logits.norm(dim=1), vectors)

    def _vectors(self, x: Tensor, found: ContributingPairs, pairs: Tensor) -> Tensor:
        row, expert = found.row[pairs], found.experts[0][pairs]
        said = x.new_empty(len(pairs), self.layer.out_features)
        for n in expert.unique().tolist():
            places = (expert == n).nonzero()[:, 0]
            said[places] = F.linear(x[row[places]], self.layer.expert_weight(n), self.layer.expert_bias(n))
        return said * found.value[pairs, None]

    def plain(self, x: Tensor, unit: int | None, first_row: int) -> Tensor:
        with contextlib.nullcontext() if unit is None else self.layer.ablate([unit]):
            return self.layer(x)


class NeuronParts(Parts):
    """Hidden neurons of a parameter-matched linear layer, y = W2 (W1 z) + b: the units it has instead of experts."""

    def __init__(self, layer: HighRankLinear) -> None:
        self.layer, self.num_units, self.out_features = layer, layer.rank, layer.out_features
        self.width = layer.out_features

    def distances(self) -> Tensor:
        """A neuron moves outputs along one column of W2, so the largest entry bounds it."""
        matrix = self.layer.up.weight
        return torch.cdist(matrix, matrix, p=float("inf"))

    def norms(self) -> Tensor:
        return self.layer.up.weight.abs().amax(1)

    def open(self, x: Tensor, first_row: int) -> Opened:
        hidden, weight = self.layer.down(x), self.layer.up.weight
        row, unit = hidden.nonzero(as_tuple=True)
        value = hidden[row, unit]

        def vectors(pairs: Tensor) -> Tensor:
            return value[pairs, None] * weight.mT[unit[pairs]]

        def reach(pairs: Tensor) -> Tensor:
            return value[pairs].abs()

        scale = hidden.norm(dim=1) * weight.norm(dim=1).max()
        silent = torch.zeros_like(row, dtype=torch.bool)
        return Opened(self.layer.up(hidden), row, unit, silent, scale, vectors, reach)

    def plain(self, x: Tensor, unit: int | None, first_row: int) -> Tensor:
        hidden = self.layer.down(x)
        if unit is not None:
            hidden = hidden.index_fill(1, torch.tensor([unit], device=x.device), 0)
        return self.layer.up(hidden)
