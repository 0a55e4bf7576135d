"""The four kinds of training, one class for each `mode` of a config: its inputs, its network and its batches.

``features`` trains a head on features of a frozen backbone, ``finetune`` the backbone too, ``scratch`` an MLP-Mixer on
images and ``text`` a GPT-2, both from random weights.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mumoe.data.emoji import TRAIN_OPTIONS
from mumoe.data.named import EMBEDDED
from mumoe.data.text import TextData, load_text
from mumoe.errors import UserError, shown
from mumoe.training.config import TrainConfig, parse_options
from mumoe.training.inputs import (
    FEATURES,
    Data,
    Inputs,
    extracted,
    load_backbone,
    load_images,
    load_precomputed,
)
from mumoe.training.networks import (
    Network,
    Trained,
    column_statistics,
    context_of,
    image_side,
    image_transform,
    make_gpt2,
    make_head,
    make_mixer,
    partner_block,
    partner_spec,
)
from mumoe.training.sampler import derived_seed
from mumoe.training.sources import BatchSource, FeatureSource, ImageSource, TextSource

__all__ = ["Task", "load_inputs", "settled", "task_of"]

FloatRows = npt.NDArray[np.float32]


class Task(ABC):
    """What one mode of training reads, trains and draws batches from.

    Attributes:
        whole: Whether a whole network is trained from random weights, without a head on a backbone.
        frozen: Whether a head is trained on features of a frozen backbone.
        trains_backbone: Whether the backbone is trained with the head.
    """

    whole: ClassVar[bool] = False
    frozen: ClassVar[bool] = False
    trains_backbone: ClassVar[bool] = False

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def load_data(self, progress: bool = True) -> Data:
        """The images or the text that the config names."""
        return load_images(self.config, progress)

    @abstractmethod
    def find(self, data: Data | None, backbone: nn.Module | None, features: FloatRows | None, progress: bool) -> Inputs:
        """Everything that the config names, or the objects passed instead; nothing is extracted yet.

        Raises:
            UserError: If something is missing, does not fit, or has no rows to train on.
        """

    def extract(self, inputs: Inputs, device: torch.device | str, progress: bool, *, together: bool) -> Inputs:
        """The inputs, with features if the mode trains on features, extracted `together` by all processes."""
        return inputs

    def with_seed(self, inputs: Inputs) -> Inputs:
        """The inputs of this config's seed: the same, or with its own split of the same images."""
        if not self.config.vary_split:
            return inputs
        if self.config.data.startswith(FEATURES):
            data, _ = load_precomputed(self.config)
        else:
            data = load_images(self.config, progress=False)
        if data.ids != inputs.data.ids:
            raise UserError(f"{data.name}: expected the same images for every split seed, got others.")
        return replace(inputs, data=data)

    def image_size(self, inputs: Inputs) -> int | None:
        """Side of the images that the network sees, in pixels; None if it sees none."""
        return getattr(inputs.backbone, "image_size", None)

    def transform(self) -> Any:
        """The preprocessing of one image without augmentation; None if the backbone has its own."""
        return None

    @abstractmethod
    def partner(self, name: str, inputs: Inputs) -> str:
        """A partner's full specification, of the size whose parameters match the head's."""

    @abstractmethod
    def empty(self, num_features: int, num_classes: int, vocabulary: int = 0, backbone: Any = None) -> Trained:
        """The network that the config specifies, with weights drawn from the current random generators.

        Raises:
            UserError: If the network, an option or the specification is not known, or sizes do not fit.
        """

    def network(self, inputs: Inputs) -> Trained:
        """A new network for these inputs, its initial weights a function of the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.config.seed, 0))
            vocabulary = int(inputs.facts.get("vocabulary", 0))
            return self.empty(inputs.num_features, len(inputs.data.classes), vocabulary, copy.deepcopy(inputs.backbone))

    @abstractmethod
    def source(self, inputs: Inputs, device: torch.device | str) -> BatchSource:
        """Batches of the inputs."""


class FinetuneTask(Task):
    """A head and the backbone below it, on images."""

    trains_backbone = True

    def find(self, data: Data | None, backbone: nn.Module | None, features: FloatRows | None, progress: bool) -> Inputs:
        if data is None and features is None and self.config.data.startswith(FEATURES):
            data, features = load_precomputed(self.config)
        found: Any = data if data is not None else self.load_data(progress)
        _check_rows(found)
        if features is not None and not self.frozen:
            raise UserError("train: expected images to fine-tune on, got features. Use `mode=features`.")
        network: Any = backbone
        if network is None and features is None:
            network = load_backbone(self.config)
        width = int(network.num_features) if features is None else _check_features(features, found)
        return Inputs(found, network, features, width)

    def partner(self, name: str, inputs: Inputs) -> str:
        return partner_spec(self.config, name, inputs.num_features, len(inputs.data.classes))

    def empty(self, num_features: int, num_classes: int, vocabulary: int = 0, backbone: Any = None) -> Trained:
        return Network(make_head(self.config, num_features, num_classes), backbone)

    def source(self, inputs: Inputs, device: torch.device | str) -> BatchSource:
        train, plain = inputs.backbone.transform(train=True), inputs.backbone.transform(train=False)
        return _image_source(self.config, inputs, train, plain, device)


class FeatureTask(FinetuneTask):
    """A head on cached features of a frozen backbone."""

    frozen, trains_backbone = True, False

    def extract(self, inputs: Inputs, device: torch.device | str, progress: bool, *, together: bool) -> Inputs:
        if inputs.features is not None:
            return inputs
        cached = extracted(self.config, inputs.data, inputs.backbone, device, progress, together=together)
        return replace(inputs, features=cached.x, feature_key=cached.key)

    def empty(self, num_features: int, num_classes: int, vocabulary: int = 0, backbone: Any = None) -> Trained:
        return Network(make_head(self.config, num_features, num_classes))

    def network(self, inputs: Inputs) -> Trained:
        network = super().network(replace(inputs, backbone=None))
        if self.config.zscore:
            assert isinstance(network, Network)
            assert inputs.features is not None
            statistics = column_statistics(inputs.features, inputs.data.indices("train"))
            network.head.standardize(*statistics, self.config.zscore_floor)
        return network

    def source(self, inputs: Inputs, device: torch.device | str) -> BatchSource:
        assert inputs.features is not None
        return FeatureSource(inputs.features, inputs.data.labels, device)


class ScratchTask(Task):
    """An MLP-Mixer on images, from random weights."""

    whole = True
    reads: ClassVar[str] = "images"

    def find(self, data: Data | None, backbone: nn.Module | None, features: FloatRows | None, progress: bool) -> Inputs:
        found = data if data is not None else self.load_data(progress)
        if (self.reads == "text") != isinstance(found, TextData):
            raise UserError(
                f"train: expected {self.reads} in mode {self.config.mode}, got {found.name}. Use another `mode`."
            )
        _check_rows(found)
        return Inputs(found, None, None, 0)

    def image_size(self, inputs: Inputs) -> int | None:
        return image_side(self.config)

    def transform(self) -> Any:
        return image_transform(self.config, False)

    def partner(self, name: str, inputs: Inputs) -> str:
        return partner_block(self.config, name)

    def empty(self, num_features: int, num_classes: int, vocabulary: int = 0, backbone: Any = None) -> Trained:
        return make_mixer(self.config, num_classes)

    def source(self, inputs: Inputs, device: torch.device | str) -> BatchSource:
        return _image_source(self.config, inputs, image_transform(self.config, True), self.transform(), device)


class TextTask(ScratchTask):
    """A GPT-2 on text, from random weights."""

    reads = "text"

    def load_data(self, progress: bool = True) -> Data:
        context = context_of(self.config)
        return load_text(self.config.data, context=context, cache_dir=self.config.cache_dir or None, progress=progress)

    def with_seed(self, inputs: Inputs) -> Inputs:
        return inputs

    def image_size(self, inputs: Inputs) -> int | None:
        return None

    def transform(self) -> Any:
        return None

    def empty(self, num_features: int, num_classes: int, vocabulary: int = 0, backbone: Any = None) -> Trained:
        return make_gpt2(self.config, vocabulary)

    def source(self, inputs: Inputs, device: torch.device | str) -> BatchSource:
        return TextSource(inputs.data, seed=self.config.seed, device=device)


TASKS: dict[str, type[Task]] = {
    "features": FeatureTask,
    "finetune": FinetuneTask,
    "scratch": ScratchTask,
    "text": TextTask,
}


def task_of(config: TrainConfig) -> Task:
    """The task of a config's mode."""
    return TASKS[config.mode](config)


