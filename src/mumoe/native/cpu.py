"""The kernels for float32 tensors on the processor: blocks, buffers, threads; the loops are in `compiled.py`.

The matrix products stay PyTorch's. A block of experts (about a megabyte of logits for the full batch) is multiplied,
scanned for entries that may be in the support, and dropped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mumoe.backends import Support
from mumoe.native import KINDS, compiled, screening
from mumoe.native.lists import Lists, functions, share, zeros

BLOCK, LARGE_BLOCK = 1 << 18, 1 << 21
"""Logits held at a time; many rows get up to the second, for blocks of `NARROW` experts; `NARROWEST` is the least."""
NARROW, NARROWEST = 512, 128
CAPACITY = 256
"""Entries a row's list starts with."""
DENSE = 0.25
"""Share of the first block's entries in the support from which the caller had better go dense."""
SMALLEST = 16
"""Experts up to which nobody asks whether a sparse form pays."""
FEW_ROWS = 16
"""Rows up to which the whole gate is one compiled call."""
MOST = 0.85
"""Share of experts with an entry from which the backward multiplies by all of them."""
SAMPLE = 32
"""Rows that are looked at to find this share."""


def _matrix(x: Tensor, name: str, columns: int | None = None) -> None:
    if x.ndim != 2 or x.dtype != torch.float32 or x.device.type != "cpu" or (columns and x.shape[1] != columns):
        width = "in" if columns is None else columns
        raise ValueError(
            f"native: expected {name} as a float32 (rows, {width}) matrix on the cpu, "
            f"got {x.dtype} {tuple(x.shape)} on {x.device}. Use plain PyTorch."
        )


def _capacity(kind: int, k: int, experts: int) -> int:
    if kind == compiled.TOPK:
        return max(CAPACITY, 4 * k + 64)
    return CAPACITY


