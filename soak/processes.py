"""Several processes compute what one computes, whatever ends one of them, on any number of them, on two machines."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mumoe.training import StoredRun
from soak.children import Ended
from soak.part import Found, Given, Part
from soak.process_group import Node, end, launch, nodes
from soak.process_jobs import FITS, World, cut_back, digests_of, distance, run_fit, run_job
from soak.process_memory import measure_memory

__all__ = ["PART", "TWO_MACHINES"]

LOSS, WEIGHT = 1e-5, 1e-4
"""Largest difference of a loss, and of a weight, from those of one process."""
REST = {"finetune": 4e-3}
"""Weights before a batch norm have no gradient but rounding, of which AdamW makes steps of full length: such weights
differ by up to 2 * lr * steps, here more than WEIGHT, without a change of the function."""
PATIENCE = 60.0
"""Seconds within which the others end after one process is killed, on a machine with more processes than cores."""
TWO_MACHINES = "--nnodes 2 --node-rank {rank} --nproc-per-node {count} --master-addr {host} --master-port 29500"
"""Arguments of torchrun on each of two machines, as documented."""


@dataclass
class _Trials:
    """Trials on one world, and what they found."""

    given: Given
    world: World
    found: Found = field(default_factory=Found)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.given.seed)
        self.numbers = itertools.count()

    def fail(self, what: str) -> None:
        self.found.faults.append(what)

    def most(self, label: str, value: float) -> None:
        self.found.measured[label] = max(value, self.found.measured.get(label, 0.0))

    # Jobs -----------------------------------------------------------------------------------------------------------

    def place(self, name: str, count: int, shard: bool) -> Path:
        kind = "shards" if shard else "copies"
        return self.given.work / "runs" / f"{name}-{count}-{kind}".replace(" ", "-")

    def job(self, name: str, out: Path, shard: bool) -> Callable[[], None]:
        """The job that begins or resumes in a folder."""
        if name in FITS:
            return run_fit(self.world, name, out)
        begun = (out / "config.toml").is_file()
        return run_job(self.world.jobs[name].replace(shard=shard), out, begun)

    def run(self, name: str, out: Path, count: int, shard: bool) -> list[Ended]:
        log = self.given.work / "logs" / f"{out.name}-{next(self.numbers)}"
        return launch(self.job(name, out, shard), count, log).wait()

    def done(self, what: str, ended: list[Ended]) -> bool:
        bad = [f"process {rank}: {one.summary()}" for rank, one in enumerate(ended) if not one.done]
        if bad:
            self.fail(f"{what} did not end well: {bad[0]}")
        return not bad

    # Trials ---------------------------------------------------------------------------------------------------------

    def compare(self, name: str, counts: tuple[int, ...], shards: tuple[bool, ...]) -> None:
        """One job on one process and on several: all processes agree, and the results are those of one."""
        one = self.place(name, 1, False)
        if not self.done(f"{name} on one process", self.run(name, one, 1, False)):
            return
        for count, shard in itertools.product(counts, shards):
            out, kind = self.place(name, count, shard), "FSDP2" if shard else "copies"
            what = f"{name} on {count} processes ({kind})"
            if not self.done(what, self.run(name, out, count, shard)):
                continue
            self.found.count(f"jobs on 2 or 3 processes ({kind})")
            self.check_agreement(what, out, count)
            self.check_equality(what, name, one, out)

    def check_agreement(self, what: str, out: Path, count: int) -> None:
        notes = digests_of(out, count)
        self.found.count("tensors whose bits were compared between processes", (count - 1) * len(notes[0]))
        for rank, note in enumerate(notes):
            odd = [key for key in notes[0] if note.get(key) != notes[0][key]]
            if odd:
                self.fail(f"{what}: {len(odd)} tensors of process {rank} are not those of process 0, such as {odd[0]}")

    def check_equality(self, what: str, name: str, one: Path, out: Path) -> None:
        loss, weight = distance(one, out)
        self.most("largest difference of a loss from that of one process", loss)
        if name not in REST:
            self.most("largest difference of a weight from that of one process", weight)
        if not (loss <= LOSS and weight <= REST.get(name, WEIGHT)):
            self.fail(f"{what}: losses differ by {loss:.2g} and weights by {weight:.2g} from those of one process")

    def resume_on(self, name: str, first: int, then: int, shard: bool) -> None:
        """Resume the first checkpoint of a job on another number of processes."""
        out = self.given.work / "resumed" / f"{name}-{first}-{then}-{shard}"
        whole = self.place(name, first, shard and first > 1)
        if not (whole / "summary.json").is_file():
            return
        cut_back(whole, out)
        what = f"{name}, begun on {first} and resumed on {then} processes{' (FSDP2)' * shard}"
        sharded = any((out / "checkpoints").glob("step-*/model/shard-*"))
        if sharded != (shard and first > 1):
            self.fail(f"{what}: the checkpoint is {'' if sharded else 'not '}sharded")
        if StoredRun(out, device="cpu").step >= StoredRun(whole, device="cpu").step:
            self.fail(f"{what}: nothing was left to do")
        if self.done(what, self.run(name, out, then, shard)):
            self.found.count("checkpoints resumed on another number of processes")
            self.check_equality(what, name, self.place(name, 1, False), out)
            self.check_agreement(what, out, then)

    def kill(self, name: str, count: int, shard: bool, *, writing: bool, again: int = 0) -> None:
        """Kill one process, see the others end, and resume on the same and on another number of processes."""
        number = next(self.numbers)
        out, whole = self.given.work / "killed" / f"{number}", self.place(name, count, shard)
        log = self.given.work / "logs" / f"killed-{number}"
        group, victim = launch(self.job(name, out, shard), count, log), self.rng.randrange(count)
        child, what = group.children[victim], f"{name} on {count} processes{' (FSDP2)' * shard}, {victim} killed"
        if writing and name not in FITS:
            child.kill_when(lambda: any((out / "checkpoints").glob(".mumoe-part-*")))
        else:
            child.kill_after(self.rng.uniform(0.2, self.lasts.get(name, 6.0)))
        begun = time.monotonic()
        ended = group.wait()
        taken = time.monotonic() - begun
        if not ended[victim].killed:
            self.found.count("processes that had ended before their kill")
            return
        self.found.count("processes killed" + " while a checkpoint was being written" * writing)
        self.most("seconds until the others had ended", taken)
        for rank, one in enumerate(ended):
            if (rank != victim and not (one.done or one.refused)) or taken > PATIENCE:
                self.fail(f"{what}: after {taken:.0f} s process {rank} ended with {one.summary()}")
        self.found.count("processes that ended with one line", sum(one.refused for one in ended))
        self.found.count("processes that had nothing left to do", sum(one.done for one in ended))
        again = again or (self.rng.choice([1, 2, 3]) if self.rng.random() < 0.5 else count)
        if not self.done(f"{what}, resumed on {again}", self.run(name, out, again, shard)):
            return
        self.found.count("jobs resumed after a kill")
        self.check_equality(f"{what}, resumed on {again}", name, self.place(name, 1, False), out)
        if again == count:
            self.check_bits(f"{what}, resumed", out, whole, count)

    def check_bits(self, what: str, out: Path, whole: Path, count: int) -> None:
        """Resumed on the same number of processes, a job has the bits of the uninterrupted one."""
        self.found.count("jobs resumed with the bits of an uninterrupted one")
        if digests_of(out, count) != digests_of(whole, count):
            self.fail(f"{what}: other bits than without the kill")

    @property
    def lasts(self) -> dict[str, float]:
        """Seconds in which most kills meet a job at work."""
        return {"finetune": 12.0, "decompose tr": 4.0, "decompose cp-linear": 3.0, "decompose hadamard": 3.0}


# Two machines -------------------------------------------------------------------------------------------------------


def _two_machines(trials: _Trials) -> None:
    """The documented commands on two machines of this one: network namespaces that are joined by a cable."""
    with contextlib.ExitStack() as stack:
        try:
            pair = stack.enter_context(nodes())
        except OSError as error:
            trials.found.skipped.append(f"two machines: this one allows no network namespaces ({error})")
            return
        for shard in (False, True):
            _train_there(trials, pair, shard)
        _lose_workers(trials, pair)


def _command(trials: _Trials, out: Path, *more: str) -> list[str]:
    """The job `head` on the command line, with the settings that its run on one process has recorded."""
    settings = trials.place("head", 1, False) / "config.toml"
    return ["-m", "mumoe.cli", "train", "--config", str(settings), "--quiet", "-o", str(out), *more]


def _begin(trials: _Trials, pair: tuple[Node, Node], command: list[str], name: str) -> list[tuple[Path, Any]]:
    """Start a command on both machines; returns the log and the launcher of each."""
    logs = [trials.given.work / "logs" / f"{name}-{node.name}.log" for node in pair]
    logs[0].parent.mkdir(exist_ok=True)
    launchers = [shlex.split(TWO_MACHINES.format(count=1, host=pair[0].address, rank=rank)) for rank in range(2)]
    return [
        (log, node.start([*launchers[rank], *command], log))
        for rank, (node, log) in enumerate(zip(pair, logs, strict=True))
    ]


def _train_there(trials: _Trials, pair: tuple[Node, Node], shard: bool) -> None:
    out = trials.given.work / "machines" / ("shards" if shard else "copies")
    running = _begin(trials, pair, _command(trials, out, *["--shard"] * shard), out.name)
    for log, process in running:
        status, _ = end(process, 300)
        if status != 0:
            trials.fail(f"two machines: status {status}: {_last(log)}")
            return
    trials.found.count("jobs on two machines (network namespaces)")
    trials.check_equality("two machines", "head", trials.place("head", 1, False), out)


def _lose_workers(trials: _Trials, pair: tuple[Node, Node]) -> None:
    """The workers of one machine are killed: the job ends on both, and what was saved opens."""
    what, out = "the workers of one of two machines killed", trials.given.work / "machines" / "lost"
    running = _begin(trials, pair, _command(trials, out, "--epochs", "3000"), out.name)
    if not _wait_for(lambda: any(out.glob("checkpoints/step-*")), 240):
        trials.fail(f"{what}: no checkpoint after 240 s: {_last(running[0][0])}")
        return
    for pid in pair[1].workers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    longest = 0.0
    for log, process in running:
        status, taken = end(process, 2 * PATIENCE)
        longest = max(longest, taken)
        if status is None:
            trials.fail(f"{what}: a launcher had not ended after {2 * PATIENCE:.0f} s: {_last(log)}")
    said = running[0][0].read_text(errors="replace")
    if "train: expected 2 processes, got fewer" not in said or "src/mumoe" in said:
        trials.fail(f"{what}: the other process did not end with one line: {_last(running[0][0])}")
    trials.found.count(f"jobs that ended on both machines, {what}")
    trials.most(f"seconds until both launchers had ended, {what}", longest)
    if StoredRun(out, device="cpu").step < 2:
        trials.fail(f"{what}: no step was kept")


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.2)
    return False


def _last(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    return next((line for line in reversed(lines) if "expected" in line), lines[-1])[:300]


# The part -----------------------------------------------------------------------------------------------------------


def run(given: Given) -> Found:
    """Compare, resume, kill; on processes of this machine and on two machines."""
    trials = _Trials(given, World.make(given.work / "data", only_heads=given.quick))
    if given.quick:
        trials.compare("head", (2,), (True,))
        trials.kill("head", 2, True, writing=True, again=3)
        trials.found.skipped.append("two machines and other jobs than heads: only in the full run")
        return trials.found
    for name in (*trials.world.jobs, *FITS):
        trials.compare(name, (2, 3), (False,) if name in FITS else (False, True))
    for name, shard in (("head", False), ("head", True), ("gpt2", True)):
        for first, then in itertools.permutations((1, 2, 3), 2):
            trials.resume_on(name, first, then, shard)
    _kills(trials, 24)
    _two_machines(trials)
    measure_memory(given.work / "memory", trials.found)
    return trials.found


def _kills(trials: _Trials, number: int) -> None:
    names = [name for name in (*trials.world.jobs, *FITS) if name != "finetune"]
    for turn in range(number):
        name, count = names[turn % len(names)], trials.rng.choice([2, 3])
        shard = name not in FITS and trials.rng.random() < 0.5
        trials.kill(name, count, shard, writing=turn % 3 == 0)


PART = Part(
    "Several processes give the results of one and agree to the bit; if one is killed the others end with one line, "
    "and the job resumes on any number of processes.",
    run,
)
