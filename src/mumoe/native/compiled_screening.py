"""The loops of screening in 8 bits, compiled as those of `compiled`. The bound they use is proved in `screening`."""

# mypy: ignore-errors
from __future__ import annotations

import math

from numba import carray, float32, float64, int8, int32, int64, njit, uint64

from mumoe.native.compiled import FAST, FIRST_THINNING, LOOSE, STEP, Functions, _bound

__all__ = ["load"]


def quantize(begin, end, matrix, width, coded, scale, norm, code_norm, rest_norm):
    """Rows begin..end as 8-bit codes: row ~ scale * code, and the 2-norms of row, scale * code and their difference."""
    a = carray(matrix, (end, width))
    q = carray(coded, (end, width))
    s = carray(scale, (end,))
    n = carray(norm, (end,))
    c = carray(code_norm, (end,))
    d = carray(rest_norm, (end,))
    for b in range(begin, end):
        row, code = a[b], q[b]
        high = float32(0.0)
        for j in range(width):
            high = max(high, abs(row[j]))
        step = float32(high / float32(127.0))
        s[b] = step
        inverse = float32(1.0) / step if step > 0 else float32(0.0)
        for j in range(width):
            t = row[j] * inverse
            t = min(max(t, float32(-127.0)), float32(127.0))
            code[j] = int8(int32(math.floor(t + float32(0.5))))
        n[b], c[b], d[b] = _norms(row, code, float64(step), width)


@njit(fastmath=FAST)
def _norms(row, code, step, width):
    whole, coded, rest = 0.0, 0.0, 0.0
    for j in range(width):
        value = float64(row[j])
        near = step * code[j]
        whole += value * value
        coded += near * near
        rest += (value - near) * (value - near)
    return math.sqrt(whole), math.sqrt(coded), math.sqrt(rest)


def fingerprint(begin, end, matrix, width, marks):
    """One number per row that changes with any single entry, and in all likelihood with any change."""
    a = carray(matrix, (end, width))
    out = carray(marks, (end,))
    for b in range(begin, end):
        out[b] = _mark(a[b], width)


@njit
def _mark(row, width):
    weighted = int32(0)
    for j in range(width):
        weighted = int32(weighted + row[j] * int32(2 * j + 1))
    return int64(weighted)


@njit(inline="always")
def _error(n, norm, rest, shift, spread, code_norm):
    return norm * spread[n] + rest * code_norm[n] + float32(1e-6) * abs(shift[n])


@njit(fastmath=LOOSE)
def _screen_hits(row, start, first, step, norm, rest, scale, shift, spread, code_norm, floor):
    """How many of the STEP entries from start have an upper end above the floor, or NaN."""
    at = uint64(start)
    hits = int32(0)
    for t in range(STEP):
        j = at + uint64(t)
        n = uint64(first) + j
        middle = float32(row[j]) * step * scale[n] + shift[n]
        error = norm * spread[n] + rest * code_norm[n] + float32(1e-6) * abs(shift[n])
        hits = int32(hits + (int32(0) if middle + error <= floor else int32(1)))
    return hits


@njit
def _screen_thin(values, index, count, norm, rest, shift, spread, code_norm, floor):
    kept = 0
    for j in range(count):
        n, y = index[j], values[j]
        values[kept] = y
        index[kept] = n
        kept += 0 if y + _error(n, norm, rest, shift, spread, code_norm) <= floor else 1
    return kept


@njit
def _screen_bound(values, index, count, kind, k, norm, rest, shift, spread, code_norm, lows, scratch):
    """`_bound` of the lower ends of the entries held."""
    top = float32(-math.inf)
    for j in range(count):
        lows[j] = values[j] - _error(index[j], norm, rest, shift, spread, code_norm)
        top = max(top, lows[j])
    return _bound(lows, count, top, kind, k, scratch)


@njit(fastmath=LOOSE)
def _screen_row(
    row, columns, first, step, norm, rest, scale, shift, spread, code_norm, kind, k, values, index, count, capacity,
    floor, lows, scratch,
):  # fmt: skip
    """(count, floor, whether the list overflowed)."""
    low = max(FIRST_THINNING, 3 * k)
    limit = min(capacity, max(low, 2 * count))
    for start in range(0, columns, STEP):
        stop = min(start + STEP, columns)
        whole = stop - start == STEP
        if whole and not _screen_hits(row, start, first, step, norm, rest, scale, shift, spread, code_norm, floor):
            continue
        if count + STEP > limit:
            found = _screen_bound(values, index, count, kind, k, norm, rest, shift, spread, code_norm, lows, scratch)
            floor = max(floor, float32(found))
            count = _screen_thin(values, index, count, norm, rest, shift, spread, code_norm, floor)
            limit = min(capacity, max(low, 2 * count))
            if count + STEP > capacity - capacity // 4:
                return count, floor, True
        for j in range(uint64(start), uint64(stop)):
            n = uint64(first) + j
            y = float32(row[j]) * step * scale[n] + shift[n]
            values[uint64(count)] = y
            index[uint64(count)] = n
            count += 0 if y + _error(n, norm, rest, shift, spread, code_norm) <= floor else 1
    return count, floor, False


