"""Folders that are written once, by one process at a time, completely or not at all, and checked when read.

A sealed folder holds its files and a ``manifest.json`` with the size and SHA-256 of each. It is written
under a file lock and appears only when it is complete. A folder that no longer matches its manifest is rebuilt,
with a warning from the logger ``mumoe``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mumoe.files import (
    CACHE,
    digest_file,
    digest_files,
    inside,
    new_folder,
    read_json,
    recovered,
    write_errors,
    write_json,
)

__all__ = ["damage", "sealed_folder"]

MANIFEST = "manifest.json"
logger = logging.getLogger("mumoe")


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in a few words; None if every file is as it was written."""
    try:
        files = read_json(folder / MANIFEST)["files"]
        for name, expected in files.items():
            path = inside(folder, name)
            if path.stat().st_size != expected["bytes"]:
                return f"{path.stat().st_size} bytes in {name} instead of {expected['bytes']}"
            if digest_file(path) != expected["sha256"]:
                return f"changed bytes in {name}"
        if not files:
            return "a manifest of no files"
    except FileNotFoundError as error:
        return f"no file {Path(error.filename).name}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"an unreadable manifest ({type(error).__name__})"
    return None


def sealed_folder(folder: Path, write: Callable[[Path], None], *, who: str) -> tuple[Path, bool]:
    """Return a sealed folder; write it first if it is missing or damaged.

    If two processes call this at the same time, the second waits and reads what the first wrote.

    Args:
        folder: Its path. The name should contain a key of everything that the content depends on.
        write: Fills the empty folder passed to it. If it raises or the process dies, nothing is left behind.
        who: Prefix of the messages.

    Returns:
        The folder, and whether this call wrote it.

    Raises:
        JobError: If the folder cannot be written or the disk is full.
    """
    if damage(recovered(folder)) is None:
        return recovered(folder), False
    with write_errors(folder, who=who, remedy=CACHE):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _waiting_lock(folder, who):
            problem = damage(folder)
            if problem is None:
                return folder, False
            if folder.exists():
                logger.warning("%s: the cached %s is damaged (%s). It will be rebuilt.", who, folder, problem)
            _write_sealed(folder, write, who)
    return folder, True


def _write_sealed(folder: Path, write: Callable[[Path], None], who: str) -> None:
    with new_folder(folder, who=who, remedy=CACHE) as part:
        write(part)
        files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in digest_files(part).items()}
        write_json(part / MANIFEST, {"files": files})


@contextmanager
def _waiting_lock(folder: Path, who: str) -> Iterator[None]:
    """Hold the lock of a folder; log one line if another process holds it."""
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        logger.warning("%s: waiting for another process that is writing %s.", who, folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