def _is_dense(block: Tensor, mean: Tensor | None, rstd: Tensor | None, kind: int, k: int) -> bool:
    """Whether the support of a sample of rows is a large share of a block."""
    if kind == compiled.TOPK or block.shape[1] <= SMALLEST:
        return False
    sample = block[:: max(1, -(-block.shape[0] // SAMPLE))].contiguous()
    lists = Lists(sample.shape[0], kind, k, block.shape[1] * 2 + 64)
    if not lists.scan(sample, 0, mean, rstd):
        return True
    return lists.solve()[1].numel() > DENSE * sample.numel()


def _block_columns(rows: int, experts: int) -> int:
    rows = max(rows, 1)
    return min(experts, max(NARROWEST, BLOCK // rows // 16 * 16, min(NARROW, LARGE_BLOCK // rows // 16 * 16)))


def _empty_support(rows: int, statistics: int | None) -> Support:
    """Of no rows, or no experts."""
    none, offsets = torch.empty(0), torch.zeros(rows + 1, dtype=torch.int64)
    numbers = (None, None) if statistics is None else (torch.full((statistics,), torch.nan),) * 2
    return Support(none, none.long(), offsets, none.clone(), *numbers)


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
    """See `Kernels.support`."""
    _matrix(x, "x")
    _matrix(weight, "weight", x.shape[1])
    rows, experts = x.shape[0], weight.shape[0]
    _vectors(mean, rstd, experts)
    code, k = KINDS.index(kind), min(k, experts)
    if kind == "topk" and k > DENSE * experts and experts > SMALLEST:
        return None
    if rows == 0 or experts == 0:
        return _empty_support(rows, experts if batch_statistics else None)
    x, weight = x.detach().contiguous(), weight.detach().contiguous()
    if not batch_statistics and rows * experts <= SMALL and rows <= FEW_ROWS:
        small = _small(x, weight, mean, rstd, code, k, None)
        return None if small is None else small[0]
    if not batch_statistics and screening.pays(rows, *weight.shape):
        lists = screening.screened(x, weight, mean, rstd, code, k)
        if lists is not None and bool(lists.top.isfinite().all()):
            return Support(*lists.solve(), None, None)
    columns = _block_columns(rows, experts)
    buffer = torch.empty(rows * columns)
    lists = Lists(rows, code, k, _capacity(code, k, experts))
    means, variances = torch.empty(2, experts if batch_statistics else 0, dtype=torch.float64)
    for first in range(0, experts, columns):
        last = min(first + columns, experts)
        block = buffer[: rows * (last - first)].view(rows, last - first)
        torch.mm(x, weight[first:last].t(), out=block)
        m: Tensor | None
        r: Tensor | None
        if batch_statistics:
            m, r = _statistics(block, means[first:last], variances[first:last], eps)
        else:
            m = None if mean is None else mean[first:last]
            r = None if rstd is None else rstd[first:last]
        if first == 0 and _is_dense(block, m, r, code, k):
            return None
        if not lists.scan(block, first, m, r):
            return None
    if not bool(lists.top.isfinite().all()):
        return None
    if not batch_statistics:
        return Support(*lists.solve(), None, None)
    kept = buffer.view(rows, experts) if columns == experts else None
    return Support(*lists.solve(), means.float(), variances.float(), kept)


SMALL = 1 << 18
"""Logits up to which a few rows are done in one call."""


def _small(
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    kind: int,
    k: int,
    factor: Tensor | None,
) -> tuple[Support, Tensor] | None:
    """Support and mixture of a few rows: one matrix product and one compiled call."""
    rows, experts = x.shape[0], weight.shape[0]
    logits = torch.mm(x, weight.t())
    most, room, width = rows * experts, 2 * experts + 4 * compiled.STEP, 0 if factor is None else factor.shape[1]
    scratch = torch.empty(2 * room, dtype=torch.int64)  # index, then values and spare room in halves
    floats, numbers = torch.empty(2 * most + rows * width), torch.empty(most + rows + 1, dtype=torch.int64)
    logits_at, index_at, slack_at, indices_at = (t.data_ptr() for t in (logits, scratch, floats, numbers))
    values_at, normalized_at, offsets_at = index_at + 8 * room, slack_at + 4 * most, indices_at + 8 * most
    normed = mean is not None and rstd is not None
    total = functions().gate_small(
        logits_at, rows, experts, mean.data_ptr() if mean is not None else 0,
        rstd.data_ptr() if rstd is not None else 0, normed, kind, k,
        width, 0 if factor is None else factor.data_ptr(), values_at, index_at,
        slack_at, indices_at, normalized_at, offsets_at, normalized_at + 4 * most, values_at + 4 * room,
    )  # fmt: skip
    if total < 0 or (total > DENSE * most and experts > SMALLEST and kind != compiled.TOPK):
        return None
    indices, offsets = numbers[:total], numbers[most:]
    slack, normalized, mixed = floats[:total], floats[most : most + total], floats[2 * most :].view(rows, width)
    return Support(slack, indices, offsets, normalized, None, None), mixed


def forward_small(
    x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor | None, factor: Tensor, kind: str, k: int
) -> tuple[Support, Tensor] | None:
    """See `Kernels.forward_small`."""
    _matrix(x, "x")
    _matrix(weight, "weight", x.shape[1])
    _matrix(factor, "factor")
    experts = weight.shape[0]
    if factor.shape[0] != experts:
        raise ValueError(f"native: expected a factor of {experts} rows, got {factor.shape[0]}. Give a row per expert.")
    _vectors(mean, rstd, experts)
    x, weight, factor = x.contiguous(), weight.contiguous(), factor.contiguous()
    code, k = KINDS.index(kind), min(k, experts)
    if 0 < x.shape[0] * experts <= SMALL:
        return _small(x, weight, mean, rstd, code, k, factor)
    found = support(x, weight, mean, rstd, kind, k, False, 0.0)
    if found is None:
        return None
    values = found.slack.square() if kind == "entmax15" else found.slack
    return found, bag(values, found.indices, found.offsets, factor)


def _vectors(mean: Tensor | None, rstd: Tensor | None, experts: int) -> None:
    for name, vector in (("mean", mean), ("rstd", rstd)):
        if vector is not None and (vector.shape != (experts,) or vector.dtype != torch.float32):
            raise ValueError(
                f"native: expected {name} as ({experts},) float32, got {tuple(vector.shape)} {vector.dtype}. "
                "Give one number per expert."
            )
    if (mean is None) != (rstd is None):
        raise ValueError("native: expected mean and rstd, or neither, got one of them. Give both.")


def _statistics(block: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, columns = block.shape

    def run(begin: int, end: int) -> None:
        functions().moments(block.data_ptr(), rows, columns, begin, end, mean.data_ptr(), var.data_ptr())

    share(run, columns, block.numel())
    return mean.float(), (var + eps).rsqrt_().float()


def _check(values: Tensor, indices: Tensor, offsets: Tensor, experts: int) -> int:
    """Rows; refuses what would read or write outside the arrays."""
    total, rows = indices.numel(), offsets.numel() - 1
    if values.numel() != total or indices.dtype != torch.int64 or offsets.dtype != torch.int64 or rows < 0:
        raise IndexError(f"native: expected int64 indices and offsets and {total} values, got {values.numel()}.")
    status = functions().check(offsets.data_ptr(), indices.data_ptr(), rows, total, experts)
    if status == 1:
        raise IndexError(f"native: expected offsets that rise from 0 to {total}, got others. Rebuild the coefficients.")
    if status == 2:
        raise IndexError(f"native: expected indices of {experts} experts, got one out of range. Check the indices.")
    return rows


def bag(values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
    """See `Kernels.bag`."""
    _matrix(factor, "factor")
    values, indices, offsets = values.detach().contiguous(), indices.contiguous(), offsets.contiguous()
    factor = factor.detach().contiguous()
    _check(values, indices, offsets, factor.shape[0])
    return _bag(values, indices, offsets, factor)


def _bag(values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
    """PyTorch's own kernel, which fetches ahead, is up to three times as fast as a compiled loop without."""
    if offsets.numel() == 1 or values.numel() == 0:
        return factor.new_zeros(offsets.numel() - 1, factor.shape[1])
    return F.embedding_bag(indices, factor, offsets, mode="sum", per_sample_weights=values, include_last_offset=True)


def dense(logits: Tensor, kind: str) -> Tensor:
    """See `Kernels.dense`."""
    _matrix(logits, "logits")
    logits = logits.detach().contiguous()
    rows, columns = logits.shape
    code, out = KINDS.index(kind), torch.empty_like(logits)

    def run(begin: int, end: int) -> None:
        scratch = torch.empty(columns)
        functions().dense(begin, end, columns, logits.data_ptr(), code, out.data_ptr(), scratch.data_ptr())

    if logits.numel():
        share(run, rows, logits.numel())
    return out


def dense_backward(coefficients: Tensor, grad: Tensor, kind: str) -> Tensor:
    """See `Kernels.dense_backward`."""
    _matrix(coefficients, "coefficients")
    _matrix(grad, "grad", coefficients.shape[1])
    if len(grad) != len(coefficients):
        raise ValueError(f"native: expected grad of {len(coefficients)} rows, got {len(grad)}. Give one per row.")
    p, g = coefficients.detach().contiguous(), grad.detach().contiguous()
    rows, columns = p.shape
    code, out = KINDS.index(kind), torch.empty_like(p)

    def run(begin: int, end: int) -> None:
        functions().dense_backward(begin, end, columns, p.data_ptr(), g.data_ptr(), code, out.data_ptr())

    if p.numel():
        share(run, rows, p.numel())
    return out


class ByExpert:
    """The same entries in order of their expert, so that each expert's gradient is written once and by one thread."""

    def __init__(self, indices: Tensor, offsets: Tensor, experts: int) -> None:
        self.total, self.experts = indices.numel(), experts
        self.starts = torch.empty(experts + 1, dtype=torch.int64)
        self.row_of, self.place = torch.empty(2, self.total, dtype=torch.int64)
        functions().transpose(
            offsets.data_ptr(), indices.data_ptr(), offsets.numel() - 1, experts,
            self.starts.data_ptr(), self.row_of.data_ptr(), self.place.data_ptr(),
        )  # fmt: skip

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        return self.starts.data_ptr(), self.row_of.data_ptr(), self.place.data_ptr(), self.total

    def active(self) -> Tensor:
        """Experts with an entry, ascending."""
        return (self.starts[1:] > self.starts[:-1]).nonzero()[:, 0]


def bag_backward(
    grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """See `Kernels.bag_backward`."""
    _matrix(factor, "factor")
    _matrix(grad, "grad", factor.shape[1])
    grad, values, factor = grad.detach().contiguous(), values.detach().contiguous(), factor.detach().contiguous()
    indices, offsets = indices.contiguous(), offsets.contiguous()
    experts, width = factor.shape
    rows = _check(values, indices, offsets, experts)
    if grad.shape[0] != rows:
        raise ValueError(f"native: expected grad of {rows} rows, got {grad.shape[0]}. Give the gradient of the bag.")
    order = ByExpert(indices, offsets, experts)
    grad_values, grad_factor = torch.empty_like(values), zeros(experts, width)

    def run(begin: int, end: int) -> None:
        functions().bag_backward(
            begin, end, *order.addresses, values.data_ptr(), grad.data_ptr(), rows, factor.data_ptr(), width,
            grad_values.data_ptr(), grad_factor.data_ptr(),
        )  # fmt: skip

    share(run, experts, 2 * values.numel() * width)
    return grad_values, grad_factor


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
    _matrix(x, "x")
    _matrix(weight, "weight", x.shape[1])
    x, weight, dy = x.detach().contiguous(), weight.detach().contiguous(), dy.detach().contiguous()
    indices, offsets, normalized = indices.contiguous(), offsets.contiguous(), normalized.contiguous()
    rows = _check(dy, indices, offsets, weight.shape[0])
    if rows != x.shape[0] or normalized.numel() != dy.numel():
        raise ValueError(f"native: expected offsets of {x.shape[0]} rows, got {rows}. Give those of the same batch.")
    order = ByExpert(indices, offsets, weight.shape[0])
    if not batch_statistics:
        return _sparse_products(x, weight, rstd, indices, offsets, dy, order)
    assert rstd is not None
    return _batch_norm_backward(x - x.mean(0), weight, rstd, indices, offsets, dy, normalized, order, logits)


def _sparse_products(
    x: Tensor,
    weight: Tensor,
    rstd: Tensor | None,
    indices: Tensor,
    offsets: Tensor,
    dy: Tensor,
    order: ByExpert,
    grad_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """d @ weight and d.T @ x (added to grad_weight) for the sparse matrix d of rstd * dy."""
    raw = dy if rstd is None else dy * rstd[indices]
    grad_x = _bag(raw, indices, offsets, weight)
    out = zeros(*weight.shape) if grad_weight is None else grad_weight

    def run(begin: int, end: int) -> None:
        functions().gather_rows(
            begin, end, *order.addresses, raw.data_ptr(), x.data_ptr(), x.shape[0], x.shape[1], out.data_ptr()
        )

    share(run, weight.shape[0], raw.numel() * x.shape[1])
    return grad_x, out


def _batch_norm_backward(
    z: Tensor,
    weight: Tensor,
    rstd: Tensor,
    indices: Tensor,
    offsets: Tensor,
    dy: Tensor,
    normalized: Tensor,
    order: ByExpert,
    logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """For logits l = z g and y = (l - mean) rstd: dl = rstd (dy - m1 - y m2), with m1, m2 the means of dy and dy y.

    Where an expert has no entry, dy = m1 = m2 = 0, and so is its gradient: only the active ones are touched.
    """
    (rows, width), experts = z.shape, weight.shape[0]
    one, two = torch.empty(2, experts, dtype=torch.float64)

    def sums(begin: int, end: int) -> None:
        functions().column_sums(
            begin, end, order.addresses[0], order.place.data_ptr(), order.total,
            dy.data_ptr(), normalized.data_ptr(), one.data_ptr(), two.data_ptr(),
        )  # fmt: skip

    share(sums, experts, 4 * order.total)
    wide = rstd.double()
    shift = (one * wide / -rows).float()
    scale = (two * wide * wide / -rows).float()
    active = order.active()
    count = active.numel()
    if 2 * rows * width**2 + 2 * width**2 * count < 3 * rows * width * count:
        return _by_gram(z, weight, rstd, indices, offsets, dy, order, active, shift, scale)
    return _by_blocks(z, weight, rstd, dy, order, active, shift, scale, logits)


def _by_blocks(
    z: Tensor,
    weight: Tensor,
    rstd: Tensor,
    dy: Tensor,
    order: ByExpert,
    active: Tensor,
    shift: Tensor,
    scale: Tensor,
    logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Three matrix products with each block of active experts: logits, gradient of the weight, gradient of z."""
    rows, width = z.shape
    every = active.numel() > MOST * weight.shape[0]
    if every:  # zeros for the few others cost less than copies of the weights
        active = torch.arange(weight.shape[0])
    size = max(NARROWEST, _block_columns(rows, max(active.numel(), 1)) // 2)  # their weights are held, too
    grad_x, grad_weight = torch.zeros_like(z), zeros(*weight.shape)
    buffer, held = torch.empty(size, rows), torch.empty(0 if every else size, width)
    for first in range(0, active.numel(), size):
        part = active[first : first + size]
        count = part.numel()
        block = buffer[:count]
        g = weight[first : first + count] if every else torch.index_select(weight, 0, part, out=held[:count])
        if logits is None:
            torch.mm(g, z.t(), out=block)
        else:
            block.copy_(logits[:, first : first + count].t() if every else logits[:, part].t())
        _combine(block, part, order, dy, rstd, scale, shift)
        grad_x.addmm_(block.t(), g)
        if every:
            torch.mm(block, z, out=grad_weight[first : first + count])
        else:
            grad_weight.index_copy_(0, part, torch.mm(block, z, out=held[:count]))
    return grad_x, grad_weight


def _combine(
    block: Tensor, part: Tensor, order: ByExpert, dy: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor
) -> None:
    def run(begin: int, end: int) -> None:
        functions().combine(
            begin, end, part.data_ptr(), *order.addresses, dy.data_ptr(), rstd.data_ptr(), True,
            scale.data_ptr(), shift.data_ptr(), block.shape[1], block.data_ptr(),
        )  # fmt: skip

    share(run, block.shape[0], block.numel())


def _by_gram(
    z: Tensor,
    weight: Tensor,
    rstd: Tensor,
    indices: Tensor,
    offsets: Tensor,
    dy: Tensor,
    order: ByExpert,
    active: Tensor,
    shift: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """The dense terms by the (in, in) matrices S = z' z and M = G' diag(scale) G: scale G S and z M."""
    width = z.shape[1]
    gram, inner, line = z.t() @ z, z.new_zeros(width, width), z.new_zeros(width)
    grad_weight = zeros(*weight.shape)
    every = active.numel() == weight.shape[0]
    for first in range(0, active.numel(), 1024):
        part = active[first : first + 1024]
        g = weight[first : first + part.numel()] if every else weight[part]
        scaled = g * scale[part, None]
        inner.addmm_(g.t(), scaled)
        line.addmv_(g.t(), shift[part])
        if every:
            torch.mm(scaled, gram, out=grad_weight[first : first + part.numel()])
        else:
            grad_weight.index_copy_(0, part, scaled @ gram)
    grad_x, _ = _sparse_products(z, weight, rstd, indices, offsets, dy, order, grad_weight)
    return grad_x.addmm_(z, inner).add_(line), grad_weight
