"""What the processor's kernels share: the compiled functions, threads, and the lists of candidates per row."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mumoe.native import compiled

__all__ = ["Lists", "functions", "share", "zeros"]

WORTH_THREADS = 1 << 17
"""Touched numbers from which a second thread is worth waking."""

_pools: dict[int, ThreadPoolExecutor] = {}


def _pool(workers: int) -> ThreadPoolExecutor:
    pid = os.getpid()
    if pid not in _pools:  # threads do not survive a fork
        _pools.clear()
        _pools[pid] = ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="mumoe")
    return _pools[pid]


def share(run: Callable[[int, int], Any], size: int, work: int) -> list[Any]:
    """Run over the range 0..size, in as many parts as there are threads if the work is worth it."""
    threads = min(torch.get_num_threads(), size)
    if threads == 1 or work < WORTH_THREADS:
        return [run(0, size)]
    edges = [size * part // threads for part in range(threads + 1)]
    pool = _pool(threads - 1)
    waiting = [pool.submit(run, edges[part], edges[part + 1]) for part in range(1, threads)]
    first = run(edges[0], edges[1])
    return [first, *(task.result() for task in waiting)]


_functions: compiled.Functions | None = None


def functions() -> Any:
    """The compiled functions, compiled at first use."""
    global _functions
    if _functions is None:
        _functions = compiled.load()
    return _functions


def zeros(*shape: int) -> Tensor:
    """float32 zeros whose pages the system hands out when they are first written."""
    return torch.from_numpy(np.zeros(shape, dtype=np.float32))


class Lists:
    """Per row, the entries that may be in the support so far, in ascending order of their expert."""

    def __init__(self, rows: int, kind: int, k: int, capacity: int) -> None:
        self.rows, self.kind, self.k, self.capacity = rows, kind, k, capacity
        self.values = torch.empty(rows, capacity)
        self.index = torch.empty(rows, capacity, dtype=torch.int64)
        self.count = torch.zeros(rows, dtype=torch.int64)
        self.top = torch.full((rows,), -torch.inf)
        self.floor = torch.full((rows,), -torch.inf)

    def scan(self, block: Tensor, first: int, mean: Tensor | None, rstd: Tensor | None) -> bool:
        """Take in the logits of experts from `first` on; False if there is a NaN among them."""
        normed = rstd is not None
        m, r = (mean, rstd) if normed else (self.top, self.top)
        assert m is not None
        assert r is not None
        columns = block.shape[1]

        def run(begin: int, end: int) -> int:
            scratch = torch.empty(self.capacity)
            status = functions().scan(
                block.data_ptr(), columns, first, begin, end, m.data_ptr(), r.data_ptr(), normed, self.kind, self.k,
                self.values.data_ptr(), self.index.data_ptr(), self.count.data_ptr(), self.capacity,
                self.top.data_ptr(), self.floor.data_ptr(), scratch.data_ptr(),
            )  # fmt: skip
            return int(status)

        pending = share(lambda begin, end: (begin, end, run(begin, end)), self.rows, block.numel())
        while pending:
            if any(status < 0 for _, _, status in pending):
                return False
            late = [(status - 1, end) for _, end, status in pending if status > 0]
            if late:
                self._grow()
            pending = [(begin, end, run(begin, end)) for begin, end in late]
        return True

    def _grow(self) -> None:
        old, self.capacity = self.capacity, 2 * self.capacity
        for name in ("values", "index"):
            before = getattr(self, name)
            after = before.new_empty(self.rows, self.capacity)
            after[:, :old] = before
            setattr(self, name, after)

    def solve(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """slack, indices, offsets, normalized."""
        f = functions()
        tau = torch.empty(self.rows, dtype=torch.float64)
        lists = (self.values.data_ptr(), self.index.data_ptr(), self.count.data_ptr(), self.capacity)
        work = 16 * self.rows * 64

        def solve(begin: int, end: int) -> None:
            scratch = torch.empty(self.capacity)
            f.solve(begin, end, self.kind, self.k, *lists, self.top.data_ptr(), tau.data_ptr(), scratch.data_ptr())

        share(solve, self.rows, work)
        offsets = torch.zeros(self.rows + 1, dtype=torch.int64)
        torch.cumsum(self.count, 0, out=offsets[1:])
        total = int(offsets[-1])
        slack, indices, normalized = torch.empty(total), torch.empty(total, dtype=torch.int64), torch.empty(total)

        def emit(begin: int, end: int) -> None:
            f.emit(
                begin, end, self.kind, *lists, self.top.data_ptr(), tau.data_ptr(), offsets.data_ptr(),
                slack.data_ptr(), indices.data_ptr(), normalized.data_ptr(),
            )  # fmt: skip

        share(emit, self.rows, total)
        return slack, indices, offsets, normalized
