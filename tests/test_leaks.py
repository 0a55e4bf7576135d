"""Test images cannot reach anything that is trained or chosen: with other test features and labels, the same bits.

Each job runs twice, the second time with the test rows replaced by noise and their labels by random ones. What was
trained, chosen or proposed must be equal to the bit; the numbers reported on the test rows must differ, which shows
that the two runs were not the same by mistake.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

import mumoe
from commands.made_up_analysis import make_data, make_features
from commands.test_editing import CLASSES, WHO, write_features
from demo.test_demo_job import SMALL, made_up
from made_up_emoji import emoji
from mumoe.analysis.sweeping import sweep
from mumoe.cli import main
from mumoe.data.base import ImageData
from mumoe.demo import bias_bench
from mumoe.demo import demo_job as demo
from mumoe.demo.bias_heads import Settings
from mumoe.demo.planted_bias import planted_style
from mumoe.editing import rewriting
from mumoe.editing.edit_files import read_edit_file
from mumoe.editing.subgroup_fairness import Bootstrap
from mumoe.training import TrainConfig, train
from reproduction import bias as bias_recipe
from reproduction.bias import Retraining, run_seed
from reproduction.bias_sets import natural_skin_tone


def other_features(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The features with noise of another mean and size in these rows."""
    changed = features.copy()
    noise = 7 + 5 * np.random.default_rng(9).normal(size=changed[rows].shape)
    changed[rows] = noise.astype(changed.dtype)
    return changed


def other_labels(data: ImageData) -> ImageData:
    """The same images, fingerprint and all, with other labels in the test split."""
    rows, labels = data.indices("test"), data.labels.copy()
    labels[rows] = np.random.default_rng(8).permutation(labels[rows])
    assert not np.array_equal(labels, data.labels)
    return dataclasses.replace(data, labels=labels)


def weights(run: Path) -> dict[str, str]:
    """Digests of every file of weights and of the optimizer, below a run or a job."""
    found = sorted(run.rglob("*.safetensors"))
    assert found
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def evaluations(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())["result"]["evaluations"]


@pytest.mark.parametrize("select", ["last", "best"])
@pytest.mark.parametrize("head", ["CPMuMoE-r6-e12", "linear"])
def test_training(select: str, head: str, tmp_path: Path) -> None:
    data = make_data()
    features = make_features(data)
    config = TrainConfig(data="made-up", head=head, epochs=4, batch_size=30, lr=0.05, select=select)
    train(config.replace(out=str(tmp_path / "a")), data=data, features=features, progress=False)
    changed = other_features(features, data.indices("test"))
    train(config.replace(out=str(tmp_path / "b")), data=other_labels(data), features=changed, progress=False)
    first, second = tmp_path / "a", tmp_path / "b"
    assert weights(first) == weights(second)
    assert (first / "metrics.jsonl").exists()
    one, two = evaluations(first), evaluations(second)
    assert one["val"]["loss"] == two["val"]["loss"]
    assert one["test"]["loss"] != two["test"]["loss"]


@pytest.mark.usefixtures("undrawn")
def test_a_sweep(tmp_path: Path) -> None:
    data = make_data()
    features = make_features(data)
    config = TrainConfig(data="made-up", epochs=2, batch_size=30, lr=0.02)
    found = {}
    for name, given in (
        ("a", {"data": data, "features": features}),
        ("b", {"data": other_labels(data), "features": other_features(features, data.indices("test"))}),
    ):
        grid = {"heads": ("CPMuMoE-r4",), "experts": (4,), "gates": ("entmax15",), "seeds": 2}
        found[name] = sweep(config, out=tmp_path / name, progress=False, **grid, **given)
    assert weights(tmp_path / "a" / "cells") == weights(tmp_path / "b" / "cells")
    assert [point.accuracy for point in found["a"].points] != [point.accuracy for point in found["b"].points]


