"""The loop: the same bits wherever it was stopped, and the mathematics of batches, parts and losses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_training import CLASSES, make_data, make_features, tiny_backbone

from mumoe.errors import JobError
from mumoe.training import Interrupted, StoredRun, resume, train
from mumoe.training.engine import Engine
from mumoe.training.evaluation import Tally, sum_of_losses
from mumoe.training.run import RunFolder


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def losses(run) -> list[float]:
    return [row["loss"] for row in rows(run) if "loss" in row]


def bits(run) -> dict[str, str]:
    """Digests of parameters, optimizer, generators and the log at the end of a run."""
    last = sorted((Path(run) / "checkpoints").glob("step-*"))[-1]
    files = [Path(run) / "metrics.jsonl", *sorted(last.glob("*.safetensors"))]
    return {f"{last.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stop_at(monkeypatch, step: int) -> None:
    """Have the job receive Ctrl-C while it computes step `step`."""
    real = Engine._update

    def update(self, *arguments):
        if self.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, *arguments)

    monkeypatch.setattr(Engine, "_update", update)


def test_it_learns_and_says_so(config, data, features):
    result = train(config.replace(epochs=20), data=data, features=features, progress=False)
    found = result.runs[0].evaluations["test"]
    assert found.accuracy > 0.8
    assert sum(found.class_counts.values()) == found.count == len(data.indices("test"))
    curve = losses(config.out)
    assert curve[-1] < 0.6 * curve[0]
    assert RunFolder.open(config.out).facts()["state"] == "finished"
    assert list((Path(config.out) / "tensorboard").iterdir())


def test_the_same_seed_gives_the_same_bits_and_another_one_others(config, data, features, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config.replace(out=str(tmp_path / name), seed=seed), data=data, features=features, progress=False)
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert bits(tmp_path / "a") != bits(tmp_path / "c")


@pytest.mark.parametrize("step", [1, 4, 5, 9, 15])
def test_ctrl_c_then_resume_gives_the_bits_of_a_run_never_stopped(config, data, features, tmp_path, monkeypatch, step):
    given = {"data": data, "features": features, "progress": False}
    before = signal.getsignal(signal.SIGINT)
    train(config.replace(out=str(tmp_path / "whole")), **given)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Interrupted, match=f"Stopped at step {step} of 15. Resume with: mumoe train --resume"):
            train(config, **given)
    assert RunFolder.open(config.out).facts()["state"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before
    resume(config.out, **given)
    assert bits(config.out) == bits(tmp_path / "whole")
    assert RunFolder.open(config.out).facts()["state"] == "finished"


@pytest.mark.parametrize("workers", [0, 2])
def test_images_give_the_same_bits_with_any_workers_and_any_stop(config, tmp_path, monkeypatch, workers):
    """Augmentation draws from python, numpy and torch; dropout from torch's global generator."""
    data = make_data(60)
    config = config.replace(mode="finetune", epochs=2, batch_size=8, log_every=3, head="linear")
    train(config.replace(out=str(tmp_path / "whole")), data=data, backbone=tiny_backbone(), progress=False)
    config = config.replace(workers=workers)
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Interrupted):
            train(config, data=data, backbone=tiny_backbone(), progress=False)
    torch.manual_seed(99)
    resume(config.out, data=data, backbone=tiny_backbone(), progress=False)
    assert bits(config.out) == bits(tmp_path / "whole")


def test_termination_is_answered_like_ctrl_c(config, data, features, monkeypatch):
    real = Engine._log_losses
    monkeypatch.setattr(Engine, "_log_losses", lambda self: (os.kill(os.getpid(), signal.SIGTERM), real(self)))
    with pytest.raises(Interrupted, match="step 2"):
        train(config, data=data, features=features, progress=False)
    assert (Path(config.out) / "checkpoints" / "step-00000002").is_dir()


def test_a_damaged_newest_checkpoint_costs_only_its_steps(config, data, features, tmp_path, monkeypatch, caplog):
    config = config.replace(checkpoint_every=4, keep=3)
    given = {"data": data, "features": features, "progress": False}
    train(config.replace(out=str(tmp_path / "whole")), **given)
    stop_at(monkeypatch, 11)
    with pytest.raises(Interrupted):
        train(config, **given)
    monkeypatch.undo()
    newest = Path(config.out) / "checkpoints" / "step-00000011" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    resume(config.out, **given)
    assert "step-00000011" in caplog.text
    assert bits(config.out) == bits(tmp_path / "whole")


