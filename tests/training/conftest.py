"""A small made-up image set, its features, and jobs on them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mumoe.data.base import ImageData
from mumoe.training import TrainConfig

CLASSES = ("ant", "bee", "cat", "dog")


def made_up_image(index: int) -> Image.Image:
    """A 20 x 24 image of noise, a function of its position alone."""
    pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_data(count: int = 120, *, multi_label: bool = False, fingerprint: str = "f00d") -> ImageData:
    """Images of four classes (or with four attributes), 60% train, 20% val, 20% test."""
    rng = np.random.default_rng(0)
    shape = (count, len(CLASSES)) if multi_label else (count,)
    labels = rng.integers(0, 2 if multi_label else len(CLASSES), shape)
    return ImageData(
        name="made-up",
        classes=CLASSES,
        multi_label=multi_label,
        labels=labels.astype(np.uint8) if multi_label else labels.astype(np.int64),
        split=(np.arange(count) % 5 // 3 + (np.arange(count) % 5 == 4)).astype(np.int8),
        ids=tuple(f"image-{i}" for i in range(count)),
        open_image=made_up_image,
        fingerprint=fingerprint,
    )


def make_features(data: ImageData, width: int = 6) -> np.ndarray:
    """Noisy features from which the labels can be told."""
    rng = np.random.default_rng(1)
    labels = data.labels if data.multi_label else np.eye(len(data.classes))[data.labels]
    mix = rng.normal(size=(len(data.classes), width))
    return (labels @ mix + 0.3 * rng.normal(size=(len(data), width)) + 5.0).astype(np.float32)


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
