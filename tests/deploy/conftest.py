"""Tiny trained runs that the tests of this room, and of its verbs, take apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mumoe.training import TrainConfig, train
from training.made_up_training import make_data, make_features

SMALL = {"data": "made-up", "batch_size": 16, "epochs": 1, "image_size": 32, "lr": 0.01}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tuned: a small vision transformer under a hierarchy of experts."""
    out = tmp_path_factory.mktemp("runs") / "finetuned"
    config = TrainConfig(backbone="test_vit", pretrained=False, mode="finetune", head="CPMuMoE-r4-e3x2", **SMALL)
    train(config.replace(out=str(out)), data=make_data(60), progress=False)
    return out


@pytest.fixture(scope="session")
def attribute_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attributes, on a frozen convolutional backbone from a local file, with standardized features."""
    folder = tmp_path_factory.mktemp("attributes")
    torch.manual_seed(3)
    save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), folder / "weights.safetensors")
    config = TrainConfig(
        backbone="test_efficientnet",
        weights=str(folder / "weights.safetensors"),
        head="CPMuMoE-r4-e5",
        cache_dir=str(folder / "cache"),
        **SMALL,
    )
    train(config.replace(out=str(folder / "run")), data=make_data(60, multi_label=True), progress=False)
    return folder / "run"


@pytest.fixture(scope="session")
def features_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head on ready features, without a backbone."""
    out = tmp_path_factory.mktemp("features") / "run"
    data = make_data(60)
    features: np.ndarray = make_features(data)
    train(TrainConfig(head="CPMuMoE-r4-e3", out=str(out), **SMALL), data=data, features=features, progress=False)
    return out
