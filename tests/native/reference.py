"""What the kernels must give, in float64 by the dense functions; also run by the subprocess of test_triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mumoe import functional

KINDS = ("entmax15", "sparsemax", "topk")


def dense(x: Tensor, weight: Tensor, mean: Any, rstd: Any, kind: str, k: int, batch: bool) -> tuple[Tensor, Tensor]:
    """Normalized logits and coefficients (rows, experts)."""
    logits = x.double() @ weight.double().t()
    if batch:
        variance, centre = torch.var_mean(logits, 0, correction=0)
        logits = (logits - centre) * (variance + 1e-5).rsqrt()
    elif rstd is not None:
        logits = (logits - mean.double()) * rstd.double()
    if kind == "topk":
        return logits, functional.topk_softmax(logits, k)
    return logits, functional.entmax15(logits) if kind == "entmax15" else functional.sparsemax(logits)


def values_of(found: Any, kind: str) -> Tensor:
    """Coefficients at the support."""
    return found.slack.square() if kind == "entmax15" else found.slack


def matrix(entries: Tensor, found: Any, experts: int) -> Tensor:
    """(rows, experts) from the entries of a support."""
    rows = torch.repeat_interleave(found.offsets.diff())
    return entries.new_zeros(len(found.offsets) - 1, experts).index_put((rows, found.indices), entries)


def inputs(rows: int, experts: int, width: int, batch: bool) -> tuple[Tensor, Tensor, Any, Any]:
    """x (centred for batch statistics), weight, mean, rstd."""
    torch.manual_seed(rows + experts)
    x, weight = torch.randn(rows, width), torch.randn(experts, width)
    if batch:
        return x - x.mean(0), weight, None, None
    return x, weight, torch.randn(experts), 0.1 + 0.3 * torch.rand(experts)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest entry of b, or over 0.1 where b is (nearly) zero."""
    return float(((a - b).abs().max() / b.abs().max().clamp(min=0.1)).detach())


def errors(kernels: Any, rows: int, experts: int, width: int, kind: str, batch: bool) -> dict[str, float]:
    """Relative error of everything a backend computes, forward and backward."""
    x, weight, mean, rstd = inputs(rows, experts, width, batch)
    found = kernels.support(x, weight, mean, rstd, kind=kind, k=3, batch_statistics=batch, eps=1e-5)
    assert found is not None
    wide = [t.double().requires_grad_() for t in (x, weight, torch.randn(experts, 6))]
    logits, p = dense(wide[0], wide[1], mean, rstd, kind, 3, batch)
    grad = torch.randn(rows, 6)
    mixed = p @ wide[2]
    mixed.backward(grad.double())
    factor, values = wide[2].detach().float(), values_of(found, kind)
    grad_values, grad_factor = kernels.bag_backward(grad, values, found.indices, found.offsets, factor)
    dy = _through_activation(grad_values, found, kind)
    scale = (found.var + 1e-5).rsqrt() if batch else rstd
    grad_x, grad_weight = kernels.gate_backward(
        x, weight, scale, found.indices, found.offsets, dy, found.normalized, batch
    )
    kept_x, kept_weight = kernels.gate_backward(
        x, weight, scale, found.indices, found.offsets, dy, found.normalized, batch, found.logits
    )
    inside = matrix(torch.ones_like(values), found, experts) > 0
    pairs = {
        "coefficients": (matrix(values, found, experts), p),
        "logits": (matrix(found.normalized, found, experts), torch.where(inside, logits, 0)),
        "bag": (kernels.bag(values, found.indices, found.offsets, factor), mixed),
        "grad_factor": (grad_factor, wide[2].grad),
        "grad_x": (grad_x, wide[0].grad),
        "grad_weight": (grad_weight, wide[1].grad),
        "grad_x, logits kept": (kept_x, wide[0].grad),
        "grad_weight, logits kept": (kept_weight, wide[1].grad),
    }
    assert all(bool((part[1:] > part[:-1]).all()) for part in found.indices.split(found.offsets.diff().tolist()))
    return {name: relative(a.double(), b) for name, (a, b) in pairs.items()}


def _through_activation(grad: Tensor, found: Any, kind: str) -> Tensor:
    rows, count = torch.repeat_interleave(found.offsets.diff()), len(found.offsets) - 1
    share = torch.ones_like(grad) if kind == "sparsemax" else found.slack
    weighted = share * grad
    total = grad.new_zeros(count).index_add_(0, rows, share)
    return weighted - (grad.new_zeros(count).index_add_(0, rows, weighted) / total)[rows] * share
