"""Jobs in forked children, which start within milliseconds, can be killed at any moment, and say how they ended.

Only for a process without threads: a child of one that holds a lock of another thread waits forever.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mumoe.errors import JobError, UserError
from soak.part import Found

__all__ = ["Child", "Ended", "at_once", "found_by", "leftovers", "one_line", "own_process", "start", "wait"]

CRASHED = 70
"""Exit status of a child that ended with anything but a `UserError` (2) or a `JobError` (1)."""
PATIENCE = 300.0
"""Seconds after which a child is taken to hang."""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: 0 done, 1 a `JobError`, 2 a `UserError`, `CRASHED`; minus the signal that ended it.
        said: What it wrote to stderr: the message of its error, or a traceback.
        seconds: How long it ran.
    """

    status: int
    said: str
    seconds: float

    @property
    def done(self) -> bool:
        return self.status == 0

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL

    @property
    def refused(self) -> bool:
        """Whether it ended with one of the errors that users see, in one line."""
        return self.status in (1, 2) and one_line(self.said)

    def summary(self) -> str:
        """Status and the last line said."""
        lines = self.said.strip().splitlines() or [""]
        return f"status {self.status}: {lines[-1][:300]}"


def one_line(text: str) -> bool:
    """Whether a message reads ``who: expected what, got what. Remedy.`` on one line."""
    return "\n" not in text.strip() and "expected" in text and "got" in text


@dataclass
class Child:
    """A running child."""

    pid: int
    log: Path
    begun: float

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def kill_after(self, seconds: float) -> None:
        """SIGKILL after a delay, or none if it has ended by then."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._ended():
            time.sleep(min(left, 0.002))
        self.kill()

    def kill_when(self, condition: Callable[[], bool]) -> None:
        """SIGKILL as soon as a condition holds, or none if it has ended by then."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not self._ended() and not condition():
            pass
        self.kill()

    def _ended(self) -> bool:
        """Whether it has ended; it is still to be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> Ended:
        """Wait for its end; one that hangs is killed, which its status shows."""
        until = time.monotonic() + PATIENCE
        while not self._ended():
            if time.monotonic() > until:
                self.kill()
            time.sleep(0.002)
        _, status = os.waitpid(self.pid, 0)
        said = self.log.read_text(encoding="utf-8", errors="replace")
        return Ended(os.waitstatus_to_exitcode(status), said, time.monotonic() - self.begun)


def start(job: Callable[[], object], log: Path) -> Child:
    """Run a job in a fork; `log` gets what it says."""
    sys.stdout.flush()
    sys.stderr.flush()
    begun, pid = time.monotonic(), os.fork()
    if pid:
        return Child(pid, log, begun)
    status = CRASHED
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = _status_of(job)
        sys.stderr.flush()
    finally:
        os._exit(status)


def _status_of(job: Callable[[], object]) -> int:
    try:
        job()
    except (UserError, JobError) as error:
        os.write(2, f"{error}\n".encode())
        return 2 if isinstance(error, UserError) else 1
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return CRASHED
    return 0


def wait(job: Callable[[], object], log: Path) -> Ended:
    """Run a job in a fork to its end."""
    return start(job, log).wait()


def at_once(jobs: Sequence[Callable[[], object]], log: Path, delays: Sequence[float]) -> list[Ended]:
    """Run jobs at the same time, each after a delay in seconds, to their ends."""

    def later(job: Callable[[], object], delay: float) -> Callable[[], object]:
        def run() -> None:
            time.sleep(delay)
            job()

        return run

    pairs = zip(jobs, delays, strict=True)
    running = [start(later(*pair), log.with_name(f"{log.name}-{n}")) for n, pair in enumerate(pairs)]
    return [child.wait() for child in running]


# Folders ------------------------------------------------------------------------------------------------------------


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders of writers, which are there while one works or after it was killed."""
    return sorted(_temporary(folder))


def _temporary(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if name.startswith((".mumoe-part-", ".mumoe-new-", ".mumoe-old-")):
                yield os.path.join(os.path.relpath(root, folder), name)


# A process of its own ------------------------------------------------------------------------------------------------


def own_process(module: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Any:
    """Run a module of this package in a new process with one thread; returns the JSON that it prints last.

    Raises:
        RuntimeError: If it fails.
    """
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env={**given, **(environment or {})}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def found_by(module: str, *arguments: object) -> Found:
    """What a module of this package found in a process of its own, which prints it as JSON."""
    answer = own_process(module, *arguments)
    return Found(**answer)