def load_inputs(
    config: TrainConfig,
    *,
    data: Data | None = None,
    backbone: nn.Module | None = None,
    features: FloatRows | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Inputs:
    """Everything that a config names, or the objects passed instead, with features extracted."""
    task = task_of(config)
    return task.extract(task.find(data, backbone, features, progress), device, progress, together=False)


def settled(config: TrainConfig) -> TrainConfig:
    """The config with the settings filled in that its data set determines, so that the run records them.

    Emoji are drawn at 96 px, and the embedded backbone reads them at that size. Those of `emoji` are split by image,
    as in the demo.
    """
    if config.data not in EMBEDDED or task_of(config).whole:
        return config
    given = parse_options(config.data_options)
    defaults = TRAIN_OPTIONS if config.data == "emoji" and "held_out" not in given else {"size": TRAIN_OPTIONS["size"]}
    missing = [f"{key}={value}" for key, value in defaults.items() if key not in given]
    side = given.get("size", TRAIN_OPTIONS["size"])
    own = not isinstance(side, int) or config.image_size or config.backbone != "efficientnet-lite0"
    return config.replace(data_options=(*config.data_options, *missing), image_size=config.image_size if own else side)


def _check_rows(data: Data) -> None:
    if not hasattr(data, "indices"):
        raise UserError(f"expected `data` as a name or a data set, got {shown(data)} ({type(data).__name__}).")
    if len(data.indices("train")) == 0:
        raise UserError(f"{data.name}: expected images in the training split, got none. Check its splits.")


def _check_features(features: FloatRows, data: Any) -> int:
    """Width of the features, one row for each image."""
    if features.ndim != 2 or len(features) != len(data):
        raise UserError(
            f"features: expected ({len(data)}, num_features), one row per image of {data.name}, "
            f"got {features.shape}. Extract them from the same set."
        )
    return int(features.shape[1])


def _image_source(
    config: TrainConfig, inputs: Inputs, train: Any, plain: Any, device: torch.device | str
) -> BatchSource:
    return ImageSource(inputs.data, train, plain, seed=config.seed, workers=config.workers, device=device)
