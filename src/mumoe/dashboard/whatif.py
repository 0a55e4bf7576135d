"""What edits do to every image's logits, from cached coefficients and projections, without the backbone.

In its factored form a layer is y = O close(h(z), a_1 T_1, .., a_E T_E) (see `mumoe.analysis.contributions`), so
a change of experts needs only h(z) and the few non-zero coefficients of an image. Both are cached.

- Experts that are scaled, left out or exchanged change rows of a table T_e: only images with one of these experts
  are recomputed, from the changed table. Nothing is subtracted, so an image whose last expert is left out has
  logits of exactly 0, as in the edited layer.
- A rewriting adds a . v to one output: a sparse product over the images that v reaches.

If two logits differ by less than rounding errors, the layer itself is evaluated on these rows, with the edits applied.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mumoe.analysis.coefficient_store import CoefficientLevel
from mumoe.analysis.contributions import Form, form_of
from mumoe.analysis.outcomes import ROUNDING
from mumoe.dashboard import WHO
from mumoe.editing.operations import AddedTerm, CoefficientMap, EditedFactorization, Operation
from mumoe.editing.runs import EditingRun
from mumoe.files import nameless_file

__all__ = ["Changed", "Level", "Rows", "begun", "open_rows"]

T = TypeVar("T")

BLOCK = 8_000_000
"""Numbers held at once while logits are computed."""

PAIRS = 250_000
"""Pairs of row and expert that are counted at a time."""

MAPPED = 2**28
"""Bytes from which projections are kept in a mapped file, whose pages the system may drop."""


@dataclass(frozen=True)
class Level:
    """Non-zero coefficients of one level, by row and by expert.

    Attributes:
        num_experts: Number of experts.
        experts: (pairs,) int32, row after row.
        values: (pairs,) float32.
        offsets: (rows + 1,) int64, first pair of each row.
        by_expert: (pairs,) int32 rows, expert after expert.
        by_expert_values: (pairs,) their coefficients.
        starts: (num_experts + 1,) int64, first entry of each expert in `by_expert`.
    """

    num_experts: int
    experts: Tensor
    values: Tensor
    offsets: Tensor
    by_expert: Tensor
    by_expert_values: Tensor
    starts: Tensor

    @staticmethod
    def of(level: CoefficientLevel) -> Level:
        """From a store, read into memory."""
        experts = torch.from_numpy(np.array(level.experts, dtype=np.int32))
        offsets = torch.from_numpy(np.array(level.offsets, dtype=np.int64))
        rows = torch.repeat_interleave(torch.arange(level.rows, dtype=torch.int32), offsets.diff())
        counts = torch.bincount(experts, minlength=level.num_experts)
        narrow = np.uint16 if level.num_experts <= 2**16 else np.int32  # numpy sorts 16 bits by radix
        order = torch.from_numpy(np.argsort(experts.numpy().astype(narrow), kind="stable"))
        starts = F.pad(counts.cumsum(0), (1, 0))
        values = torch.from_numpy(np.array(level.values, dtype=np.float32))
        return Level(level.num_experts, experts, values, offsets, rows[order], values[order], starts)

    def touched(self, experts: Sequence[int]) -> Tensor:
        """Rows, with repetitions, to which these experts contribute."""
        parts = [self.by_expert[self.starts[n] : self.starts[n + 1]] for n in experts]
        return torch.cat(parts or [self.by_expert[:0]]).long()

    def of_expert(self, expert: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Rows to which one expert contributes, ascending, and its coefficients."""
        place = slice(int(self.starts[expert]), int(self.starts[expert + 1]))
        return self.by_expert[place].long().numpy(), self.by_expert_values[place].numpy()

    @functools.cached_property
    def peaks(self) -> npt.NDArray[np.int64]:
        """(num_experts,) row of each expert's largest coefficient, the first of equal ones; -1 for one without any."""
        starts, values = self.starts.numpy(), self.by_expert_values.numpy()
        counts = np.diff(starts)
        used, first = counts > 0, starts[:-1][counts > 0]
        largest = np.maximum.reduceat(values, first) if len(first) else values
        places = np.flatnonzero(values == np.repeat(largest, counts[used]))
        found = np.full(self.num_experts, -1, dtype=np.int64)
        found[used] = self.by_expert.numpy()[places[np.searchsorted(places, first)]]
        return found

    def blocks(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Expert, row and coefficient of all pairs, row after row, `PAIRS` or a little more at a time."""
        offsets = self.offsets.numpy()
        first = 0
        while first < len(offsets) - 1:
            end = int(np.searchsorted(offsets, offsets[first] + PAIRS))
            end = min(max(end, first + 1), len(offsets) - 1)
            place = slice(int(offsets[first]), int(offsets[end]))
            row = np.repeat(np.arange(first, end), np.diff(offsets[first : end + 1]))
            yield self.experts[place].long().numpy(), row, self.values[place].numpy()
            first = end

    def mix(self, rows: Tensor, table: Tensor) -> Tensor:
        """(len(rows), width) coefficients times table, (num_experts, width)."""
        pairs, starts = self._pairs(rows)
        return F.embedding_bag(
            self.experts[pairs].long(), table, starts, mode="sum", per_sample_weights=self.values[pairs].to(table.dtype)
        )

    def dense(self, rows: Tensor) -> Tensor:
        """(len(rows), num_experts)."""
        pairs, _ = self._pairs(rows)
        counts = self.offsets[rows + 1] - self.offsets[rows]
        owner = torch.repeat_interleave(torch.arange(len(rows)), counts)
        table = torch.zeros(len(rows), self.num_experts)
        table[owner, self.experts[pairs].long()] = self.values[pairs]
        return table

    def _pairs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the rows' pairs, row after row, and where each row begins among them."""
        first, counts = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        starts = counts.cumsum(0) - counts
        shift = torch.repeat_interleave(first - starts, counts)
        return torch.arange(len(shift)) + shift, starts


@dataclass(frozen=True)
class Changed:
    """The rows whose logits some edits may change.

    Attributes:
        rows: (n,) positions among the rows, ascending.
        logits: (n, classes) with the edits.
        decided: (n,) classes, or (n, classes) 0 and 1.
    """

    rows: Tensor
    logits: Tensor
    decided: Tensor


@dataclass
class Rows:
    """The images of one split: coefficients, projections, and logits of the model as it was trained.

    Attributes:
        run: The run.
        images: (rows,) positions in the data.
        levels: Coefficients, one per level.
        hidden: (rows, width) projections h(z), in a mapped file if they are large; (0, width) where the layer has no
            factored form.
        logits: (rows, classes) of the layer without edits.
        decided: (rows,) classes, or (rows, classes) 0 and 1.
    """

    run: EditingRun
    images: npt.NDArray[np.int64]
    levels: tuple[Level, ...]
    form: Form | None
    hidden: Tensor
    logits: Tensor = field(init=False)
    decided: Tensor = field(init=False)
    scale: Tensor = field(init=False)

    def __len__(self) -> int:
        return len(self.images)

    @torch.no_grad()
    def changed(self, operations: Sequence[Operation]) -> Changed:
        """What edits do, given as `EditStack.operations`."""
        maps, terms = self._carried(operations)
        moved = torch.zeros(len(self), dtype=torch.bool)
        for level, experts in maps.items():
            moved[self.levels[level].touched(sorted(experts))] = True
        added = torch.zeros(len(self), dtype=torch.bool)
        for term in terms:
            added |= self._reached(term)
        rows = (moved | added).nonzero()[:, 0]
        logits, scale = self.logits[rows], self.scale[rows].clone()
        again = moved[rows]
        logits[again], found = self._compute(rows[again], operations)
        scale[again] = torch.maximum(found, scale[again])
        for term in terms:
            value = self._value(term, rows)
            logits[:, term.head] += value
            scale += value.abs()
        decided = _decisions(logits, self.run.data.multi_label)
        self._settle(rows, logits, decided, scale, operations)
        return Changed(rows, logits, decided)

    def start(self) -> None:
        """Compute the logits of every row without edits."""
        rows = torch.arange(len(self))
        with torch.no_grad():
            self.logits, self.scale = self._compute(rows, ())
            self.decided = _decisions(self.logits, self.run.data.multi_label)
            self._settle(rows, self.logits, self.decided, self.scale, ())

    def _carried(self, operations: Sequence[Operation]) -> tuple[dict[int, set[int]], list[AddedTerm]]:
        """Experts that are mapped, by level, and the added terms as seen from the unedited coefficients.

        A term meets coefficients that the maps made after it have changed: a . v becomes (M a) . v = a . (M' v).
        """
        maps: dict[int, set[int]] = {}
        terms: list[AddedTerm] = []
        for operation in operations:
            if isinstance(operation, CoefficientMap):
                size = self.levels[operation.level].num_experts
                maps.setdefault(operation.level, set()).update(operation.experts or range(size))
                terms = [_after(term, operation) for term in terms]
            else:
                terms.append(operation)
        return maps, [term.to(self.hidden) for term in terms]

    def _tables(self, operations: Sequence[Operation], experts: dict[int, set[int]]) -> list[Tensor]:
        """Each level's table, with the rows of these experts changed by the maps."""
        assert self.form is not None
        tables = [*self.form.tables]
        for level, chosen in experts.items():
            places = {expert: place for place, expert in enumerate(sorted(chosen))}
            index = torch.tensor(sorted(chosen))
            part = tables[level][index]
            for operation in operations:
                if isinstance(operation, CoefficientMap) and operation.level == level:
                    named = operation.experts or range(len(places))
                    part = CoefficientMap(level, operation.matrix, tuple(places[n] for n in named)).weights(part, 0)
            tables[level] = tables[level].index_copy(0, index, part)
        return tables

    def _compute(self, rows: Tensor, operations: Sequence[Operation]) -> tuple[Tensor, Tensor]:
        """(n, classes) logits without added terms, and how large the numbers are that they are sums of."""
        maps = [operation for operation in operations if isinstance(operation, CoefficientMap)]
        experts, _ = self._carried(maps)
        logits = torch.empty(len(rows), self.run.require_layer(WHO).out_features)
        scale = torch.empty(len(rows))
        if self.form is None:
            for place in _blocks(len(rows), sum(level.num_experts for level in self.levels)):
                logits[place] = self.plain(rows[place], maps)
                scale[place] = logits[place].norm(dim=1)
            return logits, scale
        tables, matrix = self._tables(maps, experts), self.form.matrix
        largest = matrix.norm(dim=1).max()
        for place in _blocks(len(rows), max(matrix.shape[1], *(table.shape[1] for table in tables))):
            part = rows[place]
            mixed = [level.mix(part, table) for level, table in zip(self.levels, tables, strict=True)]
            latent = self.form.close(self.hidden[part], mixed)
            logits[place] = F.linear(latent, matrix)
            scale[place] = latent.norm(dim=1) * largest
        return logits, scale

    def plain(self, rows: Tensor, operations: Sequence[Operation]) -> Tensor:
        """(n, classes) of the layer itself with edits applied: slow, and the rest is checked against it."""
        layer = self.run.require_layer(WHO)
        part = EditedFactorization(layer.factorization, operations) if operations else layer.factorization
        x = self.run.inputs(self.images[rows.numpy()])
        return part(x, [level.dense(rows).to(x) for level in self.levels])

    def _reached(self, term: AddedTerm) -> Tensor:
        """(rows,) whether a term may add something."""
        reached = torch.ones(len(self), dtype=torch.bool)
        for level, vectors in zip(self.levels, term.vectors, strict=True):
            used = vectors.ne(0).any(1).nonzero()[:, 0].tolist()
            if len(used) < level.num_experts:
                mine = torch.zeros(len(self), dtype=torch.bool)
                mine[level.touched(used)] = True
                reached &= mine
        return reached

    def _value(self, term: AddedTerm, rows: Tensor) -> Tensor:
        """(n,) what a term adds to its output."""
        amount = torch.ones(1)
        for level, vectors in zip(self.levels, term.vectors, strict=True):
            amount = amount * level.mix(rows, vectors.contiguous())
        total = amount.sum(1)
        if term.weight is None:
            return total
        x = self.run.inputs(self.images[rows.numpy()])
        return total * (x @ term.weight[:-1] + term.weight[-1])

    def _settle(
        self, rows: Tensor, logits: Tensor, decided: Tensor, scale: Tensor, operations: Sequence[Operation]
    ) -> None:
        """Replace decisions that rounding errors could flip by those of the layer itself."""
        slack = scale * (ROUNDING * torch.finfo(logits.dtype).eps)
        close = (_margin(logits, self.run.data.multi_label) <= slack).nonzero()[:, 0]
        for place in _blocks(len(close), sum(level.num_experts for level in self.levels)):
            part = close[place]
            logits[part] = self.plain(rows[part], operations)
            decided[part] = _decisions(logits[part], self.run.data.multi_label)


def open_rows(run: EditingRun, images: npt.NDArray[np.int64], levels: Sequence[CoefficientLevel]) -> Rows:
    """Read what `Rows` keeps: one pass over the features.

    Args:
        run: The run; its head must be a MuMoE layer that makes the logits.
        images: (rows,) positions in the data.
        levels: Their coefficients, one level after the other.
    """
    form = form_of(run.require_layer(WHO).factorization)
    sorted_levels = begun(lambda: tuple(map(Level.of, levels)))
    hidden = torch.zeros(0, run.features.shape[1])
    with torch.no_grad():
        for place in _blocks(len(images) if form else 0, 4 * run.features.shape[1]):  # inputs and their copies
            assert form is not None
            part = form.hidden(run.inputs(images[place]))
            if place.start == 0:
                hidden = _held(run.path, (len(images), part.shape[1]), part.dtype)
            hidden[place] = part
    rows = Rows(run, images, sorted_levels.result(), form, hidden)
    rows.start()
    return rows


def _held(folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """An empty matrix: in memory, or from `MAPPED` bytes on in a file of the run that no name leads to."""
    size = math.prod(shape)
    if size * dtype.itemsize < MAPPED or not size:
        return torch.empty(shape, dtype=dtype)
    try:
        with nameless_file(folder) as file:
            return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(shape)
    except (OSError, RuntimeError):  # a folder that cannot be written, or a full disk
        return torch.empty(shape, dtype=dtype)


def begun(work: Callable[[], T]) -> Future[T]:
    """Work in a separate thread, beside products and hashes, which release the interpreter lock."""
    pool = ThreadPoolExecutor(1)
    found = pool.submit(work)
    pool.shutdown(wait=False)
    return found


def _decisions(logits: Tensor, multi_label: bool) -> Tensor:
    """(n,) classes, the first of equal logits winning, or (n, classes) 0 and 1, above 0 being 1."""
    return (logits > 0).long() if multi_label else logits.argmax(1)


def _margin(logits: Tensor, multi_label: bool) -> Tensor:
    """(n,) how far the closest decision is from changing."""
    if multi_label or logits.shape[1] < 2:
        return logits.abs().amin(1)
    best = logits.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def _after(term: AddedTerm, change: CoefficientMap) -> AddedTerm:
    vectors = list(term.vectors)
    vectors[change.level] = change.weights(vectors[change.level], 0)
    return AddedTerm(term.head, tuple(vectors), term.weight)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    size = max(1, BLOCK // width)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
