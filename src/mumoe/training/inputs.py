"""What a job reads: the image set, the backbone and the features, found by the names in its config."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mumoe.data.base import ImageData
from mumoe.data.text import TextData, load_text
from mumoe.errors import UserError
from mumoe.training.config import TrainConfig, parse_options
from mumoe.training.network import Network, column_statistics, make_head
from mumoe.training.sampler import derived_seed
from mumoe.training.sources import FeatureSource, ImageSource, Source, TextSource
from mumoe.training.whole import WHOLE, WholeNetwork, context_of, image_side, image_transform, make_whole

if TYPE_CHECKING:
    from mumoe.models.features import Features

__all__ = ["Data", "Inputs", "load_inputs", "make_network", "make_source", "settled"]

Data = ImageData | TextData

FEATURES = "features:"
"""Prefix of a data name that is a file of precomputed features."""

_tell = logging.getLogger("mumoe.training").warning


@dataclass(frozen=True)
class Inputs:
    """An image set and what turns its images into features; or a text.

    Attributes:
        data: The images, labels and splits; or the text.
        backbone: Network with `num_features`, `transform` and `fingerprint`; None with ready features, and where
            a whole network is trained from random weights.
        features: (num_images, num_features) float32 in feature mode.
        num_features: Width of the features; 0 for a whole network.
        feature_key: Key of the features in the cache; empty where they come from elsewhere.
    """

    data: Any
    backbone: Any
    features: npt.NDArray[np.float32] | None
    num_features: int
    feature_key: str = ""

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What run.json records, to find the same inputs again and to know them from others."""
        data, backbone = self.data, self.backbone
        facts: dict[str, Any] = {"vocabulary": data.tokenizer.vocabulary} if isinstance(data, TextData) else {}
        if self.feature_key:
            facts["features"] = self.feature_key
        return {
            **facts,
            "data": {"name": data.name, "fingerprint": data.fingerprint, "images": len(data)},
            "credits": list(data.credits),
            "classes": list(data.classes),
            "multi_label": data.multi_label,
            "num_features": self.num_features,
            "backbone": None if backbone is None else str(getattr(backbone, "fingerprint", "")),
        }


def settled(config: TrainConfig) -> TrainConfig:
    """The config with what its data set decides filled in, so that a run records it and its first line can say it.

    Emoji are split by image and drawn at 96 px, as in the demo, and the embedded backbone reads them at that size.
    """
    if config.data != "emoji" or config.mode in WHOLE:
        return config
    from mumoe.data.emoji import TRAIN_OPTIONS

    given = parse_options(config.data_options)
    missing: dict[str, Any] = {} if "held_out" in given else {"split_by": TRAIN_OPTIONS["split_by"]}
    missing = {key: value for key, value in (missing | {"size": TRAIN_OPTIONS["size"]}).items() if key not in given}
    side = given.get("size", TRAIN_OPTIONS["size"])
    own = not isinstance(side, int) or config.image_size or config.backbone != "efficientnet-lite0"
    return config.replace(
        data_options=(*config.data_options, *(f"{key}={value}" for key, value in missing.items())),
        image_size=config.image_size if own else side,
    )


def load_inputs(
    config: TrainConfig,
    *,
    data: Data | None = None,
    backbone: nn.Module | None = None,
    features: npt.NDArray[np.float32] | None = None,
    before_features: Callable[[Any, int, int | None], None] | None = None,
    device: torch.device | str = "cpu",
    processes: Any = None,
    progress: bool = True,
) -> Inputs:
    """Find everything that a config names; what is given is taken as it is.

    `before_features(data, num_features, image_size)` may check the rest of the job before the long extraction starts.
    With `processes`, an accelerator whose processes all make this call, the first one loads (and downloads) before the
    others, and all of them share the extraction.
    """
    first = contextlib.nullcontext() if processes is None else processes.main_process_first()
    with first:
        found, network, features, width = _found(config, data, backbone, features, progress)
    if before_features is not None:
        before_features(found, width, _image_size(config, network))
    key = ""
    if features is None and config.mode == "features":
        shared = processes is not None
        cached = extracted(config, found, network, device, progress, together=shared)
        features, key = cached.x, cached.key
    return Inputs(found, network, features, width, key)


def _image_size(config: TrainConfig, network: Any) -> int | None:
    """Side of the images that the network sees, in pixels; None where it sees none."""
    return image_side(config) if config.mode == "scratch" else getattr(network, "image_size", None)


def _found(
    config: TrainConfig,
    data: Data | None,
    backbone: nn.Module | None,
    features: npt.NDArray[np.float32] | None,
    progress: bool,
) -> tuple[Any, Any, npt.NDArray[np.float32] | None, int]:
    """The data, the backbone, ready features and their width; 0 for a whole network."""
    if config.mode in WHOLE:
        return _whole_data(config, data, progress), None, None, 0
    if data is None and features is None and config.data.startswith(FEATURES):
        data, features = load_precomputed(config)
    found: Any = data if data is not None else load_images(config, progress)
    if len(found.indices("train")) == 0:
        raise UserError(f"{found.name}: expected images in the training split, got none. Check its splits.")
    network: Any = backbone
    if config.mode == "finetune" and features is not None:
        raise UserError("train: expected images to fine-tune on, got features. Take --mode features.")
    if network is None and features is None:
        network = load_backbone(config)
    width = int(network.num_features) if features is None else _check_features(features, found)
    return found, network, features, width


