"""Paths to the same file: relative or absolute, through links, or in different case where the disk ignores case."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

__all__ = ["same_files"]


def same_files(paths: Sequence[str]) -> dict[int, int]:
    """For each path to the same file as an earlier one: its position -> that of the earlier one.

    Links are resolved. Paths that differ only in case are compared on the disk, since file systems treat case
    differently. Two hard links are two files.
    """
    folder = functools.lru_cache(maxsize=4096)(os.path.realpath)
    first: dict[str, int] = {}
    lowered: dict[str, list[int]] = {}
    again: dict[int, int] = {}
    for position, path in enumerate(paths):
        if "\0" in path:  # no file has such a name
            continue
        real = os.path.realpath(path) if os.path.islink(path) else _inside(folder(os.path.dirname(path)), path)
        if real in first:
            again[position] = first[real]
            continue
        first[real] = position
        alike = lowered.setdefault(real.casefold(), [])
        same = next((other for other in alike if _same_on_disk(paths[other], path)), None)
        if same is not None:
            again[position] = same
        alike.append(position)
    return again


def _inside(folder: str, path: str) -> str:
    return os.path.normpath(os.path.join(folder, os.path.basename(path)))


def _same_on_disk(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
