"""Recipes of whole networks: the paper's settings, a rehearsal of each full one, the reduced ones end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from made_up_training import make_data, make_text

from mumoe.errors import UserError
from mumoe.training import read_config, train
from mumoe.training.run import RunFolder
from reproduction import gpt2_study as gpt2
from reproduction import networks
from reproduction.networks import RECIPES

TOMLS = sorted(path.name for path in RECIPES.glob("*.toml") if "\nmode = " in path.read_text())
SMALL_TEXT = """
mode = "text"
backbone = "gpt2"
data = "tokens:{tokens}"
network_options = ["depth=1", "heads=2", "width=16", "context=24"]
head = "CPMuMoE-e4"
norm = "layer"
batch_size = 48
steps = 3
log_every = 2
eval_every = 0
seeds = 2
against = ["mlp", "TRMuMoE-e4"]
"""


@pytest.mark.parametrize("name", TOMLS)
def test_every_recipe_opens_with_its_command_and_what_it_takes(name):
    head = (RECIPES / name).read_text().split("\n\n[")[0]
    assert "mumoe" in head
    assert name in head
    for word in ("Hardware", "Time", "xpected"):
        assert word in head or (word == "xpected" and "not measured" in head)
    config = read_config(RECIPES / name)
    assert config.mode in ("scratch", "text")


def test_the_mixers_settings_are_those_of_appendix_f():
    config = read_config(RECIPES / "mixer-imagenet.toml")
    assert (config.epochs, config.lr, config.weight_decay, config.warmup_steps) == (300, 1e-3, 0.1, 10_000)
    assert (config.augment, config.mixup, config.crop_area, config.clip) == ("rand-n2-m10", 0.5, 0.08, 1.0)
    assert (config.batch_size, config.precision, config.schedule, config.decay) == (4096, "bf16", "cosine", "mumoe")


def test_gpt2s_settings_are_those_of_the_later_version():
    config = read_config(RECIPES / "gpt2-openwebtext.toml")
    assert (config.lr, config.lr_end, config.beta1, config.beta2) == (6e-4, 6e-5, 0.9, 0.95)
    assert (config.steps, config.warmup_steps, config.clip, config.weight_decay) == (100_000, 2000, 1.0, 0.1)
    assert (config.norm, config.gate, config.head, config.precision) == ("layer", "entmax15", "CPMuMoE-e256", "fp16")
    assert config.batch_size * 1024 == 491_520


def test_rehearsal_of_the_mixer_on_ten_images(tmp_path):
    """The full recipe at 224 pixels and width 512, but one layer, one epoch and a batch of four."""
    for number in range(10):
        folder = tmp_path / "images" / "train" / ("odd" if number % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    config = read_config(RECIPES / "mixer-imagenet.toml")
    small = {"epochs": 1, "batch_size": 4, "workers": 0, "network_options": ("depth=1", "dropout=0.1"), "log_every": 1}
    small |= {"data": f"folder:{tmp_path / 'images'}", "out": str(tmp_path / "run")}
    result = train(config.replace(**small), progress=False)
    assert result.runs[0].step >= 2
    assert RunFolder.open(tmp_path / "run").facts()["state"] == "finished"


def test_rehearsal_of_gpt2_on_a_small_text(tmp_path):
    tokens = make_text(tmp_path)
    config = read_config(RECIPES / "gpt2-openwebtext.toml")
    small = {"network_options": ("depth=1", "heads=2", "width=64", "context=16"), "steps": 3, "precision": "bf16"}
    small |= {"data": f"tokens:{tokens}", "batch_size": 40, "head": "CPMuMoE-e16", "out": str(tmp_path / "run")}
    result = train(config.replace(**small), progress=False)
    assert result.runs[0].step == 3


def test_the_reduced_language_model_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt2, "FACTORS", (0.0, 2.0))
    monkeypatch.setattr(gpt2, "STEERED", ("space", "digit"))
    monkeypatch.setattr(gpt2, "PROMPTS", ("a", "if ", "\n"))
    toml = tmp_path / "small.toml"
    toml.write_text(SMALL_TEXT.format(tokens=make_text(tmp_path)))
    work, out = tmp_path / "work", tmp_path / "out"
    result = networks.train_recipe(toml, work, progress=False)
    written = {path: path.stat().st_mtime_ns for path in work.rglob("model.safetensors")}
    again = networks.train_recipe(toml, work, progress=False)
    assert [run.evaluations for run in again.runs] == [run.evaluations for run in result.runs]
    assert written == {path: path.stat().st_mtime_ns for path in work.rglob("model.safetensors")}
    found = networks.write_results(out, result, gpt2.COLUMNS, title="t", value="loss", config=toml)
    options = gpt2.Options(out=str(out), work=str(work), config=str(toml), windows=8, ablated_windows=4, tokens=8)
    gpt2.look_inside(result, options, out)
    assert set(found["networks"]) == {"CPMuMoE-e4", "mlp", "TRMuMoE-e4"}
    assert all(len(entry["test"]["bits_per_byte"]) == 2 for entry in found["networks"].values())
    assert (out / "table.md").read_text().count("\n") == 5
    assert (out / "samples.md").read_text().count("```text") == 9
    steering = json.loads((out / "steering.json").read_text())
    assert [row["kind"] for row in steering] == ["space", "digit"]
    assert [one["factor"] for one in steering[0]["steered"]] == [0.0, 2.0]
    names = {path.name for path in out.iterdir()}
    assert {"curves.png", "curves.svg", "curves.json", "experts.html", "experts.json", "results.json"} <= names
    toml.write_text(SMALL_TEXT.format(tokens="elsewhere"))
    with pytest.raises(UserError, match="expected runs with the settings of .*small.toml, got others"):
        networks.train_recipe(toml, work, progress=False)


def test_the_table_pairs_by_seed():
    values = {"mlp": [0.5, 0.7], "CP": [0.6, 0.6]}
    found = {name: {"parameters": 1000, "test": {"accuracy": numbers}} for name, numbers in values.items()}
    text = networks.table(found, {"test accuracy": ("test", "accuracy")}, "mlp")
    assert "| CP | 1,000 | 0.600 ± 0.000 | +0.000 ± 0.141 |" in text
    assert "| mlp | 1,000 | 0.600 ± 0.141 |  |" in text


def test_the_expert_worth_most_by_hand():
    from mumoe.analysis.findings import ExpertText, LayerText, TextEffect, TextStudy

    def expert(number: int, effect: float) -> ExpertText:
        return ExpertText(number, 0.1, 0.2, 0.0, {}, (), TextEffect(0.0, {"digit": effect}))

    layers = (LayerText("a", 2, 1, (expert(0, 0.1), expert(1, -3.0))), LayerText("b", 1, 1, (expert(0, 0.4),)))
    study = TextStudy("", "test", 0, "bytes", 1, 1, 0.0, 0.0, ("digit",), {}, layers, ())
    assert gpt2.worth_most(study, "digit") == ("b", 0, 0.4)


def test_reduced_mixers_have_equally_many_parameters():
    """Mixers within 1 % of each other; language models within 1.5 % (biases of their MLPs, coarse TR ranks)."""
    import torch

    from mumoe.training.networks import parameter_count
    from mumoe.training.tasks import task_of

    for name, classes, most in (("mixer-small.toml", 15, 1.01), ("gpt2-small.toml", 9, 1.015)):
        config = read_config(RECIPES / name)
        counts = []
        for head in (config.head, *config.against):
            with torch.device("meta"):
                made = task_of(config.replace(head=head)).empty(0, classes, 256)
            counts.append(parameter_count(made))
        assert max(counts) / min(counts) < most, (name, counts)


def test_made_up_images_are_refused_where_text_is_wanted():
    with pytest.raises(UserError, match="expected text in mode text"):
        train(read_config(RECIPES / "gpt2-small.toml"), data=make_data(60), progress=False)
