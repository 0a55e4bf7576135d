"""Kernels for float32 tensors on CUDA, in Triton: one program for each row, entry or expert. Opt-in: MUMOE_TRITON=1.

The functions, arguments and bounds are the same as in `mumoe.kernels.cpu`. Tested for correctness with Triton's
interpreter on the CPU. The kernels have not run on a GPU, and their speed has not been measured.
"""

# mypy: ignore-errors
from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

__all__ = ["bag", "bag_backward", "support", "support_backward"]

BLOCK, NARROWEST = 1 << 22, 256
"""Logits held at a time, and experts of a block at least."""
ROOM = 1024
"""Entries of a row's list: a full one is thinned, and a row that needs more makes the gate dense."""
TILE = 1024
"""Entries that a program reads at a time."""


def _on(x):
    """The tensor's device as the current one: Triton launches there."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


# Programs -------------------------------------------------------------------------------------------------


@triton.jit
def _lower_bound(x, tau, ENTMAX15: tl.constexpr):
    """A few of Newton's steps on x <= 0, from below."""
    for _ in range(6):
        gap = tl.maximum(x - tau, 0.0)
        if ENTMAX15:
            norm = tl.sqrt(tl.sum(gap * gap))
            tau += norm * (norm - 1.0) / tl.sum(gap)
        else:
            tau += (tl.sum(gap) - 1.0) / tl.sum((gap > 0.0).to(tl.float32))
    return tau


