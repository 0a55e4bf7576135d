"""Atomic writes of files and folders: all or nothing, even after a kill, a power cut or a full disk.

A file is written beside its place and renamed onto it. A folder cannot be renamed onto another one, so it takes
three renames: the complete new folder is marked ``new``, the folder in its place is moved aside as ``old``, and the new
one takes its place. A kill between two of them leaves ``old``, ``new`` or both, and `recovered` finishes the work.

Temporary names start with ``.mumoe-`` and carry the machine and the process that made them, so two processes never
share one, and the next writer in the folder removes those of processes that are gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mumoe.errors import JobError, UserError, shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

__all__ = [
    "cache_root",
    "check_writable",
    "clean_folder",
    "digest_ahead",
    "digest_file",
    "digest_files",
    "holds_files",
    "inside",
    "make_folder",
    "nameless_file",
    "new_array",
    "new_entries",
    "new_file",
    "new_folder",
    "private_file",
    "read_array",
    "read_json",
    "read_toml",
    "recovered",
    "regular_size",
    "remove_folder",
    "sync_file",
    "to_plain",
    "write_bytes",
    "write_errors",
    "write_json",
    "write_tensors",
    "write_text",
]

OUT = "Choose another place to write to."
CACHE = "Set MUMOE_CACHE to another folder."

LOCK, JOB_LOCK, HOLDER = ".mumoe-lock", ".lock", ".holder"
"""Lock of a folder in which several entries are replaced; lock of a folder in which a job works, and who holds it."""

_PREFIX = ".mumoe-"
_CUT = "~"
_NAME = re.compile(r"\.mumoe-(part|new|old)-([0-9a-f]{6})-(\d+)-[0-9a-f]{8}-(.*)", re.DOTALL)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")
"""What numpy says when a disk is full, without a number of the error."""
_RETRIES = 7
_NPY_HEADER = 1 << 16
"""Bytes that hold the header of any .npy file of numbers; numpy refuses headers longer than 10,000."""
_NPY_ENTRIES = (
    re.compile(rb"""['"]descr['"]\s*:\s*['"]([<>|=]?[a-zA-Z]\d{0,9}(?:\[\w+\])?)['"]"""),
    re.compile(rb"""['"]fortran_order['"]\s*:\s*(True|False)"""),
    re.compile(rb"""['"]shape['"]\s*:\s*\(([\dL,\s]{0,400})\)"""),
)


# Writing --------------------------------------------------------------------------------------------------


def write_bytes(path: str | Path, content: bytes, **how: Any) -> None:
    """Replace a file by these bytes; `how` as for `new_file`."""
    with new_file(path, **how) as part:
        part.write_bytes(content)


def write_text(path: str | Path, text: str, **how: Any) -> None:
    """Replace a file by a text in UTF-8, line ends as they are; `how` as for `new_file`."""
    write_bytes(path, text.encode(), **how)


def write_json(path: str | Path, value: Any, **how: Any) -> None:
    """Replace a file by a value as indented JSON (see `to_plain`); `how` as for `new_file`."""
    write_text(path, json.dumps(to_plain(value), indent=1, allow_nan=False) + "\n", **how)


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, **how: Any
) -> None:
    """Replace a safetensors file; tensors are copied to the CPU, shared ones apart. `how` as for `new_file`."""
    from safetensors.torch import save_file

    with new_file(path, **how) as part:
        save_file(_separate(tensors), part, metadata=dict(metadata) if metadata else None)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, as safetensors requires."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        start = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if start in seen else plain
        seen.add(start)
    return separate


