"""A million combinations of experts against one level of a thousand, PEER and linear heads of as many parameters.

    python -m reproduction.million_study --quick
    python -m reproduction.million_study --out docs/results/million

Every head gets the same tuning effort on the first data set: the settings of `SETTINGS`, judged on the validation split
of the first seed. Test labels are read once, by the chosen setting, over all seeds; each seed has its own split and
initial weights. Further data sets use the settings chosen on the first. Heads with levels are taken apart on the test
split (see `million_choices`), beside a gate frozen at random. Runs and measures are kept in ``--work`` and not computed
again.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from mumoe import MuMoE
from mumoe.analysis.controls import FROZEN
from mumoe.cli import guarded
from mumoe.files import read_json, write_json, write_tensors
from mumoe.parsing import parse
from mumoe.progress import Progress
from mumoe.specs import read_spec
from mumoe.training.config import TrainConfig, from_mapping
from mumoe.training.inputs import Inputs
from mumoe.training.networks import Network
from mumoe.training.tasks import load_inputs, settled, task_of
from reproduction.million_choices import measure_choices, measure_retrieved
from reproduction.million_costs import measure_costs
from reproduction.million_heads import (
    FORMS,
    PEERHead,
    Sizes,
    check_peer,
    fit,
    make_network,
    of_equal_parameters,
    parameters_of,
)
from reproduction.million_pages import write_pages

__all__ = ["SETTINGS", "Cell", "Options", "Setting", "compare", "main"]

Entry = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Compare heads with a million combinations of experts with others of equal parameters."""

    out: str = "docs/results/million"
    """folder of the page and its numbers"""
    work: str = "runs/million"
    """folder of the runs"""
    data: tuple[str, ...] = ("emoji", "icons")
    """data sets; settings are chosen on the first"""
    seeds: int = 3
    """seeds, each with its own split and initial weights"""
    split_seed: int = 1000
    """seed of the first split; the presets were chosen on others"""
    epochs: int = 12
    """passes over the training split"""
    base: str = Sizes.base
    """head whose parameters the others match"""
    few: tuple[int, ...] = Sizes.few
    """experts of each level of a hierarchy with far fewer combinations"""
    deep: tuple[int, ...] = Sizes.deep
    """experts of each level of a hierarchy of more levels"""
    flat: int = Sizes.flat
    """experts of the heads with one level"""
    peer: bool = True
    """compare with PEER, which needs the package peer-pytorch"""
    million: int = Sizes.million
    """experts of the PEER layer that is larger than the others, a square number"""
    million_width: int = Sizes.million_width
    """width of that layer"""
    peer_widths: tuple[int, ...] = Sizes.peer_widths
    """widths of the PEER layers of equal parameters: the narrower, the more experts"""
    costs: bool = True
    """measure time and memory of a step against the number of experts"""
    quick: bool = False
    """one seed, two epochs, one setting, emoji, small sizes of the costs: under three minutes"""
    jobs: int = 1
    """processes that share the runs; give each a core with OMP_NUM_THREADS=1"""
    pages: bool = False
    """only write the page again, from the numbers in --out"""
    quiet: bool = False
    """show no progress"""

    @property
    def sizes(self) -> Sizes:
        """Sizes of the heads."""
        return Sizes(**{item.name: getattr(self, item.name) for item in fields(Sizes)})


@dataclass(frozen=True)
class Setting:
    """A setting of training that is tried for every head."""

    lr: float
    dropout: float
    weight_decay: float

    def __str__(self) -> str:
        return f"lr{self.lr:g}-d{self.dropout:g}-wd{self.weight_decay:g}"


