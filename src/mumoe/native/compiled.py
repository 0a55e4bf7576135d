"""The loops, compiled by numba to C functions on raw addresses. Imported lazily: this module imports numba.

The same loops in C, called the same way, were as fast within what runs differ by, and need a compiler where mumoe is
used; docs/native.md has the numbers.

Every function works on a range of rows, columns or experts, so that the caller can share the ranges out to threads;
no sum crosses a range, which makes results independent of the number of threads. ctypes releases the interpreter
lock around each call. Nothing here checks an argument: `cpu.py` does.

Thresholds of the scan. With scale s (1/2 for entmax15, 1 for sparsemax) and x = s (y - max y), the threshold tau of
both activations is in [-1, 0), so only entries with x > -1 can be in the support. More: tau of a subset of the row is
at most tau of the row, because sum over the subset of (x - tau)+^p is at most the sum over the row, and both fall
with tau. So whenever a row's list is full it is thinned by the threshold of the list itself, and the list never
needs much more room than the support of what was seen. Each bound is lowered by a margin far above the rounding of
the comparison, and the final threshold is solved in float64 on what is left.
"""

# mypy: ignore-errors
from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from typing import Any

from numba import carray, cfunc, float32, int32, njit, types, uint64

__all__ = ["ENTMAX15", "SPARSEMAX", "TOPK", "Functions", "load"]

ENTMAX15, SPARSEMAX, TOPK = 0, 1, 2
STEP = 32
"""Entries that the scan looks at together; with 16, LLVM unrolls the comparison instead of vectorizing it."""

FIRST_THINNING = 64
"""Entries at which a list is thinned for the first time; then whenever it has doubled."""

LETTERS = {
    "F": types.CPointer(types.float32),
    "D": types.CPointer(types.float64),
    "L": types.CPointer(types.int64),
    "I": types.CPointer(types.int32),
    "B": types.CPointer(types.int8),
    "N": types.int64,
}

LOOSE = {"contract"}
"""Fused multiply-adds only: what needs sums in another order asks for it where it is written."""
FAST = {"contract", "reassoc", "nsz"}


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
    """Tau of entmax15 or sparsemax over values[:count], relative to top, in float64; after any step a lower bound."""
    scale = _scale(kind)
    tau = -1.0
    before = -1
    for _ in range(steps):
        first, second, inside = _sums(values, count, top, scale, tau)
        if inside == 0:
            break
        if kind == ENTMAX15:
            step = (second - 1.0) / (2.0 * first)
        else:
            step = (first - 1.0) / inside
        if inside == before and step <= 1e-16:
            break
        before = inside
        tau += step
        if abs(step) < 1e-15:
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
    if kind == TOPK:
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


def moments(block, rows, columns, first, last, mean, var):
    """Column means and biased variances of block[:, first:last]."""
    a = carray(block, (rows, columns))
    m = carray(mean, (columns,))[first:last]
    v = carray(var, (columns,))[first:last]
    m[:] = 0.0
    v[:] = 0.0
    for b in range(rows):
        _add_to(m, a[b, first:last])
    for j in range(len(m)):
        m[j] /= rows
    for b in range(rows):
        _add_squares(v, a[b, first:last], m)
    for j in range(len(v)):
        v[j] /= rows


@njit(fastmath=LOOSE)
def _hits(row, start, mean, rstd, normed, floor):
    """How many of the STEP entries from start are above the floor, or NaN."""
    at = uint64(start)
    hits = int32(0)
    if normed:
        for t in range(STEP):
            j = at + uint64(t)
            hits = int32(hits + (int32(0) if (row[j] - mean[j]) * rstd[j] <= floor else int32(1)))
    else:
        for t in range(STEP):
            hits = int32(hits + (int32(0) if row[at + uint64(t)] <= floor else int32(1)))
    return hits


@njit(fastmath=LOOSE)
def _scan_row(row, columns, first, mean, rstd, normed, kind, k, values, index, count, capacity, top, floor, scratch):
    """Push what may be in the support; (count, top, floor, status): status 1 asks for a longer list, 2 is a NaN."""
    reach = 2.0 if kind == ENTMAX15 else 1.0
    low = max(FIRST_THINNING, 3 * k)
    limit = min(capacity, max(low, 2 * count))
    for start in range(0, columns, STEP):
        stop = min(start + STEP, columns)
        if stop - start == STEP and _hits(row, start, mean, rstd, normed, floor) == 0:
            continue
        if count + STEP > limit:
            if top > -math.inf:
                floor = max(floor, float32(_bound(values, count, top, kind, k, scratch)))
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
                if kind != TOPK:
                    floor = max(floor, float32(_lowered(top - reach, top)))
    return count, top, floor, 0


