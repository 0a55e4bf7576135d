"""Trials in forked processes: each is timed, limited in memory and watched, and none takes the others with it.

A trial is a function without arguments. It passes if it returns, or if it raises a `UserError` or a `JobError` of one
line. Everything else is a fault: another error, a hang, more than `SECONDS` of processor time, more than `MEMORY`
bytes, a program that is started, a connection, a file opened outside the allowed folders, or the end of the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import mmap
import os
import resource
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from mumoe.errors import JobError, UserError

__all__ = [
    "HANG",
    "LONGEST",
    "MEMORY",
    "SECONDS",
    "Answered",
    "Hang",
    "Limits",
    "Tally",
    "Trial",
    "judged",
    "run_trials",
]

SECONDS = 1.0
"""Most processor time of one trial. The clock of the wall depends on what else the machine does."""
HANG = 5.0
"""Seconds by the clock of the wall after which a trial is interrupted; three times that, and its process is killed."""
MEMORY = 1 << 30
"""Most bytes of address space that a trial may add."""
LONGEST = 2000
"""Most characters of a message."""
CHUNK = 4000
"""Trials of one process, so that what a library keeps does not add up."""

_OUTCOMES = ("returned", "refused", "stopped", "broken")
_STARTED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "pickle.find_class")
_CONNECTED = ("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request")
_TOUCHED = ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link")
SERVED = 0.5
"""Seconds after which a trial is interrupted that would go on until then."""
_ENDED = 42
"""Status of a process that ended as it should; a trial may end its own with any other."""
_INOTIFY_OPENED = 0x000003E3
"""Accessed, changed, moved, opened, made, removed; not closed, which may be late."""


class Answered(Exception):
    """Raised by a trial whose error of another class is an answer too."""


class Hang(BaseException):
    """Raised inside a trial that takes too long; not an `Exception`, which the trial might handle."""


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        label: What it is counted as.
        run: Does it.
        recipe: What repeats it, for the line of a fault.
        links: Whether a link in the folder leads to a decoy, which may then be opened.
        serves: Whether it works until it is interrupted, which then comes after half a second.
    """

    label: str
    run: Callable[[], object]
    recipe: str
    links: bool = False
    serves: bool = False


@dataclass(frozen=True)
class Limits:
    """What a trial may do.

    Attributes:
        inside: Folders, besides those of Python and the system's libraries, in which files may be opened; empty: all.
        decoys: Folders of files that must not be opened, not even by compiled code.
        seconds: Most processor time.
        hang: Seconds until it is given up.
        stop: Seconds until it is interrupted as by Ctrl-C, after which it has `hang` seconds to end; 0: never.
        memory: Most bytes.
        tight: Whether an error of ours about too little memory is a fault.
        alone: Refuse programs and connections, instead of counting them as faults.
    """

    inside: Sequence[Path] = ()
    decoys: Sequence[Path] = ()
    seconds: float = SECONDS
    hang: float = HANG
    stop: float = 0.0
    memory: int = MEMORY
    tight: bool = True
    alone: bool = False