@contextlib.contextmanager
def new_file(
    path: str | Path,
    *,
    who: str | None = None,
    remedy: str | None = None,
    parents: bool = True,
    durable: bool = True,
) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it if the block succeeds and vanishes if not.

    Readers see the old file or the new one. The new file's permissions follow the umask.

    Args:
        path: The file. Its suffix is kept by the temporary name.
        who: First word of the messages; by default that of the `write_errors` around it.
        remedy: Last sentence of the messages, which names another place to write; by default as for `who`.
        parents: Make missing parent folders; else they are an error.
        durable: Wait until the content is on the disk.

    Raises:
        JobError: If the parent is missing, the folder is read-only or the disk is full.
    """
    path = Path(path)
    with write_errors(path, who=who, remedy=remedy):
        _prepare_parent(path, parents)
        part = _beside(path, "part")
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.close(descriptor)
            yield part
            _set_mode(part, mode)
            if durable:
                sync_file(part)
            _rename(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        if durable:
            _sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(
    path: str | Path,
    *,
    who: str | None = None,
    remedy: str | None = None,
    parents: bool = True,
    durable: bool = True,
) -> Iterator[Path]:
    """An empty folder that replaces the folder `path` if the block succeeds and vanishes if not.

    Readers that call `recovered` see the old folder or the new one, with all its files. Of two processes that write
    the same folder at once, the later one replaces the other's. Arguments and errors as for `new_file`.
    """
    path = Path(path)
    with write_errors(path, who=who, remedy=remedy):
        _prepare_parent(path, parents)
        recovered(path)
        _check_folder(path)
        part = _beside(path, "part")
        os.mkdir(part)
        try:
            yield part
            _finish_tree(part, durable)
            _take_place(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        if durable:
            _sync_folder(path.parent)


@contextlib.contextmanager
def new_entries(
    folder: str | Path,
    names: Sequence[str],
    *,
    who: str | None = None,
    remedy: str | None = None,
    durable: bool = True,
) -> Iterator[Path]:
    """An empty folder whose entries take the places of those in `folder` if the block succeeds, and vanish if not.

    For results of several files and folders that belong together, beside files of others. The last of `names` marks
    complete results: it is removed before anything is replaced and put back after everything else, so that a reader
    who finds it finds what was written with it. A kill in the block leaves the earlier results; one in the moment of
    the renames may leave results without their mark.

    Args:
        folder: The folder.
        names: Patterns of all entries that the block may write; those that it does not write are removed. The last
            one is the name of the mark.
        who, remedy, durable: As for `new_file`.

    Raises:
        JobError: If the folder is read-only or the disk is full; the earlier results are kept.
    """
    from filelock import FileLock

    folder = Path(folder)
    with write_errors(folder, who=who, remedy=remedy):
        folder.mkdir(parents=True, exist_ok=True)
        _clean_once(os.path.abspath(folder), os.getpid())
        part = _beside(folder / names[-1], "part")
        os.mkdir(part)
        try:
            yield part
            _finish_tree(part, durable)
            with FileLock(folder / LOCK):
                _replace_entries(part, folder, names)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        if durable:
            _sync_folder(folder)


def _replace_entries(part: Path, folder: Path, names: Sequence[str]) -> None:
    *others, mark = names
    written = sorted(entry.name for entry in part.iterdir())
    assert mark in written
    old = part / "old"
    old.mkdir()
    for entry in [folder / mark, *(found for pattern in others for found in sorted(folder.glob(pattern)))]:
        if os.path.lexists(entry):
            _rename(entry, old / entry.name)
    for name in sorted(written, key=lambda name: name == mark):
        _rename(part / name, folder / name)


def new_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new ``.npy`` file of this shape, mapped into memory, with room for all of it on the disk.

    Without that room the first write to a page that a full disk cannot hold would end the process.

    Raises:
        OSError: If the disk is full.
    """
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    with path.open("r+b") as file:
        reserve = getattr(os, "posix_fallocate", None)  # which macOS and Windows lack
        if reserve is not None:
            reserve(file.fileno(), 0, max(path.stat().st_size, 1))
            return array
        file.seek(array.offset)
        for start in range(0, array.nbytes, 2**24):
            file.write(bytes(min(2**24, array.nbytes - start)))
    return array


def private_file(text: str, *, prefix: str, suffix: str) -> Path:
    """A new file with this text in the folder for temporary files, which only this user can read (mode 0600)."""
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)


