"""Sealed folders: written once, completely or not at all, and checked when read."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mumoe.data import cache
from mumoe.data.cache import damage, sealed_folder
from mumoe.errors import JobError
from mumoe.files import _machine


def write_hello(folder: Path) -> None:
    (folder / "a.txt").write_text("hello")
    (folder / "deep").mkdir()
    (folder / "deep" / "b.bin").write_bytes(b"\0" * 100)


def test_writes_once_then_reads(tmp_path: Path) -> None:
    folder = tmp_path / "sub" / "thing"
    assert sealed_folder(folder, write_hello, who="t") == (folder, True)
    before = (folder / "a.txt").stat().st_mtime_ns
    assert sealed_folder(folder, write_hello, who="t") == (folder, False)
    assert (folder / "a.txt").stat().st_mtime_ns == before
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == {"a.txt", "deep/b.bin"}
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == ["thing"]


def truncate(folder: Path) -> None:
    os.truncate(folder / "deep" / "b.bin", 50)


def flip(folder: Path) -> None:
    (folder / "deep" / "b.bin").write_bytes(b"\0" * 99 + b"\1")


def remove(folder: Path) -> None:
    (folder / "a.txt").unlink()


def spoil_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (truncate, "50 bytes in deep/b.bin instead of 100"),
        (flip, "changed bytes in deep/b.bin"),
        (remove, "no file a.txt"),
        (spoil_manifest, "an unreadable manifest"),
    ],
)
def test_damage_is_named_and_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None], said: str
) -> None:
    folder = tmp_path / "thing"
    sealed_folder(folder, write_hello, who="t")
    harm(folder)
    with caplog.at_level(logging.WARNING, "mumoe"):
        assert sealed_folder(folder, write_hello, who="t") == (folder, True)
    assert said in caplog.text
    assert "It will be rebuilt" in caplog.text
    assert damage(folder) is None
    assert (folder / "deep" / "b.bin").read_bytes() == b"\0" * 100


def test_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write_hello(folder)
        raise KeyboardInterrupt

    folder = tmp_path / "thing"
    with pytest.raises(KeyboardInterrupt):
        sealed_folder(folder, fail, who="t")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["thing.lock"])
    assert sealed_folder(folder, write_hello, who="t") == (folder, True)


def test_killed_writer_is_cleaned_up(tmp_path: Path) -> None:
    """What a process killed while it wrote leaves is neither read nor mixed with what the next one writes."""
    part = f".mumoe-part-{_machine()}-{2**22 + 1}-01234567-thing"
    (tmp_path / part).mkdir()
    (tmp_path / part / "half").write_text("x")
    folder, made = sealed_folder(tmp_path / "thing", write_hello, who="t")
    assert made
    assert not (folder / "half").exists()
    assert not (tmp_path / part).exists()


def test_full_disk_is_a_job_error(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(JobError, match="expected room on the disk"):
        sealed_folder(tmp_path / "thing", fill, who="t")


def test_place_that_cannot_be_written_is_a_job_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(JobError, match=r"t: expected .*file.*MUMOE_CACHE"):
        sealed_folder(tmp_path / "file" / "thing", write_hello, who="t")


def test_other_errors_of_the_writer_pass_through(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise FileNotFoundError(2, "No such file", "elsewhere")

    with pytest.raises(FileNotFoundError, match="elsewhere"):
        sealed_folder(tmp_path / "thing", fail, who="t")


SCRIPT = """
import sys, time
from pathlib import Path
from mumoe.data.cache import sealed_folder

def write(folder):
    with open(sys.argv[2], "a") as file:
        file.write("written ")
    time.sleep(1.0)
    (folder / "a").write_text("x")

print(sealed_folder(Path(sys.argv[1]), write, who="t")[1])
"""


def test_two_processes_write_once(tmp_path: Path) -> None:
    source = str(Path(cache.__file__).parents[2])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "thing"), str(tmp_path / "log")]
    environment = {**os.environ, "PYTHONPATH": source}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    answers = sorted(process.communicate(timeout=60)[0].strip() for process in running)
    assert answers == ["False", "True"]
    assert (tmp_path / "log").read_text() == "written "
