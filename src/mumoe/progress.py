"""Progress with an estimate of the time left: tqdm's bar in terminals and notebooks, occasional lines in a log.

A step that wrote a line into a log also writes its last one, so that a log never ends before the step does.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["DELAY", "INTERVAL", "Progress", "track"]

INTERVAL = 15.0
"""Seconds between the lines in a log."""

DELAY = 1.0
"""Seconds before the bar of a step appears that is usually short."""

T = TypeVar("T")


class Progress(AbstractContextManager["Progress"]):
    """Progress of one long step, written to stderr.

    Args:
        description: What is being done, in a few words.
        total: Number of units; `advance` counts them.
        enabled: False prints nothing.
        interval: Seconds between the lines written where stderr is neither a terminal nor a notebook; None for
            `INTERVAL`.
        done: Units that an earlier job finished.
        delay: Seconds that the step must take before a bar appears.

    >>> with Progress("Extracting features", total=3) as progress:
    ...     for _ in range(3):
    ...         progress.advance()
    """

    def __init__(
        self,
        description: str,
        total: int,
        *,
        enabled: bool = True,
        interval: float | None = None,
        done: int = 0,
        delay: float = 0.0,
    ) -> None:
        self.description, self.total, self.done = description, total, done
        self.enabled, self.interval, self.delay = enabled, INTERVAL if interval is None else interval, delay
        self._bar: Any = None
        self._earlier, self._shown = done, done
        self._start = self._written = time.monotonic()

    def __enter__(self) -> Progress:
        if self.enabled and (sys.stderr.isatty() or _in_notebook()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a notebook has no ipywidgets: the bar is text then
                from tqdm.auto import tqdm

            where = {"initial": self.done, "total": self.total, "delay": self.delay}
            self._bar = tqdm(desc=self.description, dynamic_ncols=True, file=sys.stderr, **where)
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count units as done; `note` is shown after the bar (a loss, say)."""
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif self.enabled and time.monotonic() - self._written >= self.interval:
            self._written = time.monotonic()
            pace = (self._written - self._start) / max(self.done - self._earlier, 1)
            self._write(f"{pace * (self.total - self.done):.0f} s left {note}")

    def _write(self, text: str) -> None:
        self._shown = self.done
        sys.stderr.write(f"{self.description}: {self.done:,} of {self.total:,}, {text}".rstrip() + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._earlier < self._shown < self.done:
            self._write(f"{time.monotonic() - self._start:.0f} s in all")


def _in_notebook() -> bool:
    """Whether stderr is the output of a notebook's cell; a process that imported ipykernel need not be one."""
    return type(sys.stderr).__module__.partition(".")[0] == "ipykernel"


def track(items: Iterable[T], description: str, total: int, *, enabled: bool = True) -> Iterator[T]:
    """Yield the items while showing progress over them."""
    with Progress(description, total, enabled=enabled) as progress:
        for item in items:
            yield item
            progress.advance()