@dataclass
class Tally:
    """What came out of many trials.

    Attributes:
        counts: Label -> trials that returned, were refused in one line, were interrupted, and broke a promise.
        faults: One line for each broken promise, with its recipe.
        slowest: Most processor seconds of a trial.
        grown: Most bytes that a process's resident memory grew by.
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    grown: int = 0

    def total(self, outcome: str = "") -> int:
        """Trials, or those with one outcome."""
        return sum(sum(one.values()) if not outcome else one[outcome] for one in self.counts.values())


def run_trials(
    make: Callable[[int], Trial],
    numbers: Iterable[int],
    labels: Sequence[str],
    limits: Limits,
    *,
    until: float | None = None,
    chunk: int = CHUNK,
    prepare: Callable[[], None] | None = None,
) -> Tally:
    """Run trials one after another, in processes that are replaced when they die.

    Args:
        make: The trial of a number; called in the process that runs it.
        numbers: Of the trials.
        labels: Every label that a trial may have.
        limits: What a trial may do.
        until: Time of `time.monotonic` after which no further trial starts.
        chunk: Trials of one process.
        prepare: Called in each process before its first trial.
    """
    shared = _Shared(labels)
    tally = Tally(shared.counts)
    queue = list(numbers)
    while queue and (until is None or time.monotonic() < until):
        part, queue = queue[:chunk], queue[chunk:]
        while part and (until is None or time.monotonic() < until):
            done, how = _process(make, part, shared, limits, until, prepare)
            part = part[done:]
            if how:  # the trial after the last one that was done ended its process
                number, part = part[0], part[1:]
                shared.fault(number, "?", how, _recipe(make, number))
    tally.counts = shared.counts
    tally.faults, tally.slowest, tally.grown = shared.faults(), shared.slowest, shared.grown
    return tally


def _recipe(make: Callable[[int], Trial], number: int) -> str:
    try:
        return make(number).recipe
    except Exception as error:
        return f"{type(error).__name__}: {error}"


# Processes --------------------------------------------------------------------------------------------------


class _Shared:
    """Counts in memory that forked processes share, and a file of faults."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        size = 64 + 8 * len(self.labels) * len(_OUTCOMES)
        self._memory = mmap.mmap(-1, size)
        self._table: Any = np.frombuffer(self._memory, np.int64, offset=64).reshape(-1, len(_OUTCOMES))
        self._state: Any = np.frombuffer(self._memory, np.int64, count=2)
        self._floats: Any = np.frombuffer(self._memory, np.float64, count=2, offset=16)
        self._lines: list[str] = []
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    @property
    def done(self) -> int:
        """Trials that the running process has done."""
        return int(self._state[0])

    @done.setter
    def done(self, value: int) -> None:
        self._state[0] = value

    @property
    def grown(self) -> int:
        return int(self._state[1])

    @property
    def slowest(self) -> float:
        return float(self._floats[0])

    def measured(self, seconds: float, grown: int) -> None:
        self._floats[0] = max(self.slowest, seconds)
        self._state[1] = max(self.grown, grown)

    def count(self, label: str, outcome: str) -> None:
        self._table[self.labels.index(label), _OUTCOMES.index(outcome)] += 1

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        pairs = zip(self.labels, self._table.tolist(), strict=True)
        rows = {label: dict(zip(_OUTCOMES, row, strict=True)) for label, row in pairs}
        return {label: row for label, row in rows.items() if sum(row.values())}

    def fault(self, number: int, label: str, what: str, recipe: str) -> None:
        line = f"{label}, trial {number}: {' '.join(what.split())[:400]} | {' '.join(recipe.split())[:1500]}"
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, line.encode("utf-8", "backslashreplace")[:4000] + b"\n")

    def faults(self) -> list[str]:
        """The lines so far; called often enough that the pipe never fills."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._read, 1 << 16):
                self._lines.append(part.decode("utf-8", "replace"))
        return "".join(self._lines).splitlines()


def _process(
    make: Callable[[int], Trial],
    numbers: Sequence[int],
    shared: _Shared,
    limits: Limits,
    until: float | None,
    prepare: Callable[[], None] | None,
) -> tuple[int, str]:
    """Run trials in a new process; returns how many were done, and how the process died if it did."""
    shared.done = 0
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _work(make, numbers, shared, limits, until, prepare)
            status = _ENDED
        except BaseException as error:
            shared.fault(numbers[shared.done], "?", f"outside the trial: {type(error).__name__}: {error}", "")
        finally:
            os._exit(status)
    seen, moved, killed = 0, time.monotonic(), False
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        shared.faults()
        if found:
            break
        if shared.done != seen:
            seen, moved = shared.done, time.monotonic()
        if not killed and time.monotonic() - moved > limits.stop + 3 * limits.hang + 2:
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0.02)
    if os.WIFSIGNALED(status):
        how = "did not end and could not be interrupted" if killed else f"ended by signal {os.WTERMSIG(status)}"
        return shared.done, how
    return (shared.done, "") if os.WEXITSTATUS(status) == _ENDED else (shared.done, "the process of the trial ended")


def _work(
    make: Callable[[int], Trial],
    numbers: Sequence[int],
    shared: _Shared,
    limits: Limits,
    until: float | None,
    prepare: Callable[[], None] | None,
) -> None:
    """In the forked process: limit it, watch it, and run its trials."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch = _Watch(limits)
    if prepare is not None:
        prepare()
    sys.addaudithook(watch.hook)
    for place, number in enumerate(numbers):
        if until is not None and place % 16 == 0 and time.monotonic() > until:
            break
        trial = make(number)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + limits.memory, resource.RLIM_INFINITY))
        outcome, what, seconds = _one(trial, watch, limits)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        shared.measured(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
        shared.count(trial.label, outcome)
        if outcome == "broken":
            shared.fault(number, trial.label, what, trial.recipe)
        shared.done = place + 1
        if outcome == "stopped":  # what was being imported may be half there
            break
        sys.stdout.seek(0), sys.stdout.truncate(), sys.stderr.seek(0), sys.stderr.truncate()


def _alarm(limits: Limits, serves: bool) -> None:
    """Interrupt what runs, once by Ctrl-C and then for good."""
    stops = [min(limits.stop, SERVED) if serves else limits.stop] if limits.stop else []

    def ring(number: int, frame: FrameType | None) -> None:
        if not stops:
            raise Hang
        stops.clear()
        signal.setitimer(signal.ITIMER_REAL, limits.hang)
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, *stops or [limits.hang])


