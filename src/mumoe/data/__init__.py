"""Named image sets, read from local folders first, as one `ImageData` each.

`load_data` and its table are imported when they are first used, so that `mumoe.data.base` needs numpy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mumoe.data.base import SPLITS, Attribute, ImageData

if TYPE_CHECKING:
    from mumoe.data.named import DATASETS, load_data, problem_summary

__all__ = ["DATASETS", "SPLITS", "Attribute", "ImageData", "load_data", "problem_summary"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mumoe.errors import require

    require("PIL", "vision", "mumoe.data")
    from mumoe.data import named

    return getattr(named, name)