def test_accumulated_parts_equal_the_whole_batch(config, data, features, tmp_path):
    """With a gate that does not look at the batch; parts of unequal size included (72 = 15 + 15 + 14 ...)."""
    config = config.replace(norm="layer", clip=1.0)
    for parts in (1, 3):
        out = str(tmp_path / f"{parts}")
        train(config.replace(out=out, accumulate=parts), data=data, features=features, progress=False)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "3"), abs=1e-6)
    one, three = (StoredRun(tmp_path / name, device="cpu").head.state_dict() for name in ("1", "3"))
    for name, tensor in one.items():
        torch.testing.assert_close(three[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_batch_normalized_gate_sees_the_parts(config, data, features, tmp_path):
    for parts in (1, 4):
        out = str(tmp_path / f"{parts}")
        train(config.replace(out=out, accumulate=parts), data=data, features=features, progress=False)
    assert losses(tmp_path / "1") != pytest.approx(losses(tmp_path / "4"), abs=1e-4)


def test_features_are_standardized_by_the_training_split_in_the_saved_model(config, data, features):
    train(config, data=data, features=features, progress=False)
    head = StoredRun(config.out, device="cpu").head
    train_rows = features[data.indices("train")]
    np.testing.assert_allclose(head.mean.numpy(), train_rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(head.scale.numpy(), 1 / train_rows.std(0), rtol=1e-4)


def test_the_best_checkpoint_on_validation_is_the_result(config, data, features, monkeypatch):
    config = config.replace(select="best", epochs=6, keep=1)
    real, best = Engine.evaluate, {5: 0.2, 10: 0.9, 15: 0.5, 20: 0.9, 25: 0.1, 30: 0.3}

    def evaluate(self, split):
        from dataclasses import replace

        found = real(self, split)
        return replace(found, accuracy=best[self.step]) if split == "val" else found

    monkeypatch.setattr(Engine, "evaluate", evaluate)
    result = train(config, data=data, features=features, progress=False)
    assert result.runs[0].step == 10
    assert StoredRun(config.out, device="cpu").step == 10
    kept = sorted(path.name for path in (Path(config.out) / "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000030"]


def test_a_loss_that_is_no_number_stops_the_job(config, data, features):
    broken = features.copy()
    broken[data.indices("train")[3]] = np.inf
    with pytest.raises(JobError, match=r"expected a finite loss, got nan by step 2\. Lower `lr`"):
        train(config.replace(head="linear", zscore=False), data=data, features=broken, progress=False)
    assert RunFolder.open(config.out).facts()["state"] == "failed"


@pytest.mark.parametrize("head", ["linear", "highrank-linear-r3", "sparse-moe-e3-k2", "TRMuMoE-r4-e3"])
@pytest.mark.parametrize("position", ["final", "penultimate"])
def test_every_head_trains(config, data, features, head, position):
    precision = "fp32" if head.startswith("sparse") else "bf16"
    config = config.replace(head=head, position=position, precision=precision)
    result = train(config, data=data, features=features, progress=False)
    assert result.runs[0].evaluations["val"].count == len(data.indices("val"))


def test_attributes_train_with_binary_losses(config):
    data = make_data(200, multi_label=True)
    result = train(config.replace(epochs=15), data=data, features=make_features(data), progress=False)
    found = result.runs[0].evaluations["test"]
    assert found.accuracy > 0.8
    assert found.accuracy == pytest.approx(np.mean(list(found.per_class.values())))
    positives = data.labels[data.indices("test")].sum(0)
    assert list(found.class_counts.values()) == positives.tolist()


def test_losses_and_tallies_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    tally = Tally.empty(2, torch.device("cpu"))
    tally.add(logits, torch.tensor([0, 1, 1]))
    found = tally.result(("a", "b"), multi_label=False, run="", split="val", step=0)
    assert (found.accuracy, found.per_class, found.class_counts) == (2 / 3, {"a": 1.0, "b": 0.5}, {"a": 1, "b": 2})
    expected = np.log1p(np.exp(-2)) + np.log1p(np.exp(-1)) + np.log1p(np.exp(3))
    assert found.loss == pytest.approx(expected / 3, rel=1e-6)
    both = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    tally = Tally.empty(2, torch.device("cpu"))
    tally.add(logits, both)
    found = tally.result(("a", "b"), multi_label=True, run="", split="val", step=0)
    assert found.per_class == {"a": 1 / 3, "b": 1.0}
    assert found.accuracy == pytest.approx(2 / 3)
    smooth = sum_of_losses(torch.zeros(2, 4), torch.ones(2, 4), smoothing=0.3)
    assert smooth == pytest.approx(2 * np.log(2))


def test_a_split_without_a_class_has_no_accuracy_for_it():
    tally = Tally.empty(4, torch.device("cpu"))
    tally.add(torch.eye(4)[:2], torch.tensor([0, 1]))
    assert tally.result(CLASSES, multi_label=False, run="", split="val", step=0).per_class["dog"] is None


def test_evaluation_shows_how_far_it_is(config, data, features, monkeypatch, capsys):
    """A million rows take minutes."""
    train(config.replace(epochs=1), data=data, features=features, progress=False)
    assert "Evaluating" not in capsys.readouterr().err
    monkeypatch.setattr("mumoe.progress.INTERVAL", 0.0)
    monkeypatch.setattr("mumoe.training.evaluation.DELAY", 0.0)
    run = StoredRun(config.out, data=data, features=features, device="cpu")
    run.evaluate("train")
    rows = len(data.indices("train"))
    assert f"Evaluating on train: {rows} of {rows}, 0 s left" in capsys.readouterr().err.splitlines()
