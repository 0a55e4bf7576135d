"""Files and folders are the old or the new ones, even if their writer is killed while they are replaced."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mumoe.files as files
from mumoe.errors import JobError, UserError
from mumoe.files import (
    cache_root,
    check_writable,
    clean_folder,
    digest_ahead,
    digest_file,
    digest_files,
    new_file,
    new_folder,
    read_json,
    recovered,
    remove_folder,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
)
from soak.mounts import read_only

SOURCE = str(Path(files.__file__).parents[1])
DEAD = 2**22 + 1  # beyond the largest process id of Linux


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Kills

KILLED = """
import os, signal, sys
from pathlib import Path
from mumoe.files import new_folder, write_text

def replace(kind, place):
    if kind == "file":
        write_text(place, "new")
        return
    with new_folder(place) as part:
        (part / "deep").mkdir()
        (part / "a").write_text("new")
        (part / "deep" / "b").write_text("new")

def count_calls(nth):
    calls = []
    for name in ("open", "close", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "chmod", "listdir"):
        def call(*arguments, _real=getattr(os, name), **options):
            calls.append(1)
            if len(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return _real(*arguments, **options)
        setattr(os, name, call)

nth = 0
while True:
    nth += 1
    pid = os.fork()
    if not pid:
        count_calls(nth)
        replace(sys.argv[2], Path(sys.argv[1]) / str(nth) / "place")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != -signal.SIGKILL:
        print(nth, status)
        break
"""


def killed_at_every_call(home: Path, kind: str) -> int:
    """Replace HOME/N/place, killed at the Nth call of the system, up to the N that was not reached; returns it."""
    nth, status = map(int, start(KILLED, home, kind).communicate(timeout=60)[0].split())
    assert status == 0
    return nth


def make_old(place: Path) -> None:
    (place / "deep").mkdir(parents=True)
    (place / "a").write_text("old")
    (place / "deep" / "b").write_text("old")
    (place / "deep" / "c").write_text("old")


def test_a_file_killed_at_any_step_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    for i in range(1, 30):
        write_text(tmp_path / str(i) / "place", "old")
    last = killed_at_every_call(tmp_path, "file")
    assert 6 < last < 30
    found = [(tmp_path / str(i) / "place").read_text() for i in range(1, last + 1)]
    assert set(found) == {"old", "new"}
    assert found == sorted(found, key=["old", "new"].index)
    for i in range(1, last + 1):
        clean_folder(tmp_path / str(i))
        assert names(tmp_path / str(i)) == ["place"]


@pytest.mark.parametrize("before", [True, False])
def test_a_folder_killed_at_any_step_is_the_old_or_the_new_one(tmp_path: Path, before: bool) -> None:
    """A reader finds it whole right after the kill, and so does the next writer, who leaves nothing behind."""
    for i in range(1, 60):
        (tmp_path / str(i)).mkdir()
        if before:
            make_old(tmp_path / str(i) / "place")
    last = killed_at_every_call(tmp_path, "folder")
    assert 15 < last < 60
    places = [tmp_path / str(i) / "place" for i in range(1, last + 1)]
    absent = sum(not place.exists() for place in places)
    assert absent > (0 if before else last // 2)  # the dangerous moment was met
    found = [state_after_kill(place) for place in places]
    first = "old" if before else "none"
    assert set(found) == {first, "new"}
    assert found == sorted(found, key=[first, "new"].index)


def state_after_kill(place: Path) -> str:
    read = recovered(place)
    state = (read / "a").read_text() if read.exists() else "none"
    if state != "none":
        assert (read / "deep" / "b").read_text() == state
        assert names(read / "deep") == (["b", "c"] if state == "old" else ["b"])
    clean_folder(place.parent)
    assert names(place.parent) == (["place"] if state != "none" else [])
    with new_folder(place) as part:
        (part / "again").write_text("x")
    assert names(place.parent) == ["place"]
    assert names(place) == ["again"]
    return state


def test_a_read_only_disk_is_read_from_where_the_new_folder_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / f".mumoe-new-{files._machine()}-{DEAD}-01234567-folder"
    old = tmp_path / f".mumoe-old-{files._machine()}-{DEAD}-01234567-folder"
    for path in (new, old):
        path.mkdir()

    def closed(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.replace", closed)
    assert recovered(tmp_path / "folder") == new
    monkeypatch.undo()
    assert recovered(tmp_path / "folder") == tmp_path / "folder"
    clean_folder(tmp_path)
    assert names(tmp_path) == ["folder"]


# Processes

WRITER = """
import sys, time
from pathlib import Path
from mumoe.files import new_folder

place, name = Path(sys.argv[1]), sys.argv[2]
for _ in range(int(sys.argv[3])):
    with new_folder(place) as part:
        for i in range(5):
            (part / str(i)).write_text(name)
"""


def test_two_processes_at_once_each_write_a_whole_folder(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    running = [start(WRITER, place, name, 40) for name in ("one", "two")]
    seen = set()
    while any(process.poll() is None for process in running):
        try:
            opened = os.open(recovered(place), os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:  # through a descriptor: the folder may step aside while it is read
            listed = sorted(os.listdir(opened))
        finally:
            os.close(opened)
        if listed:  # empty: deleted meanwhile
            seen.add(tuple(listed))
    assert [(process.communicate()[0], process.returncode) for process in running] == [("", 0), ("", 0)]
    assert len({(place / str(i)).read_text() for i in range(5)}) == 1
    assert names(tmp_path) == ["folder"]
    assert ("0", "1", "2", "3", "4") in seen


def test_a_folder_that_steps_aside_while_a_writer_looks_at_it_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process holds the place open between two looks at it: absent at the second one, not another kind."""
    place = tmp_path / "folder"
    write_text(place / "a", "one")
    real = os.stat

    def gone(path, *rest, **options):
        if os.fspath(path) == str(place):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
        return real(path, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.stat", gone)
        files._check_folder(place)
    write_text(tmp_path / "file", "x")
    with pytest.raises(JobError, match="Not a directory"), new_folder(tmp_path / "file"):
        pass
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(JobError, match="Not a directory"), new_folder(tmp_path / "broken"):
        pass


def test_a_new_folder_that_another_process_put_in_place_and_replaced_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader finishes this writer's work, then another writer lets the folder step aside, all before it renames."""
    place = tmp_path / "folder"
    real, taken = os.replace, []

    def hurried(source, target):
        real(source, target)
        if "-new-" in str(target) and not taken:
            taken.append(target)
            real(target, place)
            real(place, tmp_path / f".mumoe-old-{files._machine()}-{os.getpid()}-01234567-folder")

    monkeypatch.setattr("os.replace", hurried)
    with new_folder(place) as part:
        (part / "a").write_text("new")
    assert taken
    assert (recovered(place) / "a").read_text() == "new"


def test_two_tokenizing_jobs_at_once_do_not_destroy_each_other(tmp_path: Path) -> None:
    """Each works in a part of its own; one that begins when the other has finished says so in one line."""
    script = (
        "import sys\nfrom mumoe.data.tokenizing import tokenize\nfrom mumoe.errors import UserError\n"
        "try:\n    print(tokenize([sys.argv[1]], sys.argv[2], val=0.2, test=0.2)['fingerprint'])\n"
        "except UserError as error:\n    print('refused' if 'which exists' in str(error) else error)"
    )
    text = tmp_path / "texts"
    text.mkdir()
    for i in range(200):
        (text / f"{i}.txt").write_text(f"document {i} " * 50)
    running = [start(script, text, tmp_path / "out") for _ in range(2)]
    answers = [process.communicate(timeout=120)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    whole = read_json(tmp_path / "out" / "meta.json")["fingerprint"]
    assert whole in answers
    assert set(answers) <= {whole, "refused"}
    assert all((tmp_path / "out" / f"{split}.bin").stat().st_size for split in ("train", "val", "test"))
    assert names(tmp_path) == ["out", "texts"]


def test_only_parts_of_dead_processes_are_removed(tmp_path: Path) -> None:
    machine = files._machine()
    parts = {
        "dead": f".mumoe-part-{machine}-{DEAD}-01234567-x",
        "alive": f".mumoe-part-{machine}-{os.getppid()}-01234567-x",
        "elsewhere": f".mumoe-part-{'f' if machine[0] != 'f' else '0'}{machine[1:]}-{DEAD}-01234567-x",
    }
    for name in parts.values():
        (tmp_path / name).mkdir()
    write_text(tmp_path / "file", "x")
    assert names(tmp_path) == sorted([parts["alive"], parts["elsewhere"], "file"])
    clean_folder(tmp_path, locked=True)
    assert names(tmp_path) == ["file"]


# Permissions


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, file: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "file.json", 1)
        write_tensors(tmp_path / "file.safetensors", {"a": torch.zeros(2)})
        with new_folder(tmp_path / "folder") as part:
            (part / "deep").mkdir()
            write_tensors(part / "deep" / "inner.safetensors", {"a": torch.zeros(2)})
            save_file({"a": torch.zeros(2)}, part / "strict.safetensors")  # which safetensors makes 0600
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    inside = ("file.json", "file.safetensors", "inner.safetensors", "strict.safetensors")
    assert modes == {**dict.fromkeys(inside, file), "folder": folder, "deep": folder}


# Windows


def test_what_windows_refuses_is_not_asked_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It flushes only what is open for writing, opens no folder, and replaces no folder by renaming."""
    import fcntl

    real_open, real_fsync, real_replace = os.open, os.fsync, os.replace
    synced = []

    def windows_open(path, flags, *rest, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, flags, *rest, **options)

    def windows_fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        synced.append(descriptor)
        real_fsync(descriptor)

    def windows_replace(source, target):
        if os.path.isdir(target):
            raise PermissionError(errno.EACCES, "Access is denied", str(source), None, str(target))
        real_replace(source, target)

    monkeypatch.setattr("os.open", windows_open)
    monkeypatch.setattr("os.fsync", windows_fsync)
    monkeypatch.setattr("os.replace", windows_replace)
    monkeypatch.setattr("shutil._use_fd_functions", False)
    for text in ("one", "two"):
        write_text(tmp_path / "file", text)
        with new_folder(tmp_path / "folder") as part:
            (part / text).write_text(text)
        assert (tmp_path / "file").read_text() == text
        assert names(tmp_path / "folder") == [text]
    assert len(synced) == 4
    assert names(tmp_path) == ["file", "folder"]


def test_a_file_that_another_program_holds_for_a_moment_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.replace, []

    def held(source, target):
        if len(refused) < 3:
            refused.append(target)
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        real(source, target)

    monkeypatch.setattr("os.replace", held)
    write_text(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x"
    assert len(refused) == 3


# Errors


def write_a_file(path: Path) -> None:
    write_text(path, "x", who="mumoe test", remedy="Use -o.")


def write_a_folder(path: Path) -> None:
    with new_folder(path, who="mumoe test", remedy="Use -o.") as part:
        write_json(part / "inner.json", 1)


WRITES = pytest.mark.parametrize("write", [write_a_file, write_a_folder])


def check_only(path: Path) -> None:
    check_writable(path, who="mumoe test", remedy="Use -o.")


@pytest.mark.parametrize("write", [write_a_file, write_a_folder, check_only])
@pytest.mark.parametrize("name", ["place", "deep/place"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, write, name: str) -> None:
    with read_only(tmp_path), pytest.raises(JobError) as error:
        write(tmp_path / name)
    expected = rf"mumoe test: expected a folder that can be written, got '{tmp_path}' \(.*\). Use -o."
    assert re.fullmatch(expected, str(error.value))
    assert names(tmp_path) == []
    check_only(tmp_path / "deep" / "place")
    assert names(tmp_path) == []


@WRITES
def test_a_read_only_folder_is_one_line(tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "mkdir"):
        real = getattr(os, name)

        def closed(path, *rest, _real=real, **options):
            if Path(path).parent == tmp_path:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return _real(path, *rest, **options)

        monkeypatch.setattr(os, name, closed)
    with pytest.raises(JobError) as error:
        write(tmp_path / "place")
    expected = f"mumoe test: expected a folder that can be written, got '{tmp_path}' (Permission denied). Use -o."
    assert str(error.value) == expected


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """64 KiB: a file system of that size as root, else a limit on the size of a file."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    message = "mumoe: expected room on the disk of '.*disk.*', got: the disk is full. Free some space. Choose another"
    with small_disk(disk):
        write_text(disk / "file", "old")
        make_old(disk / "folder")
        with pytest.raises(JobError, match=message):
            write_bytes(disk / "file", b"x" * 100_000)
        with pytest.raises(JobError, match=message), new_folder(disk / "folder") as part:
            write_tensors(part / "a", {"a": torch.zeros(50_000)})
        assert names(disk) == ["file", "folder"]
        assert (disk / "file").read_text() == "old"
        assert (disk / "folder" / "a").read_text() == "old"


@WRITES
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_disk_that_fails_at_any_call_leaves_what_was_there(tmp_path: Path, monkeypatch, write, call, nth) -> None:
    place, real, calls = tmp_path / "place", getattr(os, call), []
    write(place)
    before = place.read_bytes() if place.is_file() else digest_files(place)

    def failing(*arguments):
        calls.append(1)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, call, failing)
    try:
        write(place)
        messages = []
    except JobError as error:
        messages = [str(error)]
    monkeypatch.undo()
    assert len(messages) == (len(calls) >= nth)
    assert all(text.startswith("mumoe test: expected room on the disk") and ".mumoe" not in text for text in messages)
    assert before == (place.read_bytes() if place.is_file() else digest_files(place))
    assert names(tmp_path) == ["place"]


def test_a_missing_parent_is_made_or_one_line(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "file", "x")
    with pytest.raises(
        JobError, match=r"^mumoe: expected an existing folder, got '.*no', which does not exist\. Create"
    ):
        write_text(tmp_path / "no" / "file", "x", parents=False)
    with pytest.raises(JobError, match=r"expected to write '.*file/b', got: .*file"):
        write_text(tmp_path / "a" / "b" / "file" / "b", "x")
    assert names(tmp_path) == ["a"]


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(JobError, match="expected to write '.*file', got: Not a directory"),
        new_folder(tmp_path / "file"),
    ):
        pass
    with pytest.raises(JobError, match="expected to write '.*folder', got: Is a directory"):
        write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["file", "folder"]


