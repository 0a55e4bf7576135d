"""Experts on several levels, a hierarchy of gates: each token uses every combination of one used expert per level.

Everything that reads coefficients reads one matrix whose columns are the experts of the first level, then those of the
next ones. `joined` makes it of what the gates give, and `split` takes it apart for the contraction. The weight of a
combination is a_1[n_1] * .. * a_E[n_E], so a combination is used where all of its experts are: their "and".
Combinations are only ever held by those that occur, as (row, key) with key = n_1 * N_2 * .. + .. + n_E.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe.coefficients import Coefficients, DenseCoefficients, SparseCoefficients, segment_rows

__all__ = ["MOST_ENTRIES", "Occurring", "joined", "occurring", "one_hot", "split"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MOST_ENTRIES = 2**24
"""Entries (row, combination) that are held at most; of more, the first rows are counted."""


def joined(levels: Sequence[Coefficients]) -> Coefficients:
    """One matrix (rows, sum of experts) of one for each level, which keep their gradients; a single one is returned
    unchanged."""
    if len(levels) == 1:
        return levels[0]
    sparse = [level for level in levels if isinstance(level, SparseCoefficients)]
    if len(sparse) < len(levels):
        return DenseCoefficients(torch.cat([level.to_dense() for level in levels], dim=1))
    starts = itertools.accumulate((level.num_experts for level in sparse[:-1]), initial=0)
    order = torch.argsort(torch.cat([segment_rows(level.offsets) for level in sparse]), stable=True)
    indices = torch.cat([level.indices + start for level, start in zip(sparse, starts, strict=True)])
    values = torch.cat([level.values for level in sparse])
    offsets = torch.stack([level.offsets for level in sparse]).sum(0)
    count = sum(level.num_experts for level in sparse)
    return SparseCoefficients(values[order], indices[order], offsets, count, sparse[0].dtype)


def split(a: Coefficients, sizes: Sequence[int]) -> list[Coefficients]:
    """The matrices (rows, size) of the levels that `joined` has made one of; that of a single level is unchanged."""
    if len(sizes) == 1:
        return [a]
    bounds = list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))
    if not isinstance(a, SparseCoefficients):
        dense = a.to_dense()
        return [DenseCoefficients(dense[:, start:stop]) for start, stop in bounds]
    found: list[Coefficients] = []
    for start, stop in bounds:
        inside = (a.indices >= start) & (a.indices < stop)
        before = torch.cat([inside.new_zeros(1, dtype=torch.int64), inside.cumsum(0)])  # of each entry, and at the end
        held = (a.values[inside], a.indices[inside] - start, before[a.offsets])
        found.append(SparseCoefficients(*held, stop - start, a.dtype))
    return found


def one_hot(expert: Tensor, value: Tensor, count: int) -> SparseCoefficients:
    """(rows, count) with one expert (rows,) and its coefficient (rows,) in each row."""
    offsets = torch.arange(len(expert) + 1, device=expert.device)
    return SparseCoefficients(value, expert, offsets, count, torch.float32)


@dataclass(frozen=True)
class Occurring:
    """Combinations that occur in some rows, sorted by key, then row.

    Attributes:
        sizes: Experts of each level.
        rows: Rows that were looked at, the first ones.
        key, row: (entries,) which combination in which row.
        value: (entries,) product of its coefficients there.
    """

    sizes: tuple[int, ...]
    rows: int
    key: Ints
    row: Ints
    value: Floats

    def counted(self) -> tuple[Ints, Ints]:
        """Keys of the combinations that occur, ascending, and the number of rows that use each."""
        keys, counts = np.unique(self.key, return_counts=True)
        return keys, counts

    def of(self, key: int) -> tuple[Ints, Floats]:
        """Rows that use a combination, ascending, and its values there."""
        start, stop = np.searchsorted(self.key, [key, key + 1])
        return self.row[start:stop], self.value[start:stop]

    def experts(self, key: int) -> tuple[int, ...]:
        """The experts of a combination, one for each level."""
        return tuple(int(number) for number in np.unravel_index(key, self.sizes))


def occurring(row: Ints, expert: Ints, value: Floats, rows: int, sizes: Sequence[int]) -> Occurring:
    """The combinations in rows of joined coefficients.

    Args:
        row, expert, value: (entries,) all coefficients above 0, ascending by row and expert.
        rows: Number of rows.
        sizes: Experts of each level.
    """
    starts = list(itertools.accumulate(sizes, initial=0))
    level = np.searchsorted(starts, expert, side="right") - 1
    counts = np.stack([np.bincount(row[level == one], minlength=rows) for one in range(len(sizes))])
    kept = int(np.searchsorted(np.cumsum(counts.prod(0)), MOST_ENTRIES, side="right"))
    where, key, product = np.arange(kept), np.zeros(kept, dtype=np.int64), np.ones(kept)
    for one, size in enumerate(sizes):
        mine = (level == one) & (row < kept)
        place, number = _paired(where, counts[one, :kept])
        where, key = where[place], key[place] * size + (expert[mine] - starts[one])[number]
        product = product[place] * value[mine][number]
    order = np.argsort(key, kind="stable")
    return Occurring(tuple(sizes), kept, key[order], where[order], product[order])


def _paired(where: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Each entry, in a row of `where`, with each of the next level's entries of that row: places of both."""
    first = np.cumsum(counts) - counts
    repeats = counts[where]
    place = np.repeat(np.arange(len(where)), repeats)
    begin = np.cumsum(repeats) - repeats
    return place, np.arange(len(place)) - np.repeat(begin, repeats) + np.repeat(first[where], repeats)
