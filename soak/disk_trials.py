"""Every writer on a disk that is full, in a folder that cannot be written, and twice at once; in a process of its own.

    python -m soak.disk_trials FOLDER --trials 4

Prints one JSON object: `counts`, `faults` and `skipped`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from soak.children import at_once, leftovers, start, wait
from soak.kill_jobs import KillJob, World, jobs
from soak.killer import inside
from soak.mounts import PAGE, can_mount, filled, limit_files, read_only, small_disk
from soak.part import Found
from soak.steady import contents, differences

__all__ = ["main"]

DISK = 512 * 2**20
WAYS = ("bytes", "files", "size", "sync", "rename")
"""No bytes left; no files left; files above a size refused; a disk that fails when it is synced; no room for a name."""
FAILS = {"sync": ("fsync", errno.EIO), "rename": ("replace", errno.ENOSPC)}


@dataclass
class Trials:
    """One job on broken disks."""

    job: KillJob
    place: Path
    rng: random.Random
    found: Found
    wanted: dict[str, str] = field(default_factory=dict)
    needed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def disk(self) -> Path:
        """The folder that the disk is mounted on, always the same."""
        return self.place / "disk"

    @property
    def log(self) -> Path:
        return self.place / "log"

    @contextlib.contextmanager
    def mounted(self, earlier: bool) -> Iterator[Path]:
        """A folder on a new disk, prepared; the disk is an ordinary folder where none can be mounted."""
        disk: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if can_mount(self.place / "probe"):
            disk = small_disk(self.disk, DISK)
        with disk:
            folder = self.disk / "work"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._run(inside(folder, self.job.prepare))
            if earlier and self.job.earlier is not None:
                self._run(inside(folder, self.job.earlier))
            yield folder
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, call: Callable[[], object]) -> None:
        ended = wait(call, self.log)
        if not ended.done:
            raise RuntimeError(f"{self.job.name}: the preparation ended with {ended.summary()}")

    def measure(self) -> None:
        """Run it undisturbed: what comes out, and how much of everything it needs."""
        with self.mounted(False) as folder:
            before = os.statvfs(folder)
            inside_warm = inside(folder, lambda: counted(self.job.go_on, self.place / "calls"))
            ended = wait(inside_warm, self.log)
            after = os.statvfs(folder)
            if not ended.done:
                raise RuntimeError(f"{self.job.name}: the undisturbed job ended with {ended.summary()}")
            self.seconds = ended.seconds
            self.wanted = self.job.kept(folder)
            self.needed = json.loads((self.place / "calls").read_text())
            self.needed["bytes"] = (before.f_bfree - after.f_bfree) * after.f_frsize
            self.needed["files"] = before.f_ffree - after.f_ffree
            self.needed["size"] = max((p.stat().st_size for p in folder.rglob("*") if p.is_file()), default=0)

    # Full disks -----------------------------------------------------------------------------------------------------

    def full(self, way: str, number: int) -> None:
        """One trial on a disk that fails in one way."""
        with self.mounted(self.job.earlier is not None) as folder:
            before = contents(folder)
            with self._failing(way) as how:
                child = start(inside(folder, lambda: (how(), self.job.go_on())), self.log)
                ended = child.wait()
            trial = f"{self.job.name}, {way} {number}"
            if ended.done:
                self.found.count("writes that had room enough after all")
                return
            self.found.count(f"writes on a disk that failed ({way})")
            if not ended.refused:
                self._fault(trial, f"ended with {ended.summary()}")
            elif way in ("bytes", "size") and not re.search("disk is full|free disk", ended.said):
                self._fault(trial, f"did not say that the disk is full: {ended.summary()}")
            self._check(folder, before, trial)

    @contextlib.contextmanager
    def _failing(self, way: str) -> Iterator[Callable[[], object]]:
        """Within the context the disk fails; yields what the child has to do besides."""
        share = self.rng.random()
        if way == "bytes":
            with filled(self.disk, int(share * self.needed["bytes"] * 1.1) + PAGE):
                yield lambda: None
        elif way == "files":
            with limit_files(self.disk, int(share * self.needed["files"])):
                yield lambda: None
        elif way == "size":
            most = PAGE + int(share * max(self.needed["size"] - PAGE, 1))
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        else:
            name, code = FAILS[way]
            turn = self.rng.randrange(max(self.needed[name], 1))
            yield lambda: failing(name, code, turn)

    def _check(self, folder: Path, before: dict[str, str], trial: str) -> None:
        """Nothing that was there is lost, nothing partial is left, and the same call works once there is room."""
        now = contents(folder)
        for name in differences(before, now):
            if name in before and name not in now and not name.endswith((".holder", ".lock")):
                self._fault(trial, f"lost {name}")
        for name, digest in now.items():
            if name in before and digest not in (before[name], self.wanted.get(name, digest)):
                self._fault(trial, f"changed {name} halfway")
        if left := leftovers(folder):
            self._fault(trial, f"temporary files are left: {', '.join(left[:4])}")
        opened = wait(inside(folder, self.job.opens), self.log)
        if not opened.done and not opened.refused:
            self._fault(trial, f"opening it ended with {opened.summary()}")
        again = wait(inside(folder, self.job.go_on), self.log)
        if not again.done:
            self._fault(trial, f"with room again it ended with {again.summary()}")
        elif other := differences(self.job.kept(folder), self.wanted):
            self._fault(trial, f"with room again {len(other)} files are other ones: {', '.join(other[:4])}")
        else:
            self.found.count("jobs that were finished once there was room")

    # Read-only folders ----------------------------------------------------------------------------------------------

    def closed(self, state: str) -> None:
        """A folder that cannot be written: before the job, in the middle of it, and after it."""
        with self.mounted(state != "finished") as folder:
            if state == "stopped":
                child = start(inside(folder, self.job.go_on), self.log)
                child.kill_after(self.seconds * self.rng.uniform(0.3, 0.9))
                child.wait()
            elif state == "finished":
                self._run(inside(folder, self.job.go_on))
            before, trial = contents(folder), f"{self.job.name}, read-only, {state}"
            with read_only(folder):
                ended = wait(inside(folder, self.job.go_on), self.log)
                opened = wait(inside(folder, self.job.opens), self.log)
            self.found.count("calls in a read-only folder")
            if not ended.done and not (ended.refused and "written" in ended.said):
                self._fault(trial, f"ended with {ended.summary()}")
            if not opened.done and not (opened.refused and state != "finished"):
                self._fault(trial, f"opening it ended with {opened.summary()}")
            if other := differences(before, contents(folder)):
                self._fault(trial, f"changed {other[:4]}")

    # Two at once ----------------------------------------------------------------------------------------------------

    def together(self, other: str) -> None:
        """The job twice at once, or beside another one: one line or both right, never a mixture."""
        second = {"itself": self.job.go_on, "earlier": self.job.earlier, "opening": self.job.opens}[other]
        assert second is not None
        with self.mounted(False) as folder:
            delays = [0.0, self.rng.uniform(0, self.seconds)] if other == "opening" else [0.0, 0.0]
            ends = at_once([inside(folder, self.job.go_on), inside(folder, second)], self.log, delays)
            trial = f"{self.job.name} beside {other}"
            self.found.count("pairs of processes on one folder at once")
            for place, ended in enumerate(ends):
                if not ended.done and not ended.refused:
                    self._fault(trial, f"process {place} ended with {ended.summary()}")
            if not any(ended.done for ended in ends):
                self._fault(trial, f"neither was done: {ends[0].summary()}")
            self.found.count("processes that were refused in one line", sum(ended.refused for ended in ends))
            now = self.job.kept(folder)
            if other == "earlier":
                self._run(inside(folder, self.job.earlier or self.job.go_on))
                alone = self.job.kept(folder)
                mixed = differences(now, self.wanted) and differences(now, alone)
                if mixed and len(self.job.whole) and self.job.name != "edit":
                    self._fault(trial, f"a mixture: {differences(now, self.wanted)[:3]}")
                return
            if left := leftovers(folder):
                self._fault(trial, f"temporary files are left: {', '.join(left[:4])}")
            self._run(inside(folder, self.job.go_on))
            if unlike := differences(self.job.kept(folder), self.wanted):
                self._fault(trial, f"{len(unlike)} files are other ones: {', '.join(unlike[:4])}")

    def _fault(self, trial: str, text: str) -> None:
        self.found.faults.append(f"{trial}: {text}")
        sys.stderr.write(f"BROKEN: {self.found.faults[-1]}\n")


def failing(name: str, code: int, turn: int) -> None:
    """Make the call of that turn of a function of `os` fail; of syncing all calls after it too."""
    real: Any = getattr(os, name)
    seen = [0]

    def fails(*given: Any, **named: Any) -> Any:
        seen[0] += 1
        if seen[0] <= turn or (name == "replace" and seen[0] > turn + 1):
            return real(*given, **named)
        raise OSError(code, os.strerror(code), *(given[:1] if name == "replace" else ()))

    setattr(os, name, fails)


def counted(call: Callable[[], object], path: Path) -> None:
    """Run a call and write how often it calls each function of `os` that can be made to fail."""
    counts = {name: 0 for name, _ in FAILS.values()}

    def wrapped(name: str, real: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            counts[name] += 1
            return real(*given, **named)

        return run

    for name in counts:
        setattr(os, name, wrapped(name, getattr(os, name)))
    call()
    path.write_text(json.dumps(counts))


def states(job: KillJob) -> Sequence[str]:
    """What a read-only folder of a job holds."""
    return ("before", "finished") if job.name.startswith("export") else ("before", "stopped", "finished")


def partners(job: KillJob) -> Sequence[str]:
    """What a job runs beside."""
    found = ["itself", "opening"]
    return [*found, "earlier"] if job.earlier is not None and job.name in ("analyze", "report", "edit") else found


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--jobs", nargs="+", default=[])
    parser.add_argument("--without", nargs="+", default=[])
    parser.add_argument("--only", nargs="+", default=["full", "closed", "together"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    place = options.folder.absolute()
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    found, known = Found(), jobs(World(place))
    mounts = can_mount(place / "probe")
    ways = WAYS if mounts else ("size", "sync", "rename")
    if not mounts:
        found.skipped.append("full disks and read-only mounts: this process may not mount; files were limited in size")
    found.skipped += [f"{name} on broken disks: it takes too long" for name in options.without]
    for name in [name for name in options.jobs or known if name not in options.without]:
        job = known[name]
        own = place / "jobs" / name
        own.mkdir(parents=True)
        warm(job, own / "warm")
        trials = Trials(job, own, random.Random(f"{options.seed} {name}"), found)
        try:
            trials.measure()
            for way in ways if "full" in options.only else ():
                for number in range(options.trials):
                    trials.full(way, number)
            for state in states(job) if "closed" in options.only and (mounts or os.geteuid() != 0) else ():
                trials.closed(state)
            for other in partners(job) if "together" in options.only else ():
                trials.together(other)
        except RuntimeError as error:
            found.faults.append(str(error))
        sys.stderr.write(f"{name}: {found.counts}, {len(found.faults)} faults\n")
    answer = {"counts": found.counts, "faults": found.faults, "skipped": found.skipped}
    sys.stdout.write(json.dumps(answer) + "\n")


def warm(job: KillJob, folder: Path) -> None:
    """Run a job once here, so that its forks find everything imported."""
    folder.mkdir(parents=True)
    here = Path.cwd()
    os.chdir(folder)
    try:
        job.prepare()
        job.go_on()
        job.opens()
    finally:
        os.chdir(here)


if __name__ == "__main__":
    main(sys.argv[1:])