def scan(
    block, columns, first, begin, end, mean, rstd, normed, kind, k, values, index, count, capacity, top, floor, scratch
):
    """Scan rows begin..end of a block; the row that needs a longer list + 1, minus the row that has a NaN - 1, or 0."""
    a = carray(block, (end, columns))
    m = carray(mean, (columns,))
    r = carray(rstd, (columns,))
    v = carray(values, (end, capacity))
    x = carray(index, (end, capacity))
    c = carray(count, (end,))
    t = carray(top, (end,))
    f = carray(floor, (end,))
    s = carray(scratch, (capacity,))
    for b in range(begin, end):
        held = c[b]
        while held > 0 and x[b, held - 1] >= first:
            held -= 1
        held, high, low, status = _scan_row(
            a[b], columns, first, m, r, normed, kind, k, v[b], x[b], held, capacity, t[b], f[b], s
        )
        c[b], t[b], f[b] = held, high, low
        if status == 1:
            return b + 1
        if status == 2:
            return -b - 1
    return 0


@njit
def _solve_topk(values, index, count, k, scratch):
    """Keep the k largest, of equals the first; the log of the sum of their exponentials."""
    kept = count
    if count > k:
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
    top = -math.inf
    for j in range(kept):
        top = max(top, values[j])
    total = 0.0
    for j in range(kept):
        total += math.exp(values[j] - top)
    return kept, top + math.log(total)


def solve(begin, end, kind, k, values, index, count, capacity, top, tau, scratch):
    """Thresholds of rows begin..end; their lists are cut to the support."""
    v = carray(values, (end, capacity))
    x = carray(index, (end, capacity))
    c = carray(count, (end,))
    t = carray(top, (end,))
    out = carray(tau, (end,))
    s = carray(scratch, (capacity,))
    scale = _scale(kind)
    for b in range(begin, end):
        if kind == TOPK:
            c[b], out[b] = _solve_topk(v[b], x[b], c[b], k, s)
            continue
        floor = _lowered(t[b] - 1.0 / scale, t[b])
        held = _thin(v[b], x[b], c[b], floor)
        out[b] = _threshold(v[b], held, t[b], kind, 200)
        kept = 0
        for j in range(held):
            v[b, kept] = v[b, j]
            x[b, kept] = x[b, j]
            kept += 1 if (v[b, kept] - t[b]) * scale - out[b] > 0.0 else 0
        c[b] = kept


def emit(begin, end, kind, values, index, count, capacity, top, tau, offsets, slack, indices, normalized):
    """Copy the lists of rows begin..end to their places in the flat arrays."""
    v = carray(values, (end, capacity))
    x = carray(index, (end, capacity))
    c = carray(count, (end,))
    t = carray(top, (end,))
    ta = carray(tau, (end,))
    o = carray(offsets, (end + 1,))
    total = o[end]
    q = carray(slack, (total,))
    i = carray(indices, (total,))
    y = carray(normalized, (total,))
    scale = _scale(kind)
    for b in range(begin, end):
        at = o[b]
        for j in range(c[b]):
            value = v[b, j]
            i[at + j] = x[b, j]
            y[at + j] = value
            if kind == TOPK:
                q[at + j] = math.exp(value - ta[b])
            else:
                q[at + j] = (value - t[b]) * scale - ta[b]


def check(offsets, indices, rows, total, experts):
    """0 if offsets go from 0 to total without a step back and indices are in range."""
    o = carray(offsets, (rows + 1,))
    i = carray(indices, (total,))
    if o[0] != 0 or o[rows] != total:
        return 1
    for b in range(rows):
        if o[b + 1] < o[b]:
            return 1
    low, high = 0, 0
    for j in range(total):
        low = min(low, i[j])
        high = max(high, i[j])
    return 2 if low < 0 or (high >= experts and total > 0) else 0


def transpose(offsets, indices, rows, experts, starts, row_of, place):
    """Entries by expert: expert n's are starts[n] .. starts[n + 1], their rows ascending; place is their number."""
    o = carray(offsets, (rows + 1,))
    total = o[rows]
    i = carray(indices, (total,))
    s = carray(starts, (experts + 1,))
    w = carray(row_of, (total,))
    p = carray(place, (total,))
    for n in range(experts + 1):
        s[n] = 0
    for j in range(total):
        s[i[j] + 1] += 1
    for n in range(experts):
        s[n + 1] += s[n]
    for b in range(rows):
        for j in range(o[b], o[b + 1]):
            at = s[i[j]]
            w[at] = b
            p[at] = j
            s[i[j]] = at + 1
    for n in range(experts, 0, -1):
        s[n] = s[n - 1]
    s[0] = 0


@njit(fastmath=FAST)
def _dot(a, b, width):
    total = a[0] * 0
    for r in range(width):
        total += a[r] * b[r]
    return total


