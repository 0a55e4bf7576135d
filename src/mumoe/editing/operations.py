"""What edits do to a weight tensor W with modes (out, in + bias, level 1 .. E), in two kinds of operation.

- `CoefficientMap`: at one level, experts are scaled, left out or exchanged: y = contract(x, M a).
- `AddedTerm`: one output gets sum_k prod_e (a_e . v_e^k) times an input vector more. The rewriting of eq. 6 is such
  a term on the bias column, and so is any correction per expert; an expert's output for a class is another.

Both keep y multilinear in x and every level's coefficients: an edited layer is again such a layer (`fold`).
`EditedFactorization` applies operations while the original factors stay as they are, bit for bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mumoe.factorizations import Factorization

__all__ = [
    "AddedTerm",
    "CoefficientMap",
    "EditedFactorization",
    "Mean",
    "Operation",
    "Product",
    "listed",
    "original",
    "separate",
]


@dataclass(frozen=True)
class Product:
    """A tensor (N_1, .., N_E) that is the product of one vector per level, and is not formed."""

    vectors: tuple[Tensor, ...]

    def numel(self) -> int:
        """Number of entries of the tensor."""
        return math.prod(len(vector) for vector in self.vectors)


Mean = Tensor | Product
"""Mean coefficients (N_1, .., N_E): a tensor, sparse where there are many combinations of experts, or a product."""


@dataclass(frozen=True)
class CoefficientMap:
    """Coefficients of one level are multiplied by a matrix before they are used.

    Attributes:
        level: The level.
        matrix: (K, K); new coefficient k = sum_m matrix[k, m] a[experts[m]].
        experts: The K experts that it changes; None for all of the level.
    """

    level: int
    matrix: Tensor
    experts: tuple[int, ...] | None = None

    def to(self, like: Tensor) -> CoefficientMap:
        """The same on another tensor's device, in its dtype."""
        return CoefficientMap(self.level, self.matrix.to(like), self.experts)

    def coefficients(self, a: Sequence[Tensor]) -> list[Tensor]:
        """All levels, this one mapped."""
        whole = a[self.level]
        mapped = self._mapped(whole if isinstance(whole, Tensor) else whole.to_dense(), self.matrix.mT, -1)
        return [mapped if e == self.level else level for e, level in enumerate(a)]

    def weights(self, weights: Tensor, dim: int) -> Tensor:
        """Weights whose experts lie along `dim`, changed so that unchanged coefficients give the same output."""
        return self._mapped(weights, self.matrix, dim)

    def _mapped(self, old: Tensor, matrix: Tensor, dim: int) -> Tensor:
        """New entry m along `dim`: the sum of the old ones n, weighted by matrix[n, m]."""
        dim = dim % old.ndim
        index = None if self.experts is None else torch.tensor(self.experts, device=old.device)
        part = old if index is None else old.index_select(dim, index)
        mapped = torch.tensordot(part, matrix.to(old), dims=([dim], [0])).movedim(-1, dim)
        return mapped.contiguous() if index is None else old.index_copy(dim, index, mapped)


@dataclass(frozen=True)
class AddedTerm:
    """One output receives sum_k prod_e (a_e . vectors_e[:, k]) * (weight . [x, 1]).

    Attributes:
        head: The output.
        vectors: Per level (N_e, K), as CP factors.
        weight: (in + 1,) input vector whose last entry is the bias; None is the bias alone.
    """

    head: int
    vectors: tuple[Tensor, ...]
    weight: Tensor | None = None

    def to(self, like: Tensor) -> AddedTerm:
        """The same on another tensor's device, in its dtype."""
        vectors = tuple(vector.to(like) for vector in self.vectors)
        return AddedTerm(self.head, vectors, None if self.weight is None else self.weight.to(like))

    def value(self, x: Tensor, a: Sequence[Tensor]) -> Tensor:
        """(rows,) what the output receives."""
        total = self.amount(a)
        if self.weight is None:
            return total
        weight = self.weight.to(x)
        return total * (x @ weight[:-1] + weight[-1])

    def amount(self, a: Sequence[Tensor]) -> Tensor:
        """(rows,) how much of `weight` the rows receive."""
        pairs = zip(a, self.vectors, strict=True)
        factors = [level @ vectors.to(level.device, level.dtype) for level, vectors in pairs]
        return math.prod(factors[1:], start=factors[0]).sum(-1)

    def joint(self) -> Tensor:
        """(N_1, .., N_E): how much of `weight` each combination of experts receives."""
        joint = self.vectors[0]
        for vectors in self.vectors[1:]:
            joint = joint[..., None, :] * vectors
        return joint.sum(-1)


Operation = CoefficientMap | AddedTerm


def listed(units: Tensor, values: Tensor, num_experts: Sequence[int]) -> Tensor:
    """A sparse tensor (N_1, .., N_E) from flat positions of combinations and their values."""
    index, sizes = torch.stack(torch.unravel_index(units, list(num_experts))), list(num_experts)
    return torch.sparse_coo_tensor(index, values, sizes, check_invariants=True).coalesce()


