"""Files that are either whole or absent, also after a crash or a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mumoe.errors import JobError

__all__ = ["disk_errors", "file_digest", "flush_file", "flush_folder", "read_json", "write_atomic"]

_CHUNK = 1 << 20


def flush_file(path: Path) -> None:
    """Have the system put a file's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: Path) -> None:
    """Have the system put a folder's entries (names made by creating or renaming) on the disk."""
    if os.name == "posix":
        flush_file(path)


def write_atomic(path: Path, text: str) -> None:
    """Replace a text file: readers see the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: Path, most: int = 64 << 20) -> Any:
    """Parse a JSON file of ordinary kind and size.

    Raises:
        ValueError: If it is missing, no ordinary file, longer than `most` bytes, or not JSON.
    """
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not an ordinary file")
        if status.st_size > most:
            raise ValueError(f"{path.name} has {status.st_size} bytes, more than {most}")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from None
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"{path.name} is not JSON") from None


@contextmanager
def disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Turn a failed write into a `JobError` that says what was being written and what is safe."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        full = full or any(word in str(error) for word in ("No space left", "File too large", "quota"))
        why = "the disk is full" if full else str(error)
        remedy = "Free some space" if full else "Mend that"
        raise JobError(
            f"{what}: expected to write in {str(folder)!r}, got: {why}. Earlier checkpoints are untouched. "
            f"{remedy} and go on with: mumoe train --resume {folder}"
        ) from error
