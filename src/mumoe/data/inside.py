"""Keep tables and folders of images from naming files elsewhere on the disk, such as private ones in a downloaded set.

A path is followed as the system would follow it: absolute paths, ``..`` and links count by where they lead.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from mumoe.errors import UserError

__all__ = ["require_inside"]


def require_inside(who: str, folders: Sequence[Path], paths: Sequence[str]) -> None:
    """Raise if a file is not below one of the folders, links resolved.

    Args:
        who: Prefix of the error.
        folders: Where files may lie; the first is named in the error.
        paths: Of the files.

    Raises:
        UserError: If one is elsewhere; the first is named.
    """
    found = [path for path, inside in zip(paths, _inside(folders, paths), strict=True) if not inside]
    if found:
        count = "1 file" if len(found) == 1 else f"{len(found):,} files"
        raise UserError(
            f"{who}: expected images inside {str(folders[0])!r}, got {count} elsewhere, the first {found[0]!r}. "
            "If you trust where it comes from, add the data option allow_outside=true."
        )


def _inside(folders: Sequence[Path], paths: Sequence[str]) -> list[bool]:
    starts = tuple(os.path.normcase(os.path.join(os.path.realpath(folder), "")) for folder in folders)
    real = functools.lru_cache(maxsize=4096)(os.path.realpath)

    def leads_to(path: str) -> str:
        if os.path.islink(path) or os.path.basename(path) in ("", ".", ".."):
            return os.path.realpath(path)
        return os.path.join(real(os.path.dirname(path)), os.path.basename(path))

    def is_inside(path: str) -> bool:
        return "\0" not in path and os.path.normcase(leads_to(path)).startswith(starts)

    return [is_inside(path) for path in paths]
