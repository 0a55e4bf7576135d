"""Verbs on a run that cannot be written: one line, before any work, and the place that it names works."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.test_editing import trained
from mumoe.cli import main
from mumoe.deploy.export_files import check_ready
from mumoe.errors import JobError
from soak.mounts import read_only

EDIT = ("--do", "ablate:1", "--split", "test")


@pytest.fixture(scope="module")
def edited_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(trained(tmp_path_factory.mktemp("closed")))


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = main([*map(str, arguments), "--quiet"])
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "options", "out"),
    [("edit", EDIT, "edit.json"), ("analyze", ("--images", "0", "--resamples", "0"), "analysis")],
)
def test_a_verb_says_where_else_to_write(edited_run, tmp_path, capsys, monkeypatch, verb, options, out):
    before = {path.name for path in edited_run.iterdir()}
    with read_only(edited_run):
        status, said = call(capsys, verb, edited_run, *options)
        assert status == 1
        assert said.startswith(f"mumoe {verb}: expected a folder that can be written, got '{edited_run}' (")
        assert said.endswith("Choose another place to write to.\n")
        assert said.count("\n") == 1
        status, said = call(capsys, verb, edited_run, *options, "--out", tmp_path / out)
        assert (status, said) == (0, "")
    assert (tmp_path / out).exists()
    assert {path.name for path in edited_run.iterdir()} == before


def test_a_missing_folder_for_edits_is_one_line(edited_run, tmp_path, capsys):
    status, said = call(capsys, "edit", edited_run, *EDIT, "--out", tmp_path / "no" / "edit.json")
    assert status == 1
    assert said.startswith(f"mumoe edit: expected an existing folder, got '{tmp_path / 'no'}', which does not exist.")
    assert said.count("\n") == 1
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(("kind", "name"), [("onnx", "a.onnx"), ("torch-export", "a.pt2"), ("safetensors", "a")])
def test_an_export_is_refused_before_it_is_traced(tmp_path, kind, name):
    with read_only(tmp_path), pytest.raises(JobError, match=r"^export: expected a folder that can be written, got"):
        check_ready(kind, tmp_path / "deep" / name, False)
    check_ready(kind, tmp_path / "deep" / name, False)
    assert list(tmp_path.iterdir()) == []
