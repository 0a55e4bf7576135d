"""Jobs over seeds and heads, locks, evaluation, and the words for what cannot be done."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from made_up_training import CLASSES, make_data, tiny_backbone

from mumoe.errors import JobError, UserError
from mumoe.results import TrainResult
from mumoe.training import Interrupted, StoredRun, TrainConfig, read_config, resume, train
from mumoe.training.compare import compare, spread
from mumoe.training.engine import Engine
from mumoe.training.networks import column_statistics, make_head, parameter_count, partner_spec
from mumoe.training.run import RunFolder, find_run
from soak.mounts import read_only

# Several seeds and heads


def test_seeds_and_partners_get_their_own_folders_and_a_paired_comparison(config, data, features):
    config = config.replace(seeds=2, seed=5, against=("linear", "highrank-linear"), epochs=1)
    result = train(config, data=data, features=features, progress=False)
    out = Path(config.out)
    heads = [config.head, "linear", "highrank-linear-r7"]
    assert [(run.seed, run.head) for run in result.runs] == [(seed, head) for seed in (5, 6) for head in heads]
    assert [run.path for run in find_run(out)] == [out / h / f"seed-{s}" for h in sorted(heads) for s in (5, 6)]
    ours, theirs = ([r.evaluations["test"].accuracy for r in result.runs if r.head == h] for h in heads[:2])
    assert result.comparisons[0].differences == tuple(a - b for a, b in zip(ours, theirs, strict=True))
    assert result.accuracy["linear"]["test"].mean == pytest.approx(np.mean(theirs))
    assert TrainResult.load(out / "summary.json") == result
    assert read_config(out / "config.toml") == config.replace(out="")


def test_one_seed_alone_is_the_folder_itself(config, data, features):
    train(config, data=data, features=features, progress=False)
    assert read_config(Path(config.out) / "config.toml") == config.replace(out="")
    facts = RunFolder.open(config.out).facts()
    assert facts["seed"] == 0
    assert facts["data"] == {"name": "made-up", "fingerprint": "f00d", "images": 120}
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert facts["commit"] is None or len(facts["commit"].partition("-")[0]) == 40


def test_a_job_stopped_between_seeds_goes_on_where_it_was(config, data, features, tmp_path, monkeypatch):
    config = config.replace(seeds=3)
    given = {"data": data, "features": features, "progress": False}
    whole = train(config.replace(out=str(tmp_path / "whole")), **given)
    real = Engine._update

    def update(self, *arguments):
        if self.config.seed == 1 and self.step == 7:
            self.stop.asked = True
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_update", update)
        with pytest.raises(Interrupted, match="seed-1"):
            train(config, **given)
    assert sorted(p.name for p in Path(config.out).glob("[!.]*")) == ["config.toml", "seed-0", "seed-1"]
    before = (Path(config.out) / "seed-0" / "run.json").read_bytes()
    result = resume(config.out, **given)
    assert result.accuracy == whole.accuracy
    assert (Path(config.out) / "seed-0" / "run.json").read_bytes() == before


def test_each_seed_may_have_its_own_split(config, data, features, monkeypatch):
    from dataclasses import replace

    import mumoe.training.tasks as tasks

    def load_images(config, progress=True):
        rng = np.random.default_rng(config.seed)
        return replace(data, split=rng.permutation(data.split), fingerprint=f"{config.seed}")

    monkeypatch.setattr(tasks, "load_images", load_images)
    train(config.replace(seeds=2, vary_split=True), features=features, progress=False)
    prints = [run.facts()["data"]["fingerprint"] for run in find_run(config.out)]
    assert prints == ["0", "1"]
    first, second = (StoredRun(run.path, device="cpu").head for run in find_run(config.out))
    assert first.mean[0] != second.mean[0]


def test_a_finished_run_is_only_read(config, data, features):
    first = train(config, data=data, features=features, progress=False)
    stamp = (Path(config.out) / "run.json").stat().st_mtime_ns
    assert resume(config.out, data=data, features=features, progress=False) == first
    assert (Path(config.out) / "run.json").stat().st_mtime_ns == stamp


def test_partners_have_the_heads_parameters():
    config = TrainConfig(head="CPMuMoE-r32-e16")
    budget = parameter_count(make_head(config, 128, 20))
    for partner in ("highrank-linear", "TRMuMoE", "TuckerMuMoE"):
        spec = partner_spec(config, partner, 128, 20)
        assert parameter_count(make_head(config.replace(head=spec), 128, 20)) == pytest.approx(budget, rel=0.1)
    assert partner_spec(config, "linear", 128, 20) == "linear"
    assert partner_spec(config, "highrank-linear-r9", 128, 20) == "highrank-linear-r9"


# Numbers


def test_a_comparison_by_hand():
    found = compare("a", "b", "test", [0.5, 0.7, 0.6], [0.4, 0.5, 0.6])
    assert found.differences == pytest.approx((0.1, 0.2, 0.0))
    assert (found.mean, found.sd) == pytest.approx((0.1, 0.1))
    low, high = scipy.stats.ttest_rel([0.5, 0.7, 0.6], [0.4, 0.5, 0.6]).confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high))
    assert compare("a", "b", "test", [0.5], [0.4]).interval is None
    assert spread([2.0]).sd is None


def test_column_statistics_are_numpys():
    x = np.random.default_rng(0).normal(1000, 1, (9000, 3)).astype(np.float32)
    rows = np.arange(0, 9000, 2)
    mean, std = column_statistics(x, rows)
    np.testing.assert_allclose(mean, x[rows].astype(float).mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, x[rows].astype(float).std(0), rtol=1e-5)


# Evaluation and loading


def test_evaluate_repeats_what_training_said(config, data, features):
    result = train(config, data=data, features=features, progress=False)
    for split in ("val", "test"):
        assert StoredRun(config.out, data=data, features=features).evaluate(split) == result.runs[0].evaluations[split]
    opened = StoredRun(config.out, data=data, features=features)
    assert opened.evaluate("train").count == 72
    with pytest.raises(UserError, match="Did you mean 'test'"):
        opened.evaluate("tests")


def test_a_fine_tuned_run_loads_backbone_and_head(config):
    config = config.replace(mode="finetune", epochs=1, head="linear")
    data, backbone = make_data(60), tiny_backbone()
    result = train(config, data=data, backbone=backbone, progress=False)
    other = tiny_backbone()
    torch.nn.init.zeros_(other.conv.weight)
    opened = StoredRun(config.out, backbone=other, device="cpu")
    assert opened.config.mode == "finetune"
    assert opened.classes == CLASSES
    rows = data.indices("test")
    images = torch.stack([other.transform(train=False)(data.open_image(i)) for i in rows])
    with torch.no_grad():
        accuracy = (opened.model(images).argmax(1).numpy() == data.labels[rows]).mean()
    assert accuracy == pytest.approx(result.runs[0].evaluations["test"].accuracy)


def test_a_head_on_other_backbone_weights_is_refused(config, data, features):
    train(config, data=data, features=features, backbone=tiny_backbone(), progress=False)
    other = tiny_backbone()
    other.fingerprint = "another"
    assert StoredRun(config.out, backbone=tiny_backbone(), device="cpu").model.training is False
    with pytest.raises(UserError, match="expected the backbone weights that the head was trained on"):
        _ = StoredRun(config.out, backbone=other, device="cpu").model


# What cannot be done


def test_other_images_than_the_run_was_started_with_are_refused(config, data, features):
    train(config, data=data, features=features, progress=False)
    changed = make_data(fingerprint="beef")
    with pytest.raises(UserError, match="expected the data that it was trained on"):
        StoredRun(config.out, data=changed, features=features).evaluate()


def test_a_second_job_in_a_run_is_refused_and_the_first_goes_on(config, data, features, monkeypatch):
    """Another process tries while the first one trains."""
    code = (
        "import sys\nfrom mumoe.errors import JobError\nfrom mumoe.training.run import RunFolder\n"
        "try:\n    RunFolder.open(sys.argv[1]).acquire()\n"
        "except JobError as error:\n    print(error)\n"
    )
    said, real = [], Engine._update

    def update(self, *arguments):
        if self.step == 3:
            command = [sys.executable, "-c", code, config.out]
            said.append(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)
            with pytest.raises(JobError, match="expected no other job"):
                RunFolder.open(config.out).acquire()
        real(self, *arguments)

    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    monkeypatch.setattr(Engine, "_update", update)
    train(config, data=data, features=features, progress=False)
    assert f"got process {os.getpid()} on" in said[0]
    assert said[0].count("\n") == 1
    with RunFolder.open(config.out):
        pass


@pytest.mark.parametrize("seeds", [1, 2])
def test_two_jobs_that_start_at_once_in_one_folder_are_not_mixed(config, data, features, seeds):
    """The second one begins and ends while the first reads its data."""
    config = config.replace(seeds=seeds, epochs=1)
    given = {"data": data, "features": features, "progress": False}
    second = config.replace(lr=0.5)
    with pytest.raises(UserError, match="expected a new folder, got .* which holds a run"):
        train(config, **given, announce=lambda line: train(second, **given) and None)
    assert read_config(Path(config.out) / "config.toml").lr == 0.5
    for run in find_run(config.out):
        assert run.config().lr == 0.5
        assert run.facts()["state"] == "finished"


def test_a_job_of_several_seeds_holds_its_folder(config, data, features, monkeypatch):
    said, real = [], Engine._update

    def update(self, *arguments):
        if not said:
            with pytest.raises(JobError) as error:
                resume(config.out, data=data, features=features, progress=False)
            said.append(str(error.value))
        real(self, *arguments)

    monkeypatch.setattr(Engine, "_update", update)
    train(config.replace(seeds=2, epochs=1), data=data, features=features, progress=False)
    assert said[0].startswith(f"{config.out}: expected no other job in this run, got process {os.getpid()}")


def test_a_job_stopped_before_its_first_run_says_how_to_continue(config, data, features, monkeypatch):
    given = {"data": data, "features": features, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write_facts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, **given)
    with pytest.raises(UserError, match=r"stopped before its first run\. Continue with: mumoe train --resume "):
        StoredRun(config.out)
    assert resume(config.out, **given).runs[0].step == 15


def test_resuming_in_a_folder_that_cannot_be_written_is_one_line(config, data, features):
    train(config, data=data, features=features, progress=False)
    before = sorted(Path(config.out).rglob("*"))
    with read_only(Path(config.out)), pytest.raises(JobError) as error:
        resume(config.out, data=data, features=features, progress=False)
    assert str(error.value).startswith(f"run: expected a folder that can be written, got '{config.out}' (")
    assert sorted(Path(config.out).rglob("*")) == before


def test_the_lock_of_a_dead_process_is_taken_over(config, data, features):
    train(config, data=data, features=features, progress=False)
    pid = os.fork()
    if pid == 0:
        RunFolder.open(config.out).acquire()
        os._exit(0)
    os.waitpid(pid, 0)
    with RunFolder.open(config.out):
        pass


def test_a_folder_that_holds_something_is_refused(config, data, features, tmp_path):
    train(config, data=data, features=features, progress=False)
    with pytest.raises(UserError, match=r"which holds a run. Resume it with mumoe train --resume"):
        train(config, data=data, features=features, progress=False)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="which holds other files"):
        train(config.replace(out=str(tmp_path)), data=data, features=features, progress=False)
    with pytest.raises(UserError, match="expected a folder, got the file"):
        train(config.replace(out=str(tmp_path / "file")), data=data, features=features, progress=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head": "CPMuMo-r4-e3"}, "got 'CPMuMo'. Did you mean 'CPMuMoE'?"),
        ({"head": "CPMuMoE-r0-e3"}, "rank"),
        ({"against": ("lineal",)}, "lineal"),
        ({"gate": "entmax16"}, "Did you mean 'entmax15'"),
        ({"norm": "bach"}, "Did you mean 'batch'"),
        ({"epochs": 0}, "epochs >= 1"),
        ({"precision": "fp16"}, "got: device 'cpu'. Use bf16 or fp32 as `precision`."),
        ({"precision": "fp16", "shard": True}, "expected bf16 or fp32 with shard"),
        ({"accumulate": 20}, "at least 40 images in a batch"),
    ],
)
def test_a_wrong_setting_writes_nothing(config, data, features, change, said):
    with pytest.raises(UserError) as error:
        train(config.replace(**change), data=data, features=features, progress=False)
    assert said in str(error.value)
    assert not Path(config.out).exists()


def test_features_of_another_set_are_refused(config, data, features):
    with pytest.raises(UserError, match=r"expected \(120, num_features\), one row per image"):
        train(config, data=data, features=features[:-1], progress=False)


def test_a_wrong_run_is_told(config, tmp_path, data, features):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"which has no run.json"):
        resume(tmp_path / "run")
    with pytest.raises(UserError, match=r"Did you mean '.*/run'"):
        StoredRun(tmp_path / "rum")
    with pytest.raises(UserError, match=r"which has no run.json"):
        find_run(tmp_path / "run")


def test_a_run_without_checkpoint_says_how_to_go_on(config, data, features, monkeypatch):
    monkeypatch.setattr(Engine, "_update", lambda *_: (_ for _ in ()).throw(JobError("stop")))
    with pytest.raises(JobError, match="stop"):
        train(config, data=data, features=features, progress=False)
    with pytest.raises(JobError, match="expected a checkpoint, got none yet"):
        _ = StoredRun(config.out, device="cpu").head
    monkeypatch.undo()
    resume(config.out, data=data, features=features, progress=False)
    assert StoredRun(config.out, device="cpu").step == 15


def test_a_damaged_run_json_is_told(config, data, features):
    train(config, data=data, features=features, progress=False)
    path = Path(config.out) / "run.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(JobError, match=r"run.json is not JSON"):
        _ = StoredRun(config.out, device="cpu").head


def test_a_disk_that_fills_up_while_training_keeps_what_was_saved(config, data, features, monkeypatch):
    import errno

    import mumoe.training.checkpoint as checkpoint

    real = checkpoint.write_tensors

    def full(path, tensors, **how):
        if "step-00000012" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, tensors, **how)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    config = config.replace(checkpoint_every=3, keep=2)
    with pytest.raises(JobError, match=r"the disk is full. Free some space. Earlier checkpoints are untouched"):
        train(config, data=data, features=features, progress=False)
    assert RunFolder.open(config.out).facts()["state"] == "failed"
    assert StoredRun(config.out, device="cpu").step == 9
    monkeypatch.undo()
    assert resume(config.out, data=data, features=features, progress=False).runs[0].step == 15


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_opened_ends_the_job_in_one_line(config, workers):
    data = make_data(60)
    broken = dataclasses.replace(data, open_image=broken_image)
    config = config.replace(mode="finetune", workers=workers, head="linear")
    with pytest.raises(JobError, match=r"^made-up: expected to open and transform 'image-5', got gone\. Repair"):
        train(config, data=broken, backbone=tiny_backbone(), progress=False)


def broken_image(index):
    if index == 5:
        raise OSError("gone")
    return make_data(60).open_image(index)


def test_every_seed_starts_from_the_same_backbone(config, tmp_path):
    data, backbone = make_data(60), tiny_backbone()
    config = config.replace(mode="finetune", epochs=1, head="linear")
    train(config.replace(seeds=2), data=data, backbone=backbone, progress=False)
    assert torch.equal(backbone.conv.weight, tiny_backbone().conv.weight)
    train(config.replace(seed=1, out=str(tmp_path / "alone")), data=data, backbone=tiny_backbone(), progress=False)
    both, alone = (tmp_path / name / "metrics.jsonl" for name in ("run/seed-1", "alone"))
    assert both.read_bytes() == alone.read_bytes()
