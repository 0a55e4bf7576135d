"""Kill jobs at random moments, open what is there, continue, and compare the bits; in a process of its own.

    python -m soak.killer FOLDER --kills 200 --jobs train-head sweep

A template process imports everything once and forks: a child is a fresh job within milliseconds. Prints one JSON
object: `counts`, and `faults`, one line each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from soak.children import Ended, leftovers, start, wait
from soak.kill_jobs import KillJob, World, jobs
from soak.steady import contents, differences

__all__ = ["main"]

WAYS = ("once", "writing", "twice", "resuming")
"""One kill at a random moment; one as soon as a file is being written; two within one epoch; one more at a random
moment of the first part of the job that continues."""


def inside(folder: Path, call: Callable[[], object]) -> Callable[[], object]:
    """The call, with a folder as the working directory."""

    def run() -> None:
        os.chdir(folder)
        call()

    return run


@dataclass
class Killer:
    """One job, killed again and again."""

    job: KillJob
    place: Path
    rng: random.Random
    counts: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    duration: float = 0.0
    trials: int = 0

    def prepare(self) -> bool:
        """Run the job uninterrupted, twice: the first run imports everything that is imported on first use."""
        for name in ("warm", "whole"):
            folder = self._folder(name, earlier=False)
            if name == "warm":
                inside(folder, self.job.go_on)()
                self.job.opens()
                continue
            ended = wait(inside(folder, self.job.go_on), self.place / "log")
            self.duration = ended.seconds
            if not ended.done:
                self._fault("whole", f"the uninterrupted job ended with {ended.summary()}")
                return False
            opened = wait(inside(folder, self.job.opens), self.place / "log")
            if not opened.done:
                self._fault("whole", f"a finished one does not open: {opened.summary()}")
        self.wanted = self.job.kept(self.place / "whole")
        return True

    def trial(self) -> int:
        """Kill once or twice, continue, compare; returns the number of kills."""
        self.trials += 1
        way = WAYS[(self.trials - 1) % len(WAYS)]
        folder = self._folder(f"{self.trials}-{way}", earlier=self.job.earlier is not None and self.trials % 3 != 0)
        before = contents(folder, *self.job.whole) if self.job.whole else {}
        kills = self._kill(folder, way, before)
        if kills and way in ("twice", "resuming"):
            share = self.rng.random() / self.job.epochs if way == "twice" else self.rng.random() / 3
            kills += self._kill(folder, way, before, share * self.duration)
        self._finish(folder, way)
        return kills

    def _folder(self, name: str, *, earlier: bool) -> Path:
        folder = self.place / name
        folder.mkdir(parents=True)
        here = Path.cwd()
        os.chdir(folder)
        try:
            self.job.prepare()
            if earlier and self.job.earlier is not None:
                self.job.earlier()
        finally:
            os.chdir(here)
        return folder

    def _kill(self, folder: Path, way: str, before: dict[str, str], delay: float | None = None) -> int:
        child = start(inside(folder, self.job.go_on), self.place / "log")
        if way == "writing":
            child.kill_when(lambda: bool(leftovers(folder)))
        else:
            child.kill_after(self.rng.uniform(0, self.duration) if delay is None else delay)
        ended = child.wait()
        if not ended.killed:
            if not ended.done:
                self._fault(folder.name, f"the job ended with {ended.summary()}")
            self.duration = min(self.duration, ended.seconds)  # the machine is less busy than it was
            return 0
        self._count("kills")
        if leftovers(folder):
            self._count("kills while a file was being written")
        if delay is not None:
            self._count("kills of a job that was continuing after a kill")
        self._open(folder)
        self._whole(folder, before)
        return 1

    def _open(self, folder: Path) -> None:
        opened = wait(inside(folder, self.job.opens), self.place / "log")
        if opened.done:
            self._count("folders opened after a kill")
        elif opened.refused and re.search(self.job.hint, opened.said):
            self._count("folders that reported in one line what is missing")
        else:
            self._fault(folder.name, f"opening it after the kill ended with {opened.summary()}")

    def _whole(self, folder: Path, before: dict[str, str]) -> None:
        """Results that are replaced are the earlier ones or the new ones, unless they say that they are missing."""
        now = contents(folder, *self.job.whole) if self.job.whole else {}
        now = {name: digest for name, digest in now.items() if ".mumoe-" not in name}
        if not now or now == before or not differences(now, self.wanted):
            return
        if self.job.name == "analyze" and "run/analysis/analysis.json" not in now:
            return
        kept = [name for name, digest in now.items() if before.get(name) == digest and self.wanted.get(name) != digest]
        new = [name for name, digest in now.items() if before.get(name) != digest]
        if kept and new:
            self._fault(folder.name, f"a mixture of earlier ({', '.join(kept[:3])}) and new ({', '.join(new[:3])})")

    def _finish(self, folder: Path, way: str) -> None:
        ended: Ended = wait(inside(folder, self.job.go_on), self.place / "log")
        if not ended.done:
            return self._fault(folder.name, f"continuing ended with {ended.summary()}")
        opened = wait(inside(folder, self.job.opens), self.place / "log")
        if not opened.done:
            self._fault(folder.name, f"opening what was continued ended with {opened.summary()}")
        if other := differences(self.job.kept(folder), self.wanted):
            self._fault(folder.name, f"{len(other)} files have other bits: {', '.join(other[:4])}")
        else:
            self._count("jobs that ended with the bits of the uninterrupted one")
        if left := leftovers(folder):
            self._fault(folder.name, f"temporary files are left: {', '.join(left[:4])}")
        shutil.rmtree(folder)
        return None

    def _count(self, label: str) -> None:
        self.counts[label] = self.counts.get(label, 0) + 1

    def _fault(self, trial: str, text: str) -> None:
        self.faults.append(f"{self.job.name} {trial}: {text}")
        sys.stderr.write(f"BROKEN: {self.faults[-1]}\n")


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", nargs="+", default=[])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    place = options.folder.absolute()
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    known = jobs(World(place))
    chosen = {name: known[name] for name in options.jobs or known}
    total = sum(job.weight for job in chosen.values())
    counts: dict[str, int] = {}
    faults: list[str] = []
    for name, job in chosen.items():
        killer = Killer(job, place / "jobs" / name, random.Random(f"{options.seed} {name}"))
        wanted, done = max(1, round(options.kills * job.weight / total)), 0
        if killer.prepare():
            while done < wanted and killer.trials < 3 * wanted and len(killer.faults) < 20:
                done += killer.trial()
        for label, number in killer.counts.items():
            counts[label] = counts.get(label, 0) + number
        counts[f"kills of {name}"] = killer.counts.get("kills", 0)
        faults += killer.faults
        sys.stderr.write(f"{name}: {killer.counts}, {len(killer.faults)} faults, {killer.duration:.2f} s each\n")
    sys.stdout.write(json.dumps({"counts": counts, "faults": faults}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
