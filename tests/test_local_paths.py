"""Paths of this machine are shortened wherever they stand in what is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mumoe.local_paths import run_name, without_paths


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A user's, a current and a temporary folder of the test's own."""
    for name in ("home", "work", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "work")


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("mumoe analyze {home}/runs/birds/seed-0 --split val", "mumoe analyze birds/seed-0 --split val"),
        ("csv:{home}/secret/table.csv", "csv:table.csv"),
        ("(got '{work}/a/b.png').", "(got 'b.png')."),
        ("{tmp}/x/weights.safetensors, then", "weights.safetensors, then"),
        ("cache in {home}", "cache in ~"),
        ("file://{home}/x/y", "file://y"),
        ("relative/path and 3/4 and /dev/null", "relative/path and 3/4 and /dev/null"),
        ("{home}stead/x", "{home}stead/x"),
    ],
)
def test_paths_below_known_folders_are_shortened(tmp_path, text, short):
    folders = {name: str(tmp_path / name) for name in ("home", "work", "tmp")}
    assert without_paths(text.format(**folders)) == short.format(**folders)


def test_known_paths_are_shortened_with_spaces_and_beside_others():
    known = ["/data/my lab/birds", "/data/my lab/runs/job"]
    text = "folder:/data/my lab/birds/cat/1.png, /data/my lab/runs/job, /data/my lab/runs/job-2/x and /data/other"
    assert without_paths(text, known) == "folder:birds/cat/1.png, job, x and /data/other"


@dataclass(frozen=True)
class Facts:
    name: str
    inner: tuple[Facts, ...] = ()
    table: dict[str, str] = field(default_factory=dict)
    place: Path = Path()


def test_dataclasses_keep_their_type_and_paths_that_are_opened():
    home = Path.home()
    facts = Facts(f"{home}/x", (Facts("plain"), Facts(f"{home}/y")), {"at": f"{home}/z"}, home / "kept")
    found = without_paths(facts)
    assert found == Facts("x", (Facts("plain"), Facts("y")), {"at": "z"}, home / "kept")
    assert found.inner[0] is facts.inner[0]
    assert facts.name == f"{home}/x"


def test_a_seed_is_named_with_its_folder():
    assert run_name("/a/runs/birds/seed-3") == "birds/seed-3"
    assert run_name("/a/runs/birds/") == "birds"
