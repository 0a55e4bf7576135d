"""The data sets by name, and how to add one.

A loader is a function that takes a `Request` and its own options by keyword, and returns an `ImageData`:

>>> @register("mine", "two colours")                                                    # doctest: +SKIP
... def load_mine(request: Request, *, size: int = 32) -> ImageData:
...     images = FileImages(request.root / "mine", paths)
...     return build(request, images, classes=("red", "blue"), labels=labels)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mumoe.data.base import ImageData
from mumoe.errors import UserError

__all__ = ["DATASETS", "DataEntry", "Request", "register"]


@dataclass(frozen=True)
class Request:
    """A call of `load_data`, as a loader sees it.

    Attributes:
        name: The whole name, e.g. ``folder:PATH``.
        argument: What follows the colon, else empty.
        root: The folder that holds the data sets.
        download: Whether fetching from the network was allowed.
        strict: Whether anything left out is an error.
        split_seed: Seed of every split that the set does not fix itself.
        val_fraction: Share that becomes val if the set has none.
        test_fraction: Share that becomes test if the set has none.
        verify: How thoroughly files are checked: ``auto``, ``full`` or ``header`` (see `mumoe.data.verify`).
        cache_dir: Where the results of the check are kept; None for the default.
        progress: Whether to show progress.
        allow_outside: Whether images may lie outside the folder of the set.
    """

    name: str
    argument: str
    root: Path
    download: bool = False
    strict: bool = False
    split_seed: int = 0
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    verify: str = "auto"
    cache_dir: Path | None = None
    progress: bool = True
    allow_outside: bool = False

    def path(self) -> Path:
        """The argument as a path; a relative one starts from the current folder."""
        return Path(self.argument).expanduser()


Loader = Callable[..., ImageData]


@dataclass(frozen=True)
class DataEntry:
    """One registered name.

    Attributes:
        load: The loader.
        text: What it is, in a few words.
        argument: What must follow ``name:`` (``PATH``); empty for a name that stands alone.
    """

    load: Loader
    text: str
    argument: str = ""


DATASETS: dict[str, DataEntry] = {}
"""Name (without argument) -> loader. Add one with `register`. `mumoe.data.DATASETS` has all loaders registered."""


def register(name: str, text: str, *, argument: str = "") -> Callable[[Loader], Loader]:
    """Decorate a loader to make it a name of `load_data`.

    Args:
        name: The name, without colon.
        text: What it is, in a few words.
        argument: What must follow ``name:``, such as ``PATH``; empty for none.

    Raises:
        UserError: If the name is taken or holds a colon.
    """
    if name in DATASETS:
        raise UserError(f"register: expected a new data name, got {name!r}, which is taken. Choose another one.")
    if not name or ":" in name:
        raise UserError(f"register: expected a data name without a colon, got {name!r}. Use argument=...")

    def add(load: Loader) -> Loader:
        DATASETS[name] = DataEntry(load, text, argument)
        return load

    return add
