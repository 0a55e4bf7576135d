"""Executes the runs of an item: training through `mumoe.training`, then the analysis of each, on the devices there are.

Under ``torchrun`` or ``accelerate launch`` all processes train together; the main one then analyzes alone, without
waiting for the others.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import mumoe
import mumoe.analysis.controls
from mumoe import MuMoE
from mumoe.analysis import CoefficientStore, study_layer, write_coefficients
from mumoe.analysis.analyzing import layer_batches
from mumoe.data import ImageData
from mumoe.data.subset import subset
from mumoe.files import write_json
from mumoe.progress import Progress
from mumoe.training import resume, train
from mumoe.training.inputs import Inputs, extracted, load_backbone
from mumoe.training.tasks import load_inputs, task_of
from reproduction.cells import Cell

if TYPE_CHECKING:
    from mumoe.models.heads import Head
    from mumoe.results import RunResult

__all__ = ["Workshop", "images_of", "is_main", "record_files"]

_SAME = ("data", "root", "data_options", "backbone", "weights", "pretrained", "image_size", "mode", "cache_dir")
_NETWORK = ("backbone", "weights", "pretrained", "image_size", "cache_dir")


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass
class Workshop:
    """Trains and analyzes cells, with images and features loaded once for all that share them.

    Attributes:
        work: Folder of the runs.
        analysis: The analysis of each run: ``none``, ``load`` or ``experts`` (see `Recipe`).
        split: Split that is analyzed.
        threshold: Coefficient from which an image counts as processed.
        progress: Whether to show progress.
        given: `data`, `backbone` or `features` to use instead of those that the settings name.
    """

    work: Path
    analysis: str = "none"
    split: str = "test"
    threshold: float = 0.5
    progress: bool = True
    given: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._inputs: dict[tuple[Any, ...], Inputs] = {}
        self._splits: dict[int, Inputs] = {}
        self._networks: dict[tuple[Any, ...], Any] = {}

    def do(self, cells: Sequence[Cell], after: Callable[[Cell], None] | None = None) -> None:
        """Train the runs that are not trained, then analyze those that are not analyzed.

        Args:
            cells: The runs.
            after: Called with each run that was not done before, on the main process.
        """
        todo = [cell for cell in cells if not self.is_done(cell)]
        together = int(os.environ.get("WORLD_SIZE", "1")) > 1
        with Progress("Training", len(todo), enabled=self.progress and is_main()) as bar:
            for cell in todo:
                self._train(cell)
                if not together:
                    self._finish(cell, after)
                bar.advance(note=cell.key)
        for cell in todo if together and is_main() else ():
            self._finish(cell, after)

    def is_done(self, cell: Cell) -> bool:
        """Whether a run is trained and has the requested analysis."""
        folder = self.work / cell.key
        return all((folder / name).is_file() for name in record_files(self.analysis, self.split))

    def _finish(self, cell: Cell, after: Callable[[Cell], None] | None) -> None:
        if self.analysis != "none" and not self.is_done(cell):
            self._analyze(cell)
        if after:
            after(cell)

    def inputs(self, cell: Cell) -> Inputs:
        """Images, backbone and features of a cell, with the split of its seed."""
        config = cell.config
        same = tuple(getattr(config, name) for name in _SAME)
        if same not in self._inputs:
            self._inputs.clear()
            self._splits.clear()
            self._inputs[same] = load_inputs(config, **self._given(cell), progress=self.progress and is_main())
        if "data" in self.given:
            return self._inputs[same]
        if config.split_seed not in self._splits:
            other = task_of(config.replace(vary_split=True, seed=0)).with_seed(self._inputs[same])
            self._splits[config.split_seed] = other
        return self._splits[config.split_seed]

    def _given(self, cell: Cell) -> dict[str, Any]:
        """One pretrained backbone for all cells that start from it; training copies it."""
        if "backbone" in self.given or "features" in self.given or cell.config.mode == "scratch":
            return self.given
        names = tuple(getattr(cell.config, name) for name in _NETWORK)
        if names not in self._networks:
            self._networks.clear()
            self._networks[names] = load_backbone(cell.config)
        return {**self.given, "backbone": self._networks[names]}

    def _train(self, cell: Cell) -> None:
        folder = self.work / cell.key
        if (folder / "cell.json").is_file():
            return
        inputs = self.inputs(cell)
        held: dict[str, Any] = {"data": inputs.data, "backbone": inputs.backbone, "features": inputs.features}
        if (folder / "config.toml").is_file():
            result = resume(folder, progress=False, **held).runs[0]
        else:
            result = train(cell.config.replace(out=str(folder)), progress=False, **held).runs[0]
        if is_main():
            write_json(folder / "cell.json", _record(result, inputs))

    def _analyze(self, cell: Cell) -> None:
        folder = self.work / cell.key
        path = folder / record_files(self.analysis, self.split)[-1]
        if "MuMoE" not in cell.config.head:
            write_json(path, None)
            return
        head, seen = self.opened(cell)
        assert isinstance(head.layer, MuMoE)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            return layer_batches(head, seen, np.arange(len(seen.data)), 500)

        place = folder / f"coefficients-{self.split}"
        store = write_coefficients(head.layer, batches, place, images=np.arange(len(seen.data)))
        levels = range(len(head.layer.num_experts))
        record: dict[str, Any] = {"usage": [store.level(level=level).usage(self.threshold) for level in levels]}
        if self.analysis == "experts":
            rest = None if head.classifier is None else head.finish
            units = study_layer(head.layer, batches, rest=rest, resamples=0).units[0]
            control = dataclasses.replace(units.load_control, effects=())
            record |= {"specialization": units.modes["zero"], "load_control": control}
        write_json(path, {**record, "classes": seen.data.classes})

    def opened(self, cell: Cell) -> tuple[Head, Inputs]:
        """A trained head and what it sees of the analyzed split's images, in their order."""
        folder, inputs = self.work / cell.key, self.inputs(cell)
        rows = inputs.data.indices(self.split)
        part = subset(inputs.data, rows)
        if inputs.features is not None:
            features = np.ascontiguousarray(inputs.features[rows])
            return mumoe.load(folder, device="cpu").head, dataclasses.replace(inputs, data=part, features=features)
        model: Any = mumoe.load(folder, backbone=copy.deepcopy(inputs.backbone), device="cpu").network
        features = self._extract(model.backbone, folder, cell, part)
        return model.head, Inputs(part, model.backbone, features, features.shape[1])

    def features_of(
        self, folder: Path, cell: Cell, rows: npt.NDArray[np.int64], inputs: Inputs
    ) -> npt.NDArray[np.float32]:
        """(rows, num_features) of some images by the backbone that a run trained."""
        model: Any = mumoe.load(folder, backbone=copy.deepcopy(inputs.backbone), device="cpu").network
        return self._extract(model.backbone, folder, cell, subset(inputs.data, rows))

    def _extract(self, backbone: Any, folder: Path, cell: Cell, part: ImageData) -> npt.NDArray[np.float32]:
        """Extracted again, in the run's folder and not in the user's cache: no other run has this backbone."""
        scratch = folder / "features"
        config = cell.config.replace(cache_dir=str(scratch))
        features = np.array(extracted(config, part, backbone, _device(), self.progress).x)
        shutil.rmtree(scratch, ignore_errors=True)
        return features