def check_writable(
    path: str | Path, *, who: str | None = None, remedy: str | None = None, parents: bool = True
) -> None:
    """Raise before any work what `new_file` or `new_folder` would raise after it; nothing is left behind.

    Arguments as for `new_file`.

    Raises:
        JobError: If the nearest folder above that exists is read-only or full, or the parent has to exist.
    """
    path = Path(path)
    above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), path.absolute().parent)
    target = above / path.name if parents else path
    with write_errors(target, who=who, remedy=remedy):
        part = _beside(target, "part")
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.unlink(part)


def make_folder(path: Path, *, who: str | None = None, remedy: str | None = None) -> Path:
    """Make a folder that may exist, and those above it; returns it.

    Raises:
        JobError: If it cannot be made.
    """
    with write_errors(path, who=who, remedy=remedy):
        path.mkdir(parents=True, exist_ok=True)
    return path


def remove_folder(path: Path) -> None:
    """Delete a folder (or a file or link of that name) without readers seeing it half deleted."""
    gone = _beside(path, "part")
    with contextlib.suppress(FileNotFoundError):
        _rename(path, gone)
        _delete(gone)


def recovered(path: Path) -> Path:
    """Finish the replacement of a folder whose writer was killed; returns the folder to read.

    That is `path` itself, except on a read-only disk that holds an unfinished replacement.
    """
    if os.path.lexists(path):
        return path
    with contextlib.suppress(FileNotFoundError):  # its writer is alive and finished the work
        found = sorted(_remains(path), key=lambda item: (item[0] == "new", item[1].stat().st_mtime_ns))
        if found:
            try:
                _rename(found[-1][1], path)
            except OSError:
                return path if os.path.lexists(path) else found[-1][1]
    return path


def holds_files(folder: Path) -> bool:
    """Whether a folder exists and holds anything but locks and what killed writers left in it."""
    if not folder.is_dir():
        return False
    names = {entry.name for entry in folder.iterdir()} - {LOCK, JOB_LOCK, HOLDER}
    return any(_NAME.fullmatch(name) is None for name in names)


def clean_folder(folder: Path, *, locked: bool = False) -> None:
    """Finish or remove what killed processes left in a folder.

    Args:
        folder: The folder.
        locked: Whether the caller holds the lock that every writer of the folder takes. Then the files of processes on
            other machines are included; by default only those of this machine's dead processes.
    """
    for entry in _entries(folder):
        match = _NAME.fullmatch(entry)
        if match is None or not (locked or (match[2] == _machine() and not _is_alive(int(match[3])))):
            continue
        if match[1] == "part":
            _delete(folder / entry)
        elif not match[4].startswith(_CUT) and os.path.lexists(recovered(folder / match[4])):
            _discard(folder / entry)


# Steps ----------------------------------------------------------------------------------------------------


def _check_folder(path: Path) -> None:
    """Raise if something other than a folder is in the place; checked once, since another process may replace it."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return
    if os.path.islink(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def _take_place(part: Path, path: Path) -> None:
    """Put a complete folder in the place of another, or of none."""
    new, old = _beside(path, "new"), _beside(path, "old")
    _rename(part, new)
    try:
        while not _exchange(new, path, old):
            pass
    except BaseException:
        with contextlib.suppress(OSError):
            _rename(old, path)
        if not os.path.lexists(old):  # else the new folder is all that a reader would find
            _delete(new)
        raise
    _discard(old)


def _exchange(new: Path, path: Path, old: Path) -> bool:
    """Move the existing folder aside for the new one; False if another process took the place meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        _rename(path, old)
    try:
        _rename(new, path)
    except FileNotFoundError:  # another process recovered the new folder, and may have replaced it since
        if not path.parent.is_dir():
            raise
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        _discard(old)
        return False
    return True


