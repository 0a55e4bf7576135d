"""The bias study (Tables 2 and 8, Figures 15 and 16): heads on cached features, or backbone and head trained together.

Choosing strengths, the edits and the metrics are `reproduction.bias` for both. Where the backbone is trained, every
model of the table is a run of its own by the one loop; oversampling repeats images, and the adversary works on
the tuned features (the paper does not say how its adversary and its backbone are trained together).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import mumoe
from mumoe import MuMoE
from mumoe.data import ImageData
from mumoe.data.subset import subset
from mumoe.demo.bias_bench import SeedResult, coefficient_direction, feature_task
from mumoe.demo.bias_heads import Settings
from mumoe.demo.planted_bias import BiasSet
from mumoe.editing.rewriting import mean_coefficients
from mumoe.files import read_json, write_json
from mumoe.models.heads import matched_spec
from mumoe.progress import Progress
from mumoe.training import resume, train
from reproduction import bias_report
from reproduction.bias import RETRAINING, Retraining, RetrainingBench, run_seed
from reproduction.bias_sets import celeba_bias
from reproduction.cells import Cell, all_cells
from reproduction.recipe import Recipe
from reproduction.retraining import fit, oversampling_weights
from reproduction.workshop import Workshop, is_main

__all__ = ["BiasCell", "TunedBench", "bias_cells", "do_bias", "record_of"]

KEPT = ("", " matched")
"""Suffixes of the strengths that a page shows: the paper's fixed one, and the matched one."""


@dataclass(frozen=True)
class BiasCell:
    """One head, experiment and seed.

    Attributes:
        experiment: planted, natural, or one of `bias_sets.CELEBA_EXPERIMENTS`.
        head: The head to correct.
        seed: The seed.
        key: Name of its file.
        run: Where the backbone is trained: the run of the plain head.
    """

    experiment: str
    head: str
    seed: int
    key: str
    run: Cell


def bias_cells(recipe: Recipe, changes: Sequence[str] = ()) -> list[BiasCell]:
    """All cells of a recipe, seed after seed."""
    found = []
    methods = "-".join(recipe.options.get("retraining", ())) or "edits"
    for cell in all_cells(recipe, changes):
        for experiment in recipe.experiments:
            key = f"bias-{experiment}-{methods}-{cell.key}"
            found.append(BiasCell(experiment, cell.config.head, cell.config.seed, key, cell))
    return found


def do_bias(
    recipe: Recipe,
    cells: Sequence[BiasCell],
    work: Path,
    *,
    progress: bool = True,
    after: Callable[[BiasCell], None] | None = None,
) -> None:
    """Run the unfinished cells: train on all processes, then choose and measure on the main one."""
    todo = [cell for cell in cells if not (work / f"{cell.key}.json").is_file()]
    tuned = bool(todo) and todo[0].run.config.mode == "finetune"
    benches = _Benches(recipe, work, progress)
    if tuned:
        for cell in todo:
            benches.tuned(cell).train_all(cell.head, _retraining(recipe), linear=_linear(recipe))
    if not is_main():
        return
    with Progress("Correcting a bias", len(todo), enabled=progress) as bar:
        for cell in todo:
            bench = benches.tuned(cell) if tuned else None
            bias = bench.bias if bench else benches.frozen(cell)
            config = cell.run.config
            settings = Settings(config.epochs, config.batch_size, config.lr, config.weight_decay)
            result = run_seed(
                bias,
                seed=cell.seed,
                head=cell.head,
                settings=settings,
                retraining=_retraining(recipe),
                linear=_linear(recipe),
                bench=bench,
            )
            write_json(work / f"{cell.key}.json", record_of(cell.experiment, cell.head, bias, result))
            bar.advance(note=cell.key)
            if after:
                after(cell)


