"""A run with edits is a run: the edits are in its head, and nothing of the original is changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import mumoe
from commands.test_editing import trained
from mumoe.errors import UserError
from mumoe.training import TrainConfig, train

IMAGES = Path(__file__).parent.parent / "fixtures" / "runs" / "images"


def test_a_run_on_features_with_edits(tmp_path):
    run = mumoe.load(trained(tmp_path), device="cpu", progress=False)
    edit = run.rewrite("blond", "male", 1, strength=6, resamples=0)
    edit.save(tmp_path / "blond.json")
    before, weights = run.evaluate("test"), {n: t.clone() for n, t in run.head.state_dict().items()}
    edited = run.with_edits(edit)
    assert edited.config.head == "CPMuMoE-r9-e8"
    assert edited.facts["edits"] == edit.stack.describe()
    opened = run.editing()
    rows = opened.data.indices("test")
    with edit.stack:
        guess = opened.answers(rows)
    right = guess == opened.data.labels[rows]
    assert edited.evaluate("test").accuracy == pytest.approx(right.mean(), abs=1e-9)
    fair = edited.fairness("blond", "male", value=1, resamples=0)
    assert fair.models["model"].subgroups == tuple(
        type(group)(group.subgroup, group.count, group.accuracy) for group in edit.report.models["after"].subgroups
    )
    x = torch.from_numpy(opened.features[:20].copy())
    for edits in (edit.stack, tmp_path / "blond.json", str(tmp_path / "blond.json")):
        assert torch.equal(run.with_edits(edits).head(x), edited.head(x))
    edited.export(tmp_path / "head.onnx")
    study = edited.analyze(images=0, resamples=0)
    assert Path(study.folder) == run.path / "edited" / "rewrite-1" / "analysis"
    assert not (run.path / "analysis").exists()
    assert run.evaluate("test") == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.head.state_dict().items())
    for pages in (edited.dashboard, lambda: edited.report(tmp_path / "report")):
        with pytest.raises(UserError, match="expected a run as it was trained, got one with edits"):
            pages()
    again = mumoe.load(run.path, device="cpu", progress=False)
    assert torch.equal(again.with_edits(edit).head(x), edited.head(x))


@pytest.mark.parametrize("mode", ["features", "finetune"])
def test_a_run_on_images_with_edits_predicts_saves_and_loads(tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(IMAGES, tmp_path / "images")
    config = TrainConfig(data="folder:images", backbone="test_efficientnet", pretrained=False, image_size=32)
    config = config.replace(head="CPMuMoE-r4-e3", epochs=2, batch_size=16, out="run", device="cpu", cache_dir="cache")
    train(config.replace(mode=mode), progress=False)
    run = mumoe.load("run", device="cpu", progress=False)
    edit = run.edit(mumoe.Ablate(0), mumoe.SetOutput((1,), 0, 3.0))
    edited = run.with_edits(edit)
    assert edited.evaluate("val").accuracy == pytest.approx(edit.report.accuracy[1])
    (old,), (new,) = run.predict(["images/ant/0.png"]), edited.predict(["images/ant/0.png"])
    assert old.likeliest.logit != new.likeliest.logit
    edited.save("saved")
    model, transform = mumoe.load("saved", device="cpu")
    assert model.about["edits"] == edit.stack.describe()
    from PIL import Image

    with Image.open("images/ant/0.png") as image:
        logits = model(transform(image.convert("RGB"))[None])
    assert logits.max().item() == pytest.approx(new.likeliest.logit, abs=1e-5)
    pushed = []
    monkeypatch.setattr(
        mumoe.ImageClassifier, "push_to_hub", lambda self, name: pushed.append((name, self.spec)) or "at"
    )
    assert edited.push_to_hub("me/blond") == "at"
    assert pushed == [("me/blond", edited.config.head)]


def test_edits_of_another_model_and_runs_without_experts_are_refused(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    run = mumoe.load(trained(tmp_path / "a"), device="cpu", progress=False)
    other = mumoe.load(trained(tmp_path / "b", head="CPMuMoE-r4-e8"), device="cpu", progress=False)
    edit = other.edit("ablate:1")
    with pytest.raises(UserError, match="expected edits of this model"):
        run.with_edits(edit)
    with edit.stack, pytest.raises(UserError, match="expected edits that are not applied"):
        other.with_edits(edit)
    plain = mumoe.load(trained(tmp_path / "c", head="linear"), device="cpu", progress=False)
    with pytest.raises(UserError, match="expected a head with experts, got 'linear'"):
        plain.with_edits(edit)
