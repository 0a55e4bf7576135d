"""The data sets by name, and how to add one.

A loader is a function that takes a `Request` and options of its own by keyword, and returns an `ImageData`:

>>> @register("mine", "two colours")                                                    # doctest: +SKIP
... def load_mine(request: Request, *, size: int = 32) -> ImageData:
...     images = FileImages(request.root / "mine", paths)
...     return build(request, images, classes=("red", "blue"), labels=labels)
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mumoe.data.base import ImageData
from mumoe.data.home import data_home
from mumoe.data.verify import DEPTHS
from mumoe.errors import UserError, unknown_name

__all__ = ["DATASETS", "Entry", "Request", "load_data", "problem_summary", "register"]


@dataclass(frozen=True)
class Request:
    """What `load_data` was asked for, as a loader sees it.

    Attributes:
        name: The whole name, e.g. ``folder:PATH``.
        argument: What follows the colon, else empty.
        root: The folder that holds the data sets.
        download: Whether fetching from the network was allowed.
        strict: Whether anything left out is an error.
        split_seed: Seed of every split that the set does not fix itself.
        val_fraction: Share that becomes val where the set has none.
        test_fraction: Share that becomes test where the set has none.
        verify: How deep files are checked: ``auto``, ``full`` or ``header`` (see `mumoe.data.verify`).
        cache_dir: Where answers are kept; None: the usual place.
        progress: Whether to show progress.
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

    def path(self) -> Path:
        """The argument as a path; a relative one starts from the current folder."""
        return Path(self.argument).expanduser()


Loader = Callable[..., ImageData]


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Attributes:
        load: The loader.
        text: What it is, in a few words.
        argument: What must follow ``name:`` (``PATH``); empty for a name that stands alone.
    """

    load: Loader
    text: str
    argument: str = ""


DATASETS: dict[str, Entry] = {}
"""Name (without argument) to loader. Add with `register`."""


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
        raise UserError(
            f"register: expected a new data name, got {name!r}, which is taken. Choose another one."
        )
    if not name or ":" in name:
        raise UserError(f"register: expected a data name without a colon, got {name!r}. Use argument=...")

    def add(load: Loader) -> Loader:
        DATASETS[name] = Entry(load, text, argument)
        return load

    return add


def load_data(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    strict: bool = False,
    split_seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    verify: str = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> ImageData:
    """Load a data set by name, from local files first.

    Splits that a set fixes are kept. Where it has no val, a seeded, stratified `val_fraction` of its training
    images becomes val; where it has no test, `test_fraction` of them becomes test. Files that cannot be read
    are left out and named in `ImageData.problems`; `problem_summary` makes one message of them.

    Args:
        name: A name of DATASETS; ``folder:PATH``, ``csv:PATH`` and ``hf:NAME`` take an argument.
        root: Folder that holds the data sets (default ``$MUMOE_DATA``, else ``~/.cache/mumoe/data``).
        download: Fetch the set when it is not there. Nothing is fetched otherwise.
        strict: Raise when anything had to be left out.
        split_seed: Seed of the splits that the set does not fix.
        val_fraction: Share that becomes val.
        test_fraction: Share that becomes test.
        verify: How deep files are checked: ``auto``, ``full`` or ``header`` (see `mumoe.data.verify`).
        cache_dir: Where the answers of that are kept (default ``$MUMOE_CACHE``, else ``~/.cache/mumoe``).
        progress: Show progress.
        options: What the data set takes besides, such as ``label_column`` of ``csv``.

    Raises:
        UserError: If the name, an option or the files are wrong, or with `strict` when anything was left out.
        JobError: If a download fails.
    """
    key, colon, argument = name.partition(":")
    if key not in DATASETS:
        raise unknown_name("load_data", "data name", name, _spellings())
    entry = DATASETS[key]
    if bool(entry.argument) != bool(argument) or (colon and not entry.argument):
        raise UserError(f"load_data: expected {_spelling(key)!r}, got {name!r}. Write it like that.")
    _check_options(key, entry.load, options)
    if verify not in DEPTHS:
        raise unknown_name("load_data", "value of verify", verify, DEPTHS)
    request = Request(
        name=name,
        argument=argument,
        root=data_home(root),
        download=download,
        strict=strict,
        split_seed=split_seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        verify=verify,
        cache_dir=Path(cache_dir) if cache_dir else None,
        progress=progress,
    )
    return entry.load(request, **options)


def problem_summary(data: ImageData, *, most: int = 5) -> str:
    """One line on what was left out while loading, or an empty text when nothing was.

    Args:
        data: A loaded set.
        most: How many to name.
    """
    if not data.problems:
        return ""
    shown = "; ".join(data.problems[:most])
    more = len(data.problems) - most
    rest = f"; and {more} more" if more > 0 else ""
    count = f"{len(data.problems)} problem{'s' if len(data.problems) > 1 else ''}"
    return f"{data.name}: {count} while loading, {len(data)} images are used: {shown}{rest}."


def _spelling(key: str) -> str:
    return f"{key}:{DATASETS[key].argument}" if DATASETS[key].argument else key


def _spellings() -> list[str]:
    return [_spelling(key) for key in DATASETS]


def _check_options(key: str, load: Loader, options: dict[str, Any]) -> None:
    """Refuse options that the loader does not take, with the nearest one offered."""
    parameters = inspect.signature(load).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known and known:
            raise unknown_name("load_data", f"option of {key!r}", option, known)
        if option not in known:
            raise UserError(f"load_data: expected no option for {key!r}, got {option!r}. Leave it out.")
