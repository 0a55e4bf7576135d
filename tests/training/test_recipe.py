"""What a preset sets: dropout, decay by group, the term for specialization, and settings of heads without experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_up_training import make_data, make_features
from test_engine import bits, stop_at

import mumoe
from mumoe import functional
from mumoe.errors import UserError
from mumoe.models.heads import Head, build_head
from mumoe.training import PRESETS, Interrupted, StoredRun, TrainConfig, read_config, resume, train
from mumoe.training.config import from_mapping
from mumoe.training.optimizer import decayed, make_optimizer


def recipe(config: TrainConfig, **changes: object) -> TrainConfig:
    """The small job with the options of the preset `accurate`."""
    kept = ("weight_decay", "decay", "init", "dropout", "gate_dropout", "gate_scale", "specialize")
    return config.replace(**{name: PRESETS["accurate"][name] for name in kept}, **changes)


def test_the_preset_follows_the_mode_and_what_is_given_wins() -> None:
    assert from_mapping({}) == TrainConfig(**PRESETS["accurate"])
    given = {"preset": "specialized", "gate_dropout": 0.1}
    assert from_mapping(given) == TrainConfig(**{**PRESETS["specialized"], "gate_dropout": 0.1})
    assert from_mapping({"mode": "finetune"}) == TrainConfig(**PRESETS["finetune"])
    assert from_mapping({"mode": "text"}) == TrainConfig(mode="text")
    assert from_mapping({"preset": "plain"}) == TrainConfig()
    with pytest.raises(UserError, match=r"expected `preset` out of .* got 'acurate'. Did you mean 'accurate'"):
        from_mapping({"preset": "acurate"})


def test_a_rate_that_is_given_holds_for_heads_without_experts_too() -> None:
    assert from_mapping({"lr": 0.5}).of_head("linear").lr == 0.5
    assert from_mapping({"lr": 0.5, "linear_lr": 0.25}).of_head("linear").lr == 0.25
    found = from_mapping({"dropout": 0.1, "weight_decay": 0.2}).of_head("linear")
    assert (found.dropout, found.weight_decay, found.lr) == (0.1, 0.2, PRESETS["accurate"]["linear_lr"])
    assert found.of_head("linear") == found


def test_a_file_may_name_a_preset(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('preset = "specialized"\nepochs = 3\n')
    assert read_config(tmp_path / "c.toml") == TrainConfig(**{**PRESETS["specialized"], "epochs": 3})


def test_a_run_of_before_these_settings_is_read_as_it_was_trained(config, data, features) -> None:
    train(config, data=data, features=features, progress=False)
    file = Path(config.out) / "config.toml"
    later = ("gate_scale", "init", "zscore_floor", "dropout", "gate_dropout", "specialize", "linear_")
    lines = [line for line in file.read_text().splitlines() if not line.startswith(later)]
    file.write_text("\n".join(lines))
    assert StoredRun(config.out).config.replace(device="cpu", out="") == config.replace(device="cpu", out="")


def test_heads_without_experts_have_settings_of_their_own(config, data, features) -> None:
    job = config.replace(against=("linear", "highrank-linear-r2"), linear_lr=0.5, linear_dropout=0.25, dropout=0.1)
    train(job, data=data, features=features, progress=False)
    found = {path.name: StoredRun(path / "seed-0" if (path / "seed-0").is_dir() else path).config
             for path in Path(config.out).iterdir() if path.is_dir()}  # fmt: skip
    assert (found["linear"].lr, found["linear"].dropout) == (0.5, 0.25)
    assert (found["highrank-linear-r2"].lr, found["highrank-linear-r2"].dropout) == (0.5, 0.25)
    assert (found["CPMuMoE-r4-e3"].lr, found["CPMuMoE-r4-e3"].dropout) == (config.lr, 0.1)
    assert found["linear"].weight_decay == config.weight_decay


def test_decay_by_factors_spares_gates_and_experts() -> None:
    for spec, free in (("TuckerMuMoE-r4-e3x2", 2 + 2), ("TRMuMoE-r4-e3", 2), ("CPMuMoE-r4-e3", 2), ("linear", 1)):
        head = build_head(spec, 6, 4)
        names = decayed(head, "factors")
        assert not any("gate" in name or "expert_" in name or name.endswith("bias") for name in names)
        assert len(names) == len(list(head.parameters())) - free
        groups = make_optimizer(head, TrainConfig(decay="factors", weight_decay=0.7)).param_groups
        assert [group["weight_decay"] for group in groups] == [0.7, 0.0]


def information(run: str, data, features, split: str = "train") -> float:
    found = StoredRun(run, data=data, features=features, device="cpu")
    rows = data.indices(split)
    with torch.no_grad():
        _, a = found.head.eval().forward_with_coefficients(torch.from_numpy(features[rows]))
    return float(functional.mutual_information(a, torch.from_numpy(data.labels[rows]).long(), len(data.classes)))


@pytest.mark.parametrize("multi_label", [False, True])
def test_specialize_makes_experts_keep_to_classes(config, multi_label) -> None:
    data = make_data(multi_label=multi_label)
    features = make_features(data)
    found = {}
    for weight in (0.0, 2.0):
        job = config.replace(out=f"{config.out}-{weight}", specialize=weight, epochs=10, head="CPMuMoE-r4-e8")
        train(job, data=data, features=features, progress=False)
        found[weight] = information(job.out, data, features)
    assert found[2.0] > 1.2 * found[0.0] > 0


def test_specialize_leaves_a_frozen_gate_and_heads_without_experts_alone(config, data, features) -> None:
    import mumoe.analysis.controls  # noqa: F401 (registers the frozen gate)

    for head, gate in (("CPMuMoE-r4-e3", "entmax15-frozen"), ("linear", "entmax15"), ("sparse-moe-e3-k2", "entmax15")):
        bits_of = []
        for weight in (0.0, 1.0):
            job = config.replace(head=head, gate=gate, specialize=weight, out=f"{config.out}-{head}-{weight}")
            train(job, data=data, features=features, progress=False)
            bits_of.append(StoredRun(job.out, data=data, features=features).head.state_dict())
        assert all(torch.equal(bits_of[0][name], bits_of[1][name]) for name in bits_of[0])


@pytest.mark.parametrize("step", [4, 5, 9])
def test_a_stopped_job_with_dropout_goes_on_with_the_same_bits(config, data, features, monkeypatch, step) -> None:
    whole = recipe(config, checkpoint_every=3, out=f"{config.out}-whole")
    train(whole, data=data, features=features, progress=False)
    stopped = recipe(config, checkpoint_every=3)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Interrupted):
            train(stopped, data=data, features=features, progress=False)
    resume(stopped.out, data=data, features=features, progress=False)
    assert bits(stopped.out) == bits(whole.out)


def test_the_scale_of_the_gate_goes_with_the_saved_model(config, data, tmp_path) -> None:
    small = {"backbone": "test_vit", "pretrained": False, "image_size": 32, "cache_dir": str(tmp_path / "cache")}
    job = recipe(config, **small)
    train(job, data=data, progress=False)
    run = mumoe.load(job.out, data=data, progress=False)
    saved, _ = mumoe.load(run.save(tmp_path / "saved"))
    images = torch.randn(3, 3, 32, 32)
    assert run.config.gate_scale == run.head.layer.gate.scale == saved.head.layer.gate.scale == 0.5
    assert torch.allclose(saved(images), run.model(images), atol=1e-5)


def test_a_nearly_constant_feature_is_not_blown_up() -> None:
    head = Head(torch.nn.Linear(4, 2), 4)
    head.standardize(torch.zeros(4), torch.tensor([1.0, 2.0, 1e-4, 0.0]), floor=0.1)
    assert torch.allclose(head.scale, torch.tensor([1.0, 0.5, 10.0, 1.0]))
    head.standardize(torch.zeros(4), torch.tensor([1.0, 2.0, 1e-4, 0.0]))
    assert torch.allclose(head.scale, torch.tensor([1.0, 0.5, 1e4, 1.0]))


@pytest.mark.parametrize("spec", ["linear", "highrank-linear-r3", "sparse-moe-e3-k2", "CPMuMoE-r4-e3"])
@pytest.mark.parametrize("position", ["final", "penultimate"])
def test_dropout_is_for_training_alone(spec, position) -> None:
    torch.manual_seed(0)
    head = build_head(spec, 32, 3, position=position, drop=0.5)
    x = torch.randn(16, 32)
    assert not torch.equal(head(x), head(x))
    head.eval()
    assert torch.equal(head(x), head(x))
    assert set(head.state_dict()) == set(build_head(spec, 32, 3, position=position).state_dict())
