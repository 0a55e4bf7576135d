"""Screening in 8 bits for evaluation: most of the gate's float32 product is never computed, and nothing changes.

An 8-bit product finds, for every logit, an interval that it lies in for certain. What the intervals cannot rule out
of the support, some hundred experts of 65,536 a row, is recomputed in float32. Eight-bit integers and not bfloat16,
because their products are exact: the accumulation has no error to bound and there is no rounded output, and because
more processors have them (AVX512-VNNI, AVX-VNNI, AMX) than have fast bfloat16.

The bound. Let x be a row of the input and w one of the weight, I their length, u = 2^-24. Codes p, q of 8 bits and
scales s, t make a = s p and b = t q with x = a + (x - a), w = b + (w - b). The integer p.q is exact, since
127^2 I < 2^31 is required. Then by Cauchy and Schwarz

    |x.w - s t p.q| = |x.(w - b) + (x - a).b| <= |x| |w - b| + |x - a| |b|.

A float32 dot product in any order, fused or not, is within g |x| |w| of x.w, g = I u / (1 - I u) (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). So with r = 1 / std and m the mean, the normalized logit
y = fl((fl(x.w) - m) r) that float32 computes and the estimate e = fl(s t r p.q) + fl(-m r) differ by at most

    E = |x| r (|w - b| + g |w|) + (|x - a| + 10^-6 |a|) r |b| + 10^-6 |m r|.

The terms with 10^-6 cover the roundings outside of the sums: seven of relative size u on s t r p.q, which is at most
|a| r |b|, and four on m r; 10^-6 > 16 u. Norms are computed in float64 and, with their products, rounded up by 10^-5,
which also covers the roundings of E itself. The interval of y is [e - E, e + E]. Underflow adds less than 10^-20 where
s, t and r are at most 10^8, which is required; thresholds are lowered by more than 10^-5 anyway (see `compiled`).

The threshold never rises when entries of a row are lowered or left out (see `compiled`). So the threshold of the
lower ends of any entries is at most the row's, and an expert whose upper end is not above it is not in the support.
Of the rest, those that are likely in the support are recomputed first; their own threshold, again a lower bound,
rules out most others.

Copies of the weight must not be stale. They are kept outside of the module, as long as the weight lives, and their
weight is read again at every call: a fingerprint per row (a sum with odd multipliers, so that no change of a single
entry goes unseen) must agree. Version counters would miss writes through ``.data`` or a shared array.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mumoe.native import compiled_screening
from mumoe.native.lists import Lists, share

__all__ = ["Codes", "cached_bytes", "forget", "pays", "quantize", "screened"]


@cache
def functions() -> Any:
    """The compiled functions, compiled at first use."""
    return compiled_screening.load()


UNIT = 2.0**-24
ROUND_UP = 1 + 1e-5
LONGEST = 2**31 // 127**2
"""Input width from which the sum of 8-bit products could leave 32 bits."""
LARGEST = 1e8
"""Largest scale, and 1 / std, for which the bound holds."""
FEWEST_ROWS, FEWEST_EXPERTS = 128, 32768
"""Sizes from which screening was faster than the float32 product."""
CAPACITY = 1024
"""Entries of a row that may stay uncertain; beyond, the bound is too loose to pay."""


@dataclass(frozen=True)
class Codes:
    """Rows as 8-bit codes.

    Attributes:
        codes: (rows, width) int8.
        scale: (rows,) float32.
        norm, code_norm, rest_norm: Of the row, of scale * code, and of their difference; (rows,) float64.
    """

    codes: Tensor
    scale: Tensor
    norm: Tensor
    code_norm: Tensor
    rest_norm: Tensor

    def usable(self) -> bool:
        """Whether all is finite and in the range that the bound asks for."""
        return bool(self.rest_norm.isfinite().all() and (self.scale <= LARGEST).all())

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values())


def quantize(matrix: Tensor) -> Codes:
    """Codes of a float32 matrix, row by row, to the nearest of 255 steps of its largest entry."""
    rows, width = matrix.shape
    codes, scale = torch.empty(rows, width, dtype=torch.int8), torch.empty(rows)
    norm, code_norm, rest_norm = (torch.empty(rows, dtype=torch.float64) for _ in range(3))

    def run(begin: int, end: int) -> None:
        functions().quantize(
            begin, end, matrix.data_ptr(), width, codes.data_ptr(), scale.data_ptr(),
            norm.data_ptr(), code_norm.data_ptr(), rest_norm.data_ptr(),
        )  # fmt: skip

    share(run, rows, matrix.numel())
    return Codes(codes, scale, norm, code_norm, rest_norm)


def _fingerprint(matrix: Tensor) -> Tensor:
    rows, width = matrix.shape
    marks = torch.empty(rows, dtype=torch.int64)
    share(
        lambda begin, end: functions().fingerprint(begin, end, matrix.data_ptr(), width, marks.data_ptr()),
        rows,
        matrix.numel(),
    )
    return marks


_kept: dict[tuple[int, torch.Size], tuple[weakref.ref[torch.UntypedStorage], Tensor, Codes]] = {}


def _codes_of(weight: Tensor) -> Codes:
    """Codes of the weight as it is now, kept while its memory lives."""
    marks, storage = _fingerprint(weight), weight.untyped_storage()
    key = (weight.data_ptr(), weight.shape)
    held = _kept.get(key)
    if held is not None and held[0]() is storage and torch.equal(held[1], marks):
        return held[2]
    codes = quantize(weight)
    _kept[key] = (weakref.ref(storage, lambda _: _kept.pop(key, None)), marks, codes)
    return codes


def cached_bytes() -> int:
    """Memory that the copies of all weights take now."""
    return sum(marks.nbytes + codes.nbytes() for _, marks, codes in _kept.values())


def forget() -> None:
    """Drop all copies."""
    _kept.clear()


@cache
def _has_integer_products() -> bool:
    """Whether 8-bit products are fast here, and exact: extreme codes of one sign overflow where they are not."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    if not any(name in flags for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
        return False
    high = torch.full((32, 512), 127, dtype=torch.int8)
    try:
        product = torch._int_mm(high, high.neg().t())
    except (AttributeError, RuntimeError):
        return False
    return bool((product == -512 * 127**2).all())