def read_bias(cells: Sequence[BiasCell], work: Path) -> list[dict[str, Any]]:
    """Records of the cells that are done."""
    paths = [work / f"{cell.key}.json" for cell in cells]
    return [read_json(path, "reproduction") for path in paths if path.is_file()]


def _retraining(recipe: Recipe) -> list[Retraining]:
    wanted = recipe.options.get("retraining", ())
    return [method for method in RETRAINING if method.strategy in wanted]


def _linear(recipe: Recipe) -> bool:
    return bool(recipe.options.get("linear", False))


def record_of(experiment: str, head: str, bias: BiasSet | None, result: SeedResult) -> dict[str, Any]:
    """The part of a seed's results that a page shows: reports at the fixed and the matched strengths, without draws."""
    reports = {name: report.to_dict() for name, report in result.reports.items() if "best worst" not in name}
    return {
        "experiment": experiment,
        "head": head,
        "seed": result.seed,
        "support": result.support,
        "strengths": {name: value for name, value in result.strengths.items() if name in reports},
        "parameters": {name: value for name, value in result.parameters.items() if name in reports},
        "reports": reports,
        "facts": list(bias.facts) if bias else [],
    }


class _Benches:
    """Data of the cells, loaded once."""

    def __init__(self, recipe: Recipe, work: Path, progress: bool) -> None:
        self.recipe, self.work, self.progress = recipe, work, progress
        self.shop = Workshop(work, progress=progress)
        self._makers: dict[str, Callable[[int], BiasSet]] = {}

    def frozen(self, cell: BiasCell) -> BiasSet:
        """The rows of an experiment on cached features."""
        if cell.experiment not in self._makers:
            config = cell.run.config
            options = bias_report.Options(
                experiment=cell.experiment,  # type: ignore[arg-type]
                root=config.root,
                backbone=config.backbone,
                weights=config.weights,
                image_size=config.image_size or 96,
                cache_dir=config.cache_dir,
            )
            emoji = cell.experiment in ("planted", "natural")
            self._makers[cell.experiment] = (bias_report.emoji_sets if emoji else bias_report.celeba_sets)(options)
        return self._makers[cell.experiment](cell.seed)

    def tuned(self, cell: BiasCell) -> TunedBench:
        """Models whose backbone is trained, and the images' labels."""
        inputs = self.shop.inputs(cell.run)
        nothing = np.broadcast_to(np.float32(0), (len(inputs.data), inputs.num_features))
        bias = celeba_bias(inputs.data, nothing, cell.experiment)
        return TunedBench(bias, cell, self.shop)


@dataclass
class _Tuned:
    """A model of the table: its head, and the run whose backbone makes its features."""

    layer: nn.Module
    folder: Path


