"""Where data sets and what was worked out about them are kept."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_home", "data_home"]


def cache_home(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder for what can be made again: `cache_dir`, else ``$MUMOE_CACHE``, else ``~/.cache/mumoe``."""
    given = cache_dir or os.environ.get("MUMOE_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mumoe"


def data_home(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds the data sets: `root`, else ``$MUMOE_DATA``, else ``data`` in the cache."""
    given = root or os.environ.get("MUMOE_DATA")
    return Path(given).expanduser() if given else cache_home() / "data"
