"""`mumoe paper`: the list, one-line errors, and an exact item from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mumoe.cli import main
from mumoe.recipes.paper.listing import listing

SOURCE = str(Path(__file__).parents[2] / "src")


def without_torch(*arguments):
    """What the command writes, from a process of its own that must not load torch."""
    code = f"import sys; from mumoe.cli import main; main({list(arguments)}); assert 'torch' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_needs_no_torch():
    assert "--dry-run" in without_torch("paper", "--help")


def test_the_list_needs_no_torch_and_names_every_item():
    lines = without_torch("paper", "list").splitlines()
    assert sum(line.startswith(("table-", "figure-")) for line in lines) == 5 + 2 * 19


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"done": 9, "planned": 9}, "done "),
        ({"done": 3, "planned": 9}, "partly (3 of 9 runs)"),
        ("damaged", "not run"),
    ],
)
def test_the_list_tells_how_far_an_item_is(tmp_path, state, said):
    (tmp_path / "small").mkdir()
    (tmp_path / "small/table-6.json").write_text(json.dumps({"state": state}))
    line = next(line for line in listing(tmp_path).splitlines() if line.startswith("table-6 "))
    assert said in line


def test_an_exact_item(tmp_path, capsys):
    assert main(["paper", "run", "table-1", "--output", str(tmp_path)]) == 0
    assert "1,167,360 =" in capsys.readouterr().out
    assert json.loads((tmp_path / "exact/table-1.json").read_text())["state"] == {"done": 1, "planned": 1}
    assert main(["paper", "run", "figure-1", "--dry-run"]) == 0
    assert "needs no training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["paper", "run"], "expected a table or figure, got none"),
        (["paper", "run", "tabel-6"], "Did you mean 'table-6'"),
        (["paper", "run", "table-6", "--seeds", "-1"], "expected seeds >= 0, got -1"),
        (["paper", "run", "table-6", "--set", "epoch=3"], "Did you mean 'epochs'"),
        (["paper", "run", "table-6", "--scale", "full", "--render", "--work", "/nowhere"], "Run it without --render"),
    ],
)
def test_wrong_calls_are_one_line(arguments, error, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert error in said
    assert said.count("\n") == 1
