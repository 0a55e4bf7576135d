"""Tasks that run in the background: started by one request, polled by others."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mumoe.dashboard import WHO
from mumoe.errors import JobError, UserError

__all__ = ["Report", "Task", "Tasks", "one_line"]

Report = Callable[[int, int, str], None]
"""(done, total, what is being done)"""


@dataclass
class Task:
    """One piece of work.

    Attributes:
        kind: What it is.
        state: ``running``, ``done`` or ``failed``.
        note: What is being done, in a few words.
        done, total: Progress in units of the work; a total of 0 means unknown.
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
        """Record progress."""
        self.done, self.total, self.note = done, total, note

    def public(self) -> dict[str, Any]:
        """The state of the task as a page receives it."""
        return {name: getattr(self, name) for name in ("kind", "state", "note", "done", "total", "result", "error")}


class Tasks:
    """Tasks by number, one of each kind at a time."""

    def __init__(self) -> None:
        self._tasks: dict[int, Task] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def start(self, kind: str, work: Callable[[Report], Any]) -> int:
        """Begin work in a thread of its own; returns its number.

        Raises:
            UserError: If work of this kind is under way.
        """
        with self._lock:
            if any(task.kind == kind and task.state == "running" for task in self._tasks.values()):
                raise UserError(f"{WHO}: expected {kind} to be done before it starts again. Wait for it.")
            number, task = next(self._numbers), Task(kind)
            self._tasks[number] = task
        threading.Thread(target=_work, args=(task, work), name=f"mumoe-{kind}", daemon=True).start()
        return number

    def __getitem__(self, number: int) -> Task:
        if number not in self._tasks:
            raise UserError(f"{WHO}: expected the number of a task, got {number}. Load the page again.")
        return self._tasks[number]


def _work(task: Task, work: Callable[[Report], Any]) -> None:
    try:
        task.result = work(task.report)
        task.state = "done"
    except Exception as error:
        task.exception, task.error = error, one_line(error)
        task.state = "failed"


def one_line(error: BaseException) -> str:
    """An error as the command line would print it."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError | JobError) else f"{type(error).__name__}: {text}"
