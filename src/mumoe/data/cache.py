"""Folders that are written once: by one process at a time, whole or not at all, and checked when read.

A sealed folder holds its files and a ``manifest.json`` with the size and SHA-256 of each. It is written
under a file lock beside its place and appears as a whole; a
folder that no longer matches its manifest is named in a warning of the logger ``mumoe`` and made anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mumoe.files import CACHE, digest_file, digest_files, new_folder, recovered, write_errors, write_json

__all__ = ["damage", "sealed_folder"]

MANIFEST = "manifest.json"
logger = logging.getLogger("mumoe")


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
        JobError: If the place cannot be written or the disk is full.
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
                logger.warning("%s: the cached %s is damaged (%s); it is made anew.", who, folder, problem)
            _write_sealed(folder, write, who)
    return folder, True


def _write_sealed(folder: Path, write: Callable[[Path], None], who: str) -> None:
    with new_folder(folder, who=who, remedy=CACHE) as part:
        write(part)
        files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in digest_files(part).items()}
        write_json(part / MANIFEST, {"files": files})


@contextmanager
def _waiting_lock(folder: Path, who: str) -> Iterator[None]:
    """Hold the lock of a folder; logs one line if another process holds it."""
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