def _discard(old: Path) -> None:
    """Delete a folder that was replaced, under a name from which nothing is recovered."""
    with contextlib.suppress(FileNotFoundError):
        gone = old.with_name(old.name.replace("-old-", "-part-", 1).replace("-new-", "-part-", 1))
        _rename(old, gone)
        _delete(gone)


def _finish_tree(folder: Path, durable: bool) -> None:
    """Give every file the permissions of the umask, and put files and folders on the disk."""
    allowed = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(root, name)
            if stat.S_ISREG(path.lstat().st_mode):
                _set_mode(path, allowed)
                if durable:
                    sync_file(path)
        if durable:
            _sync_folder(Path(root))


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        os.chmod(path, mode)


def sync_file(file: Path | IO[Any]) -> None:
    """Put the content of a file, by path or open for writing, on the disk."""
    if not isinstance(file, Path):
        file.flush()
        os.fsync(file.fileno())
        return
    descriptor = os.open(file, os.O_RDWR)  # Windows refuses to flush what is open for reading
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _rename(source: Path, target: Path) -> None:
    """`os.replace`, tried again while a virus scanner or an indexer of Windows holds one of the two."""
    for attempt in range(_RETRIES):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if attempt == _RETRIES - 1:
                raise
            time.sleep(0.01 * 2**attempt)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


# Temporary names ------------------------------------------------------------------------------------------


def _prepare_parent(path: Path, parents: bool) -> None:
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    _clean_once(os.path.abspath(path.parent), os.getpid())


@functools.cache
def _clean_once(folder: str, process: int) -> None:
    """Once per process: a folder may hold many files, each written by a call of its own."""
    clean_folder(Path(folder))


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{_PREFIX}{kind}-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}-{_short(path.name)}")


def _short(name: str) -> str:
    """A name that leaves room for the prefix in the 255 bytes of a file system."""
    if len(os.fsencode(name)) <= 200:
        return name
    return f"{_CUT}{hashlib.sha256(os.fsencode(name)).hexdigest()}{Path(name).suffix[:20]}"


def _remains(path: Path) -> list[tuple[str, Path]]:
    """The new and old folders of unfinished replacements of `path`, of any process."""
    matches = [(_NAME.fullmatch(entry), path.with_name(entry)) for entry in _entries(path.parent)]
    wanted = _short(path.name)
    return [(match[1], found) for match, found in matches if match and match[1] != "part" and match[4] == wanted]


def _entries(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.startswith(_PREFIX)]
    except OSError:
        return []


@functools.cache
def _machine() -> str:
    """Six digits for this machine: a process id means nothing on another one that shares the disk."""
    return hashlib.sha256(platform.node().encode("utf-8", "replace")).hexdigest()[:6]


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":  # os.kill would end the process
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, process)
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


# Errors ---------------------------------------------------------------------------------------------------


class _NotWritten(JobError):
    """A failed write, whose sentence an outer `write_errors` completes."""

    def __init__(self, what: str, who: str | None, remedy: str | None) -> None:
        super().__init__(f"{who or 'mumoe'}: expected {what} {remedy or OUT}")
        self.what, self.who, self.remedy = what, who, remedy

    def __reduce__(self) -> tuple[type[_NotWritten], tuple[str, str | None, str | None]]:
        """How it is sent to the other processes of a job."""
        return type(self), (self.what, self.who, self.remedy)


@contextlib.contextmanager
def write_errors(path: Path, *, who: str | None = None, remedy: str | None = None) -> Iterator[None]:
    """Turn a failure to write a file or folder, or something inside it, into a `JobError` of one line.

    Other errors pass, and so do those of files elsewhere, which the block may read.

    Args:
        path: The file or folder.
        who: First word of the message.
        remedy: Last sentence of the message, which names another place to write.
    """
    try:
        yield
    except _NotWritten as error:
        raise _NotWritten(error.what, error.who or who, error.remedy or remedy) from error.__cause__
    except OSError as error:
        if (what := _failure(path, error)) is None:
            raise
        raise _NotWritten(what, who, remedy) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # importing its module takes long
            raise
        full = any(word in str(error) for word in ("No space left", "File too large", "quota"))
        what = _full(path) if full else f"to write {_named(path)!r}, got: {error}."
        raise _NotWritten(what, who, remedy) from error


