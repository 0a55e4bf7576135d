"""Whole networks in the loop: Mixers from scratch and language models, the same bits wherever they were stopped."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_up_training import make_data, make_text
from test_engine import bits, losses, rows, stop_at

from mumoe.data.text import TOKEN_CLASSES, open_text
from mumoe.errors import UserError
from mumoe.models.mixer import MixerShape, create_mixer
from mumoe.training import Interrupted, StoredRun, TrainConfig, resume, train
from mumoe.training.evaluation import Tally, sum_of_losses
from mumoe.training.mixing import mix, share_of
from mumoe.training.optimizer import decayed, make_optimizer
from mumoe.training.run import RunFolder
from mumoe.training.schedule import learning_rate
from mumoe.training.sources import TextSource


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return make_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def language(text, tmp_path) -> TrainConfig:
    """A language model of one block; 2 epochs of 11 steps or so."""
    return TrainConfig(
        mode="text",
        data=f"tokens:{text}",
        backbone="gpt2",
        network_options=("depth=1", "heads=2", "width=16", "context=16", "dropout=0.1"),
        head="CPMuMoE-e4",
        norm="layer",
        epochs=2,
        batch_size=48,
        log_every=2,
        lr=0.01,
        schedule="cosine",
        lr_end=0.001,
        decay="matrices",
        out=str(tmp_path / "run"),
    )


@pytest.fixture
def scratch(tmp_path) -> TrainConfig:
    """A Mixer of one layer; 2 epochs of 5 steps."""
    return TrainConfig(
        mode="scratch",
        data="made-up",
        backbone="mixer-s16",
        image_size=16,
        network_options=("depth=1", "width=8", "token_hidden=16", "channel_hidden=32", "patch_size=4", "dropout=0.1"),
        head="CPMuMoE-e4",
        epochs=2,
        batch_size=8,
        log_every=2,
        lr=0.01,
        mixup=0.5,
        augment="rand-n2-m10",
        decay="mumoe",
        out=str(tmp_path / "run"),
    )


def test_a_language_model_learns_and_says_so(language, text):
    result = train(language.replace(steps=30, against=("mlp", "TRMuMoE")), progress=False)
    assert [run.head for run in result.runs] == ["CPMuMoE-e4", "mlp", "TRMuMoE-e4"]
    sizes = [run.parameters for run in result.runs]
    assert max(sizes) < 1.03 * min(sizes)
    for run in result.runs:
        curve = losses(run.run)
        assert curve[-1] < 0.7 * curve[0]
        test = run.evaluations["test"]
        data = open_text(text, context=16)
        assert test.count == len(data.indices("test"))
        per_byte = len(data.tokens["test"]) / data.text_bytes["test"]  # the end of a document counts too
        assert test.bits_per_byte == pytest.approx(test.loss / math.log(2) * per_byte)
        assert sum(test.class_counts.values()) == test.count * 16
        assert set(test.per_class) == set(TOKEN_CLASSES)


@pytest.mark.parametrize("step", [3, 14])
def test_text_stopped_mid_epoch_goes_on_to_the_bits_of_a_run_never_stopped(language, tmp_path, monkeypatch, step):
    """Dropout draws from the global generators; the second epoch's windows are shifted."""
    train(language.replace(out=str(tmp_path / "whole")), progress=False)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Interrupted, match=f"Stopped at step {step} "):
            train(language, progress=False)
    torch.manual_seed(99)
    resume(language.out, progress=False)
    assert bits(language.out) == bits(tmp_path / "whole")


def test_a_mixer_stopped_mid_epoch_goes_on_to_the_bits_of_a_run_never_stopped(scratch, tmp_path, monkeypatch):
    data = make_data(60)
    train(scratch.replace(out=str(tmp_path / "whole")), data=data, progress=False)
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Interrupted):
            train(scratch, data=data, progress=False)
    resume(scratch.out, data=data, progress=False)
    assert bits(scratch.out) == bits(tmp_path / "whole")


