"""Kernels for float32 tensors on the CPU: PyTorch's matrix products, and loops compiled by numba around them.

A block of experts (about a megabyte of logits for the full batch) is multiplied, scanned for entries that may be in
the support, and dropped. Each loop works on a range of rows or experts, so that ranges can be distributed over threads;
no sum crosses a range, which makes results independent of the number of threads.

Thresholds of the scan. With scale s (1/2 for entmax15, 1 for sparsemax) and x = s (y - max y), the threshold tau of
both activations is in [-1, 0), so only entries with x > -1 can be in the support. Moreover, tau of a subset of the row
is at most tau of the row, because the sum over the subset of (x - tau)+^p is at most the sum over the row, and both
fall with tau. So whenever a row's list is full, the threshold of the list itself thins it, and the list never needs
much more room than the support of the entries seen so far. Each bound is lowered by a margin far above the rounding of
the comparison, and the final threshold is solved in float64 on what is left.
"""

# mypy: ignore-errors
from __future__ import annotations

import itertools
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, uint64

__all__ = ["bag", "bag_backward", "support", "support_backward"]

ENTMAX15, SPARSEMAX, TOPK, RELU_TOPK = range(4)
KINDS = {"entmax15": ENTMAX15, "sparsemax": SPARSEMAX, "topk": TOPK, "relu_topk": RELU_TOPK}

BLOCK, LARGE_BLOCK = 1 << 18, 1 << 21
"""Logits held at a time; many rows get up to the second, for blocks of `NARROW` experts; `NARROWEST` is the least."""
NARROW, NARROWEST = 512, 128
CAPACITY = 256
"""Entries that a row's list has room for at first."""
SAMPLE = 16
"""Rows of the first block whose support decides whether coefficients are dense, if there are many candidates."""
STEP = 32
"""Entries that the scan looks at together; with 16, LLVM unrolls the comparison instead of vectorizing it."""
FIRST_THINNING = 64
"""Entries at which a list is thinned for the first time; then whenever it has doubled."""
WORTH_THREADS = 1 << 17
"""Numbers read or written from which waking a second thread saves time."""

LOOSE = {"contract"}
FAST = {"contract", "reassoc", "nsz"}
"""Fused multiply-adds, and sums in another order where a function asks for it."""
VECTOR, MATRIX, INTS, WIDE = "f4[::1]", "f4[:,::1]", "i8[::1]", "f8[::1]"


# Threads --------------------------------------------------------------------------------------------------

_pools = {}


def _pool():
    pid = os.getpid()
    if pid not in _pools:  # threads do not survive a fork
        _pools.clear()
        _pools[pid] = ThreadPoolExecutor(max_workers=os.cpu_count() or 2, thread_name_prefix="mumoe")
    return _pools[pid]


def _share(loop, size, work, *arguments):
    """Results of `loop(begin, end, *arguments)` over 0..size, in as many parts as there are threads if that pays."""
    threads = min(torch.get_num_threads(), size)
    if threads <= 1 or work < WORTH_THREADS:
        return [loop(0, size, *arguments)]
    begins = range(0, size, math.ceil(size / threads))
    return [*_pool().map(loop, begins, [*begins[1:], size], *map(itertools.repeat, arguments))]


# Loops ----------------------------------------------------------------------------------------------------


@njit(inline="always")
def _scale(kind):
    return 0.5 if kind == ENTMAX15 else 1.0


@njit(fastmath=FAST)
def _sums(values, count, top, scale, tau):
    first = 0.0
    second = 0.0
    inside = 0
    for j in range(uint64(count)):
        d = max((values[j] - top) * scale - tau, 0.0)
        first += d
        second += d * d
        inside += 1 if d > 0.0 else 0
    return first, second, inside


@njit
def _threshold(values, count, top, kind, steps):
    """Tau over values[:count], relative to top, in float64: Newton on the norm; after any step a lower bound."""
    tau = -1.0
    for _ in range(steps):
        first, second, inside = _sums(values, count, top, _scale(kind), tau)
        if inside == 0:
            break
        step = (second - math.sqrt(second)) / first if kind == ENTMAX15 else (first - 1.0) / inside
        tau += step
        if step < 1e-15:
            break
    return tau


