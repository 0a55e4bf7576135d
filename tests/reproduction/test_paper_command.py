"""The command: its list, one-line errors, what its options do, and an exact item."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mumoe import cli
from reproduction import make
from reproduction.__main__ import main
from reproduction.listing import listing

ROOT = Path(__file__).parents[2]
SOURCE = os.pathsep.join([str(ROOT / "src"), str(ROOT)])


def without_torch(*arguments, status=0):
    """What the command writes, from a process of its own that must not load torch."""
    code = f"import sys; from reproduction.__main__ import main; found = main({list(arguments)}); "
    code += f"assert ('torch' in sys.modules, found) == (False, {status})"
    env = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_help_needs_no_torch():
    assert "--dry-run" in without_torch("--help")


def test_the_verb_of_earlier_versions_is_one_clear_line(capsys):
    assert cli.main(["paper", "list"]) == 2
    said = capsys.readouterr().err
    assert "expected a verb" in said
    assert said.count("\n") == 1


def test_a_wrong_name_needs_no_torch():
    for arguments in (["run", "nosuch"], ["run", "nosuch", "--dry-run"]):
        assert "nosuch" in without_torch(*arguments, status=2)


def test_the_list_needs_no_torch_and_names_every_item():
    lines = without_torch("list").splitlines()
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
    assert main(["run", "table-1", "--out", str(tmp_path)]) == 0
    assert "1,167,360 =" in capsys.readouterr().out
    assert json.loads((tmp_path / "exact/table-1.json").read_text())["state"] == {"done": 1, "planned": 1}
    assert main(["run", "figure-1", "--dry-run"]) == 0
    assert "needs no training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run"], "expected a table or figure, got none"),
        (["run", "tabel-6"], "Did you mean 'table-6'"),
        (["run", "table-6", "--seeds", "-1"], "expected seeds >= 0, got -1"),
        (["run", "table-6", "--set", "epoch=3"], "Did you mean 'epochs'"),
        (["run", "table-6", "--scale", "full", "--render", "--work", "/nowhere"], "Run it without --render"),
    ],
)
def test_wrong_calls_are_one_line(arguments, error, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert error in said
    assert said.count("\n") == 1


def test_options_reach_the_recipe(monkeypatch):
    calls = []
    monkeypatch.setattr(make, "make", lambda *given, **named: calls.append((given, named)))
    plain = ["run", "table-6", "--quiet"]
    changes = (
        [],
        ["--scale", "full"],
        ["--seeds", "2"],
        ["--backbone", "test_vit"],
        ["--root", "DATA"],
        ["--set", "workers=3"],
        ["--work", "elsewhere"],
        ["--render"],
    )
    for change in changes:
        assert main([*plain, *change]) == 0
    (first_given, first), *others = calls
    recipe = first_given[0]
    assert (recipe.scale, first["changes"], first["run"]) == ("small", (), True)
    scale, seeds, backbone, root, set_, work, render = others
    assert scale[0][0].scale == "full"
    wanted = {name: {**table, "seeds": 2} for name, table in recipe.data.items()}
    assert seeds[0][0].seeds == 2
    assert seeds[0][0].data == wanted
    assert backbone[0][0].backbones == ("test_vit",) != recipe.backbones
    assert root[1]["changes"] == ('root="DATA"',)
    assert set_[1]["changes"] == ("workers=3",)
    assert (work[0][1].work, first_given[1].work) == (Path("elsewhere"), Path("runs/paper/work"))
    assert render[1]["run"] is False


def test_the_list_reads_the_results_that_it_is_given(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "paper" / "small" / "table-6.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"state": {"done": 3, "planned": 9}}')
    said = []
    for results in (tmp_path, tmp_path / "none"):
        main(["list", "--results", str(results)])
        said.append("partly (3 of 9 runs)" in capsys.readouterr().out)
    assert said == [True, False]