def test_what_was_trained_is_loaded_and_evaluated_again(language, scratch, tmp_path):
    trained = train(language, progress=False).runs[0].evaluations["test"]
    opened = StoredRun(language.out, device="cpu")
    model = opened.model
    again = StoredRun(language.out, progress=False).evaluate("test")
    assert (again.loss, again.bits_per_byte) == (trained.loss, trained.bits_per_byte)
    data = open_text(Path(language.data.removeprefix("tokens:")), context=16)
    windows = torch.from_numpy(np.stack([data.window(row) for row in data.indices("test")]))
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits
    by_hand = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert float(by_hand) == pytest.approx(trained.loss, abs=1e-5)
    assert opened.facts["vocabulary"] == 256
    images = make_data(60)
    train(scratch.replace(out=str(tmp_path / "mixer")), data=images, progress=False)
    mixer = StoredRun(tmp_path / "mixer", device="cpu").model
    assert mixer(torch.randn(2, 3, 16, 16)).shape == (2, 4)
    with pytest.raises(UserError, match="expected a run that trained a head, got one of mode text"):
        _ = StoredRun(language.out, device="cpu").head


def test_steps_instead_of_epochs(language):
    train(language.replace(steps=5, eval_steps=2, epochs=1000), progress=False)
    found = rows(language.out)
    assert [row["step"] for row in found if "val_loss" in row] == [2, 4, 5]
    assert [row["step"] for row in found if "loss" in row] == [2, 4, 5]
    assert learning_rate(language, 10**6, 5) == pytest.approx(0.001)


def test_windows_of_an_epoch_are_shifted_by_a_function_of_seed_and_epoch(text):
    data = open_text(text, context=16)
    row = data.indices("train")[2:3]

    def window(seed: int, epoch: int | None) -> list[int]:
        return next(iter(TextSource(data, seed=seed).stream([row], epoch)))[0][0].tolist()

    tokens = data.tokens["train"].tolist()
    assert window(0, None) == tokens[32:48]
    shifts = [next(s for s in range(16) if tokens[32 + s : 48 + s] == window(0, epoch)) for epoch in range(8)]
    assert len(set(shifts)) > 3
    assert window(0, 3) == window(0, 3)
    inputs, labels = next(iter(TextSource(data, seed=0).stream([row], 1)))
    assert torch.equal(inputs[:, 1:], labels[:, :-1])


def test_losses_and_tallies_of_text_by_hand():
    """Two windows of two tokens: the loss is the sum over windows of the mean over tokens."""
    logits = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 4], [0, 2]])
    nats = -logits.log_softmax(-1).gather(2, labels[..., None])[..., 0]
    assert float(sum_of_losses(logits, labels)) == pytest.approx(float(nats.mean(1).sum()))
    kinds = torch.tensor([0, 1, 1, 0, 1])
    tally = Tally.empty(2, torch.device("cpu"), kinds)
    tally.add(logits, labels)
    right = (logits.argmax(-1) == labels).flatten()
    assert tally.images.tolist() == [1, 3]
    assert tally.right.tolist() == [int(right[[2]].sum()), int(right[[0, 1, 3]].sum())]