@njit
def _kth_largest(values, count, k, scratch):
    """The k-th largest of values[:count] by quickselect in scratch; k <= count."""
    for j in range(count):
        scratch[j] = values[j]
    low, high, rank = 0, count - 1, k - 1
    while low < high:
        pivot = scratch[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while scratch[i] > pivot:
                i += 1
            while scratch[j] < pivot:
                j -= 1
            if i <= j:
                scratch[i], scratch[j] = scratch[j], scratch[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return scratch[rank]


@njit(inline="always")
def _lowered(bound, top):
    return bound - 1e-5 - 4e-7 * (abs(bound) + abs(top))


@njit
def _bound(values, count, top, kind, k, scratch):
    """No entry of the row at or below this is in its support, given a part of the row."""
    if kind >= TOPK:
        if count < k:
            return -math.inf
        kth = _kth_largest(values, count, k, scratch)
        return kth - 1e-5 - 4e-7 * abs(kth)
    return _lowered(top + _threshold(values, count, top, kind, 6) / _scale(kind), top)


@njit
def _thin(values, index, count, floor):
    kept = 0
    for j in range(count):
        values[kept] = values[j]
        index[kept] = index[j]
        kept += 1 if values[kept] > floor else 0
    return kept


@njit(fastmath=LOOSE)
def _add_to(total, row):
    for j in range(len(row)):
        total[j] += row[j]


@njit(fastmath=LOOSE)
def _add_squares(total, row, mean):
    for j in range(len(row)):
        d = row[j] - mean[j]
        total[j] += d * d


@njit(f"(i8, i8, {MATRIX}, {WIDE}, {WIDE})", nogil=True, cache=True, fastmath=LOOSE)
def _moments(begin, end, block, mean, var):
    """Means and biased variances of columns begin..end."""
    m, v = mean[begin:end], var[begin:end]
    m[:] = 0.0
    v[:] = 0.0
    for b in range(len(block)):
        _add_to(m, block[b, begin:end])
    for j in range(len(m)):
        m[j] /= len(block)
    for b in range(len(block)):
        _add_squares(v, block[b, begin:end], m)
    for j in range(len(v)):
        v[j] /= len(block)


@njit(fastmath=LOOSE)
def _hits(row, start, mean, rstd, normed, floor):
    """How many of the STEP entries from start are above the floor, or NaN."""
    at = uint64(start)
    hits = np.int32(0)
    if normed:
        for t in range(STEP):
            j = at + uint64(t)
            hits = np.int32(hits + (np.int32(0) if (row[j] - mean[j]) * rstd[j] <= floor else np.int32(1)))
    else:
        for t in range(STEP):
            hits = np.int32(hits + (np.int32(0) if row[at + uint64(t)] <= floor else np.int32(1)))
    return hits


@njit(fastmath=LOOSE)
def _scan_row(row, first, mean, rstd, normed, kind, k, values, index, count, top, floor, scratch):
    """Push what may be in the support; (count, top, floor, status): status 1 asks for a longer list, 2 is a NaN."""
    reach = 2.0 if kind == ENTMAX15 else 1.0
    low, columns, capacity = max(FIRST_THINNING, 3 * k), len(row), len(values)
    limit = min(capacity, max(low, 2 * count))
    for start in range(0, columns, STEP):
        stop = min(start + STEP, columns)
        if stop - start == STEP and _hits(row, start, mean, rstd, normed, floor) == 0:
            continue
        if count + STEP > limit:
            if top > -math.inf:
                floor = max(floor, np.float32(_bound(values, count, top, kind, k, scratch)))
                count = _thin(values, index, count, floor)
            limit = min(capacity, max(low, 2 * count))
            if count + STEP > capacity - capacity // 4:
                return count, top, floor, 1
        for j in range(start, stop):
            at = uint64(j)
            y = (row[at] - mean[at]) * rstd[at] if normed else row[at]
            if y <= floor:
                continue
            if math.isnan(y):
                return count, top, floor, 2
            values[uint64(count)] = y
            index[uint64(count)] = first + j
            count += 1
            if y > top:
                top = y
                if kind < TOPK:
                    floor = max(floor, np.float32(_lowered(top - reach, top)))
    return count, top, floor, 0


@njit
def _keep_largest(values, index, count, k, scratch):
    """Keep the k largest, of equals the first."""
    if count <= k:
        return count
    kth = _kth_largest(values, count, k, scratch)
    room = k
    for j in range(count):
        room -= 1 if values[j] > kth else 0
    kept = 0
    for j in range(count):
        y = values[j]
        take = y > kth
        if y == kth and room > 0:
            take = True
            room -= 1
        if take:
            values[kept] = y
            index[kept] = index[j]
            kept += 1
    return kept


@njit
def _log_sum(values, count):
    top, total = -math.inf, 0.0
    for j in range(count):
        top = max(top, values[j])
    for j in range(count):
        total += math.exp(values[j] - top)
    return top + math.log(total)


@njit(inline="always")
def _slack(value, kind, top, tau):
    if kind == TOPK:
        return math.exp(value - tau)
    return value if kind == RELU_TOPK else (value - top) * _scale(kind) - tau


@njit
def _solve_row(values, index, count, top, kind, k, scratch):
    """Cut a row's list to its support; the number of entries and the threshold."""
    if kind >= TOPK:
        held = _keep_largest(values, index, count, k, scratch)
        tau = _log_sum(values, held) if kind == TOPK else 0.0
    else:
        held = _thin(values, index, count, _lowered(top - 1.0 / _scale(kind), top))
        tau = _threshold(values, held, top, kind, 200)
    kept = 0
    for j in range(held):
        values[kept] = values[j]
        index[kept] = index[j]
        kept += 1 if np.float32(_slack(values[kept], kind, top, tau)) > 0.0 else 0
    return kept, tau


@njit(
    f"i8(i8, i8, {MATRIX}, i8, {VECTOR}, {VECTOR}, i8, i8, {MATRIX}, i4[:,::1], {INTS}, {VECTOR}, {VECTOR}, {WIDE}, "
    "b1)",
    nogil=True, cache=True, fastmath=LOOSE,
)  # fmt: skip
def _scan(begin, end, block, first, mean, rstd, kind, k, values, index, count, top, floor, tau, last):
    """Scan rows begin..end of a block; after the last block solve them, and cut their lists to the support.

    Returns 0, 1 if a row needs a longer list, or -1 if a row has a NaN. Scanning a block again is harmless.
    """
    scratch = np.empty(values.shape[1], np.float32)
    for b in range(begin, end):
        held = count[b]
        while held > 0 and index[b, held - 1] >= first:
            held -= 1
        held, high, low, status = _scan_row(
            block[b], first, mean, rstd, len(mean) > 0, kind, k, values[b], index[b], held, top[b], floor[b], scratch
        )
        count[b], top[b], floor[b] = held, high, low
        if status:
            return 1 if status == 1 else -1
        if last:
            count[b], tau[b] = _solve_row(values[b], index[b], held, high, kind, k, scratch)
    return 0


@njit(f"i8({INTS}, {INTS}, {INTS}, {INTS}, {INTS})", nogil=True, cache=True)
def _transpose(offsets, indices, starts, row_of, place):
    """Entries by expert: expert n's are starts[n] .. starts[n + 1], their rows ascending; place is their number.

    Returns 0, or 1 if an offset or index would lead outside of the arrays.
    """
    rows, experts, total = len(offsets) - 1, len(starts) - 1, len(indices)
    if offsets[0] != 0 or offsets[rows] != total:
        return 1
    starts[:] = 0
    for b in range(rows):
        if offsets[b + 1] < offsets[b]:
            return 1
    for j in range(total):
        if indices[j] < 0 or indices[j] >= experts:
            return 1
        starts[indices[j] + 1] += 1
    for n in range(experts):
        starts[n + 1] += starts[n]
    for b in range(rows):
        for j in range(offsets[b], offsets[b + 1]):
            at = starts[indices[j]]
            row_of[at] = b
            place[at] = j
            starts[indices[j]] = at + 1
    for n in range(experts, 0, -1):
        starts[n] = starts[n - 1]
    starts[0] = 0
    return 0


@njit(fastmath=FAST)
def _dot(a, b):
    total = np.float32(0.0)
    for r in range(len(a)):
        total += a[r] * b[r]
    return total


@njit(
    f"(i8, i8, {INTS}, {INTS}, {INTS}, {VECTOR}, {MATRIX}, {MATRIX}, {VECTOR}, {MATRIX})",
    nogil=True, cache=True, fastmath=LOOSE,
)  # fmt: skip
def _gather(begin, end, starts, row_of, place, values, source, factor, dots, out):
    """For experts begin..end: out[n] += sum_j values_j source[row_j] and dots_j = source[row_j] . factor[n].

    Either is left out where its result has no room.
    """
    for n in range(begin, end):
        for j in range(starts[n], starts[n + 1]):
            row = source[row_of[j]]
            if len(dots):
                dots[place[j]] = _dot(row, factor[n])
            if len(out):
                value, line = values[place[j]], out[n]
                for r in range(len(row)):
                    line[r] += value * row[r]


# The four functions ---------------------------------------------------------------------------------------


_NONE = np.empty(0, np.float32)
_NO_MATRIX = np.empty((0, 0), np.float32)


def support(x, weight, mean, rstd, kind, k, eps, dense_share):
    """The experts with a coefficient above 0 in each row of ``normalize(x @ weight.T)``.

    Args:
        x: (rows, in), centred by the caller where `eps` is given.
        weight: (num_experts, in).
        mean: (num_experts,) what is subtracted from the logits; None for nothing.
        rstd: (num_experts,) what they are multiplied by afterwards; None for nothing.
        kind: ``entmax15``, ``sparsemax``, ``topk`` or ``relu_topk``.
        k: Experts to keep, for the last two.
        eps: Added to the variance of the batch, by whose statistics the logits are then normalized before they are
            multiplied by `rstd`; None for `mean` and `rstd` alone.
        dense_share: Share of the experts in the support above which None is returned.

    Returns:
        slack, indices, offsets, normalized logits, mean, variance and raw logits (see `sparse_gate.Support`); None if
        the coefficients are dense or a row's largest logit is not finite.
    """
    (rows, _), experts, code = x.shape, weight.shape[0], KINDS[kind]
    columns = min(experts, max(NARROWEST, BLOCK // rows // 16 * 16, min(NARROW, LARGE_BLOCK // rows // 16 * 16)))
    k, room = min(k, experts), min(max(CAPACITY, 4 * k + 2 * STEP), 2 * experts + 2 * STEP)
    if k > dense_share * experts:
        return None
    buffer, statistics = x.new_empty(rows * columns), np.empty((2, experts if eps is not None else 0))
    start = np.float32(0.0 if code == RELU_TOPK else -np.inf)  # nothing at or below 0 counts, or everything may
    values, index = np.empty((rows, room), np.float32), np.empty((rows, room), np.int32)
    lists = values, index, np.zeros(rows, np.int64), *np.full((2, rows), start), np.empty(rows)
    for first in range(0, experts, columns):
        part = slice(first, min(first + columns, experts))
        logits = buffer[: rows * (part.stop - first)].view(rows, -1)
        torch.mm(x, weight[part].t(), out=logits)
        if eps is not None:
            centre, scale = _statistics(logits.numpy(), *statistics[:, part], eps)
            scale = scale if rstd is None else scale * rstd[part]
        else:
            centre, scale = (None, None) if mean is None else (mean[part], rstd[part])
        lists = _scanned(logits, first, centre, scale, code, k, lists, part.stop == experts)
        if lists is None:
            return None
        many = lists[2].sum() > dense_share * logits.numel()  # in the support, or candidates of it
        if first == 0 and code < TOPK and many:
            sample = support(x[:: -(-rows // SAMPLE)].contiguous(), weight[part], centre, scale, kind, k, None, 2.0)
            if sample is None or len(sample[1]) > dense_share * (len(sample[2]) - 1) * logits.shape[1]:
                return None
    if not np.isfinite(lists[3]).all():
        return None
    found = _flattened(*lists, code)
    if eps is None:
        return *found, None, None, None
    kept = buffer.view(rows, experts) if columns == experts else None
    return *found, *torch.from_numpy(statistics.astype(np.float32)), kept


def _statistics(block, mean, var, eps):
    """Fill in mean and variance of the columns; what normalizes them, in float32."""
    _share(_moments, block.shape[1], block.size, block, mean, var)
    return (torch.from_numpy(a.astype(np.float32)) for a in (mean, 1 / np.sqrt(var + eps)))


def _scanned(logits, first, mean, rstd, kind, k, lists, last):
    """The lists after one more block, longer if necessary; None if there is a NaN."""
    centre, scale = (_NONE, _NONE) if mean is None else (mean.numpy(), rstd.numpy())
    while True:
        block = logits.numpy()
        status = _share(_scan, len(block), block.size, block, first, centre, scale, kind, k, *lists, last)
        if min(status) < 0:
            return None
        if max(status) == 0:
            return lists
        lists = (*(np.concatenate([a, np.empty_like(a)], 1) for a in lists[:2]), *lists[2:])


def _flattened(values, index, count, top, _, tau, kind):
    """The lists of all rows one after the other: slack, indices, offsets, normalized logits."""
    inside = np.arange(values.shape[1]) < count[:, None]
    normalized, indices = values[inside], index[inside].astype(np.int64)
    top, tau = np.repeat(top, count), np.repeat(tau, count)
    if kind == TOPK:
        slack = np.exp(normalized - tau)
    else:
        slack = normalized if kind == RELU_TOPK else (normalized - top) * (0.5 if kind == ENTMAX15 else 1.0) - tau
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])
    return tuple(map(torch.from_numpy, (slack.astype(np.float32), indices, offsets, normalized)))


def _gathered(values, indices, offsets, source, experts, factor, out):
    """Run `_gather` over the entries in order of their expert; returns the dots with the factor, if there is one."""
    starts = np.empty(experts + 1, np.int64)
    row_of, place = np.empty((2, len(indices)), np.int64)
    if _transpose(offsets.numpy(), indices.numpy(), starts, row_of, place):
        raise IndexError(f"kernels: expected offsets that rise to {len(indices)} and indices of {experts} experts.")
    dots = _NONE if factor is None else np.empty(len(indices), np.float32)
    matrix, target = (_NO_MATRIX if t is None else t.numpy() for t in (factor, out))
    source, values = source.numpy(), values.numpy()

    _share(_gather, experts, values.size * source.shape[1], starts, row_of, place, values, source, matrix, dots, target)
    return None if factor is None else torch.from_numpy(dots)


def support_backward(raw, indices, offsets, x, weight, by_x, by_weight):
    """d @ weight and d.T @ x for the sparse (rows, num_experts) matrix d of the values `raw`; None where not wanted."""
    raw, x, weight = raw.detach().contiguous(), x.detach().contiguous(), weight.detach().contiguous()
    grad_x = bag(raw, indices, offsets, weight) if by_x else None
    grad_weight = torch.zeros_like(weight) if by_weight else None
    if by_weight:
        _gathered(raw, indices, offsets, x, len(weight), None, grad_weight)
    return grad_x, grad_weight


def bag(values, indices, offsets, factor):
    """sum_j values_j factor[indices_j] for each row: PyTorch's own kernel, which prefetches."""
    return F.embedding_bag(indices, factor, offsets, mode="sum", per_sample_weights=values, include_last_offset=True)


def bag_backward(grad, values, indices, offsets, factor, by_values, by_factor):
    """Gradients (nnz,) and (num_experts, width) of `bag`; None where not wanted."""
    values, factor, grad = values.detach().contiguous(), factor.detach().contiguous(), grad.detach().contiguous()
    grad_factor = torch.zeros_like(factor) if by_factor else None
    dots = _gathered(values, indices, offsets, grad, len(factor), factor if by_values else None, grad_factor)
    return dots, grad_factor
