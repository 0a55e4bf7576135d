"""The inputs of a job: the image set or text, the backbone and the features, by the names in its config."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import mumoe.data
import mumoe.models
from mumoe.data.base import ImageData
from mumoe.data.text import TextData
from mumoe.models.feature_files import load_feature_data
from mumoe.models.features import Features, extract_features
from mumoe.training.config import TrainConfig, parse_options

__all__ = ["FEATURES", "Data", "Inputs", "extracted", "load_backbone", "load_images", "load_precomputed"]

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
        features: (num_images, num_features) float32 in feature mode; None until they are extracted.
        num_features: Width of the features; 0 for a whole network.
        feature_key: Key of the features in the cache; empty if they come from elsewhere.
    """

    data: Any
    backbone: Any
    features: npt.NDArray[np.float32] | None
    num_features: int
    feature_key: str = ""

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """Facts for run.json that identify the inputs, to load them again and to detect different ones."""
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


def load_precomputed(config: TrainConfig) -> tuple[ImageData, npt.NDArray[np.float32]]:
    """The labels and features of a file, for ``features:PATH``."""
    path = config.data.removeprefix(FEATURES)
    data, features = load_feature_data(path, split_seed=split_seed(config), **parse_options(config.data_options))
    return data, features.x


def split_seed(config: TrainConfig) -> int:
    """Seed of the split; with `vary_split` a different one for each seed."""
    return config.split_seed + (config.seed if config.vary_split else 0)


def load_images(config: TrainConfig, progress: bool = True) -> ImageData:
    """The image set that a config names; logs one line on what was left out while loading."""
    data = mumoe.data.load_data(
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
        _tell(mumoe.data.problem_summary(data))
    return data


def load_backbone(config: TrainConfig) -> Any:
    """The backbone that a config names, with its weights; random ones are a function of `backbone_seed` alone."""
    return mumoe.models.create_backbone(
        config.backbone,
        weights=config.weights or None,
        pretrained=config.pretrained,
        seed=config.backbone_seed,
        image_size=config.image_size or None,
        cache_dir=config.cache_dir or None,
    )


def extracted(
    config: TrainConfig,
    data: ImageData,
    backbone: Any,
    device: torch.device | str,
    progress: bool,
    *,
    together: bool = False,
) -> Features:
    """The backbone's features of every image, from the cache or extracted into it, `together` by all processes."""
    return extract_features(
        data,
        backbone,
        cache_dir=config.cache_dir or None,
        workers=config.workers,
        device=device,
        together=together,
        progress=progress,
    )
