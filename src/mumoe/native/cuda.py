"""The kernels for CUDA tensors: the loops are in `triton_kernels`, the matrix products PyTorch's.

Correct by Triton's interpreter; they have not run on a GPU, and their speed has not been measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mumoe.backends import Support
from mumoe.native import triton_kernels

__all__ = ["bag", "bag_backward", "forward_small", "gate_backward", "support"]

BLOCK = 1 << 22
"""Logits held at a time."""
NARROWEST = 256
"""Experts of a block at least."""
CAPACITY, LARGEST = 512, 8192
"""Entries a row's list starts with, and has at most: rows with more candidates make the gate dense."""
DENSE, SAMPLE, SMALLEST = 0.25, 32, 16
"""As in `cpu`."""
TILE = 1024


class _Lists:
    """Candidates per row; the counts may exceed the room."""

    def __init__(self, rows: int, capacity: int, like: Tensor) -> None:
        self.capacity = capacity
        self.values = like.new_empty(rows, capacity)
        self.index = torch.empty(rows, capacity, dtype=torch.int64, device=like.device)
        self.count = torch.zeros(rows, dtype=torch.int64, device=like.device)
        self.lost = torch.zeros(rows, dtype=torch.int32, device=like.device)
        self.top, self.floor = (like.new_full((rows,), -torch.inf) for _ in range(2))

    def scan(self, block: Tensor, first: int, mean: Tensor | None, rstd: Tensor | None, kind: str) -> None:
        normed = mean is not None and rstd is not None
        m, r = (mean, rstd) if normed else (block, block)
        triton_kernels.scan[(block.shape[0],)](
            block, m, r, self.values, self.index, self.count, self.top, self.floor, self.lost, block.shape[1], first,
            self.capacity, 2.0 if kind == "entmax15" else 1.0, NORMED=normed, TILE=TILE,
        )  # fmt: skip

    def solve(self, kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """slack, indices, offsets, normalized."""
        slack = torch.zeros_like(self.values)
        triton_kernels.solve[(len(slack),)](
            self.values, slack, self.count, self.top, self.capacity, ENTMAX15=kind == "entmax15", ROOM=self.capacity
        )
        return _compact(slack, self.index, self.values)


def _compact(slack: Tensor, index: Tensor, normalized: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inside = slack > 0
    offsets = torch.nn.functional.pad(inside.sum(-1).cumsum(0), (1, 0))
    return slack[inside], index[inside], offsets, normalized[inside]


def _require(x: Tensor, name: str, shape: tuple[int | None, ...]) -> None:
    fits = x.ndim == len(shape) and all(size in (None, got) for size, got in zip(shape, x.shape, strict=True))
    if not fits or x.dtype != torch.float32:
        raise ValueError(f"native: expected {name} as float32 {shape}, got {x.dtype} {tuple(x.shape)}.")


def support(
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    kind: str,
    k: int,
    batch_statistics: bool,
    eps: float,
) -> Support | None:
    """See `Kernels.support`. Rows with more than 8192 candidates make the gate dense as well."""
    _require(x, "x", (None, None))
    _require(weight, "weight", (None, x.shape[1]))
    x, weight = x.detach().contiguous(), weight.detach().contiguous()
    rows, experts = x.shape[0], weight.shape[0]
    if rows == 0 or experts == 0:
        none, offsets = x.new_empty(0), torch.zeros(rows + 1, dtype=torch.int64, device=x.device)
        empty = x.new_full((experts,), torch.nan) if batch_statistics else None
        return Support(none, none.long(), offsets, none, empty, empty)
    if kind == "topk":
        return _topk(x, weight, mean, rstd, k, batch_statistics, eps)
    capacity = CAPACITY
    while capacity <= LARGEST:
        found = _attempt(x, weight, mean, rstd, kind, batch_statistics, eps, capacity)
        if not isinstance(found, int):
            return found
        capacity = 1 << (found - 1).bit_length()
    return None


def _block_columns(rows: int, experts: int) -> int:
    return min(experts, max(NARROWEST, BLOCK // rows))


def _blocks(
    x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor | None, batch: bool, eps: float
) -> list[tuple[int, slice]]:
    """First expert and range of each block."""
    size = _block_columns(x.shape[0], weight.shape[0])
    return [(first, slice(first, first + size)) for first in range(0, weight.shape[0], size)]


def _attempt(
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    kind: str,
    batch: bool,
    eps: float,
    capacity: int,
) -> Support | int | None:
    """The support, or the capacity that it takes."""
    lists = _Lists(x.shape[0], capacity, x)
    statistics: list[tuple[Tensor, Tensor]] = []
    m: Tensor | None
    r: Tensor | None
    for first, part in _blocks(x, weight, mean, rstd, batch, eps):
        block = x @ weight[part].t()
        if batch:
            variance, centre = torch.var_mean(block, 0, correction=0)
            statistics.append((centre, variance))
            m, r = centre, (variance + eps).rsqrt()
        else:
            m, r = (None, None) if mean is None or rstd is None else (mean[part], rstd[part])
        if first == 0 and capacity == CAPACITY and _is_dense(block, m, r, kind):
            return None
        lists.scan(block, first, m, r, kind)
    most = int(lists.count.max())
    if bool(lists.lost.any()) or not bool(lists.top.isfinite().all()):
        return None
    if most > capacity:
        return most
    means, variances = (torch.cat(parts) for parts in zip(*statistics, strict=True)) if batch else (None, None)
    return Support(*lists.solve(kind), means, variances)


def _is_dense(block: Tensor, mean: Tensor | None, rstd: Tensor | None, kind: str) -> bool:
    if block.shape[1] <= SMALLEST:
        return False
    sample = block[:: max(1, -(-block.shape[0] // SAMPLE)), :LARGEST].contiguous()
    lists = _Lists(sample.shape[0], 1 << (sample.shape[1] - 1).bit_length(), sample)
    lists.scan(sample, 0, mean, rstd, kind)
    return lists.solve(kind)[1].numel() > DENSE * sample.numel()


def _topk(
    x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor | None, k: int, batch: bool, eps: float
) -> Support | None:
    """The k largest of each block and of what is held; no loop of ours pays here."""
    experts = weight.shape[0]
    k = min(k, experts)
    if k > DENSE * experts and experts > SMALLEST:
        return None
    values, index = x.new_empty(x.shape[0], 0), torch.empty(x.shape[0], 0, dtype=torch.int64, device=x.device)
    statistics: list[tuple[Tensor, Tensor]] = []
    for first, part in _blocks(x, weight, mean, rstd, batch, eps):
        block = x @ weight[part].t()
        if batch:
            v, m = torch.var_mean(block, 0, correction=0)
            statistics.append((m, v))
            block = (block - m) * (v + eps).rsqrt()
        elif mean is not None and rstd is not None:
            block = (block - mean[part]) * rstd[part]
        best, place = torch.topk(block, min(k, block.shape[1]), dim=-1)
        values, index = torch.cat([values, best], -1), torch.cat([index, place + first], -1)
        values, place = torch.topk(values, min(k, values.shape[1]), dim=-1)
        index = index.gather(-1, place)
    if not bool(values[:, 0].isfinite().all()):
        return None
    index, order = index.sort(-1)
    values = values.gather(-1, order)
    means, variances = (torch.cat(parts) for parts in zip(*statistics, strict=True)) if batch else (None, None)
    return Support(*_compact(torch.softmax(values, -1), index, values), means, variances)


def _bag(values: Tensor, indices: Tensor, offsets: Tensor, source: Tensor) -> Tensor:
    rows, width = offsets.numel() - 1, source.shape[1]
    out = source.new_empty(rows, width)
    if out.numel():
        tile = min(TILE, 1 << (width - 1).bit_length())
        triton_kernels.bag[(rows, -(-width // tile))](values, indices, offsets, source, out, width, TILE=tile)
    return out


def _checked(indices: Tensor, offsets: Tensor, experts: int) -> None:
    good = offsets[0] == 0
    good &= offsets[-1] == indices.numel()
    good &= (offsets.diff() >= 0).all()
    good &= ((indices >= 0) & (indices < experts)).all()
    if not bool(good):
        raise IndexError(f"native: expected rising offsets and indices of {experts} experts. Check both.")


def bag(values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
    """See `Kernels.bag`."""
    _require(factor, "factor", (None, None))
    _require(values, "values", (indices.numel(),))
    _checked(indices, offsets, factor.shape[0])
    return _bag(values.contiguous(), indices.contiguous(), offsets.contiguous(), factor.contiguous())


def _transposed(indices: Tensor, offsets: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row of each entry; order of the entries by expert; where each expert's begin."""
    rows = torch.repeat_interleave(offsets.diff())
    order = torch.argsort(indices, stable=True)
    starts = torch.searchsorted(indices[order], torch.arange(experts + 1, device=indices.device))
    return rows, order, starts


def bag_backward(
    grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """See `Kernels.bag_backward`."""
    _require(factor, "factor", (None, None))
    _require(grad, "grad", (offsets.numel() - 1, factor.shape[1]))
    _require(values, "values", (indices.numel(),))
    _checked(indices, offsets, factor.shape[0])
    grad, values, indices, factor = (t.contiguous() for t in (grad, values, indices, factor))
    rows, order, starts = _transposed(indices, offsets, factor.shape[0])
    grad_values, width = torch.empty_like(values), factor.shape[1]
    if indices.numel():
        tile = min(TILE, 1 << (width - 1).bit_length())
        triton_kernels.dot[(indices.numel(),)](rows, indices, grad, factor, grad_values, width, TILE=tile)
    return grad_values, _bag(values[order], rows[order], starts, grad)


def gate_backward(
    x: Tensor,
    weight: Tensor,
    rstd: Tensor | None,
    indices: Tensor,
    offsets: Tensor,
    dy: Tensor,
    normalized: Tensor,
    batch_statistics: bool,
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `Kernels.gate_backward`."""
    _require(x, "x", (offsets.numel() - 1, None))
    _require(weight, "weight", (None, x.shape[1]))
    _require(dy, "dy", (indices.numel(),))
    _checked(indices, offsets, weight.shape[0])
    x, weight = x.detach().contiguous(), weight.detach().contiguous()
    raw = dy if rstd is None else dy * rstd[indices]
    rows, order, starts = _transposed(indices, offsets, weight.shape[0])
    z = x - x.mean(0) if batch_statistics else x
    grad_x = _bag(raw, indices, offsets, weight)
    grad_weight = _bag(raw[order], rows[order], starts, z)
    if batch_statistics:
        assert rstd is not None
        _add_statistics(z, weight, rstd, starts, dy[order], normalized[order], grad_x, grad_weight)
    return grad_x, grad_weight


def _add_statistics(
    z: Tensor,
    weight: Tensor,
    rstd: Tensor,
    starts: Tensor,
    dy: Tensor,
    normalized: Tensor,
    grad_x: Tensor,
    grad_weight: Tensor,
) -> None:
    """Subtract the gradient through mean and variance, dense for the active experts; see `cpu`."""
    (rows, width), active = z.shape, starts.diff().nonzero()[:, 0]
    sums = torch.nn.functional.pad(torch.stack([dy, dy * normalized]).double().cumsum(1), (1, 0))
    one, two = sums[:, starts[1:]] - sums[:, starts[:-1]]
    shift = (one * rstd / rows).float()
    scale = (two * rstd.double().square() / rows).float()
    gram = 2 * rows * width**2 + 2 * width**2 * len(active) < 3 * rows * width * len(active)
    square = z.t() @ z if gram else z
    for part in active.split(max(NARROWEST, BLOCK // max(rows, width))):
        g = weight[part]
        scaled = g * scale[part, None]
        grad_x -= shift[part] @ g
        if gram:
            grad_weight[part] -= scaled @ square
            grad_x -= z @ (g.t() @ scaled)
        else:
            logits = z @ scaled.t()
            grad_weight[part] -= logits.t() @ z
            grad_x -= logits @ g


def forward_small(
    x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor | None, factor: Tensor, kind: str, k: int
) -> tuple[Support, Tensor] | None:
    """See `Kernels.forward_small`; the two in turn."""
    found = support(x, weight, mean, rstd, kind, k, False, 0.0)
    if found is None:
        return None
    values = found.slack.square() if kind == "entmax15" else found.slack
    return found, bag(values, found.indices, found.offsets, factor)
