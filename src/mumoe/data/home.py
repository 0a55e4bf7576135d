"""Where the data sets are kept."""

from __future__ import annotations

import os
from pathlib import Path

from mumoe.files import cache_root

__all__ = ["data_home"]


def data_home(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds the data sets: `root`, else ``$MUMOE_DATA``, else ``data`` in the cache."""
    given = root or os.environ.get("MUMOE_DATA")
    return Path(given).expanduser() if given else cache_root() / "data"
