"""`mumoe train` as it is typed: settings from preset, file and flags; mistakes in one line, nothing written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mumoe.cli import main
from mumoe.commands.train import Options, default
from mumoe.parsing import flag_of
from mumoe.results import Comparison, EvalResult, RunResult, Spread, TrainResult
from mumoe.training import PRESETS


@pytest.fixture
def called(monkeypatch):
    """What the command asks of the library, without doing it."""
    import mumoe.training as training

    calls = []
    evaluations = {"test": EvalResult("r", "test", 5, 10, 0.5, 0.75)}
    result = TrainResult(
        out="r",
        head="CPMuMoE-r4-e3",
        runs=(
            RunResult("r/a", "CPMuMoE-r4-e3", 0, 1234567, 5, 1.0, evaluations),
            RunResult("r/b", "linear", 0, 500, 5, 1.0, evaluations),
        ),
        accuracy={"CPMuMoE-r4-e3": {"test": Spread(0.75, 0.01, 3)}, "linear": {"test": Spread(0.75, None, 1)}},
        comparisons=(
            Comparison("CPMuMoE-r4-e3", "linear", "test", (0.01, 0.02), 0.015, 0.007, (-0.0485, 0.0785)),
            Comparison("CPMuMoE-r4-e3", "linear", "test", (0.01,), 0.01, None, None),
        ),
    )

    def train(config, *, progress, announce, **objects):
        assert set(objects.values()) == {None}
        announce("images of made-up")
        calls.append((config, progress))
        return result

    def resume(run, *, data, device, progress, announce):
        calls.append((run, data, device, progress))
        return result

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "resume", resume)
    return calls


def test_flags_stand_over_the_file_and_the_file_over_the_preset(called, tmp_path):
    (tmp_path / "c.toml").write_text('[optimization]\nlr = 0.5\nepochs = 7\n[model]\nhead = "linear"\n')
    line = f"train --preset paper --config {tmp_path / 'c.toml'} --epochs 3 --against linear,highrank-linear --quiet"
    assert main(line.split()) == 0
    config, progress = called[0]
    assert (config.warmup_steps, config.lr, config.epochs, config.head) == (500, 0.5, 3, "linear")
    assert config.check().against == ("linear", "highrank-linear")
    assert progress is False
    assert not isinstance(config, Options)


def test_what_it_says(called, capsys):
    assert main(["train"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "images of made-up",
        "CPMuMoE-r4-e3    1,234,567 parameters  accuracy test 0.7500 (sd 0.0100, 3 seeds)",
        "linear                 500 parameters  accuracy test 0.7500",
        "CPMuMoE-r4-e3 minus linear on test: +1.50 points, 95% interval -4.85 to +7.85, paired over 2 seeds",
        "CPMuMoE-r4-e3 minus linear on test: +1.00 points (one seed: no interval)",
        "Written to r. Look closer: mumoe evaluate r",
    ]


def test_resume_goes_on_with_the_runs_own_settings(called, tmp_path, capsys):
    assert main(["train", "--resume", str(tmp_path)]) == 0
    assert called == [(str(tmp_path), "", "", True)]
    assert main(["train", "--resume", str(tmp_path), "--data", "folder:x", "--device", "cpu", "--quiet"]) == 0
    assert called[1] == (str(tmp_path), "folder:x", "cpu", False)
    assert main(["train", "--resume", str(tmp_path), "--lr", "1"]) == 2
    assert "expected --resume alone, since a run keeps its settings, got --lr too" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path), "--spec", "linear"]) == 2
    assert "got --spec too. Drop --spec, or start" in capsys.readouterr().err


def test_options_know_the_file_in_both_spellings(tmp_path):
    (tmp_path / "c.toml").write_text("lr = 0.5\n")
    for arguments in (["--config", str(tmp_path / "c.toml")], [f"--config={tmp_path / 'c.toml'}"]):
        assert default(arguments).lr == 0.5
    assert default(["--preset", "plain"]) == Options()


def test_the_preset_follows_the_mode_until_one_is_named():
    assert default([]).specialize == PRESETS["accurate"]["specialize"] > 0
    assert default(["--preset", "specialized"]).gate_scale == PRESETS["specialized"]["gate_scale"]
    assert default(["--lr", "0.5"]).linear_lr == 0  # a rate that is given holds for all heads
    assert default(["--dropout=0.5"]).linear_dropout == -1
    assert default(["--lr", "0.5", "--linear-lr", "0.1"]).linear_dropout == PRESETS["accurate"]["linear_dropout"]
    assert default(["--mode", "text"]) == Options(mode="text")
    assert default(["--mode=finetune"]).lr == PRESETS["finetune"]["lr"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--spce linear", "--spec"),
        ("--epochs ten", "--epochs"),
        ("--epochs 0", "expected epochs >= 1, got 0."),
        ("--mode finetun", "finetune"),
        ("--config c.tml", "expected a file, got 'c.tml', which does not exist. Did you mean 'c.toml'?"),
        ("--config c.toml", "c.toml: expected a setting out of"),
        ("--preset papr", "Did you mean 'paper'?"),
        ("--resume rums", "Did you mean 'runs'?"),
        ("--track wand", "Did you mean 'wandb'?"),
        ("--data-options split", "expected KEY=VALUE, got 'split'."),
        ("--out c.toml", "expected a folder, got the file 'c.toml'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, line, said):
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text("epoch = 3\n")
    Path("runs").mkdir()
    arguments = line.split()
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c.toml", "runs"]


def test_help_has_words_for_every_setting(capsys):
    import dataclasses

    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    for item in dataclasses.fields(Options):
        assert re.search(rf"{flag_of(Options, item.name)}[ ,\n]", said)


def test_a_stop_is_status_130_and_says_how_to_go_on(monkeypatch, capsys):
    import mumoe.training as training

    def stopped(config, **_):
        raise training.Interrupted("Stopped at step 3 of 9. Resume with: mumoe train --resume runs/x")

    monkeypatch.setattr(training, "train", stopped)
    assert main(["train"]) == 130
    expected = "mumoe: interrupted. Stopped at step 3 of 9. Resume with: mumoe train --resume runs/x\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("mode", "make", "said"),
    [
        ("features", lambda path: path.mkdir(), "got the folder 'mine'. Use folder:mine."),
        ("features", lambda path: path.write_text("path,label\n"), "got the file 'mine.csv'. Use csv:mine.csv."),
        ("text", lambda path: (path.mkdir(), (path / "meta.json").write_text("{}")), "Use tokens:mine."),
    ],
)
def test_a_path_as_data_is_answered_with_its_kind(tmp_path, monkeypatch, capsys, mode, make, said):
    monkeypatch.chdir(tmp_path)
    name = "mine.csv" if ".csv" in said else "mine"
    make(tmp_path / name)
    assert main(["train", "--data", name, "--mode", mode]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_default_data_have_the_demos_settings_and_say_so(monkeypatch, tmp_path, capsys):
    """Data, split, sizes of the splits and of the images are the first line."""
    from mumoe.demo.demo_job import DemoSettings
    from mumoe.models.features import Features
    from mumoe.training import tasks
    from training.made_up_training import make_data, make_features, tiny_backbone

    asked = {}

    def sized_backbone(config):
        backbone = tiny_backbone()
        backbone.image_size = config.image_size
        return backbone

    def load_data(name, **options):
        asked.update(options, name=name)
        return make_data(30)

    monkeypatch.setattr("mumoe.data.load_data", load_data)
    monkeypatch.setattr(
        tasks, "load_backbone", lambda config: (asked.update(image_size=config.image_size), sized_backbone(config))[1]
    )
    features = Features(make_features(make_data(30)), "", tmp_path)
    monkeypatch.setattr(tasks, "extracted", lambda *given, **named: features)
    options = ["--spec", "linear", "--epochs", "1", "--batch-size", "16", "--device", "cpu", "--quiet"]
    assert main(["train", *options, "--out", str(tmp_path / "run")]) == 0
    assert (asked["name"], asked["split_by"], asked["size"]) == ("emoji", "image", DemoSettings().size)
    assert asked["image_size"] == DemoSettings().size
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "made-up: 30 images, 4 classes; split as given: train 18, val 6, test 6; the network reads 96 px"
    assert main(["train", *options, "--out", str(tmp_path / "two"), "--data-options", "split_by=character"]) == 0
    assert (asked["split_by"], asked["size"]) == ("character", 96)
    assert main(["train", *options, "--out", str(tmp_path / "three"), "--image-size", "64"]) == 0
    assert asked["image_size"] == 64
