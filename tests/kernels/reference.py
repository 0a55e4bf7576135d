"""What the kernels must give, in float64 by the dense functions; also run by the subprocess of test_cuda."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from mumoe.sparse_gate import Plan

KINDS = ("entmax15", "sparsemax", "topk", "relu_topk")
EPS = 1e-5


def matrix(entries: Tensor, indices: Tensor, offsets: Tensor, experts: int) -> Tensor:
    """(rows, experts) from the entries of a support."""
    rows = torch.repeat_interleave(offsets.diff())
    return entries.new_zeros(len(offsets) - 1, experts).index_put((rows, indices), entries)


def errors(kernels: ModuleType, rows: int, experts: int, width: int, kind: str, batch: bool) -> dict[str, float]:
    """Largest error of all four functions, relative to the largest entry."""
    torch.manual_seed(rows + experts)
    x, weight, factor = torch.randn(rows, width), torch.randn(experts, width), torch.randn(experts, 6)
    x = x - x.mean(0) if batch else x
    mean, rstd = (None, None) if batch else (torch.randn(experts), 0.1 + 0.3 * torch.rand(experts))
    found = kernels.support(x, weight, mean, rstd, kind, 3, EPS if batch else None, 2.0)
    assert found is not None
    slack, indices, offsets, normalized, centre, variance, _ = found
    values = slack.square() if kind == "entmax15" else slack
    wide_mean, wide_rstd = (None, None) if batch else (mean.double(), rstd.double())  # type: ignore[union-attr]
    plan = Plan(kind, 3, wide_mean, wide_rstd, EPS if batch else None)
    logits = x.double() @ weight.double().T
    dense = plan.dense(logits)
    grad = torch.randn(rows, 6)
    held = values.clone()
    wide = [held.double().requires_grad_(), factor.double().requires_grad_()]
    (matrix(wide[0], indices, offsets, experts) @ wide[1]).backward(grad.double())
    by_values, by_factor = kernels.bag_backward(grad, values, indices, offsets, factor, True, True)
    by_x, by_weight = kernels.support_backward(values, indices, offsets, x, weight, True, True)
    entries = matrix(values, indices, offsets, experts).double()
    pairs = {
        "coefficients": (entries, dense),
        "bag": (kernels.bag(values, indices, offsets, factor), dense @ factor.double()),
        "by values": (by_values, wide[0].grad),
        "by factor": (by_factor, wide[1].grad),
        "by x": (by_x, entries @ weight.double()),
        "by weight": (by_weight, entries.T @ x.double()),
    }
    if batch:
        pairs["mean"], pairs["variance"] = (centre, logits.mean(0)), (variance, logits.var(0, correction=0))
    else:
        inside = matrix(torch.ones_like(values), indices, offsets, experts) > 0
        at_support = torch.where(inside, (logits - plan.mean) * plan.rstd, 0)
        pairs["logits"] = (matrix(normalized, indices, offsets, experts), at_support)
    assert kernels.bag_backward(grad, values, indices, offsets, factor, False, False) == (None, None)
    assert kernels.support_backward(values, indices, offsets, x, weight, False, False) == (None, None)
    assert all(bool((part[1:] > part[:-1]).all()) for part in indices.split(offsets.diff().tolist()))
    return {name: relative(a, b) for name, (a, b) in pairs.items()}


def relative(a: Tensor, b: Tensor | None) -> float:
    """Largest difference over the largest entry of b, or over 0.1 where b is (nearly) zero."""
    assert b is not None
    if not b.numel():
        return 0.0
    return float(((a.double() - b).abs().max() / b.abs().max().clamp(min=0.1)).detach())