def test_errors_of_the_block_pass_and_nothing_is_left(tmp_path: Path) -> None:
    for kind in (new_file, new_folder):
        with pytest.raises(FileNotFoundError, match="elsewhere"), kind(tmp_path / "x"):
            open(tmp_path.parent / "elsewhere").close()
        with pytest.raises(ConnectionError), kind(tmp_path / "x"):
            raise ConnectionError("gone")
        with pytest.raises(KeyboardInterrupt), kind(tmp_path / "x"):
            raise KeyboardInterrupt
    assert names(tmp_path) == []


# Content


def test_what_is_written_is_read(tmp_path: Path) -> None:
    value = {"a": np.float32(0.5), "b": float("nan"), "c": (1, np.arange(2)), 4: None, "d": True, "é": Path("x")}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == {"a": 0.5, "b": None, "c": [1, [0, 1]], "4": None, "d": True, "é": "x"}
    shared = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "a.safetensors", {"a": shared, "b": shared, "c": shared.T}, {"spec": "x"})
    loaded = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in {"a": shared, "b": shared, "c": shared.T}.items())


def test_json_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "large.json").write_text("1" * 100)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(
        UserError, match=r"^who: expected readable JSON in .*damaged.json, got: damaged.json is not JSON"
    ):
        read_json(tmp_path / "damaged.json", "who")
    for name, words in (
        ("damaged", "damaged.json is not JSON"),
        ("large", "large.json has 100 bytes, more than 99"),
        ("pipe", "pipe.json is not a regular file"),
        ("none", "none.json cannot be read (No such file or directory)"),
    ):
        with pytest.raises(ValueError) as error:
            read_json(tmp_path / f"{name}.json", most=99)
        assert str(error.value) == words