def _whole_data(config: TrainConfig, data: Data | None, progress: bool) -> Data:
    """The images or the text of a network trained from random weights."""
    if data is None:
        data = load_data_of(config, progress)
    if (config.mode == "text") != isinstance(data, TextData):
        other = "text" if config.mode == "text" else "images"
        raise UserError(f"train: expected {other} in mode {config.mode}, got {data.name}. Take another --mode.")
    if len(data.indices("train")) == 0:
        raise UserError(f"{data.name}: expected images in the training split, got none. Check its splits.")
    return data


def _check_features(features: npt.NDArray[np.float32], data: ImageData) -> int:
    if features.ndim != 2 or len(features) != len(data):
        raise UserError(
            f"features: expected ({len(data)}, num_features), one row per image of {data.name}, "
            f"got {features.shape}. Extract them from the same set."
        )
    return int(features.shape[1])


def load_precomputed(config: TrainConfig) -> tuple[ImageData, npt.NDArray[np.float32]]:
    """The labels and features of a file, for ``features:PATH``."""
    from mumoe.models.feature_files import load_feature_data

    path = config.data.removeprefix(FEATURES)
    data, features = load_feature_data(path, split_seed=split_seed(config), **parse_options(config.data_options))
    return data, features.x


def split_seed(config: TrainConfig) -> int:
    """Seed of the split: with `vary_split` another one for each seed."""
    return config.split_seed + (config.seed if config.vary_split else 0)


def load_images(config: TrainConfig, progress: bool = True) -> ImageData:
    """The image set that a config names; what was left out while loading is told in one line."""
    from mumoe.data import load_data, problem_summary

    data = load_data(
        config.data,
        root=config.root or None,
        download=config.download,
        strict=config.strict,
        split_seed=split_seed(config),
        cache_dir=config.cache_dir or None,
        progress=progress,
        **parse_options(config.data_options),
    )
    if data.problems:
        _tell(problem_summary(data))
    return data


def load_data_of(config: TrainConfig, progress: bool = True) -> Any:
    """The images or the text that a config names."""
    if config.mode != "text":
        return load_images(config, progress)
    context = context_of(config)
    return load_text(config.data, context=context, cache_dir=config.cache_dir or None, progress=progress)


def load_backbone(config: TrainConfig) -> Any:
    """The backbone that a config names, with its weights; random ones are a function of `backbone_seed` alone."""
    from mumoe.models.backbones import create_backbone

    return create_backbone(
        config.backbone,
        weights=config.weights or None,
        pretrained=config.pretrained,
        seed=config.backbone_seed,
        image_size=config.image_size or None,
        cache_dir=config.cache_dir or None,
    )


def cached_features(
    config: TrainConfig,
    data: ImageData,
    backbone: Any,
    device: torch.device | str,
    progress: bool,
    *,
    together: bool = False,
) -> npt.NDArray[np.float32]:
    """The backbone's features of every image, from the cache or extracted into it."""
    return extracted(config, data, backbone, device, progress, together=together).x


def extracted(
    config: TrainConfig,
    data: ImageData,
    backbone: Any,
    device: torch.device | str,
    progress: bool,
    *,
    together: bool = False,
) -> Features:
    """As `cached_features`, with the key in the cache."""
    from mumoe.models.features import extract_features

    folder = config.cache_dir or None
    return extract_features(
        data,
        backbone,
        cache_dir=folder,
        workers=config.workers,
        device=device,
        together=together,
        progress=progress,
    )


def with_seed(inputs: Inputs, config: TrainConfig) -> Inputs:
    """The inputs of another seed: the same, or with its own split of the same images."""
    if not config.vary_split or config.mode == "text":
        return inputs
    if config.data.startswith(FEATURES):
        data, _ = load_precomputed(config)
    else:
        data = load_images(config, progress=False)
    if data.ids != inputs.data.ids:
        raise UserError(f"{data.name}: expected the same images for every split seed, got others.")
    return replace(inputs, data=data)


def make_network(config: TrainConfig, inputs: Inputs) -> Network | WholeNetwork:
    """A new network for these inputs, its initial weights a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(config.seed, 0))
        if config.mode in WHOLE:
            vocabulary = int(inputs.facts.get("vocabulary", 0))
            return make_whole(config, num_classes=len(inputs.data.classes), vocabulary=vocabulary)
        head = make_head(config, inputs.num_features, len(inputs.data.classes))
    if inputs.features is not None:
        if config.zscore:
            head.standardize(*column_statistics(inputs.features, inputs.data.indices("train")))
        return Network(head)
    return Network(head, copy.deepcopy(inputs.backbone))


def make_source(config: TrainConfig, inputs: Inputs, device: torch.device | str) -> Source:
    """Batches of cached features, of images through the network's own preprocessing, or of text."""
    if config.mode == "text":
        return TextSource(inputs.data, seed=config.seed, device=device)
    if config.mode == "scratch":
        train, plain = image_transform(config, True), image_transform(config, False)
        return ImageSource(inputs.data, train, plain, seed=config.seed, workers=config.workers, device=device)
    if inputs.features is not None:
        return FeatureSource(inputs.features, inputs.data.labels, device)
    return ImageSource(
        inputs.data,
        inputs.backbone.transform(train=True),
        inputs.backbone.transform(train=False),
        seed=config.seed,
        workers=config.workers,
        device=device,
    )
