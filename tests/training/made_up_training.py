"""A small made-up image set, its features, and a tiny backbone: what jobs in these tests run on."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mumoe.data.base import ImageData

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
    """Noisy features from which the labels can be predicted."""
    rng = np.random.default_rng(1)
    labels = data.labels if data.multi_label else np.eye(len(data.classes))[data.labels]
    mix = rng.normal(size=(len(data.classes), width))
    return (labels @ mix + 0.3 * rng.normal(size=(len(data), width)) + 5.0).astype(np.float32)


def make_text(folder: Path) -> Path:
    """Sentences by rule as tokens in a folder, 60 documents of some 200 bytes; `tokens:FOLDER` names it."""
    from mumoe.data.tokenizing import tokenize

    rng = np.random.default_rng(2)
    source = folder / "source"
    source.mkdir(parents=True)
    for number in range(60):
        words = rng.choice(["def", "return", "value", "Key", "if", "else", "17", "(x)", "one\n"], 40)
        (source / f"{number:03}.txt").write_text(f"{number} " + " ".join(words))
    tokenize([source], folder / "tokens", val=0.15, test=0.15)
    return folder / "tokens"


class TinyBackbone(torch.nn.Module):
    """A convolution with dropout: random in training, so that the generators matter."""

    num_features = 6
    fingerprint = "tiny"

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 5, stride=4)
        self.drop = torch.nn.Dropout(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(self.conv(images).relu().mean((2, 3)))

    def transform(self, train: bool) -> object:
        return noisy if train else plain


def plain(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def noisy(image: Image.Image) -> torch.Tensor:
    """Augmentation that draws from all three generators."""
    x = plain(image) + 0.1 * torch.rand(1) + 0.1 * random.random()
    return x + 0.1 * float(np.random.rand())  # noqa: NPY002 (what augmentations use)


def tiny_backbone() -> TinyBackbone:
    torch.manual_seed(0)
    return TinyBackbone()