class TunedBench(RetrainingBench):
    """Backbone and head trained together; a model is a run in the workshop's folder."""

    def __init__(self, bias: BiasSet, cell: BiasCell, shop: Workshop) -> None:
        super().__init__(bias, cell.seed, Settings())
        self.cell, self.shop = cell, shop
        self.inputs = shop.inputs(cell.run)
        self.sizes = (self.inputs.num_features, len(self.inputs.data.classes))
        self._seen: dict[tuple[Path, str], Tensor] = {}

    def train_all(self, head: str, retraining: Sequence[Retraining], *, linear: bool) -> None:
        """Run every training, so that the rest needs no further processes."""
        specs = ["linear", matched_spec("highrank-linear", head, *self.sizes)] if linear else []
        for spec in [*specs, head]:
            self._ensure("plain", spec, 0.0)
        for method in retraining:
            for strength in method.strengths if method.strategy == "oversample" else ():
                self._ensure(method.strategy, head, strength)

    def _ensure(self, strategy: str, spec: str, strength: float) -> Path:
        config = self.cell.run.config.replace(head=spec)
        name = Cell(self.cell.run.data, config).key
        if strategy != "plain":
            name = f"{self.cell.experiment}-{strategy}{strength:g}-{name}"
        folder = self.shop.work / name
        if (folder / "trained.json").is_file():
            return folder
        data = self._oversampled(strength) if strategy == "oversample" else self.inputs.data
        held: dict[str, Any] = {"data": data, "backbone": self.inputs.backbone, "progress": self.shop.progress}
        if (folder / "config.toml").is_file():
            resume(folder, **held)
        else:
            train(config.replace(out=str(folder)), **held)
        if is_main():
            write_json(folder / "trained.json", {"strategy": strategy, "strength": strength})
        return folder

    def _oversampled(self, strength: float) -> ImageData:
        """The target subgroup's training images repeated, by the weights of `reproduction.retraining`."""
        weights = oversampling_weights(feature_task(self.bias, self.rows, torch.zeros(len(self.rows), 1)), strength)
        rng = np.random.default_rng(self.seed)
        times = np.floor(weights.numpy() + rng.random(len(self.rows))).astype(np.int64)
        rest = np.setdiff1d(np.arange(len(self.inputs.data)), self.rows)
        return subset(self.inputs.data, np.concatenate([np.repeat(self.rows, times), rest]).astype(np.int64))

    def train(self, spec: str) -> _Tuned:
        """Backbone and head trained on every training row alike."""
        return self._opened("plain", spec, 0.0)

    def train_again(self, strategy: str, spec: str, **options: Any) -> _Tuned:
        """``oversample`` trains everything, ``adversarial`` a head on tuned features."""
        if strategy == "oversample":
            return self._opened(strategy, spec, float(options["strength"]))
        base = self.train(spec)
        task = feature_task(self.bias, self.rows, self._features(base, "train"))
        config = self.cell.run.config
        settings = Settings(epochs=max(config.epochs, 1), batch_size=config.batch_size)
        factory = self.head_factory(spec)
        layer = fit(strategy, task, factory, seed=self.seed, settings=settings, **options)
        return _Tuned(layer, base.folder)

    def _opened(self, strategy: str, spec: str, strength: float) -> _Tuned:
        folder = self._ensure(strategy, spec, strength)
        model: Any = mumoe.load(folder, backbone=self._empty(), device="cpu").network
        return _Tuned(model.head, folder)

    def _empty(self) -> Any:
        import copy

        return copy.deepcopy(self.inputs.backbone)

    def _features(self, model: _Tuned, part: str) -> Tensor:
        """(rows, width) features of the model's own backbone, kept for the seed."""
        if (model.folder, part) not in self._seen:
            rows: npt.NDArray[np.int64] = self.rows if part == "train" else getattr(self.bias.splits, part)
            found = self.shop.features_of(model.folder, self.cell.run, rows, self.inputs)
            self._seen[model.folder, part] = torch.from_numpy(found)
        return self._seen[model.folder, part]

    @torch.no_grad()
    def logits(self, model: _Tuned, part: str) -> Tensor:
        """(rows,) logits of the biased head on val or test."""
        layer = model.layer.eval()
        return torch.cat([layer(batch)[:, self.bias.head] for batch in self._features(model, part).split(4096)])

    def count(self, model: _Tuned) -> int:
        """Learnable parameters of the head, as the paper counts."""
        return sum(parameter.numel() for parameter in model.layer.parameters())

    def mean_coefficients(self, model: _Tuned) -> Tensor:
        """a-bar of eq. 6."""
        inside = torch.from_numpy(self.inside)
        found = mean_coefficients(_mixture(model), self._features(model, "train")[inside])
        assert isinstance(found, Tensor)
        return found

    def direction(self, model: _Tuned, part: str, mean: Tensor) -> Tensor:
        """(rows,) a-bar . a."""
        return coefficient_direction(_mixture(model), self._features(model, part), mean)


def _mixture(model: _Tuned) -> MuMoE:
    layer = model.layer.layer if hasattr(model.layer, "layer") else model.layer
    assert isinstance(layer, MuMoE)
    return layer.eval()