SETTINGS = (Setting(1e-2, 0.2, 0.01), *(Setting(lr, 0.3, 1.0) for lr in (1e-2, 4e-3, 1.6e-3)))
"""The first is the preset's for heads without experts; the others, at three learning rates, that for experts."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    data: str
    head: str
    setting: Setting
    seed: int

    def path(self, options: Options) -> Path:
        """Its files, without their suffix."""
        name = Path(self.data.rpartition(":")[2]).stem
        folder = f"epochs-{options.epochs}/split-{options.split_seed}/{self.head}/{self.setting}"
        return Path(options.work) / name / folder / f"seed-{self.seed}"

    def config(self, options: Options) -> TrainConfig:
        """Its settings: those of the preset `accurate` with the cell's own."""
        head = self.head.removesuffix(FROZEN)
        gate = f"entmax15{FROZEN}" if head != self.head else "entmax15"
        return settled(
            from_mapping(
                {
                    **asdict(self.setting),
                    "preset": "accurate",
                    "data": self.data,
                    "head": head,
                    "gate": gate,
                    "seed": self.seed,
                    "split_seed": options.split_seed,
                    "vary_split": True,
                    "epochs": options.epochs,
                }
            )
        )


def quick(options: Options) -> Options:
    """The options of a quick look."""
    return replace(options, data=options.data[:1], seeds=1, epochs=2, million=1 << 16, million_width=8)


# One run ------------------------------------------------------------------------------------------------------------


@functools.cache
def _loaded(data: str, split_seed: int) -> tuple[TrainConfig, Inputs]:
    config = settled(from_mapping({"data": data, "preset": "accurate", "split_seed": split_seed}))
    return config, load_inputs(config, progress=False)


@functools.cache
def inputs_of(data: str, split_seed: int, seed: int) -> Inputs:
    """Data and features with the split of a seed."""
    config, inputs = _loaded(data, split_seed)
    return task_of(config.replace(vary_split=True, seed=seed)).with_seed(inputs)


def train(options: Options, cell: Cell) -> Entry:
    """Train one run, unless it is there: its validation accuracy; nothing is read from the test split."""
    path = cell.path(options)
    if path.with_suffix(".json").is_file():
        return dict(read_json(path.with_suffix(".json"), "million_study"))
    inputs, config = inputs_of(cell.data, options.split_seed, cell.seed), cell.config(options)
    started = time.perf_counter()
    network = fit(make_network(config, inputs), inputs, config)
    seconds = time.perf_counter() - started
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path.with_suffix(".safetensors"), network.state_dict())
    found = {"parameters": parameters_of(network), "val": accuracy(network, inputs, "val"), "seconds": seconds}
    write_json(path.with_suffix(".json"), found)
    return found


def measure(options: Options, cell: Cell) -> Entry:
    """Test accuracy of a trained run, and what its experts do on the test split, unless it was measured before."""
    path = cell.path(options).with_suffix(".test.json")
    if path.is_file():
        return dict(read_json(path, "million_study"))
    inputs, config = inputs_of(cell.data, options.split_seed, cell.seed), cell.config(options)
    network = make_network(config, inputs)
    network.load_state_dict(load_file(cell.path(options).with_suffix(".safetensors")))
    network.eval()
    found: Entry = {"test": accuracy(network, inputs, "test")}
    layer = network.head.layer
    if isinstance(layer, MuMoE):
        found["experts"] = measure_choices(network.head, inputs, inputs.data.indices("test"), seed=cell.seed)
    if isinstance(layer, PEERHead):
        found["retrieved"] = measure_retrieved(network.head, inputs, inputs.data.indices("test"))
    write_json(path, found)
    return found


