"""Damaged files: a mutant of a valid sample is read, or refused in one line, quickly, in little memory.

The mutants of `corpus/damage.json`, each of which once broke the promise, are read first, and then `MUTANTS` that are
drawn at random. The number of a mutant and the seed give its recipe, which is in the line of a fault; a recipe that is
added to the corpus is tried in every run. What is promised, and how it is watched, is in `trials`.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mumoe.files import read_json
from soak.mutants import changed, draw_change
from soak.part import Found, Given, Part
from soak.samples import Kind, job_kinds, make_kinds
from soak.trials import Limits, Tally, Trial, run_trials

__all__ = ["PART"]

MUTANTS = 1_000_000
"""Mutants of a full run."""
MINUTES = 25.0
"""After which a full run stops, whatever its number is; `MUMOE_SOAK_MINUTES` is another number."""
QUICK = 2_000
"""Mutants of a short run."""
QUICK_SECONDS = 5.0
CORPUS = Path(__file__).parent / "corpus" / "damage.json"

Recipe = list[Any]
"""[kind, file, sealed, change, ...]"""


class _Bench:
    """The samples on disk, and what damages, reads and repairs them.

    Args:
        work: An empty folder. It gets a folder for each kind, and ``outside`` with the decoys.
        seed: Of the drawing.
        jobs: Whether to add the samples that take jobs of some seconds.
    """

    def __init__(self, work: Path, seed: int, *, jobs: bool = False) -> None:
        self.seed, self.root = seed, work / "samples"
        (work / "made").mkdir(parents=True)
        self.kinds = make_kinds(work / "made")
        if jobs:
            (work / "made" / "jobs").mkdir()
            self.kinds += job_kinds(work / "made" / "jobs")
        shutil.rmtree(work / "made")
        self.by_name = {kind.name: kind for kind in self.kinds}
        places = [place for place, kind in enumerate(self.kinds) for _ in range(kind.weight)]
        random.Random(0).shuffle(places)
        self.turns = places
        self.outside = self.root / "outside"
        self.decoys = self._make_decoys()
        for kind in self.kinds:
            self.write(kind)

    def folder(self, kind: Kind) -> Path:
        return self.root / re.sub(r"\W+", "-", kind.name).strip("-")

    def _make_decoys(self) -> list[str]:
        """A copy of every file of every sample, in one folder beside them."""
        self.outside.mkdir(parents=True)
        for kind in self.kinds:
            for name, content in kind.files.items():
                (self.outside / name.rpartition("/")[2]).write_bytes(content)
        return sorted(path.name for path in self.outside.iterdir())

    def write(self, kind: Kind) -> None:
        folder = self.folder(kind)
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in kind.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    # Drawing --------------------------------------------------------------------------------------------------

    def draw(self, number: int) -> Recipe:
        """The recipe of a number."""
        kind = self.kinds[self.turns[number % len(self.turns)]]
        rng = random.Random(f"{self.seed}/{number}")
        file = rng.choice(kind.targets or tuple(kind.files))
        content, recipe = kind.files[file], [kind.name, file, bool(kind.seal) and rng.random() < 0.7]
        for _ in range(rng.choices((1, 2, 3), (80, 15, 5))[0]):
            change = draw_change(rng, file, content, tuple(kind.files), self._decoys_for(file))
            if change[0] in _WHOLE:
                recipe.append(change)
                break
            try:
                content = changed(content, change, str(self.outside))
            except (ValueError, KeyError, RecursionError, OverflowError, TypeError):
                break  # the change before left nothing that this one applies to
            recipe.append(change)
        return recipe

    def _decoys_for(self, file: str) -> Sequence[str]:
        """Those of the same kind of file first."""
        suffix = file.rpartition(".")[2]
        return [name for name in self.decoys if name.endswith(suffix)] or self.decoys

    def trial(self, recipe: Recipe) -> Trial:
        """The trial of a recipe."""
        kind = self.by_name[recipe[0]]
        links = any(change[0] == "link" for change in recipe[3:])
        return Trial(kind.name, lambda: kind.read(self.folder(kind)), json.dumps(recipe), links)

    # Damage ---------------------------------------------------------------------------------------------------

    def spoil(self, recipe: Recipe) -> None:
        """Put the damage on disk."""
        name, file, sealed, *changes = recipe
        kind = self.by_name[name]
        folder, content = self.folder(kind), kind.files[file]
        for change in changes:
            if change[0] in _WHOLE:
                self._replace(kind, folder / file, change)
                return
            content = changed(content, change, str(self.outside))
        (folder / file).write_bytes(content)
        if sealed and kind.seal is not None:
            files = {**kind.files, file: content}
            kind.seal(files)
            for other, new in files.items():
                if other != file and new != kind.files[other]:
                    (folder / other).write_bytes(new)

    def _replace(self, kind: Kind, path: Path, change: Sequence[Any]) -> None:
        """Damage that is not to the bytes of a file."""
        if change[0] == "swap":
            path.write_bytes(kind.files[change[1]])
            return
        path.unlink()
        if change[0] == "folder":
            path.mkdir()
        elif change[0] == "pipe":
            os.mkfifo(path)
        elif change[0] == "link":
            path.symlink_to(self.outside / change[1])

    def repair(self, recipe: Recipe) -> None:
        """Undo the damage."""
        name, file, sealed, *changes = recipe
        kind = self.by_name[name]
        path = self.folder(kind) / file
        if kind.writes or any(change[0] in _WHOLE for change in changes):
            self.write(kind)
            return
        path.write_bytes(kind.files[file])
        if sealed:
            for other in kind.files:
                if other.endswith("manifest.json"):
                    (path.parents[file.count("/")] / other).write_bytes(kind.files[other])


_WHOLE = ("swap", "gone", "folder", "pipe", "link")
"""Damage that is not to the bytes of a file, and the last of its recipe."""


def run(given: Given) -> Found:
    """Read the corpus and the mutants."""
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["MUMOE_CACHE"] = str(given.work / "samples" / "cache")
    bench, found = _Bench(given.work, given.seed, jobs=not given.quick), Found()
    for kind in bench.kinds:  # controls: an undamaged sample is read; also what is imported late
        kind.read(bench.folder(kind))
        bench.write(kind)
    found.count("kinds of samples, each read undamaged", len(bench.kinds))
    gc.collect()
    gc.freeze()
    corpus: list[Recipe] = read_json(CORPUS, "soak")
    tally = _tried(bench, corpus, None)
    found.count("mutants of the corpus", tally.total())
    _add(found, tally)
    seconds = QUICK_SECONDS if given.quick else 60 * float(os.environ.get("MUMOE_SOAK_MINUTES", MINUTES))
    begun = time.monotonic()
    tally = _tried(bench, given.many(MUTANTS, QUICK), begun + seconds)
    found.measured["mutants per second"] = tally.total() / max(time.monotonic() - begun, 1e-9)
    found.measured["hours of one core for a million"] = 1e6 / found.measured["mutants per second"] / 3600
    found.measured["most processor seconds of one"] = tally.slowest
    found.measured["most MiB that one added"] = tally.grown / 2**20
    found.count("mutants drawn at random", tally.total())
    for outcome, words in (("returned", "read to a sound result"), ("refused", "refused in one line")):
        found.count(f"mutants {words}", tally.total(outcome))
    for name, counts in sorted(tally.counts.items()):
        found.count(f"{name}: mutants", sum(counts.values()))
    _add(found, tally)
    if (bench.outside / "executed").exists():
        found.faults.append("something that a file held was executed")
    return found


def _tried(bench: _Bench, recipes: Sequence[Recipe] | int, until: float | None) -> Tally:
    """Run recipes, or as many as are drawn."""
    count = recipes if isinstance(recipes, int) else len(recipes)
    last: list[Recipe] = []

    def make(number: int) -> Trial:
        if last:
            bench.repair(last.pop())
        recipe = bench.draw(number) if isinstance(recipes, int) else recipes[number]
        bench.spoil(recipe)
        last.append(recipe)
        return bench.trial(recipe)

    def prepare() -> None:
        last.clear()
        for kind in bench.kinds:  # the process before this one may have left damage
            bench.write(kind)

    limits = Limits(inside=[bench.root], decoys=[bench.outside])
    return run_trials(make, range(count), [kind.name for kind in bench.kinds], limits, until=until, prepare=prepare)


def _add(found: Found, tally: Tally) -> None:
    """Faults, one line for each kind of fault, with how often it was seen."""
    seen: dict[str, list[str]] = {}
    for line in tally.faults:
        seen.setdefault(re.sub(r"trial \d+|\d+", "", line.partition(" | ")[0])[:160], []).append(line)
    found.faults += [f"{lines[0]} ({len(lines)} times)" for lines in seen.values()]


PART = Part(
    "A damaged file is read to a sound result or refused in one line: no other error, under a second, less than 1 GiB, "
    "nothing executed, no file outside the folder opened.",
    run,
)