def bag_backward(begin, end, starts, row_of, place, total, values, grad, rows, factor, width, grad_values, grad_factor):
    """Of experts begin..end: grad_factor[n] = sum values_j grad[b_j], grad_values_j = grad[b_j] . factor[n].

    Rows of grad_factor whose expert has no entry are left as they are.
    """
    s = carray(starts, (end + 1,))
    w = carray(row_of, (total,))
    p = carray(place, (total,))
    v = carray(values, (total,))
    g = carray(grad, (rows, width))
    f = carray(factor, (end, width))
    gv = carray(grad_values, (total,))
    gf = carray(grad_factor, (end, width))
    for n in range(begin, end):
        if s[n] == s[n + 1]:
            continue
        out = gf[n]
        for r in range(width):
            out[r] = 0.0
        for j in range(s[n], s[n + 1]):
            row = g[w[j]]
            value = v[p[j]]
            gv[p[j]] = _dot(row, f[n], width)
            for r in range(width):
                out[r] += value * row[r]


def gather_rows(begin, end, starts, row_of, place, total, values, x, rows, width, out):
    """Of experts begin..end: out[n] += sum values_j x[b_j]."""
    s = carray(starts, (end + 1,))
    w = carray(row_of, (total,))
    p = carray(place, (total,))
    v = carray(values, (total,))
    a = carray(x, (rows, width))
    y = carray(out, (end, width))
    for n in range(begin, end):
        for j in range(s[n], s[n + 1]):
            row, value, target = a[w[j]], v[p[j]], y[n]
            for r in range(width):
                target[r] += value * row[r]


def column_sums(begin, end, starts, place, total, dy, normalized, first, second):
    """Of experts begin..end: the sums of dy and of dy * normalized over their entries."""
    s = carray(starts, (end + 1,))
    p = carray(place, (total,))
    d = carray(dy, (total,))
    y = carray(normalized, (total,))
    one = carray(first, (end,))
    two = carray(second, (end,))
    for n in range(begin, end):
        a, b = 0.0, 0.0
        for j in range(s[n], s[n + 1]):
            a += d[p[j]]
            b += float(d[p[j]]) * y[p[j]]
        one[n] = a
        two[n] = b


def combine(begin, end, experts, starts, row_of, place, total, dy, rstd, normed, scale, shift, rows, block):
    """Gradient of raw logits, dense: block[e] = scale[e] block[e] + shift[e], plus rstd dy at the entries of expert e.

    Block row e belongs to expert experts[e]; scale and shift are indexed by the expert.
    """
    e = carray(experts, (end,))
    a = carray(block, (end, rows))
    limit = 0
    for at in range(begin, end):
        limit = max(limit, e[at] + 1)
    s = carray(starts, (limit + 1,))
    w = carray(row_of, (total,))
    p = carray(place, (total,))
    d = carray(dy, (total,))
    r = carray(rstd, (limit,))
    c = carray(scale, (limit,))
    h = carray(shift, (limit,))
    for at in range(begin, end):
        n = e[at]
        row, factor, term = a[at], c[n], h[n]
        for b in range(rows):
            row[b] = row[b] * factor + term
        for j in range(s[n], s[n + 1]):
            row[w[j]] += d[p[j]] * r[n] if normed else d[p[j]]


def gate_small(
    logits, rows, columns, mean, rstd, normed, kind, k, width, factor, values, index, slack, indices, normalized,
    offsets, out, scratch,
):  # fmt: skip
    """Scan, solve, emit and, where width > 0, bag for a few rows of complete logits.

    Returns the number of entries, or -1 if a row is not finite.
    """
    a = carray(logits, (rows, columns))
    m = carray(mean, (columns,))
    r = carray(rstd, (columns,))
    room = 2 * columns + 4 * STEP  # a list of the whole row never asks for more
    v = carray(values, (room,))
    x = carray(index, (room,))
    q = carray(slack, (rows * columns,))
    i = carray(indices, (rows * columns,))
    y = carray(normalized, (rows * columns,))
    o = carray(offsets, (rows + 1,))
    f = carray(factor, (columns, width))
    mixed = carray(out, (rows, width))
    s = carray(scratch, (room,))
    scale = _scale(kind)
    o[0] = 0
    for b in range(rows):
        least = float32(-math.inf)
        count, top, _, status = _scan_row(a[b], columns, 0, m, r, normed, kind, k, v, x, 0, room, least, least, s)
        if status != 0 or not math.isfinite(top):
            return -1
        at = o[b]
        if kind == TOPK:
            count, tau = _solve_topk(v, x, count, k, s)
        else:
            tau = _threshold(v, count, top, kind, 200)
        for j in range(count):
            gap = math.exp(v[j] - tau) if kind == TOPK else (v[j] - top) * scale - tau
            if gap > 0.0:
                q[at] = gap
                i[at] = x[j]
                y[at] = v[j]
                at += 1
        o[b + 1] = at
        row = mixed[b]
        for c in range(width):
            row[c] = 0.0
        if width > 0:
            for j in range(o[b], at):
                value, source = (q[j] * q[j] if kind == ENTMAX15 else q[j]), f[i[j]]
                for c in range(width):
                    row[c] += value * source[c]
    return o[rows]


