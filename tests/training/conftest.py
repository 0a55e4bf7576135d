"""Fixtures of the training tests; `made_up_training` beside this file can be imported by them."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mumoe.data.base import ImageData
from mumoe.training import TrainConfig

sys.path.insert(0, str(Path(__file__).parent))

from made_up_training import make_data, make_features


@pytest.fixture
def data() -> ImageData:
    return make_data()


@pytest.fixture
def features(data: ImageData) -> np.ndarray:
    return make_features(data)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    """A job of 3 epochs of 5 steps that takes a fraction of a second."""
    return TrainConfig(
        data="made-up",
        head="CPMuMoE-r4-e3",
        epochs=3,
        batch_size=16,
        log_every=2,
        lr=0.02,
        out=str(tmp_path / "run"),
    )


@pytest.fixture(autouse=True)
def _generators_as_before():
    """Jobs seed the global generators; tests must not see that of each other."""
    before = torch.get_rng_state(), random.getstate()
    yield
    torch.set_rng_state(before[0])
    random.setstate(before[1])
