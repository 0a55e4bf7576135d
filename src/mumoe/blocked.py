"""Softmax coefficients that are dense, yet never held: a block of experts at a time.

`BlockedSoftmax` stands where a (rows, num_experts) matrix would. ``coefficients @ factor`` goes through the experts
in blocks, with a running maximum and sum per row, as attention without its matrix does (Dao et al. 2022); the backward
forms every block of logits again. Memory grows with rows * width, not with rows * num_experts, for one more pass
of the gate's product. A second derivative is taken through the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mumoe.backends import block_size, moments

__all__ = ["BlockedSoftmax", "statistics"]


@dataclass(frozen=True)
class BlockedSoftmax:
    """softmax(normalize(x @ weight.T)) as something to multiply a factor by.

    Attributes:
        x: Input (rows, in), float32 or float64.
        weight: Projection (num_experts, in).
        centre: (in,) what is taken off x first; None for nothing.
        mean: (num_experts,) mean of the logits of the centred x; None without normalization.
        rstd: (num_experts,) 1 / standard deviation; None likewise.
        batch: Whether mean and rstd are those of this batch, and get a gradient.
        eps: What was added to the variance.
        dtype: Type of a product.
    """

    x: Tensor
    weight: Tensor
    centre: Tensor | None
    mean: Tensor | None
    rstd: Tensor | None
    batch: bool
    eps: float
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """(rows, num_experts)."""
        return torch.Size((len(self.x), len(self.weight)))

    @property
    def device(self) -> torch.device:
        """Where the input is."""
        return self.x.device

    def to(self, dtype: torch.dtype) -> BlockedSoftmax:
        """The same matrix, whose products are cast to `dtype`."""
        return BlockedSoftmax(self.x, self.weight, self.centre, self.mean, self.rstd, self.batch, self.eps, dtype)

    def __matmul__(self, factor: Tensor) -> Tensor:
        """(rows, num_experts) @ (num_experts, width) -> (rows, width)."""
        product: Tensor = _Product.apply(self.x, self.weight, factor.to(self.x.dtype), self)
        return product.to(self.dtype)

    def to_dense(self) -> Tensor:
        """The matrix in full, from operations that can be differentiated any number of times."""
        return self._dense(self.x, self.weight).to(self.dtype)

    def _dense(self, x: Tensor, weight: Tensor) -> Tensor:
        logits = F.linear(x if self.centre is None else x - self.centre, weight)
        if self.batch:
            centred = logits - logits.mean(0)
            logits = centred * torch.rsqrt(centred.square().mean(0) + self.eps)
        elif self.mean is not None and self.rstd is not None:
            logits = (logits - self.mean) * self.rstd
        return torch.softmax(logits, dim=-1)

    def blocks(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Normalized logits (rows, n) of each block of experts, in a buffer that is used again."""
        step = block_size(len(x), len(self.weight))
        buffer = x.new_empty(len(x), min(step, len(self.weight)))
        for start in range(0, len(self.weight), step):
            part = slice(start, min(start + step, len(self.weight)))
            logits = torch.mm(x, self.weight[part].mT, out=buffer[:, : part.stop - start])
            if self.mean is not None and self.rstd is not None:
                logits.sub_(self.mean[part]).mul_(self.rstd[part])
            yield part, logits


def statistics(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (num_experts,) of the logits of a centred x, a block of experts at a time."""
    step = block_size(len(x), len(weight))
    found = [moments(x @ weight[start : start + step].mT) for start in range(0, len(weight), step)]
    return torch.cat([mean for mean, _ in found]), torch.cat([var for _, var in found])


class _Product(torch.autograd.Function):
    """softmax(..) @ factor. Saves the product and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, factor: Tensor, a: BlockedSoftmax) -> Tensor:
        top = x.new_full((len(x), 1), -torch.inf)
        total, mixed = torch.zeros_like(top), x.new_zeros(len(x), factor.shape[1])
        inputs = x if a.centre is None else x - a.centre
        with torch.no_grad():
            for part, logits in a.blocks(inputs):
                higher = torch.maximum(top, logits.amax(-1, keepdim=True))
                shrink = (top - higher).exp_()
                logits.sub_(higher).exp_()
                total.mul_(shrink).add_(logits.sum(-1, keepdim=True))
                mixed.mul_(shrink).addmm_(logits, factor[part])
                top = higher
            mixed.div_(total)
        ctx.save_for_backward(x, weight, factor, mixed, top.add_(total.log_()))
        ctx.a = a
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, factor, mixed, level = ctx.saved_tensors
        if torch.is_grad_enabled():
            product = ctx.a._dense(x, weight) @ factor
            wanted = [tensor for tensor in (x, weight, factor) if tensor.requires_grad]
            found = iter(torch.autograd.grad(product, wanted, grads[0], create_graph=True))
            return *(next(found) if tensor.requires_grad else None for tensor in (x, weight, factor)), None
        inputs = x if ctx.a.centre is None else x - ctx.a.centre
        return *_gradients(ctx.a, inputs, weight, factor, mixed, level, grads[0]), None


def _gradients(
    a: BlockedSoftmax, x: Tensor, weight: Tensor, factor: Tensor, mixed: Tensor, level: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and factor, from each block of logits again."""
    grad_x, grad_weight, grad_factor = torch.zeros_like(x), torch.empty_like(weight), torch.empty_like(factor)
    mean = (grad * mixed).sum(-1, keepdim=True)
    for part, logits in a.blocks(x):
        p = (logits - level).exp_()
        torch.mm(p.mT, grad, out=grad_factor[part])
        inner = p.mul_(torch.mm(grad, factor[part].mT).sub_(mean))
        if a.batch:
            slope = (inner * logits).mean(0)
            inner.sub_(inner.mean(0)).sub_(logits.mul_(slope))
        if a.rstd is not None:
            inner.mul_(a.rstd[part])
        grad_x.addmm_(inner, weight[part])
        torch.mm(inner.mT, x, out=grad_weight[part])
    return grad_x, grad_weight, grad_factor
