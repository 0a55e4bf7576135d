"""A sweep that was started is not continued with other settings: each setting that a cell has is looked at."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from commands.every_world import single_features
from commands.made_up_analysis import make_data, make_features
from mumoe.analysis.sweeping import sweep
from mumoe.errors import UserError
from mumoe.training import StoredRun
from mumoe.training.config import TrainConfig

BASE = TrainConfig(data="made-up", epochs=2, batch_size=30, lr=0.02)
FREE = {
    "head": "the grid's",
    "gate": "the grid's",
    "seed": "the grid's",
    "seeds": "the sweep's",
    "against": "the sweep's",
    "vary_split": "the sweep's",
    "out": "the cell's folder",
    "cache_dir": "where features are kept, not what they are",
    "device": "where a cell is computed",
}
"""Settings that may differ, and why."""
CHANGED: dict[str, Any] = {
    "data": "folder:elsewhere",
    "data_options": ("size=72",),
    "backbone": "clip-b32",
    "network_options": ("depth=1",),
    "weights": "weights.safetensors",
    "root": "DATA",
    "augment": "rand-n2-m10",
    "mode": "finetune",
    "position": "penultimate",
    "norm": "layer",
    "decay": "matrices",
    "init": "scaled",
    "schedule": "cosine",
    "precision": "bf16",
    "select": "best",
    "track": ("trackio",),
    "project": "other",
    "run_name": "other",
}


def do(folder: Path, config: TrainConfig, **changes: Any) -> Any:
    small = {"heads": ("CPMuMoE-r4",), "experts": (4,), "gates": ("entmax15",), "seeds": 1}
    return sweep(config, out=folder, progress=False, **{**small, **changes})


def made_up() -> dict[str, Any]:
    data = make_data()
    return {"data": data, "features": make_features(data)}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of one cell."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    do(folder, BASE, **made_up())
    return folder


def other(name: str) -> Any:
    """Another value of a setting than the sweep's."""
    before = getattr(BASE, name)
    if name in CHANGED:
        return CHANGED[name]
    if isinstance(before, bool):
        return not before
    if isinstance(before, int):
        return before + 1
    return before / 2 if before > 0.5 else before + 0.125


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(TrainConfig) if item.name not in FREE])
def test_each_setting_is_guarded(name: str, started: Path) -> None:
    changes = {name: other(name), **({"mode": "finetune"} if name == "mixup" else {})}
    before = {path: path.stat().st_mtime_ns for path in started.rglob("*")}
    with pytest.raises(UserError, match=r"expected the settings that .* was started with .* Choose another `out`"):
        do(started, BASE.replace(**changes))
    assert {path: path.stat().st_mtime_ns for path in started.rglob("*")} == before


@pytest.mark.usefixtures("undrawn")
def test_each_seed_has_its_own_split(tmp_path: Path) -> None:
    """Where the images bring none: cells of one seed share it."""
    path = tmp_path / "unsplit.safetensors"
    single_features(path, split=False)
    config = TrainConfig(data=f"features:{path}", epochs=1, batch_size=30)
    do(tmp_path / "out", config, seeds=2, gates=("entmax15", "softmax"))
    marks = {}
    for cell in (tmp_path / "out" / "cells").iterdir():
        marks[cell.name] = json.loads((cell / "run.json").read_text())["data"]["fingerprint"]
        again = StoredRun(cell, progress=False).evaluate("test")
        assert again.accuracy == json.loads((cell / "cell.json").read_text())["accuracy"]["test"]
    assert len(marks) == 4
    for seed in (0, 1):
        assert len({mark for name, mark in marks.items() if name.endswith(f"seed{seed}")}) == 1
    assert len(set(marks.values())) == 2


def test_the_split_that_is_analyzed_is_guarded(started: Path) -> None:
    with pytest.raises(UserError, match=r"\(split='test'\), got split='val'"):
        do(started, BASE, split="val")


@pytest.mark.usefixtures("undrawn")
def test_settings_that_an_older_sweep_lacks_are_the_defaults(started: Path, tmp_path: Path) -> None:
    shutil.copytree(started, tmp_path / "older")
    record = json.loads((started / "sweep.json").read_text())
    for name in ("project", "augment", "track"):
        del record["settings"][name]
    (tmp_path / "older" / "sweep.json").write_text(json.dumps(record))
    assert len(do(tmp_path / "older", BASE, **made_up()).points) == 1
    with pytest.raises(UserError, match=r"\(augment='.*'\), got augment='rand-n2-m10'"):
        do(tmp_path / "older", BASE.replace(augment="rand-n2-m10"))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["cache_dir", "gate", "seed"])
def test_what_is_not_a_cells_may_differ(name: str, started: Path, tmp_path: Path) -> None:
    value = {"cache_dir": str(tmp_path), "gate": "softmax", "seed": 5}[name]
    assert len(do(started, BASE.replace(**{name: value}), **made_up()).points) == 1
