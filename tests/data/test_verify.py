import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from mumoe.data import load_data, verify
from mumoe.errors import UserError


@pytest.fixture
def looked_at(monkeypatch):
    """Paths of the files that were checked instead of read from the cache."""
    names = []
    inspect = verify._inspect

    def counting(path, *rest):
        names.append(os.path.basename(path))
        return inspect(path, *rest)

    monkeypatch.setattr(verify, "_inspect", counting)
    return names


def age(folder, seconds=100):
    """Make the files older than the coarsest clock."""
    then = time.time() - seconds
    for here, _, files in os.walk(folder):
        for name in files:
            os.utime(os.path.join(here, name), (then, then))


def test_files_are_looked_into_once(class_tree, load, looked_at):
    (class_tree / "cat/broken.png").write_bytes(b"broken")
    age(class_tree)
    first = load(f"folder:{class_tree}")
    assert len(looked_at) == 21
    looked_at.clear()
    second = load(f"folder:{class_tree}")
    assert looked_at == []
    assert second.problems == first.problems
    assert second.fingerprint == first.fingerprint


def test_a_changed_file_is_looked_into_again(class_tree, load, looked_at):
    age(class_tree)
    before = load(f"folder:{class_tree}")
    Image.new("RGB", (9, 7), (1, 2, 3)).save(class_tree / "dog/2.png")
    looked_at.clear()
    after = load(f"folder:{class_tree}")
    assert looked_at == ["2.png"]
    assert after.fingerprint != before.fingerprint


def test_a_file_that_just_changed_is_not_remembered(class_tree, load, looked_at, monkeypatch):
    """An edit within the clock's tick leaves size and time as they were; it must still be seen."""
    path = class_tree / "cat/1.png"
    age(class_tree, 7200)
    monkeypatch.setattr(verify, "_COARSE_CLOCK", 3600 * 10**9)
    now = time.time()
    os.utime(path, (now, now))
    before = load(f"folder:{class_tree}")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, (now, now))
    looked_at.clear()
    after = load(f"folder:{class_tree}")
    assert looked_at == ["1.png"]
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nonsense", None])
def test_a_damaged_cache_is_made_again(class_tree, load, looked_at, tmp_path, damage):
    age(class_tree)
    before = load(f"folder:{class_tree}")
    (archive,) = (tmp_path / "cache/checks").iterdir()
    archive.write_bytes(archive.read_bytes()[:200] if damage is None else damage)
    looked_at.clear()
    assert load(f"folder:{class_tree}").fingerprint == before.fingerprint
    assert len(looked_at) == 20
    looked_at.clear()
    load(f"folder:{class_tree}")
    assert looked_at == []


def test_a_cache_that_cannot_be_written_is_gone_without(class_tree, load, tmp_path):
    (tmp_path / "file").write_text("")
    age(class_tree)
    assert len(load(f"folder:{class_tree}", cache_dir=tmp_path / "file/cache")) == 20


def test_what_was_checked_before_an_interruption_is_remembered(class_tree, load, looked_at, monkeypatch):
    age(class_tree)
    monkeypatch.setattr(verify, "_BATCH", 4)
    inspect = verify._inspect

    def stopping(path, *rest):
        if path.endswith(os.path.join("dog", "5.png")):
            raise KeyboardInterrupt
        return inspect(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(verify, "_inspect", stopping)
        with pytest.raises(KeyboardInterrupt):
            load(f"folder:{class_tree}")
    looked_at.clear()
    load(f"folder:{class_tree}")
    assert 4 <= len(looked_at) <= 8


def test_moving_the_folder_keeps_the_fingerprint(class_tree, load, root):
    before = load(f"folder:{class_tree}")
    shutil.copytree(class_tree, root / "moved", copy_function=shutil.copyfile)
    after = load(f"folder:{root / 'moved'}")
    assert after.fingerprint == before.fingerprint
    assert after.name != before.name


def test_a_renamed_file_or_class_changes_the_fingerprint(class_tree, load):
    prints = {load(f"folder:{class_tree}").fingerprint}
    (class_tree / "cat/0.png").rename(class_tree / "cat/00.png")
    prints.add(load(f"folder:{class_tree}").fingerprint)
    (class_tree / "cat").rename(class_tree / "tom")
    prints.add(load(f"folder:{class_tree}").fingerprint)
    shutil.copy(class_tree / "tom/1.png", class_tree / "dog/new.png")
    prints.add(load(f"folder:{class_tree}").fingerprint)
    assert len(prints) == 4


def test_large_sets_are_checked_by_header(class_tree, load, monkeypatch):
    rng = np.random.default_rng(0)
    for kind in ("jpg", "png", "bmp"):
        picture = Image.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8))
        picture.save(class_tree / f"cat/whole.{kind}")
        whole = (class_tree / f"cat/whole.{kind}").read_bytes()
        (class_tree / f"dog/cut.{kind}").write_bytes(whole[: len(whole) // 2])
    (class_tree / "cat/tail.jpg").write_bytes((class_tree / "cat/whole.jpg").read_bytes() + bytes(5000))
    (class_tree / "cat/empty.jpg").write_bytes(b"")
    (class_tree / "cat/words.jpg").write_bytes(b"words")
    flipped = bytearray((class_tree / "cat/whole.png").read_bytes())
    flipped[len(flipped) // 2] ^= 255
    (class_tree / "dog/flipped.png").write_bytes(bytes(flipped))
    monkeypatch.setattr(verify, "FULL_LIMIT", 10)
    quick, full = load(f"folder:{class_tree}"), load(f"folder:{class_tree}", verify="full")
    assert {line.split(":")[0] for line in quick.problems} == {
        "cat/empty.jpg",
        "cat/words.jpg",
        "dog/cut.jpg",
        "dog/cut.png",
        "dog/cut.bmp",
    }
    assert {line.split(":")[0] for line in full.problems} == {
        *(line.split(":")[0] for line in quick.problems),
        "dog/flipped.png",
    }


def test_a_header_check_does_not_decode(class_tree, load, monkeypatch):
    monkeypatch.setattr(verify, "decode", lambda data: pytest.fail("decoded"))
    assert len(load(f"folder:{class_tree}", verify="header")) == 20


def test_a_header_check_sees_edits_by_size_and_time(class_tree, load):
    age(class_tree)
    before = load(f"folder:{class_tree}", verify="header").fingerprint
    assert load(f"folder:{class_tree}", verify="header").fingerprint == before
    os.utime(class_tree / "cat/0.png")
    assert load(f"folder:{class_tree}", verify="header").fingerprint != before


def test_header_answers_do_not_serve_a_full_check(class_tree, load, looked_at):
    age(class_tree)
    load(f"folder:{class_tree}", verify="header")
    looked_at.clear()
    load(f"folder:{class_tree}", verify="full")
    assert len(looked_at) == 20
    looked_at.clear()
    load(f"folder:{class_tree}", verify="header")
    assert looked_at == []


def test_a_pipe_does_not_hang_the_check(class_tree, load):
    os.mkfifo(class_tree / "cat/pipe.png")
    assert load(f"folder:{class_tree}").problems == ("cat/pipe.png: not a regular file",)


def test_an_unknown_depth_is_refused(class_tree):
    with pytest.raises(UserError, match="expected a value of verify out of auto, full, header, got 'ful'"):
        load_data(f"folder:{class_tree}", verify="ful")