def _failure(path: Path, error: OSError) -> str | None:
    """What was expected and what was found, or None if the error is unrelated."""
    if error.errno in _FULL or _CUT_SHORT.fullmatch(str(error)):
        return _full(path)
    if error.filename is None:
        known = error.errno in {errno.EIO, errno.EROFS}
        return f"to write {_named(path)!r}, got: {error.strerror}." if known else None
    failed = Path(os.path.abspath(os.fsdecode(error.filename)))
    if not _concerns(Path(os.path.abspath(path)), failed):
        return None
    if error.errno in _CLOSED:
        return f"a folder that can be written, got {_named(failed.parent)!r} ({error.strerror})."
    if error.errno == errno.ENOENT and not path.parent.is_dir():
        return f"an existing folder, got {_named(path.parent)!r}, which does not exist. Create it first."
    return f"to write {_named(path)!r}, got: {error.strerror} ({_named(failed)})."


def _full(path: Path) -> str:
    return f"room on the disk of {_named(path.parent)!r}, got: the disk is full. Free some space."


def _named(path: Path) -> str:
    """A path as the user knows it: temporary names replaced by what they stand for."""
    matches = ((_NAME.fullmatch(part), part) for part in path.parts)
    return str(Path(*(match[4] if match else part for match, part in matches)))


def _concerns(path: Path, failed: Path) -> bool:
    """Whether something failed is `path`, inside it, its temporary copy, a lock beside it, or a folder above."""
    if failed.is_relative_to(path) or path.is_relative_to(failed):
        return True
    inside = failed.relative_to(path.parent).parts[0] if failed.is_relative_to(path.parent) else ""
    return inside.startswith(_PREFIX) or inside.endswith(".lock")


# Reading --------------------------------------------------------------------------------------------------


def read_json(path: Path, who: str = "", *, most: int = 1 << 30) -> Any:
    """The content of a regular JSON file.

    Args:
        path: The file.
        who: First word of the message. Without it the message is only a few words, for a caller that adds its own.
        most: Largest size in bytes.

    Raises:
        UserError: If it is missing, not a regular file, too large, or not JSON.
    """
    try:
        return _parsed(path, most)
    except ValueError as error:
        if not who:
            raise UserError(str(error)) from None
        raise UserError(f"{who}: expected readable JSON in {path}, got: {error}. Write it again.") from None


def _parsed(path: Path, most: int) -> Any:
    try:
        size = regular_size(path)
        if size > most:
            raise ValueError(f"{path.name} has {size} bytes, more than {most}")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from None
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"{path.name} is not JSON") from None


def read_toml(text: str) -> dict[str, Any]:
    """A text in TOML as plain values.

    Raises:
        ValueError: If it is not TOML, or nested too deeply; the message is one for users.
    """
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("values nested too deeply") from None


def inside(folder: Path, name: object) -> Path:
    """The path of a file that a file in `folder` names; it cannot lead out of the folder, but for links.

    Raises:
        ValueError: If it is not the relative path of something below the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{shown(name)} is not the name of a file")
    parts = re.split(r"[/\\]", name) if os.name == "nt" else name.split("/")
    if "" in parts or ".." in parts or Path(name).is_absolute() or Path(name).drive:
        raise ValueError(f"{shown(name)} is outside the folder")
    return folder / name


def nameless_file(folder: Path) -> AbstractContextManager[IO[bytes]]:
    """A new file in a folder whose name is gone when the context ends; what is mapped from it stays until it is closed.

    Raises:
        OSError: If the folder cannot be written.
    """
    return tempfile.NamedTemporaryFile(dir=folder, prefix=".mumoe-held-")


def regular_size(path: Path) -> int:
    """Bytes of a regular file, before it is opened: a pipe would wait for its writer.

    Raises:
        ValueError: If it is something else.
        OSError: If it cannot be found, or is a folder.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    return status.st_size


