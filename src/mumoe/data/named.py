"""`load_data`: every data set that has a name."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mumoe.data import folder, hub, official, packed, table
from mumoe.data.base import ImageData
from mumoe.data.registry import DATASETS, DataEntry, Loader, Request, register
from mumoe.data.verify import DEPTHS
from mumoe.errors import UserError, unknown_name
from mumoe.files import cache_root

__all__ = ["DATASETS", "data_home", "load_data", "problem_summary"]

COMMON_OPTIONS = ["allow_outside"]
"""Arguments of `load_data` that are given as data options on the command line."""

LOADERS = (folder, hub, official, packed, table)
"""The modules whose loaders register themselves when imported."""


EMBEDDED = {
    "emoji": ("mumoe.data.emoji", "load_emoji"),
    "emoji-bias": ("mumoe.data.emoji_bias", "load_emoji_bias"),
    "icons": ("mumoe.data.icons", "load_icons"),
}
"""Sets from pinned packages -> their loader, imported when it is used."""


def _embedded(name: str) -> Loader:
    module, function = EMBEDDED[name]
    loader: Loader = getattr(importlib.import_module(module), function)
    return loader


@register("icons", "black icons of fourteen families, from pinned packages")
@register("emoji-bias", "emoji with attributes, animals of one studio nearly absent from training")
@register("emoji", "emoji as drawn by several studios, from pinned packages")
def load_embedded(request: Request, **options: Any) -> ImageData:
    """An embedded set; see `mumoe.data.emoji`, `mumoe.data.emoji_bias` and `mumoe.data.icons` for their options."""
    return _embedded(request.name)(
        cache_dir=request.cache_dir,
        split_seed=request.split_seed,
        progress=request.progress,
        **options,
    )


def data_home(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds the data sets: `root`, else ``$MUMOE_DATA``, else ``data`` in the cache."""
    given = root or os.environ.get("MUMOE_DATA")
    return Path(given).expanduser() if given else cache_root() / "data"


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
    allow_outside: bool = False,
    **options: Any,
) -> ImageData:
    """Load a data set by name, from local files first.

    Splits that a set fixes are kept. If it has no val, a seeded, stratified `val_fraction` of its training
    images becomes val; if it has no test, `test_fraction` of them becomes test. Files that cannot be read
    are left out and named in `ImageData.problems`; `problem_summary` makes one message of them.

    Args:
        name: A name of DATASETS; ``folder:PATH``, ``csv:PATH`` and ``hf:NAME`` take an argument.
        root: Folder that holds the data sets (default ``$MUMOE_DATA``, else ``data`` in the cache).
        download: Fetch the set if it is missing. Otherwise nothing is fetched.
        strict: Raise if anything had to be left out.
        split_seed: Seed of the splits that the set does not fix.
        val_fraction: Share that becomes val.
        test_fraction: Share that becomes test.
        verify: How thoroughly files are checked: ``auto``, ``full`` or ``header`` (see `mumoe.data.verify`).
        cache_dir: Where the results of this check are kept (default: `mumoe.files.cache_root`).
        progress: Show progress.
        allow_outside: Read images that a table, or a link in a folder, names outside of its folder. By default they
            are an error, since a set from elsewhere could name private files.
        options: Further options of the data set, such as ``label_column`` of ``csv``.

    Raises:
        UserError: If the name, an option or the files are wrong, or with `strict` when anything was left out.
        JobError: If a download fails.
    """
    entry, argument = find_entry(name, options)
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
        allow_outside=allow_outside,
    )
    data = entry.load(request, **options)
    if strict and data.problems:
        raise UserError(f"{problem_summary(data)} Repair or remove these, or load without strict.")
    return data


def find_entry(name: str, options: Mapping[str, Any]) -> tuple[DataEntry, str]:
    """The registry's entry for a data name, and the part after the colon. Opens nothing.

    Raises:
        UserError: If the name, or one of the loader's options, is wrong.
    """
    key, colon, argument = name.partition(":")
    if key not in DATASETS:
        raise _unknown(name)
    entry = DATASETS[key]
    if bool(entry.argument) != bool(argument) or (colon and not entry.argument):
        raise UserError(f"load_data: expected {_spelling(key)!r}, got {name!r}. Use this form.")
    _check_options(key, _embedded(key) if key in EMBEDDED else entry.load, options)
    return entry, argument


def problem_summary(data: ImageData, *, most: int = 5) -> str:
    """One line on what was left out while loading; empty if nothing was.

    Args:
        data: A loaded set.
        most: How many problems to list.
    """
    if not data.problems:
        return ""
    shown = "; ".join(data.problems[:most])
    more = len(data.problems) - most
    rest = f"; and {more} more" if more > 0 else ""
    count = f"{len(data.problems)} problem{'s' if len(data.problems) > 1 else ''}"
    return f"{data.name}: {count} while loading, {len(data)} images are used: {shown}{rest}."


def _unknown(name: str) -> UserError:
    """The error for an unknown data name; for a path it suggests the prefix to add."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        kind = "tokens" if (path / "meta.json").is_file() else "folder"
        remedy = " (in mode text)" if kind == "tokens" else ""
        return UserError(f"load_data: expected a data name, got the folder {name!r}. Use {kind}:{name}{remedy}.")
    kinds = {".csv": "csv", ".tsv": "csv", ".npy": "features", ".safetensors": "features", ".parquet": "features"}
    if path.is_file() and path.suffix in kinds:
        return UserError(f"load_data: expected a data name, got the file {name!r}. Use {kinds[path.suffix]}:{name}.")
    return unknown_name("load_data", "data name", name, _spellings())


def _spelling(key: str) -> str:
    return f"{key}:{DATASETS[key].argument}" if DATASETS[key].argument else key


def _spellings() -> list[str]:
    return [_spelling(key) for key in DATASETS]


def _check_options(key: str, load: Loader, options: Mapping[str, Any]) -> None:
    """Reject options that the loader does not have; the message suggests the nearest one."""
    parameters = inspect.signature(load).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    known += COMMON_OPTIONS
    for option in options:
        if option not in known and len(known) > len(COMMON_OPTIONS):
            raise unknown_name("load_data", f"{key!r} option", option, known)
        if option not in known:
            raise UserError(f"load_data: expected no option for {key!r}, got {option!r}. Leave it out.")
