"""Paths of this machine, kept out of what people send to others: reports, files of edits, model cards and exports.

A path is shortened to its last part, that of a seed to its last two: ``/home/me/birds/seed-0`` becomes
``birds/seed-0``. Only the folder of a run knows where its data are, since it resumes from there.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["public_name", "run_name", "without_paths"]

_REST = r"(?P<rest>(?:[/\\][^\s'\"`<>|*?:;,()\[\]{}]*)*)"
"""What follows a known folder in a text."""

_END = r"(?![\w-])(?!\.\w)"
"""Ends the name of a known folder."""

_FEWEST_PARTS = 3
"""Parts of a folder above a known path from which it is looked for: ``/data`` alone could be anything."""


def public_name(data: str) -> str:
    """The name of data without the folders that lead to it: ``folder:PATH/birds`` is ``folder:birds``."""
    kind, colon, path = data.partition(":")
    if kind == "hf" and not os.path.isabs(path):
        return data
    return kind + colon + _last(path) if colon else _last(data)


def run_name(path: str | os.PathLike[str]) -> str:
    """The name of a run's folder; that of a seed with its parent's.

    >>> run_name("/home/me/runs/birds/seed-0"), run_name("/home/me/runs/birds")
    ('birds/seed-0', 'birds')
    """
    parts = Path(os.path.abspath(path)).parts
    return "/".join(parts[-2 if parts[-1].startswith("seed-") and len(parts) > 2 else -1 :])


Value = TypeVar("Value")


def without_paths(value: Value, known: Iterable[str | os.PathLike[str]] = ()) -> Value:
    """A copy in which absolute paths are shortened, wherever they stand in texts.

    Args:
        value: A text, or dataclasses, mappings, tuples and lists of texts; other values are kept as they are.
        known: Paths to look for. Those below the user's, the current and the temporary folder are always found.
    """
    return _shortened(value, _shortener(known))


def _shortener(known: Iterable[str | os.PathLike[str]]) -> Callable[[str], str]:
    names: dict[str, str] = {}
    for folder, name in ((Path.home(), "~"), (Path.cwd(), "."), (Path(tempfile.gettempdir()), "tmp")):
        names |= dict.fromkeys(_spellings(folder), name)
    above = dict.fromkeys(names, True)
    for path in (Path(given) for given in known if str(given)):
        if not path.is_absolute():
            path = Path.cwd() / path
        for spelling in _spellings(path):
            parent = Path(spelling).parent
            if len(parent.parts) >= _FEWEST_PARTS and str(parent) not in names:
                names[str(parent)], above[str(parent)] = parent.name, True
        for spelling in _spellings(path):
            names[spelling], above[spelling] = run_name(path), False
    found = sorted((text for text in names if len(Path(text).parts) > 1), key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w.])(?P<path>{'|'.join(map(re.escape, found))}){_END}{_REST}")

    def short(match: re.Match[str]) -> str:
        path, rest = match["path"], match["rest"]
        if not above[path] or not rest.strip("/\\"):
            return names[path] + rest
        return run_name(rest.rstrip("/\\")) + rest[len(rest.rstrip("/\\")) :]

    return lambda text: pattern.sub(short, text) if "/" in text or "\\" in text else text


def _spellings(path: Path) -> set[str]:
    """A path as it is written, and where links lead."""
    return {str(path), os.path.realpath(path)}


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _shortened(value: Any, short: Callable[[str], str]) -> Any:
    """The value itself where nothing in it changes."""
    if isinstance(value, str):
        return short(value)
    if value is None or isinstance(value, bool | int | float | os.PathLike):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {}
        for field in dataclasses.fields(value):
            before = getattr(value, field.name)
            if (after := _shortened(before, short)) is not before and after != before:
                changed[field.name] = after
        if not changed:
            return value
        found = copy.copy(value)
        for name, after in changed.items():
            object.__setattr__(found, name, after)
        return found
    if isinstance(value, Mapping):
        return {_shortened(key, short): _shortened(item, short) for key, item in value.items()}
    if type(value) in (list, tuple):
        items = [_shortened(item, short) for item in value]
        same = all(after is before for after, before in zip(items, value, strict=True))
        return value if same else type(value)(items)
    return value
