"""One MLP of a real language model as sparse experts: faithfulness beside controls, over kinds, K, budgets and seeds.

    python -m reproduction.decompose_study --quick --jobs 2
    python -m reproduction.decompose_study --jobs 2

Every run is kept in ``--work``: a second call trains nothing twice, and a stopped one resumes. What ``results.json`` in
``--out`` already holds is not run again unless ``--again`` asks for it, so that parts can be added one by one.
``--jobs`` are processes that share the runs. The page is written from what is finished, after every call.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from mumoe.cli import guarded
from mumoe.decomposition.findings import Analysis, Evaluation
from mumoe.decomposition.opened import decompose, is_decomposition
from mumoe.errors import UserError, unknown_name
from mumoe.files import read_json, write_json
from mumoe.models.language import LanguageModel, open_language
from mumoe.parsing import parse
from mumoe.progress import Progress
from reproduction.decompose_pages import write_pages

__all__ = ["Cell", "Options", "Study", "Variant", "cells_of", "collect", "main", "read_results", "read_study"]

Entry = dict[str, Any]

WHO = "decompose_study"
TIMES = "seconds.json"
SIZED = ("linear", "dense")
"""Kinds whose size does not depend on the budget: trained once for all budgets."""
WAIT = 20.0
"""Seconds between checks for runs that another process makes."""


@dataclass(frozen=True)
class Options:
    """Decompose MLPs of a language model in several ways, and write the results."""

    out: str = "docs/results/decompose"
    """folder of the page and its numbers"""
    work: str = "runs/decompose-study"
    """folder of the runs"""
    config: str = str(Path(__file__).parent / "decompose-study.toml")
    """settings"""
    quick: bool = False
    """only the part that [quick] of the settings names: layer 10, K = 32, one budget"""
    variants: tuple[str, ...] = ()
    """variants to run (default: all of the settings)"""
    layers: tuple[int, ...] = ()
    """layers to run (default: those of the settings)"""
    seeds: int = 0
    """seeds (0: those of the settings)"""
    again: bool = False
    """run again what results.json of --out already holds"""
    jobs: int = 1
    """processes that share the runs; give each a core with OMP_NUM_THREADS=1"""
    worker: bool = False
    """only make runs, and write no page (used by --jobs)"""
    pages: bool = False
    """only write the page, from what is finished"""
    quiet: bool = False
    """show no progress"""


@dataclass(frozen=True)
class Variant:
    """One way to decompose: settings of `mumoe.decompose`, whether it has a K, which (none: those of the study), its
    seeds (0: those of the study)."""

    settings: Mapping[str, Any]
    sparse: bool = True
    ks: tuple[int, ...] = ()
    seeds: int = 0


@dataclass(frozen=True)
class Study:
    """The settings of the study; see the TOML file."""

    model: str
    text: str
    layers: tuple[int, ...]
    k: tuple[int, ...]
    tuned_k: int
    widths: tuple[float, ...]
    seeds: int
    contexts: int
    shown: int
    shown_variant: str
    settings: Mapping[str, Any]
    analysis: Mapping[str, Any]
    variants: Mapping[str, Variant] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run: a variant of a layer at a budget, a K and a seed."""

    variant: str
    layer: int
    width: float
    k: int
    seed: int

    @property
    def folder(self) -> str:
        """Where it is below ``--work``."""
        return f"layer-{self.layer}/width-{self.width:g}/{self.variant}/k-{self.k}/seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.variant}, layer {self.layer}, {self.width:g}x, K = {self.k}, seed {self.seed}"


def read_study(options: Options) -> Study:
    """The settings, restricted to the requested part.

    Raises:
        UserError: If a variant is unknown.
    """
    values = tomllib.loads(Path(options.config).read_text(encoding="utf-8"))
    quick = values.pop("quick")
    if options.quick:
        values |= quick
    if options.layers:
        values["layers"] = options.layers
    if options.seeds:
        values["seeds"] = options.seeds
    for name in options.variants:
        if name not in values["variants"]:
            raise unknown_name(WHO, "variant", name, values["variants"])
    chosen = {name: Variant(**values["variants"][name]) for name in options.variants or values["variants"]}
    lists = {name: tuple(values[name]) for name in ("layers", "k", "widths")}
    return Study(**{**values, **lists, "variants": chosen})


