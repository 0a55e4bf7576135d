"""The modes of training: one contract for all of them, and the settings that a data set decides."""

from __future__ import annotations

import pytest
import torch
from made_up_training import make_data, make_features, make_text, tiny_backbone

from mumoe.data.text import TOKEN_CLASSES
from mumoe.errors import UserError
from mumoe.training import TrainConfig, train
from mumoe.training.config import from_mapping
from mumoe.training.inputs import Inputs
from mumoe.training.tasks import TASKS, load_inputs, settled, task_of

SIZES = {
    "scratch": ("depth=1", "width=8", "token_hidden=16", "channel_hidden=32", "patch_size=4"),
    "text": ("depth=1", "heads=2", "width=16", "context=16"),
}


@pytest.fixture(params=TASKS)
def config(request, tmp_path) -> TrainConfig:
    """Small settings of each mode."""
    mode = request.param
    whole = mode in SIZES
    return from_mapping(
        {
            "mode": mode,
            "data": f"tokens:{make_text(tmp_path)}" if mode == "text" else "made-up",
            "backbone": {"scratch": "mixer-s16", "text": "gpt2"}.get(mode, "none"),
            "network_options": SIZES.get(mode, ()),
            "image_size": 16 if mode == "scratch" else 0,
            "head": "CPMuMoE-e4" if whole else "CPMuMoE-r4-e3",
            "norm": "layer" if mode == "text" else "batch",
        }
    )


def found(config: TrainConfig) -> Inputs:
    """The inputs of a config, with objects where its names refer to nothing."""
    data = None if config.mode == "text" else make_data()
    features = make_features(data) if config.mode == "features" else None
    backbone = tiny_backbone() if config.mode == "finetune" else None
    return load_inputs(config, data=data, backbone=backbone, features=features, progress=False)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_batches_fit_the_network(config):
    task, inputs = task_of(config), found(config)
    rows = inputs.data.indices("train")[:4]
    ((x, y),) = task.source(inputs, "cpu").stream([rows], 0)
    logits, balance = task.network(inputs).eval()(x)
    assert balance.ndim == 0
    if config.mode == "text":
        assert logits.shape == (4, 16, 256)
        assert y.shape == (4, 16)
        assert inputs.data.classes == TOKEN_CLASSES
    else:
        assert logits.shape == (4, 4)
        assert y.tolist() == inputs.data.labels[rows].tolist()


def test_initial_weights_are_a_function_of_the_seed(config):
    inputs = found(config)
    torch.manual_seed(5)
    first = weights(task_of(config).network(inputs))
    torch.manual_seed(6)
    assert torch.equal(first, weights(task_of(config).network(inputs)))
    assert not torch.equal(first, weights(task_of(config.replace(seed=1)).network(inputs)))


def test_a_checkpoint_fits_the_empty_network(config):
    """What opening a run relies on: its facts are enough to build it."""
    task, inputs = task_of(config), found(config)
    trained, facts = task.network(inputs), inputs.facts
    backbone = tiny_backbone() if task.trains_backbone else None
    empty = task.empty(facts["num_features"], len(facts["classes"]), facts.get("vocabulary", 0), backbone)
    sizes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    assert sizes == {name: tensor.shape for name, tensor in trained.state_dict().items()}


def test_images_are_refused_where_text_is_wanted_and_text_where_images_are(tmp_path):
    text = TrainConfig(mode="text", data=f"tokens:{make_text(tmp_path)}", network_options=SIZES["text"])
    scratch = TrainConfig(mode="scratch", data="made-up")
    with pytest.raises(UserError, match="expected text in mode text, got made-up"):
        task_of(text).find(make_data(), None, None, False)
    with pytest.raises(UserError, match="expected images in mode scratch, got tokens:"):
        task_of(scratch).find(task_of(text).load_data(), None, None, False)


def test_emoji_are_read_as_in_the_demo_unless_told_otherwise():
    found = settled(TrainConfig(data="emoji"))
    assert found.data_options == ("split_by=image", "size=96")
    assert found.image_size == 96
    assert settled(found) == found
    told = TrainConfig(data="emoji", image_size=224, data_options=("split_by=character",))
    assert settled(told) == told.replace(data_options=("split_by=character", "size=96"))
    assert settled(TrainConfig(data="emoji", data_options=("size=48",))).image_size == 48
    assert settled(TrainConfig(data="emoji", backbone="dino-s16")).image_size == 0
    assert settled(TrainConfig(data="emoji", data_options=("held_out=noto",))).data_options == (
        "held_out=noto",
        "size=96",
    )
    other = TrainConfig(data="folder:pets")
    assert settled(other) == other


def test_train_records_them(monkeypatch, tmp_path):
    """What the job is given, without the minutes that the job takes."""
    from mumoe.training import jobs

    seen = []
    monkeypatch.setattr(jobs, "_run_job", lambda config, *_, **__: seen.append(config))
    train(TrainConfig(data="emoji", out=str(tmp_path / "run")), progress=False)
    train(TrainConfig(data="emoji", out=str(tmp_path / "run")), data=make_data(), progress=False)
    assert [(config.image_size, config.data_options) for config in seen] == [
        (96, ("split_by=image", "size=96")),
        (0, ()),
    ]