def test_long_and_odd_names_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "[a]*?", "ü", "-rf", " ", "a\nb"):
        for _ in range(2):
            write_text(tmp_path / "files" / name, name)
            with new_folder(tmp_path / "folders" / name) as part:
                (part / "a").write_text(name)
        assert (tmp_path / "files" / name).read_text() == name
        assert (tmp_path / "folders" / name / "a").read_text() == name
    assert len(names(tmp_path / "files")) == len(names(tmp_path / "folders")) == 6


def test_a_link_to_a_folder_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link") as part:
        (part / "new").touch()
    assert names(tmp_path) == ["link", "real"]
    assert names(tmp_path / "link") == ["new"]
    assert names(tmp_path / "real") == ["kept"]


def test_a_removed_folder_is_gone(tmp_path: Path) -> None:
    make_old(tmp_path / "folder")
    remove_folder(tmp_path / "folder")
    remove_folder(tmp_path / "folder")
    assert names(tmp_path) == []


def test_digests_are_those_of_the_content(tmp_path: Path) -> None:
    make_old(tmp_path)
    old = hashlib.sha256(b"old").hexdigest()
    assert digest_files(tmp_path) == {"a": (3, old), "deep/b": (3, old), "deep/c": (3, old)}


def test_a_digest_begun_ahead_is_that_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "features"
    path.write_bytes(b"one" * 9_000_000)
    digest_ahead(path)
    assert digest_file(path) == hashlib.sha256(b"one" * 9_000_000).hexdigest()
    digest_ahead(path)
    files._AHEAD[path].result()
    path.write_bytes(b"changed since")
    assert digest_file(path) == hashlib.sha256(b"changed since").hexdigest()
    digest_ahead(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        digest_file(tmp_path / "none")


def test_one_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path / "env"))
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    assert cache_root() == cache_root("") == tmp_path / "env"
    monkeypatch.delenv("MUMOE_CACHE")
    assert cache_root() == tmp_path / "xdg" / "mumoe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path("~/.cache/mumoe").expanduser()
    assert cache_root("~/x") == Path("~/x").expanduser()