def screen(
    products, columns, first, begin, end, experts, step, norm, rest, scale, shift, spread, code_norm, kind, k,
    values, index, count, capacity, floor, scratch,
):  # fmt: skip
    """Scan 8-bit products for entries whose upper end may be in the support; 1 where a list overflows."""
    a = carray(products, (end, columns))
    st, no, re = carray(step, (end,)), carray(norm, (end,)), carray(rest, (end,))
    sc, sh = carray(scale, (experts,)), carray(shift, (experts,))
    sp, cn = carray(spread, (experts,)), carray(code_norm, (experts,))
    v, x = carray(values, (end, capacity)), carray(index, (end, capacity))
    c, f = carray(count, (end,)), carray(floor, (end,))
    s = carray(scratch, (2 * capacity,))
    lows, spare = s[:capacity], s[capacity:]
    for b in range(begin, end):
        c[b], f[b], full = _screen_row(
            a[b], columns, first, st[b], no[b], re[b], sc, sh, sp, cn, kind, k, v[b], x[b], c[b], capacity,
            f[b], lows, spare,
        )  # fmt: skip
        if full:
            return 1
    return 0


@njit(fastmath=FAST)
def _four_dots(row, a, b, c, d, out):
    """Four at a time, so that their rows are fetched from memory together."""
    w = row[0] * 0
    x, y, z = w, w, w
    for j in range(len(row)):
        w += row[j] * a[j]
        x += row[j] * b[j]
        y += row[j] * c[j]
        z += row[j] * d[j]
    out[0], out[1], out[2], out[3] = w, x, y, z


@njit
def _logits(row, weight, mean, rstd, normed, experts, count, out):
    """Normalized float32 logits of experts[:count] into out, which has room for three more."""
    for j in range(count, count + 3):
        experts[j] = experts[count - 1]
    for j in range(0, count, 4):
        a, b, c, d = experts[j], experts[j + 1], experts[j + 2], experts[j + 3]
        _four_dots(row, weight[a], weight[b], weight[c], weight[d], out[j : j + 4])
    if normed:
        for j in range(count):
            out[j] = (out[j] - mean[experts[j]]) * rstd[experts[j]]


@njit
def _largest(values, count):
    top = float32(-math.inf)
    for j in range(count):
        top = max(top, values[j])
    return top


def refine(
    last, begin, end, experts, x, weight, width, norm, rest, mean, rstd, normed, shift, spread, code_norm, kind, k,
    values, index, count, capacity, floor, top, scratch, numbers,
):  # fmt: skip
    """Raise the floors by float32 logits of the likely support, thin the lists; the last time, recompute all held."""
    z, g = carray(x, (end, width)), carray(weight, (experts, width))
    no, re = carray(norm, (end,)), carray(rest, (end,))
    m, r = carray(mean, (experts,)), carray(rstd, (experts,))
    sh, sp, cn = carray(shift, (experts,)), carray(spread, (experts,)), carray(code_norm, (experts,))
    v, i = carray(values, (end, capacity)), carray(index, (end, capacity))
    c, f, t = carray(count, (end,)), carray(floor, (end,)), carray(top, (end,))
    s = carray(scratch, (2 * capacity + 8,))
    chosen = carray(numbers, (capacity + 4,))
    exact, spare = s[: capacity + 4], s[capacity + 4 :]
    for b in range(begin, end):
        row, held, ids = v[b], c[b], i[b]
        likely = float32(_bound(row, held, _largest(row, held), kind, k, spare))
        sure = 0
        for j in range(held):
            chosen[sure] = ids[j]
            sure += 1 if row[j] > likely else 0
        _logits(z[b], g, m, r, normed, chosen, sure, exact)
        low = float32(_bound(exact, sure, _largest(exact, sure), kind, k, spare))
        f[b] = max(f[b], low)
        c[b] = held = _screen_thin(row, ids, held, no[b], re[b], sh, sp, cn, f[b])
        if last:
            for j in range(held):
                chosen[j] = ids[j]
            _logits(z[b], g, m, r, normed, chosen, held, exact)
            for j in range(held):
                row[j] = exact[j]
            t[b] = _largest(row, held)


SIGNATURES = {
    quantize: "NNFNBFDDD",
    fingerprint: "NNINL",
    screen: "INNNNNFFFFFFFNNFLLNFF N",
    refine: "NNNNFFNFFFFNFFFNNFLLNFFFL",
}


def load() -> Functions:
    """Compile, or load what was compiled before for this processor."""
    return Functions(SIGNATURES)