@pytest.mark.parametrize("make_set", [planted_style, natural_skin_tone], ids=lambda make: make.__name__)
def test_the_bias_recipe(make_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads, mean coefficients, strengths, and validation curves, of every method."""
    fitted: list[torch.nn.Module] = []
    for module, name in ((bias_bench, "train_plain"), (bias_recipe, "fit")):
        real = getattr(module, name)
        kept = lambda *given, real=real, **named: fitted.append(real(*given, **named)) or fitted[-1]  # noqa: E731
        monkeypatch.setattr(module, name, kept)

    def run(data: ImageData, features: np.ndarray) -> tuple[Any, list[torch.Tensor]]:
        fitted.clear()
        result = run_seed(
            make_set(data, features),
            seed=0,
            head="CPMuMoE-r8-e8",
            settings=Settings(epochs=2, batch_size=64, learning_rate=0.02),
            retraining=(Retraining("oversample", (1.0, 0.5)), Retraining("dfr", (1.0, 0.01))),
            bootstrap=Bootstrap(0),
        )
        return result, [tensor.clone() for model in fitted for tensor in model.state_dict().values()]

    data, features = emoji()
    first, trained = run(data, features)
    second, again = run(data, other_features(features, data.indices("test")))
    assert len(trained) == len(again) > 8
    assert all(torch.equal(a, b) for a, b in zip(trained, again, strict=True))
    assert first.strengths == second.strengths
    assert first.choices == second.choices
    assert all(len(choice.curve) > 2 for name, choice in first.choices.items() if "experts" in name)
    assert make_set is not planted_style or first.strengths["+ experts matched"] > 0
    assert first.reports["+ experts matched"].metrics != second.reports["+ experts matched"].metrics


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs on attributes whose files of features differ in the test rows alone."""
    folder = tmp_path_factory.mktemp("leaks")
    write_features(folder / "a.safetensors")
    tensors = load_file(folder / "a.safetensors")
    test = np.flatnonzero(tensors["split"] == 2)
    changed = {**tensors, "features": other_features(tensors["features"], test)}
    changed["labels"] = tensors["labels"].copy()
    changed["labels"][test] = 1 - changed["labels"][test]
    metadata = {"classes": json.dumps(CLASSES), "group_sex": json.dumps(["woman", "man"])}
    save_file(changed, folder / "b.safetensors", metadata=metadata)
    for name in "ab":
        config = TrainConfig(data=f"features:{folder / name}.safetensors", head="CPMuMoE-r8-e8", epochs=8, lr=0.02)
        train(config.replace(batch_size=64, out=str(folder / name)), progress=False)
    assert weights(folder / "a") == weights(folder / "b")
    return [folder / "a", folder / "b"]


def call(*arguments: object) -> None:
    assert main([*map(str, arguments), "--quiet"]) == 0


@pytest.mark.parametrize("objective", ["worst_group", "match", "rewriting_score"])
def test_a_rewriting(edited: list[Path], objective: str, tmp_path: Path, capsys) -> None:
    found = []
    for run in edited:
        out, head = tmp_path / f"{run.name}.json", tmp_path / f"{run.name}.safetensors"
        call("edit", run, *WHO, "--objective", objective, "--out", out, "--export", head, "--resamples", 0)
        found.append((read_edit_file(out), load_tensors(head)))
    (first, weights_of_first), (second, weights_of_second) = found
    assert first.provenance["lambda"] == second.provenance["lambda"] != 0
    assert first.provenance["choice"] == second.provenance["choice"]
    assert all(torch.equal(tensor, weights_of_second[name]) for name, tensor in weights_of_first.items())
    before = [content.provenance["metrics_before"]["metrics"]["accuracy"]["value"] for content in (first, second)]
    assert before[0] != before[1]


def test_proposals_of_an_audit(edited: list[Path], tmp_path: Path, capsys) -> None:
    """Found on validation images, their mean coefficients from training images alone, for any audited split."""
    proposed = []
    for run in edited:
        call("audit", run, "--target", "blond", "--split", "val", "--merge", 0, "--propose", tmp_path / run.name)
        proposed.append({path.name: read_edit_file(path).edits for path in (tmp_path / run.name).iterdir()})
    assert len(proposed[0]) >= 2
    assert proposed[0] == proposed[1]


def test_proposals_of_an_audit_have_the_mean_of_training_images(edited: list[Path], tmp_path: Path, capsys) -> None:
    opened = mumoe.load(edited[0], progress=False).editing()
    means = {}
    for split in ("train", "val"):
        rows = opened.data.indices(split)
        a = opened.coefficients(rows, "test")[0].double()
        means[split] = (a, torch.from_numpy(opened.data.labels[rows, 0].astype("int64")))
    call("audit", edited[0], "--target", "blond", "--split", "val", "--propose", tmp_path)
    call("audit", edited[0], "--target", "blond", "--split", "val", "--json", "--images", 0, "--top", 99)
    findings = json.loads(capsys.readouterr().out.splitlines()[-1])["findings"]
    for path in sorted(tmp_path.glob("finding-*.json")):
        number = int(path.stem.partition("-")[2]) - 1
        finding = findings[number]
        (edit,) = read_edit_file(path).edits.values()
        expected = {}
        for split, (a, labels) in means.items():
            experts = [expert for _, expert in finding["experts"]]
            inside = (a[:, experts] >= 0.1).all(1) & (labels == finding["label"])
            expected[split] = a[inside].mean(0)
        assert float((expected["train"] - expected["val"]).abs().max()) > 1e-3
        torch.testing.assert_close(edit.mean, expected["train"], atol=1e-6, rtol=0)


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made_up(900)
    test = found.data.indices("test")
    changed = dataclasses.replace(found, features=other_features(found.features, test))
    monkeypatch.setattr(demo, "save_figure", lambda *given: None)
    chosen: list[Any] = []
    real = bias_bench.choose_strength
    for module in (bias_bench, rewriting):  # shifts of every image alike, and of experts
        monkeypatch.setattr(module, "choose_strength", lambda *a, **k: chosen.append(real(*a, **k)) or chosen[-1])
    settings = dataclasses.replace(SMALL, seeds=1, epochs=2)
    outcomes = []
    for name, own in (("a", found), ("b", changed)):
        monkeypatch.setattr(demo, "_load", lambda settings, progress, own=own: own)
        chosen.clear()
        demo.run_demo(tmp_path / name, settings=settings, progress=False)
        outcomes.append(
            (weights(tmp_path / name), list(chosen), json.loads((tmp_path / name / "metrics.json").read_text()))
        )
    (first, choices, numbers), (second, others, again) = outcomes
    assert first == second
    assert choices == others
    assert len(choices) >= 4
    assert numbers["rewriting"][0]["experts"] != again["rewriting"][0]["experts"]