def test_nothing_else_writes_atomically() -> None:
    """One owner: a second module with these calls would be another way to write."""
    words = ("os.replace", "os.fsync", "os.rename", "mkstemp", "mkdtemp", "NamedTemporaryFile")
    sources = {path.relative_to(SOURCE).as_posix(): path.read_text() for path in Path(SOURCE).rglob("*.py")}
    assert {name for name, text in sources.items() if any(word in text for word in words)} == {"mumoe/files.py"}


def test_a_lock_beside_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    from mumoe.data.cache import sealed_folder

    with read_only(tmp_path), pytest.raises(JobError, match="^features: expected a folder that can be written, got"):
        sealed_folder(tmp_path / "features", lambda part: None, who="features")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    with read_only(tmp_path), pytest.raises(JobError, match="^audit: expected a folder that can be written, got"):
        files.make_folder(tmp_path / "proposed" / "edits", who="audit")
    assert files.make_folder(tmp_path / "proposed" / "edits").is_dir()


# Results of several files


def results(folder: Path, text: str, *, fail: bool = False, extra: bool = True) -> None:
    with files.new_entries(folder, ("store", "figure.*", "results.json"), who="analyze") as part:
        (part / "store").mkdir()
        (part / "store" / "a").write_text(text)
        if extra:
            (part / "figure.png").write_text(text)
        if fail:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        (part / "results.json").write_text(text)


