"""Find a data set's folder, download it if that is allowed, and read the lists inside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mumoe.data.registry import Request
from mumoe.errors import JobError, UserError, nearest, reason_of, require

__all__ = ["SPLIT_WORDS", "existing", "files_below", "lines", "list_folder", "locate", "torchvision_fetch"]

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
"""Common names of the splits (lower case) -> position in `mumoe.data.base.SPLITS`."""


def locate(request: Request, folders: Sequence[str], marker: str, fetch: Callable[[str], object] | None = None) -> Path:
    """The folder of a data set in its official layout: one of `folders` below the root, or the root itself.

    Args:
        request: The call of `load_data`.
        folders: Names that the folder may have, the official one first.
        marker: A file or folder by which it is recognized.
        fetch: Downloads the set into the root passed to it; None if it cannot be downloaded.

    Raises:
        UserError: If it is missing and may not be downloaded.
        JobError: If the download fails.
    """
    found = _find(request.root, folders, marker)
    if found is None and request.download and fetch is not None:
        _download(request, fetch)
        found = _find(request.root, folders, marker)
    if found is None:
        remedy = "Name the folder that holds it with `root`"
        remedy += ", or allow the download with `download`." if fetch else "; it cannot be downloaded from here."
        wanted = os.path.join(request.root, folders[0], marker)
        raise UserError(f"{request.name}: expected {wanted!r}, got nothing there. {remedy}")
    return found


def torchvision_fetch(kind: str) -> Callable[[str], object]:
    """A `fetch` for `locate`: calls torchvision's class of this name with the root."""

    def fetch(root: str) -> object:
        datasets = require("torchvision.datasets", "vision", "load_data")
        return getattr(datasets, kind)(root, download=True)

    return fetch


def existing(who: str, path: Path, *, folder: bool) -> Path:
    """The path, if there is a folder (or a file) there.

    Raises:
        UserError: If there is none (the message suggests the nearest name beside it), or it may not be read.
    """
    what = "a folder" if folder else "a file"
    try:
        found = path.is_dir() if folder else path.is_file()
    except PermissionError:
        found = True
    if found:
        if not os.access(path, os.R_OK | os.X_OK if folder else os.R_OK):
            raise UserError(
                f"{who}: expected {what} that can be read, got {str(path)!r} without permission. "
                "Change its permissions."
            )
        return path
    if path.exists():
        raise UserError(f"{who}: expected {what} at {str(path)!r}, got something else. Name {what}.")
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, beside)
    remedy = f"Did you mean {str(path.parent / close)!r}?" if close else "Check the path."
    raise UserError(f"{who}: expected {what} at {str(path)!r}, got nothing there. {remedy}")


def list_folder(who: str, folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name.

    Raises:
        UserError: If it cannot be listed.
    """
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{who}: expected a folder that can be listed, got {str(folder)!r} ({error.strerror}). "
            "Change its permissions."
        ) from error


def files_below(folder: Path, closed: list[str]) -> Iterator[Path]:
    """Every file below a folder, in sorted order, without hidden ones; a link to a folder is followed once.

    Args:
        folder: Where to look.
        closed: Receives the folders that cannot be listed, each with the reason.
    """

    def remember(error: OSError) -> None:
        closed.append(f"{error.filename}: {error.strerror}")

    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=remember):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (Path(here, name) for name in sorted(files) if name[0] != ".")


def lines(who: str, path: Path) -> Iterator[tuple[int, str]]:
    """The nonempty lines of a text file, with their numbers from 1.

    Raises:
        UserError: If the file is missing or not UTF-8.
    """
    try:
        text = existing(who, path, folder=False).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{who}: expected text in UTF-8 in {str(path)!r}, got byte {error.object[error.start]:#04x} "
            f"at {error.start}. Convert the file."
        ) from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line


def _find(root: Path, folders: Sequence[str], marker: str) -> Path | None:
    places = [root / folder for folder in folders] + [root]
    return next((place for place in places if (place / marker).exists()), None)


def _download(request: Request, fetch: Callable[[str], object]) -> None:
    try:
        request.root.mkdir(parents=True, exist_ok=True)
        fetch(str(request.root))
    except UserError:
        raise
    except Exception as error:
        words = reason_of(error).rstrip(".")
        raise JobError(
            f"{request.name}: expected to download into {str(request.root)!r}, got: {words}. "
            "Try again, or download the files yourself."
        ) from error
