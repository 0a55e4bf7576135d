"""Folders that are written once: by one process at a time, whole or not at all, and checked when read.

A sealed folder holds its files and a ``manifest.json`` with the size and SHA-256 of each. It is written
under a file lock beside its place, synced to disk and renamed, so a reader finds all of it or nothing; a
folder that no longer matches its manifest is named in a warning of the logger ``mumoe`` and made anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mumoe.errors import JobError, UserError

__all__ = ["cache_root", "damage", "digest_ahead", "digest_file", "sealed_folder"]

MANIFEST = "manifest.json"
logger = logging.getLogger("mumoe")


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of what can be made again: `cache_dir`, else $MUMOE_CACHE, else ~/.cache/mumoe."""
    chosen = cache_dir if cache_dir is not None else os.environ.get("MUMOE_CACHE") or "~/.cache/mumoe"
    return Path(chosen).expanduser().absolute()


def digest_file(path: Path) -> str:
    """SHA-256 of a file as hex digits."""
    ahead = _AHEAD.pop(path.absolute(), None)
    if ahead is not None:
        seen, found = ahead.result()
        if found and seen == _state(path):
            return found
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_AHEAD: dict[Path, Future[tuple[tuple[int, ...], str]]] = {}


def digest_ahead(path: Path) -> None:
    """Begin `digest_file` in a thread, so that the next call with this path finds it done.

    What it finds counts only if size, time and inode of the file are then as they were at the beginning.
    """
    ahead: Future[tuple[tuple[int, ...], str]] = Future()

    def work() -> None:
        try:
            seen, digest = _state(path), hashlib.sha256()
            with path.open("rb") as file:
                while part := file.read(2**24):  # much at a time: after each part other threads hold this one up
                    digest.update(part)
            ahead.set_result((seen, digest.hexdigest()))
        except OSError:
            ahead.set_result(((), ""))

    _AHEAD[path.absolute()] = ahead
    threading.Thread(target=work, name="mumoe-digest", daemon=True).start()


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder in a few words, or None when every file is as it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if path.stat().st_size != expected["bytes"]:
                return f"{path.stat().st_size} bytes in {name} instead of {expected['bytes']}"
            if digest_file(path) != expected["sha256"]:
                return f"changed bytes in {name}"
    except FileNotFoundError as error:
        return f"no file {Path(error.filename).name}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"an unreadable manifest ({type(error).__name__})"
    return None


def sealed_folder(folder: Path, write: Callable[[Path], None], *, who: str) -> tuple[Path, bool]:
    """Return a sealed folder, writing it first if it is not there whole.

    Two processes that ask at once write it once: the second waits and reads what the first wrote.

    Args:
        folder: Where it belongs; its name should hold a key of everything the content depends on.
        write: Fills the empty folder it is given. When it raises, or the process dies, nothing stays.
        who: What the messages begin with.

    Returns:
        The folder, and whether this call wrote it.

    Raises:
        UserError: If the place cannot be written.
        JobError: If the disk is full.
    """
    if damage(folder) is None:
        return folder, False
    with _place_errors(folder, who):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _waiting_lock(folder, who):
            problem = damage(folder)
            if problem is None:
                return folder, False
            if folder.exists():
                logger.warning("%s: the cached %s is damaged (%s); it is made anew.", who, folder, problem)
                shutil.rmtree(folder)
            _write_sealed(folder, write)
    return folder, True


def _write_sealed(folder: Path, write: Callable[[Path], None]) -> None:
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write(part)
        _seal(part)
        part.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _seal(folder: Path) -> None:
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _sync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    _sync(manifest)
    _sync(folder)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _waiting_lock(folder: Path, who: str) -> Iterator[None]:
    """Hold the lock of a folder; say so once when another process holds it."""
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        logger.warning("%s: waiting for another process that writes %s.", who, folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _place_errors(folder: Path, who: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise JobError(
                f"{who}: expected room on the disk of {folder.parent}, got a full disk. "
                "Free some, or set MUMOE_CACHE to a folder on another disk."
            ) from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError) or error.errno == errno.EROFS:
            raise UserError(
                f"{who}: expected a folder that can be written, got {folder.parent} ({error.strerror}). "
                "Set MUMOE_CACHE to one that can."
            ) from error
        raise
