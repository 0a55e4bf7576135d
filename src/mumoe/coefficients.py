"""What a gate returns for one level: a (rows, num_experts) matrix of coefficients, dense or held by its support.

Both forms offer the same operations, so that code which multiplies, ablates or reads coefficients works with either. A
product ``a @ factor`` is computed in float32 or better regardless of the dtype of the factor and of autocast, and
its result is cast to `dtype`: the numbers do not depend on the form.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mumoe import kernels

__all__ = ["Coefficients", "DenseCoefficients", "SparseCoefficients", "as_coefficients", "full_precision"]


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the tensor's device."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class Coefficients(ABC):
    """A (rows, num_experts) matrix of expert coefficients.

    Attributes:
        dtype: Type of a product and of the dense form; the coefficients themselves are float32 or float64.
    """

    dtype: torch.dtype

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(rows, num_experts)."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the coefficients."""

    @abstractmethod
    def __matmul__(self, factor: Tensor) -> Tensor:
        """(rows, num_experts) @ (num_experts, width) -> (rows, width)."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The matrix in full."""

    @abstractmethod
    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each row the experts with a coefficient other than 0, ascending, and these coefficients."""

    @abstractmethod
    def without(self, experts: Sequence[int]) -> Self:
        """The same coefficients with those of some experts set to 0; nothing is normalized again."""

    @abstractmethod
    def only(self, expert: int) -> Self:
        """The same coefficients with those of all experts but one set to 0."""

    @abstractmethod
    def scaled(self, factors: Tensor) -> Self:
        """The same coefficients, each multiplied by its expert's factor (num_experts,); nothing is normalized again."""

    @abstractmethod
    def at_least(self, least: float = -math.inf) -> SparseCoefficients:
        """The coefficients other than 0 that reach `least`, by their support, without a gradient."""

    @abstractmethod
    def column(self, expert: int) -> Tensor:
        """(rows,) the coefficients of one expert."""

    @abstractmethod
    def _map(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Self:
        """A copy whose tensors went through `change`."""

    def to(self, *to: Any, **options: Any) -> Self:
        """As `Tensor.to`; a dtype applies to products, and the coefficients keep their precision."""
        device, dtype, _, _ = torch._C._nn._parse_to(*to, **options)
        if device is None:
            return self._map(lambda tensor: tensor, dtype or self.dtype)
        return self._map(lambda tensor: tensor.to(device), dtype or self.dtype)

    def detach(self) -> Self:
        """The same coefficients without their gradient."""
        return self._map(torch.Tensor.detach, self.dtype)

    def _chosen(self, experts: Sequence[int]) -> Tensor:
        chosen = torch.zeros(self.shape[1], dtype=torch.bool, device=self.device)
        chosen[torch.tensor(experts, dtype=torch.long, device=self.device)] = True
        return chosen

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"


def as_coefficients(a: Tensor | Coefficients) -> Coefficients:
    """`Coefficients` of a (rows, num_experts) matrix; an instance is returned unchanged."""
    return a if isinstance(a, Coefficients) else DenseCoefficients(a)


class DenseCoefficients(Coefficients):
    """Coefficients as a matrix.

    Args:
        matrix: (rows, num_experts), which may need a gradient.
        dtype: Type of a product; None uses that of the matrix.
    """

    def __init__(self, matrix: Tensor, dtype: torch.dtype | None = None) -> None:
        self.matrix, self.dtype = matrix, dtype or matrix.dtype

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    def __matmul__(self, factor: Tensor) -> Tensor:
        if self.matrix.dtype == factor.dtype == self.dtype:
            with full_precision(factor):
                return self.matrix @ factor
        wide = _wide(self.matrix.dtype, factor.dtype)
        with full_precision(factor):
            return (self.matrix.to(wide) @ factor.to(wide)).to(self.dtype)

    def to_dense(self) -> Tensor:
        return self.matrix.to(self.dtype)

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        for row in self.to_dense():
            experts = row.nonzero()[:, 0]
            yield experts, row[experts]

    def without(self, experts: Sequence[int]) -> Self:
        return self._where(~self._chosen(experts))

    def only(self, expert: int) -> Self:
        return self._where(self._chosen([expert]))

    def scaled(self, factors: Tensor) -> Self:
        return type(self)(self.matrix * factors.to(self.matrix), self.dtype)

    def at_least(self, least: float = -math.inf) -> SparseCoefficients:
        matrix = self.matrix.detach()
        rows, experts = ((matrix != 0) & ~(matrix < least)).nonzero(as_tuple=True)
        return SparseCoefficients(
            matrix[rows, experts], experts, _offsets(rows, len(matrix)), matrix.shape[1], self.dtype
        )

    def column(self, expert: int) -> Tensor:
        return self.matrix[:, expert].to(self.dtype)

    def _where(self, kept: Tensor) -> Self:
        return type(self)(self.matrix.where(kept, 0), self.dtype)

    def _map(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Self:
        return type(self)(change(self.matrix), dtype)


@dataclass(frozen=True, eq=False, repr=False)
class SparseCoefficients(Coefficients):
    """Coefficients by their support, row after row: a product reads the chosen rows of the factor and nothing else.

    Attributes:
        values: Coefficients (nnz,), which may need a gradient.
        indices: Expert (nnz,) int64 of each value, ascending in each row.
        offsets: Where each row begins (rows + 1,) int64, and the number of values at the end.
        num_experts: Number of columns.
        dtype: Type of a product and of the dense form.
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor
    num_experts: int
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.offsets) - 1, self.num_experts))

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __matmul__(self, factor: Tensor) -> Tensor:
        wide = torch.promote_types(self.values.dtype, factor.dtype)  # float32 or float64, as the values are
        values, factor = self.values.to(wide), factor.to(wide).contiguous()
        recorded = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        if recorded or torch.autograd.forward_ad._current_level >= 0:
            product: Tensor = _Bag.apply(values, factor, self.indices, self.offsets)
        else:
            compiled = kernels.of(factor)
            product = (compiled.bag if compiled else _bag_in_torch)(values, self.indices, self.offsets, factor)
        return product.to(self.dtype)

    def to_dense(self) -> Tensor:
        rows = segment_rows(self.offsets)
        dense = self.values.new_zeros(self.shape).index_put((rows, self.indices), self.values)
        return dense.to(self.dtype)

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        ends, values = self.offsets.tolist(), self.values.to(self.dtype)
        for begin, end in itertools.pairwise(ends):
            inside = values[begin:end] != 0
            yield self.indices[begin:end][inside], values[begin:end][inside]

    def without(self, experts: Sequence[int]) -> Self:
        return self._where(~self._chosen(experts))

    def only(self, expert: int) -> Self:
        return self._where(self._chosen([expert]))

    def scaled(self, factors: Tensor) -> Self:
        values = self.values * factors.to(self.values)[self.indices]
        return type(self)(values, self.indices, self.offsets, self.num_experts, self.dtype)

    def at_least(self, least: float = -math.inf) -> SparseCoefficients:
        values = self.values.detach()
        kept = (values != 0) & ~(values < least)
        rows = segment_rows(self.offsets)[kept]
        return SparseCoefficients(
            values[kept], self.indices[kept], _offsets(rows, self.shape[0]), self.num_experts, self.dtype
        )

    def column(self, expert: int) -> Tensor:
        places = (self.indices == expert).nonzero()[:, 0]
        rows = torch.searchsorted(self.offsets, places, right=True) - 1
        return self.values.new_zeros(self.shape[0]).index_put((rows,), self.values[places]).to(self.dtype)

    @staticmethod
    def joined(parts: Sequence[SparseCoefficients]) -> SparseCoefficients:
        """The rows of several, one after the other; at least one."""
        counts = torch.cat([part.offsets.diff() for part in parts])
        offsets = F.pad(counts.cumsum(0), (1, 0))
        values, indices = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "indices"))
        return SparseCoefficients(values, indices, offsets, parts[0].num_experts, parts[0].dtype)

    def _where(self, kept: Tensor) -> Self:
        values = self.values.where(kept[self.indices], 0)
        return type(self)(values, self.indices, self.offsets, self.num_experts, self.dtype)

    def _map(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Self:
        return type(self)(change(self.values), change(self.indices), change(self.offsets), self.num_experts, dtype)


def _wide(*dtypes: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _offsets(rows: Tensor, count: int) -> Tensor:
    """(count + 1,) where each row begins, from the ascending row of each value."""
    return F.pad(torch.bincount(rows, minlength=count).cumsum(0), (1, 0))


def segment_rows(offsets: Tensor) -> Tensor:
    """Row of each value: (rows + 1,) offsets -> (nnz,) int64."""
    return torch.repeat_interleave(offsets.diff())


def segment_sum(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum of the values of each row: (nnz,), (nnz,) -> (count,)."""
    return values.new_zeros(count).index_add_(0, rows, values)


def bag(values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
    """sum_j values_j factor[indices_j] for each row, without a gradient: (rows, width)."""
    compiled = kernels.of(factor)
    found: Tensor = (compiled.bag if compiled else _bag_in_torch)(values, indices, offsets, factor)
    return found


def _bag_in_torch(values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
    return F.embedding_bag(indices, factor, offsets, mode="sum", per_sample_weights=values, include_last_offset=True)


def transposed_bag(values: Tensor, indices: Tensor, offsets: Tensor, source: Tensor, count: int) -> Tensor:
    """sum_j values_j source[row_j] for each of `count` experts, in the order of j: (count, width)."""
    rows, order = segment_rows(offsets), torch.argsort(indices, stable=True)
    starts = torch.searchsorted(indices[order], torch.arange(count + 1, device=indices.device))
    return bag(values[order], rows[order], starts, source)


class _Bag(torch.autograd.Function):
    """`bag` with derivatives by values and factor of any order, and forward-mode derivatives."""

    @staticmethod
    def forward(values: Tensor, factor: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
        return bag(values, indices, offsets, factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, factor, indices, offsets = ctx.saved_tensors
        by_values, by_factor, *_ = ctx.needs_input_grad
        grad = grads[0]
        if torch.is_grad_enabled():
            return *_bag_gradients(grad, values, factor, indices, offsets), None, None
        grad, compiled = grad.contiguous(), kernels.of(factor)
        if compiled is not None:
            return *compiled.bag_backward(grad, values, indices, offsets, factor, by_values, by_factor), None, None
        rows = segment_rows(offsets)
        grad_values = None
        if by_values:
            grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                grad, factor, indices, offsets[:-1], rows, 0, -1
            )
        grad_factor = transposed_bag(values, indices, offsets, grad, len(factor)) if by_factor else None
        return grad_values, grad_factor, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        values, factor, indices, offsets = ctx.saved_tensors
        found = torch.zeros(len(offsets) - 1, factor.shape[1], dtype=factor.dtype, device=factor.device)
        if tangents[0] is not None:
            found = found + bag(tangents[0].contiguous(), indices, offsets, factor)
        return found if tangents[1] is None else found + bag(values, indices, offsets, tangents[1].contiguous())


def _bag_gradients(
    grad: Tensor, values: Tensor, factor: Tensor, indices: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients as functions of grad, values and factor that can be differentiated."""
    spread = grad[segment_rows(offsets)]
    grad_values = (spread * F.embedding(indices, factor)).sum(-1)
    return grad_values, torch.zeros_like(factor).index_add(0, indices, values[:, None] * spread)
