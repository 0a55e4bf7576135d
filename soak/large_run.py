"""A run of thousands of experts and images, made up in seconds: trained a little, with coefficients and an analysis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

import mumoe
from mumoe.analysis.findings import Effect, LayerStudy, Specialization, UnitStudy
from mumoe.analysis.layer_study import write_coefficients
from mumoe.files import write_json
from mumoe.training import TrainConfig, train

__all__ = ["LARGE", "Size", "made_up_study", "make_run", "write_features"]


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Attributes:
        experts: Experts of the head.
        images: Images of the validation split, which is looked at.
        training: Images of the training split.
        width: Features of an image.
        rank: Rank of the head.
    """

    experts: int
    images: int
    training: int
    width: int
    rank: int


LARGE = Size(5_000, 100_000, 3_000, 512, 256)
"""As much as the dashboard is made for."""


def write_features(path: Path, classes: int, multi_label: bool, size: Size = LARGE) -> None:
    """Clustered features; validation holds the images that are looked at."""
    rng = np.random.default_rng(0)
    count = size.images + size.training
    centres = rng.normal(size=(classes, size.width)).astype(np.float32)
    labels = rng.integers(0, 2, (count, classes)) if multi_label else rng.integers(0, classes, count)
    x = rng.normal(size=(count, size.width)).astype(np.float32)
    x += 0.4 * (labels.astype(np.float32) @ centres if multi_label else centres[labels])
    split = np.where(np.arange(count) < size.training, 0, 1)
    group = rng.integers(0, 2, count)
    names = [f"class {n}" for n in range(classes)]
    metadata = {"classes": json.dumps(names), "group_sex": json.dumps(["woman", "man"])}
    save_file({"features": x, "labels": labels, "split": split, "group_sex": group}, path, metadata=metadata)


def make_run(folder: Path, classes: int, multi_label: bool, size: Size = LARGE) -> Path:
    """A trained run with its caches."""
    write_features(folder / "features.safetensors", classes, multi_label, size)
    config = TrainConfig(
        data=f"features:{folder / 'features.safetensors'}",
        head=f"CPMuMoE-r{size.rank}-e{size.experts}",
        epochs=1,
        batch_size=500,
        lr=0.01,
        out=str(folder / "run"),
    )
    train(config, progress=False)
    run = mumoe.load(folder / "run", progress=False).editing()
    rows = run.data.indices("val")

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(rows), 1000):
            yield run.inputs(rows[start : start + 1000]), torch.zeros(0)

    store = write_coefficients(run.layer, batches, run.path / "analysis" / "coefficients", images=rows)
    content = {"classes": run.data.classes, "seed": 0, "split": "val", "head": config.head, "experts_skipped": 0}
    write_json(
        run.path / "analysis" / "analysis.json",
        {**content, "study": made_up_study(store.level().usage(), classes, size)},
    )
    return run.path


def made_up_study(usage: Any, classes: int, size: Size = LARGE) -> LayerStudy:
    """Numbers of the size and form that an analysis has, drawn at random."""
    rng = np.random.default_rng(0)
    effects = []
    for n in range(size.experts):
        lost = tuple((int(c), float(rng.uniform(0, 0.6))) for c in rng.choice(classes, 12, replace=False))
        spans = tuple((d - 0.05, d + 0.05) for _, d in lost)
        effects.append(Effect(n, float(rng.uniform(0.3, 1.2)), (0.3, 1.2), lost[0][0], lost[0][1], False, lost, spans))
    part = Specialization(
        size.experts, classes, size.images, 0.5, 0, 0, size.experts, 0.8, None, 0, None, None, tuple(effects)
    )
    control = Specialization(size.experts, classes, size.images, 0.5, 0, 0, size.experts, 0.8, None, 0, None, None, ())
    unit = UnitStudy("experts", {"zero": part}, control, usage.touched, 0, 0)
    return LayerStudy((usage,), (unit,), ())
