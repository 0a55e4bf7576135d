"""The two verbs through the command line: flags, output, exit status."""

import shutil
import sys
from pathlib import Path

import pytest

from mumoe.cli import main

sys.path.insert(0, str(Path(__file__).parent))

from made_up_analysis import make_data, make_features

OLD = Path(__file__).parent.parent / "fixtures" / "runs"


@pytest.fixture
def made_up(monkeypatch):
    """What the names in a config stand for, here without a data set or a backbone."""
    from mumoe.analysis import sweeping
    from mumoe.training.tasks import Task

    load = sweeping.load_inputs
    data = make_data()
    monkeypatch.setattr(
        sweeping, "load_inputs", lambda config, **_: load(config, data=data, features=make_features(data))
    )
    monkeypatch.setattr(Task, "with_seed", lambda self, found: found)


def test_analyze_prints_the_numbers_and_where_they_are(tmp_path, capsys):
    shutil.copytree(OLD / "trmumoe", tmp_path / "run")
    data = ["--data", f"features:{OLD / 'classes.safetensors'}", "--images", "0"]
    status = main(["analyze", str(tmp_path / "run"), "--modes", "zero", "mean", "--resamples", "5", "--quiet", *data])
    said = capsys.readouterr().out
    assert status == 0
    assert "experts, zero ablation:" in said
    assert "experts, mean ablation:" in said
    assert "experts, control of the same load:" in said
    assert said.rstrip().endswith(f"Written to {tmp_path / 'run' / 'analysis'}")


def test_sweep_prints_a_table(tmp_path, capsys, made_up):
    sets = ["data=made-up", "epochs=1", "batch_size=30"]
    grid = ["--spec", "CPMuMoE-r4", "--experts", "4", "--gates", "entmax15", "--seeds", "1"]
    assert main(["sweep", "--out", str(tmp_path / "s"), *grid, "--set", *sets, "--quiet"]) == 0
    assert "CP, entmax15" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["analyze", "nowhere"], "expected the folder of a run, got 'nowhere'"),
        (["analyze", "nowhere", "--split", "tset"], "Did you mean 'test'?"),
        (["sweep", "--set", "lr"], "expected KEY=VALUE, got 'lr'"),
        (["sweep", "--set", "learning=1"], "expected a setting"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(capsys, arguments, text):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