def cells_of(study: Study) -> list[Cell]:
    """All runs; those whose learning rate others use come first."""
    found = []
    for layer, width in itertools.product(study.layers, study.widths):
        for name, variant in study.variants.items():
            if variant.settings["kind"] in SIZED and width != min(study.widths):
                continue
            ks = study.k if variant.sparse else (study.tuned_k,)
            ks = tuple(k for k in ks if k in variant.ks) if variant.ks else ks
            seeds = range(min(variant.seeds or study.seeds, study.seeds))
            found += [Cell(name, layer, width, k, seed) for k in ks for seed in seeds]
    places = {place: number for number, place in enumerate(itertools.product(study.layers, study.widths))}
    return sorted(found, key=lambda cell: (places[cell.layer, cell.width], cell != _tuned(cell, study)))


def _tuned(cell: Cell, study: Study) -> Cell:
    """The run whose learning rate a run uses: that of the first seed at `tuned_k`."""
    return Cell(cell.variant, cell.layer, cell.width, study.tuned_k, 0)


def main(options: Options) -> None:
    """Make the runs that are missing, then write the page."""
    study = read_study(options)
    known = read_results(Path(options.out))
    if not options.pages:
        if options.jobs > 1:
            _start_workers(options)
        _make_runs(study, options, {} if options.again else known)
    if not options.worker:
        whole = read_study(Options(config=options.config))
        write_pages(collect(whole, Path(options.work), known), whole, Path(options.out))
        sys.stdout.write(f"Written to {options.out}\n")


def _start_workers(options: Options) -> None:
    """Further processes that make runs beside this one; each ends when no run is left."""
    given = ["--work", options.work, "--out", options.out, "--config", options.config, "--worker", "--quiet"]
    given += ["--quick"] * options.quick + ["--again"] * options.again
    given += ["--variants", *options.variants] if options.variants else []
    given += ["--layers", *map(str, options.layers)] if options.layers else []
    given += ["--seeds", str(options.seeds)] if options.seeds else []
    for _ in range(options.jobs - 1):
        subprocess.Popen([sys.executable, "-m", "reproduction.decompose_study", *given], env={**os.environ})


# Runs -------------------------------------------------------------------------------------------------------


def _make_runs(study: Study, options: Options, known: Mapping[Cell, Entry]) -> None:
    cells = cells_of(study)
    maker = _Maker(study, Path(options.work), known)
    with Progress("Decompositions", len(cells), enabled=not options.quiet) as bar:
        done: set[Cell] = set()
        while len(done) < len(cells):
            before = len(done)
            for cell in cells:
                if cell not in done and maker.make(cell):
                    done.add(cell)
                    bar.advance(note=str(cell))
            if len(done) == before:
                time.sleep(WAIT)  # another process is working on the rest