def read_array(path: Path, *, mapped: bool = False) -> Any:
    """The array of numbers or texts in a .npy file; nothing is allocated before its size is known to be right.

    Args:
        path: The file.
        mapped: Map it into memory, read-only, instead of reading it.

    Raises:
        ValueError: If it is missing, not a regular file, or no such array; the message is a few words for a caller
            that adds its own.
    """
    try:
        size = regular_size(path)
        shape, fortran, dtype, start = _array_header(path)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from None
    count = math.prod(shape)
    if not shape or max(shape) >= 1 << 62 or start + count * dtype.itemsize != size:
        raise ValueError(f"{path.name} has {size} bytes, which are not {dtype} of shape {shape}")
    import numpy as np

    if not count:
        return np.zeros(shape, dtype)
    found = np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
    return found if mapped else np.array(found)


def _array_header(path: Path) -> tuple[tuple[int, ...], bool, Any, int]:
    """Shape, order and type of a .npy file, and the position of its first number.

    numpy evaluates the header as Python, which takes long for a damaged one; here its three entries are looked for.
    """
    import numpy as np

    with path.open("rb") as file:
        begin = file.read(_NPY_HEADER)
    width = 2 if begin[6:7] == b"\x01" else 4
    start = 8 + width + int.from_bytes(begin[8 : 8 + width], "little")
    found = [entry.search(begin[:start]) for entry in _NPY_ENTRIES]
    if begin[:6] != b"\x93NUMPY" or start > len(begin) or None in found:
        raise ValueError(f"{path.name} is not an array of numbers or texts")
    descr, fortran, shape = (match[1].decode("ascii") for match in found if match)
    try:
        dtype, sizes = np.dtype(descr), tuple(int(size) for size in shape.replace("L", "").split(",") if size.strip())
    except (TypeError, ValueError):
        raise ValueError(f"{path.name} holds {descr!r}, not numbers or texts") from None
    if dtype.kind not in "biufcSUM" or not dtype.itemsize:
        raise ValueError(f"{path.name} holds {dtype}, not numbers or texts")
    return sizes, fortran == "True", dtype, start


def to_plain(value: Any) -> Any:
    """Dataclasses, arrays, tuples and numpy scalars as JSON values; a number that is not finite becomes None."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return to_plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    ahead = _AHEAD.pop(path.absolute(), None)
    if ahead is not None:
        seen, found = ahead.result()
        if found and seen == _state(path):
            return found
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(folder: Path, *, deep: bool = True) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 of every file below a folder, by its relative name with slashes, in order of name.

    With `deep` False only those directly in it.
    """
    paths = sorted(path for path in folder.glob("**/*" if deep else "*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, digest_file(path)) for path in paths}


_AHEAD: dict[Path, Future[tuple[tuple[int, ...], str]]] = {}


def digest_ahead(path: Path) -> None:
    """Start `digest_file` in a thread, so that the next call with this path finds it done.

    The result counts only if size, time and inode of the file are then what they were at the start.
    """
    ahead: Future[tuple[tuple[int, ...], str]] = Future()

    def work() -> None:
        try:
            seen, digest = _state(path), hashlib.sha256()
            with path.open("rb") as file:
                while part := file.read(2**24):  # large parts: other threads may delay this one after each
                    digest.update(part)
            ahead.set_result((seen, digest.hexdigest()))
        except OSError:
            ahead.set_result(((), ""))

    _AHEAD[path.absolute()] = ahead
    threading.Thread(target=work, name="mumoe-digest", daemon=True).start()


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The cache folder: `cache_dir`, else $MUMOE_CACHE, else ``mumoe`` in the user's cache.

    The user's cache is $XDG_CACHE_HOME or ``~/.cache`` on Linux, and where the system keeps it elsewhere.
    """
    chosen = cache_dir or os.environ.get("MUMOE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("mumoe", appauthor=False)