def pays(rows: int, experts: int, width: int) -> bool:
    """Whether to try, by size and processor."""
    large = rows >= FEWEST_ROWS and experts >= FEWEST_EXPERTS and 64 <= width < LONGEST
    return large and _has_integer_products()


@dataclass(frozen=True)
class _Columns:
    """Per expert: factor of the products, shift, the two parts of the bound (float32), and 1 / std."""

    scale: Tensor
    shift: Tensor
    spread: Tensor
    code_norm: Tensor
    rstd: Tensor

    @staticmethod
    def of(codes: Codes, mean: Tensor | None, rstd: Tensor | None) -> _Columns:
        width = codes.codes.shape[1]
        order = width * UNIT / (1 - width * UNIT)
        r = torch.ones_like(codes.norm) if rstd is None else rstd.double()
        shift = torch.zeros_like(r) if mean is None else -mean.double() * r
        spread = (codes.rest_norm + order * codes.norm) * r.abs() * ROUND_UP
        code_norm = codes.code_norm * r.abs() * ROUND_UP
        return _Columns((codes.scale * r).float(), shift.float(), spread.float(), code_norm.float(), r.abs())

    def usable(self) -> bool:
        """Whether all is finite and in the range that the bound asks for."""
        return all(bool(t.isfinite().all()) for t in vars(self).values()) and bool((self.rstd <= LARGEST).all())


def _bounds_of(inputs: Codes) -> tuple[Tensor, Tensor]:
    """|x| and |x - a| + 10^-6 |a| of each row, rounded up."""
    norm = inputs.norm * ROUND_UP
    rest = (inputs.rest_norm + 1e-6 * inputs.code_norm) * ROUND_UP
    return norm.float(), rest.float()


def screened(x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor | None, kind: int, k: int) -> Lists | None:
    """Lists that hold at least the support, with float32 logits; None where the intervals are too wide to pay.

    Shape:
        x (rows, in), weight (experts, in); mean, rstd (experts,) or None.
    """
    rows, experts = x.shape[0], weight.shape[0]
    inputs, codes = quantize(x), _codes_of(weight)
    if not (inputs.usable() and codes.usable()):
        return None
    columns = _Columns.of(codes, mean, rstd)
    if not columns.usable():
        return None
    norm, rest = _bounds_of(inputs)
    lists = Lists(rows, kind, k, max(CAPACITY, 8 * k))
    size = max(512, (1 << 18) // rows // 32 * 32)
    buffer = torch.empty(rows * size, dtype=torch.int32)
    place = (x, weight, norm, rest, mean, rstd, columns)
    sharpen = size
    for first in range(0, experts, size):
        part = codes.codes[first : first + size]
        products = buffer[: rows * part.shape[0]].view(rows, part.shape[0])
        torch._int_mm(inputs.codes, part.t(), out=products)
        if not _scan(lists, products, first, experts, inputs.scale, norm, rest, columns):
            return None
        if first + size == sharpen:  # after the first block, and whenever four times as many were seen
            _refine(lists, False, *place)
            sharpen *= 4
    _refine(lists, True, *place)
    return lists


def _scan(
    lists: Lists, products: Tensor, first: int, experts: int, step: Tensor, norm: Tensor, rest: Tensor, at: _Columns
) -> bool:
    def run(begin: int, end: int) -> Any:
        scratch = torch.empty(2 * lists.capacity)
        return functions().screen(
            products.data_ptr(), products.shape[1], first, begin, end, experts,
            step.data_ptr(), norm.data_ptr(), rest.data_ptr(),
            at.scale.data_ptr(), at.shift.data_ptr(), at.spread.data_ptr(), at.code_norm.data_ptr(),
            lists.kind, lists.k, lists.values.data_ptr(), lists.index.data_ptr(), lists.count.data_ptr(),
            lists.capacity, lists.floor.data_ptr(), scratch.data_ptr(),
        )  # fmt: skip

    return not any(share(run, lists.rows, products.numel()))


def _refine(
    lists: Lists,
    last: bool,
    x: Tensor,
    weight: Tensor,
    norm: Tensor,
    rest: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    at: _Columns,
) -> None:
    experts, width = weight.shape
    m, r = (at.shift, at.shift) if mean is None or rstd is None else (mean, rstd)

    def run(begin: int, end: int) -> None:
        scratch = torch.empty(2 * lists.capacity + 8)
        numbers = torch.empty(lists.capacity + 4, dtype=torch.int64)
        functions().refine(
            last, begin, end, experts, x.data_ptr(), weight.data_ptr(), width, norm.data_ptr(), rest.data_ptr(),
            m.data_ptr(), r.data_ptr(), rstd is not None, at.shift.data_ptr(), at.spread.data_ptr(),
            at.code_norm.data_ptr(), lists.kind, lists.k, lists.values.data_ptr(), lists.index.data_ptr(),
            lists.count.data_ptr(), lists.capacity, lists.floor.data_ptr(), lists.top.data_ptr(),
            scratch.data_ptr(), numbers.data_ptr(),
        )  # fmt: skip

    share(run, lists.rows, 64 * lists.rows * width)
