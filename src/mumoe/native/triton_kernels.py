"""The loops for CUDA, in Triton. Imported lazily: this module imports triton.

Tested for correctness with Triton's interpreter on the processor. They have not run on a GPU, and their speed has not
been measured. The algorithms are those of `compiled`, one program for each row, entry or expert.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["bag", "dot", "scan", "solve"]


@triton.jit
def scan(
    block, mean, rstd, values, index, count, top, floor, lost, columns, first, capacity, reach,
    NORMED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Append to each row's list what may be in the support; counts go on where a list is full."""
    row = tl.program_id(0).to(tl.int64)
    held = tl.load(count + row)
    high = tl.load(top + row)
    low = tl.load(floor + row)
    bad = tl.load(lost + row)
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
        bound = high - reach
        low = tl.maximum(low, bound - 1e-5 - 4e-7 * (tl.abs(bound) + tl.abs(high)))
        hit = (y > low) & inside
        place = held + tl.cumsum(hit.to(tl.int64)) - 1
        room = hit & (place < capacity)
        tl.store(values + row * capacity + place, y, mask=room)
        tl.store(index + row * capacity + place, first + at, mask=room)
        held += tl.sum(hit.to(tl.int64))
    tl.store(count + row, held)
    tl.store(top + row, high)
    tl.store(floor + row, low)
    tl.store(lost + row, bad)


@triton.jit
def solve(values, slack, count, top, capacity, ENTMAX15: tl.constexpr, ROOM: tl.constexpr):
    """Slack of every entry of a row's list, 0 outside of the support: Newton from below, in float64."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, ROOM)
    inside = at < tl.load(count + row)
    high = tl.load(top + row).to(tl.float64)
    y = tl.load(values + row * capacity + at, mask=inside, other=0.0).to(tl.float64)
    scale = 0.5 if ENTMAX15 else 1.0
    x = tl.where(inside, (y - high) * scale, -2.0)
    tau = tl.sum(tl.where(at == 0, -1.0, 0.0).to(tl.float64))
    step = tau * 0.0 + 1.0
    turn = 0
    while (step > 1e-15) & (turn < 200):
        gap = tl.maximum(x - tau, 0.0)
        if ENTMAX15:
            step = (tl.sum(gap * gap) - 1.0) / (2.0 * tl.sum(gap))
        else:
            step = (tl.sum(gap) - 1.0) / tl.sum((gap > 0.0).to(tl.float64))
        tau += step
        turn += 1
    tl.store(slack + row * capacity + at, tl.maximum(x - tau, 0.0).to(tl.float32), mask=at < capacity)


@triton.jit
def bag(values, indices, offsets, source, out, width, TILE: tl.constexpr):
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
def dot(rows, indices, left, right, out, width, TILE: tl.constexpr):
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