@njit(fastmath=FAST)
def _total(row):
    total = float32(0.0)
    for j in range(len(row)):
        total += row[j]
    return total


@njit(fastmath={"contract", "reassoc", "nsz", "nnan"})
def _largest(row):
    """Of a row without NaN."""
    top = row[0]
    for j in range(len(row)):
        top = max(top, row[j])
    return top


@njit
def _largest_of_any(row):
    """As `_largest`, and NaN if there is one."""
    top = row[0]
    for j in range(len(row)):
        y = row[j]
        if math.isnan(y):
            return y
        top = y if y > top else top
    return top


def dense(begin, end, columns, logits, kind, out, scratch):
    """Coefficients of rows begin..end of complete logits; a row whose largest is not finite is NaN."""
    a = carray(logits, (end, columns))
    p = carray(out, (end, columns))
    s = carray(scratch, (columns,))
    scale = _scale(kind)
    for b in range(begin, end):
        row, result = a[b], p[b]
        top = _largest(row) if math.isfinite(_total(row)) else _largest_of_any(row)
        if not math.isfinite(top):
            for j in range(columns):
                result[j] = math.nan
            continue
        count = 0
        floor = float32(_lowered(top - 1.0 / scale, top))
        for j in range(columns):
            s[count] = row[j]
            count += 1 if row[j] > floor else 0
        tau = _threshold(s, count, top, kind, 200)
        for j in range(columns):
            gap = max((row[j] - top) * scale - tau, 0.0)
            result[j] = gap * gap if kind == ENTMAX15 else gap


def dense_backward(begin, end, columns, coefficients, grad, kind, out):
    """Gradients of the logits of rows begin..end."""
    p = carray(coefficients, (end, columns))
    g = carray(grad, (end, columns))
    d = carray(out, (end, columns))
    for b in range(begin, end):
        _dense_backward_row(p[b], g[b], kind, d[b])


@njit(fastmath=FAST)
def _dense_backward_row(p, g, kind, d):
    total = 0.0
    weighted = 0.0
    for j in range(len(p)):
        w = _share(p[j], kind)
        total += w
        weighted += w * g[j]
    mean = float32(weighted / total)
    for j in range(len(p)):
        d[j] = _share(p[j], kind) * (g[j] - mean)


@njit(inline="always")
def _share(p, kind):
    """Derivative of the coefficient by its own logit, but for a factor; NaN stays NaN."""
    if kind == ENTMAX15:
        return math.sqrt(p)
    return float32(1.0) if p > float32(0.0) else p


SIGNATURES = {
    dense: "NNNFNFF",
    dense_backward: "NNNFFNF",
    moments: "FNNNNDD",
    scan: "FNNNNFFNNNFLLNFFF N",
    solve: "NNNNFLLNFDF",
    emit: "NNNFLLNFDLFLF",
    check: "LLNNN N",
    transpose: "LLNNLLL",
    bag_backward: "NNLLLNFFNFNFF",
    gather_rows: "NNLLLNFFNNF",
    column_sums: "NNLLNFFDD",
    combine: "NNLLLLNFFNFFNF",
    gate_small: "FNNFFNNNNFFLFLFLFF N",
}
"""Arguments, and the result if there is one: N an int64, else the address of an array (see `LETTERS`)."""


def _signature(letters: str) -> Any:
    arguments, _, result = letters.partition(" ")
    return (types.int64 if result else types.void)(*(LETTERS[letter] for letter in arguments))


def _callable(address: int, letters: str) -> Callable[..., int | None]:
    arguments, _, result = letters.partition(" ")
    kinds = [ctypes.c_int64 if letter == "N" else ctypes.c_void_p for letter in arguments]
    return ctypes.CFUNCTYPE(ctypes.c_int64 if result else None, *kinds)(address)


class Functions:
    """The compiled functions as attributes, each called with integers and addresses."""

    def __init__(self, signatures: Mapping[Callable[..., Any], str]) -> None:
        self.keep = []
        for function, letters in signatures.items():
            compiled = cfunc(_signature(letters), cache=True, fastmath=LOOSE)(function)
            self.keep.append(compiled)
            setattr(self, function.__name__, _callable(compiled.address, letters))


def load() -> Functions:
    """Compile, or load what was compiled before for this processor."""
    return Functions(SIGNATURES)