def test_mixup_by_hand():
    x, labels = torch.tensor([[1.0], [3.0], [10.0]]), torch.tensor([0, 1, 2])
    mixed, others = mix(x, labels, 0.75)
    assert mixed.tolist() == [[1.5], [2.5], [10.0]]
    assert others.tolist() == [1, 0, 2]
    halves = [mix(x[part], labels[part], 0.75)[0] for part in (slice(0, 2), slice(2, 3))]
    assert torch.equal(torch.cat(halves), mixed)  # even shares of a batch are mixed as the whole is
    shares = [share_of(0.5, 0, step) for step in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(0.125, abs=0.01)  # of Beta(1/2, 1/2)
    assert shares[7] == share_of(0.5, 0, 7) != share_of(0.5, 1, 7)


def test_mixup_is_in_the_loss(scratch, tmp_path):
    """One step of accumulated parts has the loss of the whole batch, and another one than without Mixup."""
    data = make_data(60)
    config = scratch.replace(augment="", network_options=(*scratch.network_options[:-1],), epochs=1, norm="layer")
    found = {}
    for name, changes in {"one": {}, "two": {"accumulate": 2}, "none": {"mixup": 0.0}}.items():
        train(config.replace(out=str(tmp_path / name), log_every=1, **changes), data=data, progress=False)
        found[name] = losses(tmp_path / name)
    assert found["one"] == pytest.approx(found["two"], abs=1e-5)
    assert found["one"] != pytest.approx(found["none"], abs=1e-3)


def test_what_decays():
    """The paper's rule: no biases, no norms, no expert and output factors."""
    model = create_mixer("CPMuMoE-e4", num_classes=3, shape=MixerShape(16, 4, 1, 8, 16, 32))
    found = decayed(model, "mumoe")
    block = ["blocks.0.mlp_tokens", "blocks.0.mlp_channels"]
    inner = [f"{name}.{part}" for name in block for part in ("fc1.in_factor", "fc2.in_factor", "gate.routers.0.weight")]
    assert found == {"stem.proj.weight", "head.weight", *inner}
    factors = {f"{b}.fc{k}.{f}" for b in block for k in (1, 2) for f in ("out_factor", "expert_factor_0")}
    assert decayed(model, "matrices") == found | factors
    assert decayed(model, "all") == {name for name, _ in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(decay="mumoe", weight_decay=0.1))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_schedules_end_where_they_should():
    config = TrainConfig(lr=1.0, lr_end=0.1, schedule="linear", warmup_steps=2)
    assert [learning_rate(config, step, 6) for step in range(6)] == pytest.approx([0.5, 1, 1, 0.775, 0.55, 0.325])
    cosine = config.replace(schedule="cosine")
    assert learning_rate(cosine, 4, 6) == pytest.approx(0.55)
    assert learning_rate(cosine, 6, 6) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm": "batch"}, "gpt2: expected a gate norm over each position alone .* got 'batch'"),
        ({"backbone": "gtp2"}, "expected a network in mode text out of gpt2, .* got 'gtp2'. Did you mean 'gpt2'?"),
        ({"network_options": ("depht=1",)}, "got 'depht'. Did you mean 'depth'?"),
        ({"network_options": ("depth=x",)}, "expected network option depth like 12, got 'x'"),
        ({"network_options": ("vocabulary=9",)}, "expected a network option out of .* got 'vocabulary'"),
        ({"head": "mpl"}, "block: expected a text like .* Or use 'mlp'"),
        ({"mixup": 0.5}, "expected mixup on images .* got mode 'text'"),
        ({"data": "emoji"}, "expected a text out of stdlib, tokens:FOLDER, got 'emoji'"),
        ({"mode": "scratch", "backbone": "mixer-s16", "network_options": (), "data": "tokens:x"}, "tokens"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(language, changes, words):
    with pytest.raises(UserError, match=words):
        train(language.replace(**changes), progress=False)
    assert not Path(language.out).exists()


def test_an_unknown_augmentation(scratch):
    with pytest.raises(UserError, match="expected augment as timm writes it, such as rand-n2-m10, got 'rond-m9'"):
        train(scratch.replace(augment="rond-m9"), data=make_data(60), progress=False)


def test_images_in_mode_text(language):
    with pytest.raises(UserError, match="expected text in mode text, got made-up"):
        train(language, data=make_data(60), progress=False)


def test_facts_of_a_run(language):
    train(language.replace(epochs=1), progress=False)
    facts = RunFolder.open(language.out).facts()
    assert facts["state"] == "finished"
    assert facts["classes"] == list(TOKEN_CLASSES)
    assert facts["data"]["fingerprint"]