def test_results_of_several_files_are_replaced_together_and_others_are_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    results(tmp_path, "first")
    with pytest.raises(JobError, match="^analyze: expected room on the disk of .* got: the disk is full"):
        results(tmp_path, "second", fail=True)
    assert {path.read_text() for path in tmp_path.glob("[!.m]*") if path.is_file()} == {"first"}
    assert (tmp_path / "store" / "a").read_text() == "first"
    results(tmp_path, "third", extra=False)
    assert names(tmp_path) == [".mumoe-lock", "mine.txt", "results.json", "store"]
    assert (tmp_path / "store" / "a").read_text() == (tmp_path / "results.json").read_text() == "third"


def test_results_that_were_replaced_halfway_lack_their_mark(tmp_path, monkeypatch):
    results(tmp_path, "first")
    real = files._rename

    def rename(source: Path, target: Path) -> None:
        if source.name == "store" and target.parent == tmp_path:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(files, "_rename", rename)
    with pytest.raises(KeyboardInterrupt):
        results(tmp_path, "second")
    assert not (tmp_path / "results.json").exists()


def test_a_folder_with_only_what_a_killed_writer_left_counts_as_empty(tmp_path):
    assert not files.holds_files(tmp_path / "missing")
    (tmp_path / f".mumoe-part-{files._machine()}-{DEAD}-01234567-settings.json").touch()
    (tmp_path / ".lock").touch()
    assert not files.holds_files(tmp_path)
    (tmp_path / "notes").touch()
    assert files.holds_files(tmp_path)


def test_a_new_array_has_its_room_on_the_disk(tmp_path):
    """Without it, writing to a page that a full disk cannot hold would end the process with SIGBUS."""
    array = files.new_array(tmp_path / "x.npy", np.float32, (1000, 300))
    assert os.stat(tmp_path / "x.npy").st_blocks * 512 >= array.nbytes
    array[:] = 3
    array.flush()
    assert (np.load(tmp_path / "x.npy") == 3).all()


def test_a_full_disk_is_recognized_in_the_words_of_numpy(tmp_path):
    with pytest.raises(JobError, match="got: the disk is full"), new_file(tmp_path / "x.npy"):
        raise OSError("3072 requested and 1016 written")


def test_a_failed_replacement_of_a_folder_leaves_no_new_one(tmp_path, monkeypatch):
    real = os.replace

    def replace(source, target):
        if ".mumoe-new-" in str(source):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(JobError, match="the disk is full"), new_folder(tmp_path / "out") as part:
        (part / "a").touch()
    assert names(tmp_path) == []
