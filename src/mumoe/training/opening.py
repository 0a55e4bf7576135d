"""Open a run. Everything that reads a run goes through this module.

A `StoredRun` reads settings and facts at once; data, backbone, network and features are loaded when they are first
used, so that a caller waits only for what it reads.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mumoe.data.base import SPLITS
from mumoe.devices import AUTO, resolve
from mumoe.errors import JobError, UserError, unknown_name
from mumoe.models.features import find_features
from mumoe.models.heads import Classifier, Head
from mumoe.results import EvalResult
from mumoe.training import state
from mumoe.training.checkpoint import Snapshot, newest, read_best
from mumoe.training.config import TrainConfig
from mumoe.training.distributed import make_accelerator
from mumoe.training.evaluation import evaluate_split, evaluation_batch
from mumoe.training.inputs import (
    FEATURES,
    Data,
    Inputs,
    extracted,
    load_backbone,
    load_images,
    load_precomputed,
)
from mumoe.training.networks import Trained, WholeNetwork
from mumoe.training.run import RunFolder, check_same_data, unknown_backbone
from mumoe.training.tasks import Task, task_of

__all__ = ["StoredRun"]

_tell = logging.getLogger("mumoe.training").warning


class StoredRun:
    """A run on disk.

    Args:
        path: Its folder.
        data: The data at its present place, as a name (``folder:/new/place``) or an object, instead of the name that
            the run recorded. It must be the same data.
        backbone: A backbone to use instead of building the one that the run names.
        features: (num_images, num_features), used instead of extracting them.
        device: Where the network and the backbone run: a name as in `mumoe.devices.resolve`.
        progress: Whether to show progress on stderr.

    Attributes:
        folder: The `RunFolder`.
        config: The settings, with `data` and `device` as given here.
        facts: The content of run.json.
        device: The device.

    Raises:
        UserError: If the path is not a run, or this machine has no such device.
        JobError: If run.json is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        data: Data | str | None = None,
        backbone: nn.Module | None = None,
        features: npt.NDArray[np.float32] | None = None,
        device: str | torch.device = AUTO,
        progress: bool = True,
    ) -> None:
        self.folder = RunFolder.open(path)
        self.device = resolve(device)
        self.progress = progress
        config = self.folder.config().replace(device=str(device))
        self.config: TrainConfig = config.replace(data=data) if isinstance(data, str) and data else config
        self.facts = self.folder.facts()
        self._data = None if isinstance(data, str) else data
        self._backbone, self._features = backbone, features

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the logits, in order."""
        return tuple(self.facts["classes"])

    @property
    def task(self) -> Task:
        """The task of its mode: what it reads and trains."""
        return task_of(self.config)

    @property
    def on_feature_file(self) -> bool:
        """Whether the data are features that were computed elsewhere."""
        return self.task.frozen and self.config.data.startswith(FEATURES)

    @property
    def trains_whole(self) -> bool:
        """Whether a whole network was trained from random weights, without a head on a backbone."""
        return self.task.whole

    @property
    def knows_backbone(self) -> bool:
        """Whether images can go through the network: its backbone is recorded, was trained, or was given."""
        if not self.task.frozen or self._backbone is not None:
            return True
        return not self.on_feature_file and self.facts.get("backbone") is not None

    # Data ----------------------------------------------------------------------------------------------------------

    @property
    def has_data(self) -> bool:
        """Whether the data are in memory: given, or read already."""
        return self._data is not None or "data" in vars(self)

    @functools.cached_property
    def data(self) -> Any:
        """The images or the text, under the name that the run was trained with; other data raise `UserError`."""
        found = self._precomputed[0] if self.on_feature_file and self._data is None else self._data
        if found is None:
            found = self.task.load_data(self.progress)
        check_same_data(self.folder, found)
        name = self.facts["data"]["name"]
        return found if found.name == name or self._data is not None else replace(found, name=name)

    @functools.cached_property
    def _precomputed(self) -> tuple[Any, npt.NDArray[np.float32]]:
        return load_precomputed(self.config)

    @functools.cached_property
    def inputs(self) -> Inputs:
        """The data, and the head's input for each image: features of the backbone, frozen or trained in the run."""
        data = self.data
        if self.task.whole:
            return Inputs(data, None, None, 0)
        if self._features is not None:
            return Inputs(data, self._backbone, self._features, int(self._features.shape[1]))
        if self.on_feature_file and self._data is None:
            features = self._precomputed[1]
            return Inputs(data, None, features, int(features.shape[1]))
        if (found := self._found_features()) is not None:
            return Inputs(data, self._backbone, found, int(found.shape[1]))
        features = self.features_of(data, together=True)
        return Inputs(data, self.backbone, features, int(features.shape[1]))

    def features_of(self, data: Any, *, together: bool = False) -> npt.NDArray[np.float32]:
        """The backbone's features of any images, from the cache or extracted into it, `together` by all processes.

        Raises:
            UserError: If the run does not know its backbone, or trained a whole network.
        """
        if self.task.whole:
            raise UserError(
                f"{self.path}: expected a run with a head on features, got one of mode {self.config.mode}, which "
                "trained a whole network."
            )
        if self.task.trains_backbone:
            _ = self.network  # its weights are the backbone's
        return extracted(self.config, data, self.backbone, self.device, self.progress, together=together).x

    def other_data(self, name: str, options: Sequence[str] = ()) -> tuple[Any, npt.NDArray[np.float32] | None]:
        """Other data than the run's, by name, and their features if they are a file of features.

        Args:
            name: As in a config, such as ``folder:PATH``.
            options: Options of the data as KEY=VALUE.
        """
        config = self.config.replace(data=name, data_options=tuple(options))
        if name.startswith(FEATURES):
            return load_precomputed(config)
        return load_images(config, self.progress), None

    def _found_features(self) -> npt.NDArray[np.float32] | None:
        """The features that the run was trained on, if the cache still has them: then no backbone is needed."""
        key = str(self.facts.get("features", ""))
        if not key or not self.task.frozen or self._backbone is not None:
            return None
        found = find_features(key, self.config.cache_dir or None)
        return found if found is not None and len(found) == len(self.data) else None

    # Network -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def backbone(self) -> Any:
        """The network below the head. In a run that trained it, `network` puts the trained weights into it."""
        frozen = self.task.frozen
        if self._backbone is None and not self.knows_backbone:
            raise unknown_backbone(self.folder, self.config)
        built = self._backbone
        if built is None:
            built = load_backbone(self.config if frozen else self.config.replace(pretrained=False, weights=""))
        if frozen and self.facts.get("backbone") != str(getattr(built, "fingerprint", "")):
            raise UserError(
                f"{self.path}: expected the backbone weights that the head was trained on, got others. "
                "Restore them, or pass the right backbone."
            )
        return built

    @functools.cached_property
    def _restored(self) -> tuple[Trained, int]:
        backbone = self.backbone if self.task.trains_backbone else None
        sizes = int(self.facts["num_features"]), len(self.classes), int(self.facts.get("vocabulary", 0))
        with torch.device("meta"):  # a checkpoint that does not fit is found before its network takes memory
            sketch = self.task.empty(*sizes, backbone)
        found = _chosen(self.folder, self.config, sketch)
        network = self.task.empty(*sizes, backbone)
        state.restore_model(network, found.tensors["model"])
        return network.eval().to(self.device), found.step

    @property
    def network(self) -> Trained:
        """The trained network, in eval mode; raises `JobError` without an intact checkpoint."""
        return self._restored[0]

    @property
    def step(self) -> int:
        """Optimizer step of the checkpoint that is used."""
        return self._restored[1]

    @property
    def head(self) -> Head:
        """The head: features to logits; raises `UserError` if a whole network was trained."""
        network = self.network
        if isinstance(network, WholeNetwork):
            raise UserError(
                f"{self.path}: expected a run that trained a head, got one of mode {self.config.mode}, which trained a "
                "whole network. Use its model instead."
            )
        return network.head

    @property
    def model(self) -> nn.Module:
        """Images to logits; for a run in mode text, a Hugging Face GPT-2."""
        network = self.network
        if isinstance(network, WholeNetwork):
            return network.model
        return Classifier(self.backbone, network.head).eval().to(self.device)

    def evaluate(self, split: str = "test") -> EvalResult:
        """Loss and accuracy on one split, by class or by attribute.

        Raises:
            UserError: If the split is unknown or has no image, or as `inputs`.
            JobError: As `network`.
        """
        if split not in SPLITS:
            raise unknown_name("evaluate", "split", split, SPLITS)
        config = self.config.replace(precision="fp32") if self.config.precision == "fp16" else self.config
        accelerator = make_accelerator(config)
        with accelerator.main_process_first():
            _ = self.data
        if not len(self.data.indices(split)):
            raise UserError(f"evaluate: expected images in the {split} split of {self.data.name}, got none.")
        network = self.network.to(accelerator.device)
        inputs = Inputs(self.data, self.backbone, None, 0) if self.task.trains_backbone else self.inputs
        source = task_of(config).source(inputs, accelerator.device)
        size = evaluation_batch(config, network)
        facts = {"run": str(self.path), "step": self.step}
        return evaluate_split(network, source, self.data, split, accelerator, size, progress=self.progress, **facts)


def _chosen(run: RunFolder, config: TrainConfig, network: nn.Module) -> Snapshot:
    """The checkpoint that is a run's result so far: the best if the run selects it, else the newest."""
    check = state.check_fit(network)
    found = newest(run.checkpoints, check, _tell)
    if found is None:
        raise JobError(
            f"{run.path}: expected a checkpoint, got none yet. Continue with: mumoe train --resume {run.path}"
        )
    best = found.state.get("best")
    if config.select == "best" and best and best["step"] != found.step:
        return read_best(run.checkpoints, best["step"], check, _tell) or found
    return found
