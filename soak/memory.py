"""Memory that a process holds of its own, sampled while it works; pages of mapped files do not count."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import return_memory

__all__ = ["Peak", "measures_anonymous", "watched"]

STATUS = Path("/proc/self/status")

SECONDS = 0.005
"""Between two samples."""


@dataclass
class Peak:
    """Bytes of a process.

    Attributes:
        before: Anonymous memory at the beginning.
        anonymous: The most anonymous memory of all samples: heap, stacks, private maps; no pages of files.
        resident: The most resident memory, which includes pages of mapped files.
    """

    before: int
    anonymous: int
    resident: int

    @property
    def grown(self) -> int:
        """Anonymous memory beyond that of the beginning."""
        return self.anonymous - self.before


def measures_anonymous() -> bool:
    """Whether the system reports the anonymous memory of a process: Linux."""
    return sys.platform.startswith("linux") and "RssAnon" in STATUS.read_text()


@contextlib.contextmanager
def watched() -> Iterator[Peak]:
    """Sample this process in a thread while the context lasts; freed blocks are given back at once from here on."""
    return_memory()
    gc.collect()
    before, resident = _now()
    peak, done = Peak(before, before, resident), threading.Event()
    thread = threading.Thread(target=_watch, args=(peak, done), daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _watch(peak: Peak, done: threading.Event) -> None:
    while True:
        last = done.wait(SECONDS)
        anonymous, resident = _now()
        peak.anonymous, peak.resident = max(peak.anonymous, anonymous), max(peak.resident, resident)
        if last:
            return


def _now() -> tuple[int, int]:
    """Anonymous and resident bytes."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(fields["RssAnon"].split()[0]), 1024 * int(fields["VmRSS"].split()[0])