@triton.jit
def _scan(
    block, mean, rstd, values, index, count, top, floor, lost, columns, first,
    NORMED: tl.constexpr, ENTMAX15: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Append to each row's list what may be in the support. lost: the row has a NaN, or more than its list holds."""
    row = tl.program_id(0).to(tl.int64)
    held, high, low, bad = tl.load(count + row), tl.load(top + row), tl.load(floor + row), tl.load(lost + row)
    scale = 0.5 if ENTMAX15 else 1.0
    slot = tl.arange(0, ROOM)
    for start in range(0, columns, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < columns
        y = tl.load(block + row * columns + at, mask=inside, other=-float("inf"))
        if NORMED:
            centre = tl.load(mean + at, mask=inside, other=0.0)
            y = (y - centre) * tl.load(rstd + at, mask=inside, other=0.0)
            y = tl.where(inside, y, -float("inf"))
        unordered = y != y
        bad = tl.maximum(bad, tl.max(unordered.to(tl.int32)))
        y = tl.where(unordered, -float("inf"), y)
        high = tl.maximum(high, tl.max(y))
        bound = high - 1.0 / scale
        low = tl.maximum(low, bound - 1e-5 - 4e-7 * (tl.abs(bound) + tl.abs(high)))
        hit = (y > low) & inside
        if held + tl.sum(hit.to(tl.int64)) > ROOM:
            tl.debug_barrier()  # entries that other threads of the program have written
            listed = slot < held
            v = tl.load(values + row * ROOM + slot, mask=listed, other=-float("inf"))
            n = tl.load(index + row * ROOM + slot, mask=listed, other=0)
            tau = _lower_bound(tl.where(listed, (v - high) * scale, -2.0), low * 0.0 - 1.0, ENTMAX15)
            bound = high + tau / scale
            low = tl.maximum(low, bound - 1e-5 - 4e-7 * (tl.abs(bound) + tl.abs(high)))
            keep = listed & (v > low)
            to = tl.cumsum(keep.to(tl.int64)) - 1
            tl.debug_barrier()
            tl.store(values + row * ROOM + to, v, mask=keep)
            tl.store(index + row * ROOM + to, n, mask=keep)
            tl.debug_barrier()
            held = tl.sum(keep.to(tl.int64))
            hit = (y > low) & inside
        place = held + tl.cumsum(hit.to(tl.int64)) - 1
        bad = tl.maximum(bad, tl.max((hit & (place >= ROOM)).to(tl.int32)))
        fits = hit & (place < ROOM)
        tl.store(values + row * ROOM + place, y, mask=fits)
        tl.store(index + row * ROOM + place, first + at, mask=fits)
        held += tl.sum(fits.to(tl.int64))
    tl.store(count + row, held)
    tl.store(top + row, high)
    tl.store(floor + row, low)
    tl.store(lost + row, bad)


@triton.jit
def _solve(values, slack, count, top, ENTMAX15: tl.constexpr, ROOM: tl.constexpr):
    """Slack of every entry of a row's list, 0 outside of the support, in float64; count becomes that of the support."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, ROOM)
    inside = slot < tl.load(count + row)
    high = tl.load(top + row).to(tl.float64)
    y = tl.load(values + row * ROOM + slot, mask=inside, other=0.0).to(tl.float64)
    scale = 0.5 if ENTMAX15 else 1.0
    x = tl.where(inside, (y - high) * scale, -2.0)
    tau = tl.sum(tl.where(slot == 0, -1.0, 0.0).to(tl.float64))
    step = tau * 0.0 + 1.0
    turn = 0
    while (step > 1e-15) & (turn < 64):
        gap = tl.maximum(x - tau, 0.0)
        if ENTMAX15:
            norm = tl.sqrt(tl.sum(gap * gap))
            step = norm * (norm - 1.0) / tl.sum(gap)
        else:
            step = (tl.sum(gap) - 1.0) / tl.sum((gap > 0.0).to(tl.float64))
        tau += step
        turn += 1
    found = tl.maximum(x - tau, 0.0).to(tl.float32)
    tl.store(slack + row * ROOM + slot, found)
    tl.store(count + row, tl.sum((found > 0.0).to(tl.int64)))


@triton.jit
def _emit(values, index, slack, offsets, flat_slack, flat_index, flat_values, ROOM: tl.constexpr):
    """Copy the support of each row to its place in the flat arrays."""
    row = tl.program_id(0).to(tl.int64)
    slot = row * ROOM + tl.arange(0, ROOM)
    q = tl.load(slack + slot)
    inside = q > 0.0
    to = tl.load(offsets + row) + tl.cumsum(inside.to(tl.int64)) - 1
    tl.store(flat_slack + to, q, mask=inside)
    tl.store(flat_index + to, tl.load(index + slot, mask=inside, other=0), mask=inside)
    tl.store(flat_values + to, tl.load(values + slot, mask=inside, other=0.0), mask=inside)


@triton.jit
def _bag(values, indices, offsets, source, out, width, TILE: tl.constexpr):
    """out[b] = sum of values_j * source[indices_j] over the entries of b, in order."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = at < width
    total = tl.zeros([TILE], dtype=tl.float32)
    for j in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
        line = tl.load(indices + j) * width
        total += tl.load(values + j) * tl.load(source + line + at, mask=inside, other=0.0)
    tl.store(out + row * width + at, total, mask=inside)


@triton.jit
def _dot(rows, indices, left, right, out, width, TILE: tl.constexpr):
    """out_j = left[rows_j] . right[indices_j]."""
    entry = tl.program_id(0).to(tl.int64)
    a = tl.load(rows + entry) * width
    b = tl.load(indices + entry) * width
    total = tl.zeros([TILE], dtype=tl.float32)
    for start in range(0, width, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < width
        total += tl.load(left + a + at, mask=inside, other=0.0) * tl.load(right + b + at, mask=inside, other=0.0)
    tl.store(out + entry, tl.sum(total))


# The four functions ---------------------------------------------------------------------------------------


def support(x, weight, mean, rstd, kind, k, eps, dense_share):
    """See `mumoe.kernels.cpu.support`. The host waits for the device once."""
    k = min(k, len(weight))
    if k > dense_share * len(weight):
        return None
    find = _largest if kind in ("topk", "relu_topk") else _listed
    with _on(x):
        return find(x, weight, mean, rstd, kind, k, eps, dense_share)


def _blocks(x, weight, mean, rstd, eps, statistics):
    """First expert, logits, and what normalizes them; the batch's statistics are appended to the list."""
    size = min(len(weight), max(NARROWEST, BLOCK // len(x)))
    for first in range(0, len(weight), size):
        part = slice(first, first + size)
        block = x @ weight[part].t()
        if eps is not None:
            variance, centre = torch.var_mean(block, 0, correction=0)
            statistics.append((centre, variance))
            scale = (variance + eps).rsqrt()
            yield first, block, centre, scale if rstd is None else scale * rstd[part]
        else:
            yield first, block, *((None, None) if mean is None else (mean[part], rstd[part]))


def _listed(x, weight, mean, rstd, kind, k, eps, dense_share):
    rows, entmax15, statistics = len(x), kind == "entmax15", []
    values, count = x.new_empty(rows, ROOM), torch.zeros(rows, dtype=torch.int64, device=x.device)
    index = torch.empty(rows, ROOM, dtype=torch.int64, device=x.device)
    top, floor = x.new_full((2, rows), -torch.inf)
    lost = torch.zeros(rows, dtype=torch.int32, device=x.device)
    for first, block, centre, scale in _blocks(x, weight, mean, rstd, eps, statistics):
        _scan[(rows,)](
            block, block if centre is None else centre, block if scale is None else scale, values, index, count, top,
            floor, lost, block.shape[1], first, NORMED=centre is not None, ENTMAX15=entmax15, ROOM=ROOM, TILE=TILE,
        )  # fmt: skip
    slack = torch.empty_like(values)
    _solve[(rows,)](values, slack, count, top, ENTMAX15=entmax15, ROOM=ROOM)
    offsets = F.pad(count.cumsum(0), (1, 0))
    refused = (lost.amax() > 0) | ~top.isfinite().all()
    total, refused = torch.stack([offsets[-1], refused.to(torch.int64)]).tolist()
    if refused or total > dense_share * rows * len(weight):
        return None
    flat = x.new_empty(total), torch.empty(total, dtype=torch.int64, device=x.device), x.new_empty(total)
    _emit[(rows,)](values, index, slack, offsets, *flat, ROOM=ROOM)
    return flat[0], flat[1], offsets, flat[2], *_joined(statistics), None


def _largest(x, weight, mean, rstd, kind, k, eps, dense_share):
    """The k largest of each block and of what is held."""
    values, index = x.new_empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    statistics = []
    for first, block, centre, scale in _blocks(x, weight, mean, rstd, eps, statistics):
        if centre is not None:
            block = (block - centre) * scale
        best, place = torch.topk(block, min(k, block.shape[1]), dim=-1)
        values, index = torch.cat([values, best], -1), torch.cat([index, place + first], -1)
        values, place = torch.topk(values, min(k, values.shape[1]), dim=-1)
        index = index.gather(-1, place)
    if not bool(values[:, 0].isfinite().all()):
        return None
    index, order = index.sort(-1)
    values = values.gather(-1, order)
    slack = values.relu() if kind == "relu_topk" else torch.softmax(values, -1)
    inside = slack > 0
    offsets = F.pad(inside.sum(-1).cumsum(0), (1, 0))
    return slack[inside], index[inside], offsets, values[inside], *_joined(statistics), None


def _joined(statistics):
    return tuple(torch.cat(parts) for parts in zip(*statistics, strict=True)) if statistics else (None, None)


def _transposed(indices, offsets, experts):
    """Row of each entry; order of the entries by expert; where each expert's begin."""
    rows = torch.repeat_interleave(offsets.diff(), output_size=len(indices))
    ordered, order = torch.sort(indices, stable=True)
    return rows, order, torch.searchsorted(ordered, torch.arange(experts + 1, device=indices.device))


def bag(values, indices, offsets, factor):
    """See `mumoe.kernels.cpu.bag`."""
    values, indices, factor = values.contiguous(), indices.contiguous(), factor.contiguous()
    rows, width = len(offsets) - 1, factor.shape[1]
    out = factor.new_empty(rows, width)
    tile = min(TILE, triton.next_power_of_2(max(width, 1)))
    with _on(factor):
        if out.numel():
            _bag[(rows, -(-width // tile))](values, indices, offsets, factor, out, width, TILE=tile)
    return out


def bag_backward(grad, values, indices, offsets, factor, by_values, by_factor):
    """See `mumoe.kernels.cpu.bag_backward`."""
    grad, values, indices, factor = (t.detach().contiguous() for t in (grad, values, indices, factor))
    rows, order, starts = _transposed(indices, offsets, len(factor))
    grad_values = torch.empty_like(values) if by_values else None
    tile = min(TILE, triton.next_power_of_2(max(factor.shape[1], 1)))
    with _on(factor):
        if by_values and len(indices):
            _dot[(len(indices),)](rows, indices, grad, factor, grad_values, factor.shape[1], TILE=tile)
    return grad_values, bag(values[order], rows[order], starts, grad) if by_factor else None


def support_backward(raw, indices, offsets, x, weight, by_x, by_weight):
    """See `mumoe.kernels.cpu.support_backward`."""
    grad_x = bag(raw, indices, offsets, weight.detach()) if by_x else None
    return grad_x, bag_backward(x, raw, indices, offsets, weight, False, True)[1] if by_weight else None
