"""Test features change nothing that is trained or chosen: weights, steps, strengths, audits, proposals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from commands.test_editing import WHO, call, write_features
from mumoe.editing.edit_files import read_edit_file
from mumoe.training import StoredRun, TrainConfig, train
from mumoe.training.run import RunFolder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same job on two files that differ in the features of the test images alone."""
    folder = tmp_path_factory.mktemp("leaks")
    plain, other = folder / "plain.safetensors", folder / "other.safetensors"
    write_features(plain)
    with safe_open(plain, framework="np") as file:
        names = file.metadata()
    content = load_file(plain)
    test = content["split"] == 2
    content["features"][test] = 7 + 100 * np.random.default_rng(1).normal(size=content["features"][test].shape)
    save_file(content, other, metadata=names)
    runs = [str(folder / name) for name in ("a", "b")]
    for path, run in zip((plain, other), runs, strict=True):
        job = TrainConfig(data=f"features:{path}", head="CPMuMoE-r8-e8", epochs=6, batch_size=64, lr=0.02, out=run)
        train(job.replace(select="best"), progress=False)
    return runs


def test_training_and_the_chosen_checkpoint(pair):
    first, second = (StoredRun(run, device="cpu") for run in pair)
    state = second.head.state_dict()
    assert any(float(tensor.abs().max()) > 0.1 for tensor in state.values() if tensor.is_floating_point())
    assert all(bool((tensor == state[name]).all()) for name, tensor in first.head.state_dict().items())
    assert first.step == second.step
    results = [RunFolder.open(run).facts()["result"]["evaluations"] for run in pair]
    assert {**results[0]["val"], "run": ""} == {**results[1]["val"], "run": ""}
    assert (
        abs(results[0]["test"]["accuracy"] - results[1]["test"]["accuracy"]) > 0.1
    )  # the change was seen where it may be


def test_strengths_audits_and_proposals(pair, capsys, tmp_path):
    found, tests = [], []
    for run in pair:
        file = tmp_path / "edit.json"
        assert call(capsys, "edit", run, *WHO, "--out", file, "--max-loss", 0.05, "--resamples", 0)[0] == 0
        content = read_edit_file(file)
        status, said, _ = call(
            capsys, "audit", run, "--target", "blond", "--json", "--propose", tmp_path / "p", "--alpha", 0.9
        )
        assert status == 0
        proposed = {path.name: json.loads(path.read_text())["edits"] for path in sorted((tmp_path / "p").iterdir())}
        audited = {**json.loads(said), "pictures": None, "run": ""}
        fair = call(capsys, "fairness", run, *WHO, "--split", "val", "--json", "--resamples", 0)[1]
        choice = content.provenance["choice"]
        found.append((json.loads(file.read_text())["edits"], choice, audited, proposed, json.loads(fair)))
        tests.append(content.provenance["metrics_after"]["metrics"]["accuracy"]["value"])
    assert found[0] == found[1]
    assert found[0][1]["strength"] != 0
    assert len(found[0][3]) > 0
    assert abs(tests[0] - tests[1]) > 0.1
