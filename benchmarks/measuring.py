"""How the benchmarks measure: rivals in turn within one process, peak memory in a fresh process for each case.

A processor's speed changes from minute to minute, so two times are compared only if they were taken in turn. Peak
memory is the kernel's high-water mark of the resident set, which counts every library's buffers, not only PyTorch's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SHORTEST = 0.01  # minimum seconds of one sample: quicker work is repeated within it
NATIVE = "MUMOE_NATIVE"


@dataclass(frozen=True)
class Options:
    """The options of a benchmark on the command line."""

    full: bool = False
    out: Path = RESULTS
    only: tuple[str, ...] = ()


def options(what: str, argv: Sequence[str] | None = None, choices: Iterable[str] = ()) -> Options:
    """Parse ``--full``, ``--out DIR`` and, where there is a choice, names of the parts to run."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--full", action="store_true", help="all sizes and enough repeats; the default is a quick look")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON results")
    if choices:
        parser.add_argument("only", nargs="*", metavar="PART", help=f"parts to run, out of {', '.join(choices)}")
    found = parser.parse_args(argv)
    unknown = sorted(set(getattr(found, "only", ())) - set(choices))
    if unknown:
        parser.error(f"expected parts out of {', '.join(choices)}, got {unknown[0]!r}")
    return Options(found.full, found.out, tuple(getattr(found, "only", ())))


def machine() -> dict[str, Any]:
    """The processor and the versions that times depend on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__.partition("+")[0]}
    for package in ("numba", "entmax", "timm"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": len(cores()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> list[int]:
    """Processors that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def thread_counts() -> tuple[int, ...]:
    """1 and 2, as far as there are cores."""
    return (1, 2) if len(cores()) > 1 else (1,)


def write(name: str, asked: Options, record: Mapping[str, Any]) -> Path:
    """Write ``NAME.json``: how it was measured, and the record."""
    path = asked.out / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "full" if asked.full else "quick"
    head = {"command": f"python -m benchmarks.{name}{' --full' * asked.full}", "mode": mode, "machine": machine()}
    path.write_text(json.dumps({**head, **record}, indent=1) + "\n", encoding="utf-8")
    return path


# Time -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Something to be timed: `call` once per measurement, with or without the compiled kernels."""

    call: Callable[[], object]
    native: bool = True


@contextmanager
def kernels(native: bool) -> Iterator[None]:
    """Within the context, compiled kernels are chosen as usual, or not at all."""
    before = os.environ.get(NATIVE)
    os.environ[NATIVE] = (before or "1") if native else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NATIVE]
        else:
            os.environ[NATIVE] = before


def in_turn(works: Mapping[str, Work], seconds: float, least: int = 3, most: int = 60) -> dict[str, dict[str, Any]]:
    """Time rivals round after round, in another order each round.

    Args:
        works: By name.
        seconds: About as long in all, unless `least` rounds take longer.
        least: Rounds at least.
        most: Rounds at most.

    Returns:
        For each name: median, quartiles (low, high) and minimum of the seconds of one call, and the rounds.
    """
    calls = {name: max(1, math.ceil(SHORTEST / _warm(work))) for name, work in works.items()}
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        samples = {name: [_sample(works[name], calls[name])] for name in works}
        rounds = min(most, max(least, int(seconds / (time.perf_counter() - started))))
        names = list(works)
        for _ in range(rounds - 1):
            names = [*names[1:], names[0]]
            for name in names:
                samples[name].append(_sample(works[name], calls[name]))
    finally:
        gc.enable()
    return {name: _summary(values) for name, values in samples.items()}


def _warm(work: Work) -> float:
    """Seconds of the best of a few first calls."""
    best, spent = math.inf, 0.0
    for _ in range(20):
        seconds = _sample(work, 1)
        best, spent = min(best, seconds), spent + seconds
        if spent > SHORTEST:
            break
    return best if spent > SHORTEST or best > 0 else SHORTEST


def _sample(work: Work, calls: int) -> float:
    with kernels(work.native):
        start = time.perf_counter()
        for _ in range(calls):
            work.call()
        return (time.perf_counter() - start) / calls


