"""Batches of features, computed by several processes in turn and sent to all of them in order.

Process r of n computes batches r, r + n, r + 2n, ... of those that a single process would compute. After each round all
processes exchange their results. The batches are the same, so on one kind of device the features are bit-identical
for any number of processes. If one process fails, all of them raise, so that none waits forever.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mumoe.errors import JobError

__all__ = ["Shares", "process_count"]

_MESSAGE = 600
"""Number of bytes of an error's message that are sent to the other processes."""


def process_count() -> int:
    """Number of processes that work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Shares:
    """Communication between the processes of a job while they extract; all of them call every method but `mine`.

    Args:
        shape: (rows of a whole batch, num_features).
        device: Where tensors are exchanged; on anything but CUDA this is the CPU.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.shape = shape
        self.device = device if device.type == "cuda" else torch.device("cpu")
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._waited_for = False

    def mine(self, batches: list[list[int]]) -> list[list[int]]:
        """The batches that this process computes."""
        return batches[self.rank :: self.count]

    def in_turn(self, outputs: Iterator[Tensor], batches: int) -> Iterator[Tensor]:
        """All batches in order, computed from this process's own and those of the others.

        Args:
            outputs: (rows, num_features) float32 of each of `mine`.
            batches: Number of all batches.

        Raises:
            Exception: The error that this process's own outputs raise.
            JobError: If another process fails.
        """
        for _ in range(-(-batches // self.count)):
            failure: Exception | None = None
            part = torch.empty(0, self.shape[1])
            try:
                part = next(outputs, part)
            except Exception as error:
                failure = error
            yield from (found for found in self._exchange(part, failure) if len(found))

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """A context in which a failure on one process ends the work on all of them."""
        self._waited_for = True
        try:
            yield
            self.agree()
        except Exception as error:
            if self._waited_for:
                with contextlib.suppress(Exception):
                    self.agree(error)
            raise
        finally:
            self._waited_for = False

    def agree(self, failure: Exception | None = None) -> None:
        """Raise on all processes if one of them fails."""
        self._exchange(torch.empty(0, self.shape[1]), failure)

    def any(self, value: bool) -> bool:
        """Whether it is true on some process."""
        flag = torch.tensor([int(value)], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def is_first_here(self, folder: Path) -> bool:
        """Whether no process of a lower rank shares this folder: the one that writes, on each machine or for all."""
        nonce = torch.tensor([secrets.randbits(62)], device=self.device)
        dist.broadcast(nonce, src=0)
        marks = folder / f".processes-{int(nonce.item()):x}"
        failure: Exception | None = None
        try:
            marks.mkdir(parents=True, exist_ok=True)
            (marks / str(self.rank)).touch()
        except OSError as error:
            failure = JobError(f"features: expected a folder that can be written, got {folder} ({error.strerror}).")
        self.agree(failure)
        lowest = min(int(mark.name) for mark in marks.iterdir())
        dist.barrier()
        (marks / str(self.rank)).unlink()
        with contextlib.suppress(OSError):
            marks.rmdir()
        return lowest == self.rank

    def _exchange(self, part: Tensor, failure: Exception | None) -> list[Tensor]:
        """Every process's rows, unless one of them has failed."""
        rows = torch.tensor([-1 if failure else len(part)], device=self.device)
        counts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(counts, rows)
        sizes = [int(count.item()) for count in counts]
        if min(sizes) < 0:
            self._waited_for = False
            raise self._failure(sizes.index(-1), failure)
        if not max(sizes):
            return []
        padded = torch.zeros(self.shape, device=self.device)
        padded[: len(part)] = part.to(self.device)
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded)
        return [found[:size].cpu() for found, size in zip(parts, sizes, strict=True)]

    def _failure(self, rank: int, mine: Exception | None) -> Exception:
        """This process's own failure, or that of the failed process in words."""
        text = str(mine).encode()[:_MESSAGE] if mine else b""
        message = torch.tensor(list(text.ljust(_MESSAGE)), dtype=torch.uint8, device=self.device)
        dist.broadcast(message, src=rank)
        if mine is not None:
            return mine
        reason = bytes(message.tolist()).decode("utf-8", "replace").rstrip(" \ufffd")
        return JobError(f"features: expected every process to extract its share, got from process {rank}: {reason}")