def separate(joint: Mean) -> tuple[Tensor, ...]:
    """Exact factors (N_e, K) of a tensor (N_1, .., N_E) with joint = sum_k v_1^k x .. x v_E^k.

    The longest level keeps its vectors, all others are unit vectors; K counts the lines along it that are not zero
    (at least 1). A vector, or a product of vectors, is its own single component.
    """
    if isinstance(joint, Product):
        return tuple(vector[:, None] for vector in joint.vectors)
    longest = max(range(joint.ndim), key=lambda level: joint.shape[level])
    others = [size for level, size in enumerate(joint.shape) if level != longest]
    kept, lines = _lines(joint, longest)
    if not len(kept):
        kept, lines = torch.zeros(1, dtype=torch.long, device=joint.device), lines.new_zeros(joint.shape[longest], 1)
    factors = []
    places = torch.unravel_index(kept, others) if others else ()
    for size, place in zip(others, places, strict=True):
        factors.append(nn.functional.one_hot(place, size).to(lines).mT)
    factors.insert(longest, lines)
    return tuple(factors)


def _lines(joint: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """(K,) places, among the other levels, of the lines along a level that are not zero, and the lines, (N, K)."""
    if not joint.is_sparse:
        lines = joint.movedim(longest, 0).flatten(1) if joint.ndim > 1 else joint[:, None]
        kept = lines.any(0).nonzero()[:, 0]
        return kept, lines[:, kept]
    index, values = joint.coalesce().indices(), joint.coalesce().values()
    place = torch.zeros_like(index[0])
    for level, size in enumerate(joint.shape):
        place = place if level == longest else place * size + index[level]
    kept, column = place.unique(return_inverse=True)
    lines = values.new_zeros(joint.shape[longest], len(kept))
    lines[index[longest], column] = values
    return kept, lines


class EditedFactorization(nn.Module):
    """A factorization with operations on top, the last one outermost.

    Outputs that no operation names keep every bit, unless a coefficient map changes the experts of all outputs.

    Args:
        base: What is edited; stays as it is.
        operations: In the order in which they were made.
    """

    def __init__(self, base: nn.Module, operations: Sequence[Operation]) -> None:
        super().__init__()
        self.base = base
        self.operations: tuple[Operation, ...] = ()
        self.bias = bool(base.bias)
        for operation in operations:
            self.append(operation)

    def append(self, operation: Operation) -> None:
        """Put one more operation on top."""
        self.operations = (*self.operations, operation.to(next(self.base.parameters())))
        self.bias = self.bias or isinstance(operation, AddedTerm)

    def __getattr__(self, name: str) -> Any:
        """Sizes, ranks and titles of the base."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        added: dict[int, Tensor] = {}
        a = list(coefficients)
        for operation in reversed(self.operations):
            if isinstance(operation, CoefficientMap):
                a = operation.coefficients(a)
            else:
                value = operation.value(x, a)
                added[operation.head] = added[operation.head] + value if operation.head in added else value
        y: Tensor = self.base(x, a)
        if not added:
            return y
        y = y.clone()
        for head, value in added.items():
            y[:, head] = y[:, head] + value.to(y.dtype)
        return y

    def to_dense(self) -> Tensor:
        """The edited weight tensor, (out, in [+ 1], N_1, .., N_E); a bias column appears where a term needs it."""
        dense: Tensor = self.base.to_dense()  # type: ignore[operator]
        if self.bias and not self.base.bias:
            dense = torch.cat([dense, torch.zeros_like(dense[:, :1])], dim=1)
        for operation in self.operations:
            if isinstance(operation, CoefficientMap):
                dense = operation.weights(dense, 2 + operation.level)
            else:
                dense = dense.clone()
                dense[operation.head] += _outer(_input_vector(operation, dense), operation.joint().to(dense))
        return dense

    def expert(self, index: Sequence[int]) -> Tensor:
        """One edited expert, (out, in [+ 1]), without forming the rest."""
        like = next(iter(original(self).parameters()))
        pairs = zip(original(self).num_experts, index, strict=True)
        a = [nn.functional.one_hot(torch.tensor([n]), size).to(like) for size, n in pairs]
        terms = []
        for operation in reversed(self.operations):
            if isinstance(operation, CoefficientMap):
                a = operation.coefficients(a)
            else:
                terms.append((operation, operation.amount(a)[0]))
        matrix = self._mixture([level[0] for level in a])
        for term, amount in terms:
            matrix[term.head] += amount * _input_vector(term, matrix)
        return matrix

    def _mixture(self, shares: Sequence[Tensor]) -> Tensor:
        """sum over combinations of prod_e shares[e][n_e] times the base's expert, with a bias column if edited."""
        places = [level.nonzero()[:, 0].tolist() for level in shares]
        mixed = torch.zeros_like(self.base.expert([0] * len(shares)))  # type: ignore[operator]
        for index in itertools.product(*places):
            share = math.prod(float(level[n]) for level, n in zip(shares, index, strict=True))
            mixed = mixed + share * self.base.expert(index)  # type: ignore[operator]
        return nn.functional.pad(mixed, (0, 1)) if self.bias and not self.base.bias else mixed


def original(part: nn.Module) -> Factorization:
    """The factorization below all edits."""
    while isinstance(part, EditedFactorization):
        part = part.base
    assert isinstance(part, Factorization)
    return part


def _input_vector(term: AddedTerm, dense: Tensor) -> Tensor:
    if term.weight is not None:
        return term.weight.to(dense)
    return torch.eye(dense.shape[1], dtype=dense.dtype, device=dense.device)[-1]


def _outer(vector: Tensor, joint: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * joint.ndim) * joint