def _summary(values: list[float]) -> dict[str, Any]:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    middle = statistics.median(values)
    found = {"median": middle, "low": low, "high": high, "least": min(values)}
    return {**{key: float(f"{value:.5g}") for key, value in found.items()}, "rounds": len(values)}


# Forward and backward -------------------------------------------------------------------------------------


class Pass:
    """A module and its input, to be run forward in evaluation or forward and backward in training."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x = module, x.detach().clone()
        with torch.no_grad():
            self.grad = torch.randn_like(module.eval()(self.x))

    def forward(self) -> Tensor:
        """One forward in evaluation."""
        with torch.no_grad():
            y: Tensor = self.module(self.x)
        return y

    def both(self) -> tuple[Tensor, ...]:
        """One forward and backward in training, with gradients to the input and all parameters."""
        return self.backward(self.module(self.x))

    def backward(self, y: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the input and all parameters."""
        wanted = [self.x, *(p for p in self.module.parameters() if p.requires_grad)]
        found: tuple[Tensor, ...] = torch.autograd.grad(y, wanted, self.grad, allow_unused=True)
        return found

    def ready(self, kind: str) -> Callable[[], object]:
        """The work of one kind, ``forward`` or ``both``, with the module in the mode that it needs."""
        self.module.train(kind == "both")
        self.x.requires_grad_(kind == "both")
        return self.both if kind == "both" else self.forward


# Memory ---------------------------------------------------------------------------------------------------

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def measures_memory() -> bool:
    """Whether the high-water mark can be read and reset: Linux, with glibc."""
    return sys.platform.startswith("linux") and os.access("/proc/self/clear_refs", os.W_OK)


def return_memory() -> None:
    """From now on, give freed blocks back at once, so that the resident set is what is in use."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 1 << 16)
    libc.mallopt(_TRIM_THRESHOLD, 1 << 16)


def resident(key: str = "VmRSS") -> int:
    """Bytes in use now (VmRSS), or the most since `mark` (VmHWM)."""
    gc.collect()
    if key == "VmRSS":
        ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def mark() -> None:
    """Begin a new high-water mark at what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(work: Pass, kind: str) -> int:
    """Peak memory of a pass beyond input, parameters and gradients; call it in a fresh process.

    A first run lets the libraries load their code and buffers. What the returned gradients occupy is taken off the
    peak of the backward.
    """
    return_memory()
    call = work.ready(kind)
    for _ in range(2):
        call()
    before = resident()
    mark()
    if kind == "forward":
        work.forward()
        return resident("VmHWM") - before
    y = work.module(work.x)
    forward = resident("VmHWM") - before
    grads = work.backward(y)
    most = resident("VmHWM") - before
    del y
    held = resident()
    del grads
    return max(forward, most - (held - resident()))


# Processes ------------------------------------------------------------------------------------------------


PRELOAD = ["benchmarks.measuring", "mumoe.layers", "mumoe.baselines", "mumoe.costs"]


def fresh(
    work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], at_once: int = 1, preload: Sequence[str] = PRELOAD
) -> Iterator[Any]:
    """Results of `work` on each tuple of arguments, each in a process of its own, in order.

    Processes are forked from a server that has imported some modules and done nothing else; the first call of a
    program decides which.

    Raises:
        RuntimeError: If a process ends without a result; the reason is on stderr.
    """
    context: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    if hasattr(os, "fork"):
        context.set_forkserver_preload(list(preload))
    running: deque[tuple[BaseProcess, Connection]] = deque()
    try:
        for arguments in calls:
            if len(running) >= at_once:
                yield _collect(*running.popleft())
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_deliver, args=(sender, work, arguments), daemon=True)
            process.start()
            sender.close()
            running.append((process, receiver))
        while running:
            yield _collect(*running.popleft())
    finally:
        for process, _ in running:
            process.terminate()


def _deliver(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(work(*arguments))


def _collect(process: BaseProcess, receiver: Connection) -> Any:
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"bench: a measurement ended with status {process.exitcode} and no result.") from None
    finally:
        process.join()
