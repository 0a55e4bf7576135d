"""Work that takes longer than a click: started by one request, watched by others."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mumoe.errors import JobError, UserError

__all__ = ["Job", "Jobs", "Report"]

Report = Callable[[int, int, str], None]
"""(done, total, what is being done)"""


@dataclass
class Job:
    """One piece of work.

    Attributes:
        kind: What it is.
        state: ``running``, ``done`` or ``failed``.
        note: What is being done, in a few words.
        done, total: Progress in units of the work; a total of 0 is not known.
        result: What came out.
        error: Why it failed, in one line.
    """

    kind: str
    state: str = "running"
    note: str = ""
    done: int = 0
    total: int = 0
    result: Any = None
    error: str = ""
    exception: BaseException | None = field(default=None, repr=False)

    def report(self, done: int, total: int, note: str) -> None:
        """Tell how far it is."""
        self.done, self.total, self.note = done, total, note

    def public(self) -> dict[str, Any]:
        """What a page is told."""
        return {name: getattr(self, name) for name in ("kind", "state", "note", "done", "total", "result", "error")}


class Jobs:
    """Jobs by number, one of each kind at a time."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def start(self, kind: str, work: Callable[[Report], Any]) -> int:
        """Begin work in a thread of its own; returns its number.

        Raises:
            UserError: If work of this kind is under way.
        """
        with self._lock:
            if any(job.kind == kind and job.state == "running" for job in self._jobs.values()):
                raise UserError(f"mumoe dashboard: expected {kind} to be done before it starts again. Wait for it.")
            number, job = next(self._numbers), Job(kind)
            self._jobs[number] = job
        threading.Thread(target=_work, args=(job, work), name=f"mumoe-{kind}", daemon=True).start()
        return number

    def __getitem__(self, number: int) -> Job:
        if number not in self._jobs:
            raise UserError(f"mumoe dashboard: expected the number of a job, got {number}. Load the page again.")
        return self._jobs[number]


def _work(job: Job, work: Callable[[Report], Any]) -> None:
    try:
        job.result = work(job.report)
        job.state = "done"
    except Exception as error:
        job.exception, job.error = error, one_line(error)
        job.state = "failed"


def one_line(error: BaseException) -> str:
    """An error as the command line would print it."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError | JobError) else f"{type(error).__name__}: {text}"