@dataclass
class _Maker:
    """Makes runs; the language model is opened once."""

    study: Study
    work: Path
    known: Mapping[Cell, Entry]
    language: LanguageModel | None = None

    def make(self, cell: Cell) -> bool:
        """Train, measure and analyze one run, as far as that is missing; False if another process works on it, or its
        learning rate is not known yet."""
        folder = self.work / cell.folder
        if cell in self.known or _finished(folder, self._looked_at(cell)):
            return True
        rates = self._rates(cell)
        if rates is None:
            return False
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder.with_name(f"{folder.name}.lock"), timeout=0):
                self._make(cell, folder, rates)
        except Timeout:
            return False
        return True

    def _make(self, cell: Cell, folder: Path, rates: tuple[float, ...]) -> None:
        study, variant, begun = self.study, self.study.variants[cell.variant], time.process_time()
        self.language = self.language or open_language(study.model)
        given = {**study.settings, "k": cell.k, **variant.settings, "lr": rates}
        given |= {"width": cell.width, "seed": cell.seed}
        dec = decompose(self.language, cell.layer, text=study.text, out=folder, progress=False, **given)
        first = cell.seed == 0
        if not (folder / "evaluation.json").is_file():
            dec.evaluate(study.contexts, jacobians=64 if first else 0, twin=first)
        if self._looked_at(cell) and not (folder / "analysis.json").is_file():
            shown = dict(study.analysis)
            shown["ablations"] = shown["ablations"] if cell.variant == study.shown_variant else 0
            dec.analyze(**shown)
        known = read_json(folder / TIMES, WHO) if (folder / TIMES).is_file() else 0.0
        write_json(folder / TIMES, known + time.process_time() - begun)

    def _looked_at(self, cell: Cell) -> bool:
        """Whether the experts of a run are looked at: of the first seed at `tuned_k` and the first budget."""
        kind = self.study.variants[cell.variant].settings["kind"]
        experts = kind not in ("linear", "dense") and not self.study.variants[cell.variant].settings.get("twin")
        return bool(experts and cell == _tuned(cell, self.study) and cell.width == min(self.study.widths))

    def _rates(self, cell: Cell) -> tuple[float, ...] | None:
        """The grid, or the rate chosen from it; None while that is not known."""
        tuned = _tuned(cell, self.study)
        if cell == tuned:
            return tuple(self.study.variants[cell.variant].settings.get("lr", self.study.settings["lr"]))
        if tuned in self.known:
            return (float(self.known[tuned]["fitted"][0]["lr"]),)
        place = self.work / tuned.folder
        if not is_decomposition(place):
            return None
        return (float(read_json(place / "decomposition.json", WHO)["fitted"][0]["lr"]),)


def _finished(folder: Path, looked_at: bool) -> bool:
    names = ["decomposition.json", "evaluation.json", TIMES] + ["analysis.json"] * looked_at
    return all((folder / name).is_file() for name in names)


# Results ----------------------------------------------------------------------------------------------------


def collect(study: Study, work: Path, known: Mapping[Cell, Entry]) -> list[Entry]:
    """One entry for each finished run: its cell, what was tried, evaluation, analysis and seconds.

    Args:
        study: The whole study, in whose order they are.
        work: Folder of the runs; a run in it replaces the known one.
        known: Results of earlier calls.

    Raises:
        UserError: If there is none.
    """
    found = []
    for cell in cells_of(study):
        if _finished(work / cell.folder, False):
            found.append(_entry(cell, work / cell.folder, study))
        elif cell in known:
            found.append(known[cell])
    if not found:
        raise UserError(f"{WHO}: expected finished runs in {str(work)!r}, got none. Run without --pages first.")
    return found


def _entry(cell: Cell, folder: Path, study: Study) -> Entry:
    about = read_json(folder / "decomposition.json", WHO)
    names = ("shape", "fitted", "credits", "precision")
    entry = {"cell": cell, **{name: about[name] for name in names}}
    entry["evaluation"] = Evaluation.load(folder / "evaluation.json")
    entry["seconds"] = float(read_json(folder / TIMES, WHO))
    if (folder / "analysis.json").is_file():
        count = study.shown if cell.variant == study.shown_variant else 0
        entry["analysis"] = _drawn(Analysis.load(folder / "analysis.json"), count)
    return entry


def _drawn(analysis: Analysis, count: int) -> Analysis:
    """The analysis with some experts only, drawn at random."""
    drawn = np.random.default_rng(0).permutation(len(analysis.found))[:count]
    return dataclasses.replace(analysis, found=tuple(analysis.found[number] for number in sorted(drawn.tolist())))


def read_results(out: Path) -> dict[Cell, Entry]:
    """What results.json holds; empty without it."""
    path = out / "results.json"
    if not path.is_file():
        return {}
    found: dict[Cell, Entry] = {}
    for values in read_json(path, WHO):
        entry = {**values, "cell": Cell(**values["cell"])}
        entry["evaluation"] = Evaluation.from_dict(values["evaluation"], str(path))
        if "analysis" in values:
            entry["analysis"] = Analysis.from_dict(values["analysis"], str(path))
        found[entry["cell"]] = entry
    return found


def _dispatch(arguments: list[str]) -> int:
    options = parse(Options, arguments, "python -m reproduction.decompose_study")
    if options is not None:
        main(options)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_dispatch, sys.argv[1:]))