def record_files(analysis: str, split: str) -> list[str]:
    """Files that a finished run has."""
    return ["cell.json"] if analysis == "none" else ["cell.json", f"{analysis}-{split}.json"]


def _device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _record(result: RunResult, inputs: Inputs) -> dict[str, Any]:
    return {
        "accuracy": {split: part.accuracy for split, part in result.evaluations.items()},
        "parameters": result.parameters,
        "seconds": result.seconds,
        "images": len(inputs.data),
        "classes": len(inputs.data.classes),
        "credits": list(inputs.data.credits),
    }


def images_of(shop: Workshop, cell: Cell, folder: Path, **options: Any) -> Any:
    """Image grids of a run's experts (Figures 2, 7 and 8), from the coefficients that its analysis kept."""
    from mumoe.plots.expert_sheet import write_grid

    inputs = shop.inputs(cell)
    rows = inputs.data.indices(shop.split)
    level = CoefficientStore(shop.work / cell.key / f"coefficients-{shop.split}").level()
    return write_grid(folder, level, subset(inputs.data, rows), np.arange(len(rows)), **options)


def purity_of(shop: Workshop, cell: Cell, least: int = 5) -> list[tuple[int, float]]:
    """How many classes the images of an expert have, and the share of the largest class.

    One pair for each expert that processes at least `least` images with a coefficient at the threshold or above.
    """
    data = shop.inputs(cell).data
    labels = np.asarray(data.labels)[data.indices(shop.split)]
    level = CoefficientStore(shop.work / cell.key / f"coefficients-{shop.split}").level()
    rows: list[npt.NDArray[np.int64]] = []
    experts: list[npt.NDArray[np.int64]] = []
    for block in level.blocks():
        chosen = block.value >= shop.threshold
        rows.append(block.row[chosen])
        experts.append(block.expert[chosen])
    row, expert = np.concatenate(rows), np.concatenate(experts)
    found = []
    for n in np.unique(expert).tolist():
        counts = np.bincount(labels[row[expert == n]])
        if counts.sum() >= least:
            found.append((int((counts > 0).sum()), float(counts.max() / counts.sum())))
    return found
