"""Progress with an estimate of the time left: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["Progress", "track"]

T = TypeVar("T")


class Progress(AbstractContextManager["Progress"]):
    """Progress of one long step, written to stderr.

    Args:
        description: What is being done, in a few words.
        total: Number of units; `advance` counts them.
        enabled: False keeps silent.
        interval: Seconds between the lines written where stderr is not a terminal.

    >>> with Progress("Extracting features", total=3) as progress:
    ...     for _ in range(3):
    ...         progress.advance()
    """

    def __init__(self, description: str, total: int, *, enabled: bool = True, interval: float = 15.0) -> None:
        self.description, self.total, self.done = description, total, 0
        self.enabled, self.interval = enabled, interval
        self._bar: Any = None
        self._start = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, note="")
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count units as done; `note` is shown behind the bar (a loss, say)."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, note=note)
        elif self.enabled and time.monotonic() - self._said >= self.interval:
            self._said = time.monotonic()
            left = (self._said - self._start) / max(self.done, 1) * (self.total - self.done)
            text = f"{self.description}: {self.done} of {self.total}, {left:.0f} s left {note}"
            sys.stderr.write(text.rstrip() + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def track(items: Iterable[T], description: str, total: int, *, enabled: bool = True) -> Iterator[T]:
    """Yield the items while showing progress over them."""
    with Progress(description, total, enabled=enabled) as progress:
        for item in items:
            yield item
            progress.advance()
