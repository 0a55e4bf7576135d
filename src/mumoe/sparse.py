"""Expert coefficients that hold their support alone, and their product with a factor.

A sparse gate gives a row a few dozen experts out of thousands. `SparseCoefficients` stands where a (rows, num_experts)
matrix of coefficients would: ``coefficients @ factor`` reads the chosen rows of the factor and nothing else, and its
gradient costs as much.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mumoe import backends

__all__ = ["SparseCoefficients", "segment_rows", "segment_sum"]


class SparseCoefficients:
    """A (rows, num_experts) matrix of coefficients by its non-zero entries, row after row.

    Args:
        values: Coefficients, which may need a gradient.
        indices: Expert of each value, ascending in each row.
        offsets: Where each row begins, and the number of values at the end.
        num_experts: Number of columns.
        dtype: Type of what a product returns; None is that of `values`.

    Shape:
        values (nnz,); indices (nnz,) int64; offsets (rows + 1,) int64.
    """

    def __init__(
        self, values: Tensor, indices: Tensor, offsets: Tensor, num_experts: int, dtype: torch.dtype | None = None
    ) -> None:
        self.values, self.indices, self.offsets, self.num_experts = values, indices, offsets, num_experts
        self.dtype = dtype or values.dtype

    @property
    def shape(self) -> torch.Size:
        """(rows, num_experts)."""
        return torch.Size((len(self.offsets) - 1, self.num_experts))

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    def to(self, dtype: torch.dtype) -> SparseCoefficients:
        """The same matrix, whose products are cast to `dtype`; the values stay as exact as they are."""
        return SparseCoefficients(self.values, self.indices, self.offsets, self.num_experts, dtype)

    def __matmul__(self, factor: Tensor) -> Tensor:
        """(rows, num_experts) @ (num_experts, width) -> (rows, width)."""
        wide = factor.to(self.values.dtype).contiguous()
        if torch.is_grad_enabled():  # plain kernels below, which autocast leaves alone
            product: Tensor = _Bag.apply(self.values, wide, self.indices, self.offsets)
        else:
            product = backends.of(wide).bag(self.values, self.indices, self.offsets, wide)
        return product.to(self.dtype)

    def to_dense(self) -> Tensor:
        """The matrix in full."""
        rows = segment_rows(self.offsets)
        dense = self.values.new_zeros(self.shape).index_put((rows, self.indices), self.values)
        return dense.to(self.dtype)

    def __repr__(self) -> str:
        return f"SparseCoefficients(shape={tuple(self.shape)}, nnz={len(self.indices)}, dtype={self.dtype})"


def segment_rows(offsets: Tensor) -> Tensor:
    """Row of each value: (rows + 1,) offsets -> (nnz,) int64."""
    counts = offsets.diff()
    return torch.repeat_interleave(counts)


def segment_sum(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum of the values of each row: (nnz,), (nnz,) -> (count,)."""
    return values.new_zeros(count).index_add_(0, rows, values)


class _Bag(torch.autograd.Function):
    """sum_j values_j factor[indices_j] for each row. A second derivative is taken through a plain gather."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(values, factor, indices, offsets)
        return backends.of(factor).bag(values, indices, offsets, factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, factor, indices, offsets = ctx.saved_tensors
        grad = grads[0]
        if torch.is_grad_enabled():
            return *_bag_backward_twice(grad, values, factor, indices, offsets), None, None
        grad_values, grad_factor = backends.of(factor).bag_backward(grad.contiguous(), values, indices, offsets, factor)
        return grad_values, grad_factor, None, None


def _bag_backward_twice(
    grad: Tensor, values: Tensor, factor: Tensor, indices: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients as functions of grad, values and factor that can be differentiated."""
    spread = grad[segment_rows(offsets)]
    grad_values = (spread * F.embedding(indices, factor)).sum(-1)
    grad_factor = torch.zeros_like(factor).index_add(0, indices, values[:, None] * spread)
    return grad_values, grad_factor