def accuracy(network: Network, inputs: Inputs, split: Any) -> float:
    """Share of right answers on a split."""
    rows = inputs.data.indices(split)
    right = [_right(network, inputs, part) for part in np.array_split(rows, max(1, len(rows) // 512))]
    return float(np.concatenate(right).mean())


@torch.no_grad()
def _right(network: Network, inputs: Inputs, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    assert inputs.features is not None
    x = torch.from_numpy(np.asarray(inputs.features[rows], dtype=np.float32))
    return np.asarray(network(x)[0].argmax(1).numpy() == inputs.data.labels[rows])


# All runs -----------------------------------------------------------------------------------------------------------


def _each(work: Callable[[Options, Cell], Entry], options: Options, cells: Iterable[Cell], what: str) -> list[Entry]:
    """The work on every cell, in order, by `options.jobs` processes."""
    cells = list(cells)
    with Progress(what, len(cells), enabled=not options.quiet) as bar:
        if options.jobs == 1:
            found = []
            for cell in cells:
                found.append(work(options, cell))
                bar.advance(note=f"{cell.data} {cell.head}")
            return found
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(work, options, cell) for cell in cells]
            for future in futures:
                future.result()
                bar.advance()
            return [future.result() for future in futures]


def heads_of(options: Options, data: str) -> list[str]:
    """Names of the heads of a data set, whose ranks depend on its classes."""
    inputs = _loaded(data, options.split_seed)[1]
    return of_equal_parameters(options.sizes, inputs.num_features, len(inputs.data.classes))


def choose(options: Options, settings: tuple[Setting, ...]) -> tuple[list[Setting], list[Entry]]:
    """The setting of each head with the best validation accuracy on the first data set and seed, and all tried."""
    data = options.data[0]
    heads = heads_of(options, data)
    cells = [Cell(data, head, setting, 0) for head in heads for setting in settings]
    tried = _each(train, options, cells, "Choosing settings")
    chosen, grid = [], []
    for place, head in enumerate(heads):
        part = [entry["val"] for entry in tried[place * len(settings) : (place + 1) * len(settings)]]
        chosen.append(settings[int(np.argmax(part))])
        grid.append({"head": head, "val": dict(zip(map(str, settings), part, strict=True)), "chosen": str(chosen[-1])})
    return chosen, grid


def compare(options: Options) -> Entry:
    """Choose settings, train all seeds and measure them; a JSON-able dict."""
    settings = SETTINGS[1:2] if options.quick else SETTINGS
    chosen, grid = choose(options, settings)
    sets = {}
    for data in options.data:
        named = list(zip(heads_of(options, data), chosen, strict=True))
        base = read_spec(options.base).num_experts
        frozen = [(f"{head}{FROZEN}", setting) for head, setting in named if _levels(head) == base and "CP" in head]
        named += frozen
        cells = [Cell(data, head, setting, seed) for head, setting in named for seed in range(options.seeds)]
        trained = _each(train, options, cells, f"Training on {data}")
        measured = _each(measure, options, cells, f"Measuring on {data}")
        inputs = _loaded(data, options.split_seed)[1]
        rows = [{**one, **other} for one, other in zip(trained, measured, strict=True)]
        found: Entry = {"images": len(inputs.data), "classes": len(inputs.data.classes), "heads": {}}
        for place, (head, setting) in enumerate(named):
            part = rows[place * options.seeds : (place + 1) * options.seeds]
            found["heads"][head] = {"setting": str(setting), "seeds": part}
        sets[data] = found
    return {"options": {**asdict(options), "work": "", "out": ""}, "grid": grid, "sets": sets}


def _levels(head: str) -> tuple[int, ...]:
    simple = any(form.fullmatch(head) for form in FORMS.values())
    return () if simple else read_spec(head).num_experts


def main(options: Options) -> None:
    """Run the study, and write its numbers, figures and page."""
    torch.set_num_threads(1)
    out = Path(options.out)
    if options.pages:
        write_pages(out)
        return
    if options.peer:
        check_peer()
    options = quick(options) if options.quick else options
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "heads.json", compare(options))
    if options.costs:
        write_json(out / "costs.json", measure_costs(quick=options.quick, peer=options.peer))
    write_pages(out)
    sys.stdout.write(f"Written to {out}\n")


def _dispatch(arguments: list[str]) -> int:
    options = parse(Options, arguments, "python -m reproduction.million_study")
    if options is not None:
        main(options)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_dispatch, sys.argv[1:]))