def _address_space() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * mmap.PAGESIZE


def _one(trial: Trial, watch: _Watch, limits: Limits) -> tuple[str, str, float]:
    """Outcome, what is wrong, and processor seconds of one trial."""
    watch.begin()
    _alarm(limits, trial.serves)
    begun = time.process_time()
    error: BaseException | None = None
    try:
        trial.run()
    except BaseException as raised:
        error = raised
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.process_time() - begun
    seen = watch.end(trial.links)
    outcome, what = judged(error, tight=limits.tight)
    if seen:
        return "broken", seen, seconds
    if outcome in ("returned", "refused") and seconds > limits.seconds:
        return "broken", f"{seconds:.1f} s of processor time", seconds
    return outcome, what, seconds


def judged(error: BaseException | None, *, tight: bool = True) -> tuple[str, str]:
    """Outcome of a trial by what it raised, and what is wrong with that."""
    if error is None:
        return "returned", ""
    if isinstance(error, Answered):
        return "refused", ""
    if isinstance(error, KeyboardInterrupt):
        return "stopped", ""
    if isinstance(error, Hang):
        return "broken", f"not done after the time limit{_where(error)}"
    if tight and out_of_memory(error):
        return "broken", f"out of memory: {type(error).__name__}: {error}{_where(error)}"
    if not isinstance(error, UserError | JobError):
        return "broken", f"{type(error).__name__}: {error}{_where(error)}"
    text = str(error)
    if len(text.splitlines()) != 1:
        return "broken", f"a message of {len(text.splitlines())} lines: {text!r}"
    if len(text) > LONGEST:
        return "broken", f"a message of {len(text)} characters: {text[:200]}"
    return "refused", ""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, is about memory."""
    for _ in range(20):
        if error is None:
            return False
        if isinstance(error, MemoryError) or any(
            word in str(error) for word in ("allocate memory", "not enough memory", "bad allocation", "std::bad_alloc")
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _where(error: BaseException) -> str:
    """The innermost line of ours, and the innermost line at all."""
    places, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append((code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    ours = [place for place in places if "/mumoe/" in place[0]]
    shown = list(dict.fromkeys([*ours[-1:], *places[-1:]]))
    return "".join(f" [{Path(file).name}:{line} {name}]" for file, line, name in shown)


# Watching ---------------------------------------------------------------------------------------------------


class _Watch:
    """Notes what a trial must not do: by Python's audit events, and by the system for files that are decoys."""

    def __init__(self, limits: Limits) -> None:
        own = [*sys.path, *sysconfig.get_paths().values(), sys.prefix, sys.base_prefix]
        system = ["/usr", "/lib", "/lib64", "/proc", "/sys", "/dev", "/etc/localtime", "/etc/mime.types"]
        folders = [*limits.inside, *own, *system]
        self._allowed = tuple({os.path.realpath(str(folder)) for folder in folders if str(folder)})
        self._all, self._alone = not limits.inside, limits.alone
        self._decoys = _inotify(limits.decoys)
        self._on, self._seen = False, ""

    def begin(self) -> None:
        self._drain()
        self._on, self._seen = True, ""

    def end(self, links: bool) -> str:
        """What was seen since `begin`; empty if nothing."""
        self._on = False
        opened = self._drain() and not links
        return self._seen or ("a file outside the folder was opened" if opened else "")

    def _drain(self) -> bool:
        if self._decoys is None:
            return False
        try:
            return bool(os.read(self._decoys, 1 << 16))
        except BlockingIOError:
            return False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if self._alone and event in (*_STARTED, *_CONNECTED):
            raise PermissionError(errno.EPERM, "not allowed in a trial")
        if event in _STARTED:
            self._seen = f"started: {event} {arguments!r:.200}"
        elif event in _CONNECTED:
            self._seen = f"connected: {event} {arguments!r:.200}"
        elif event in _TOUCHED and not self._all and isinstance(arguments[0], str | bytes | os.PathLike):
            self._touched(event, os.fsdecode(arguments[0]))

    def _touched(self, event: str, path: str) -> None:
        self._on = False  # what follows may raise events
        try:
            real = os.path.realpath(path)
            if not any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in self._allowed):
                self._seen = f"{event} of {real}"
        except (OSError, ValueError):
            pass
        finally:
            self._on = True


def _inotify(folders: Sequence[Path]) -> int | None:
    """A descriptor that can be read when anything in the folders was opened; None where the system has none."""
    if not folders or not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = int(library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor < 0:
        return None
    for folder in folders:
        for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            library.inotify_add_watch(descriptor, os.fsencode(place), _INOTIFY_OPENED)
    return descriptor
