"""Calls a verb in a folder of its own and keeps what came out, to prove that an option changes it.

What only repeats an option's own value (a heading that names the split, a setting in a JSON file) is blanked before
two calls are compared, so that an option counts as heeded only if something else differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mumoe.errors import JobError, UserError
from soak.steady import LEFT_OUT, steady

PICTURES = {".png", ".svg", ".jpg"}
"""Files that count by being there; the numbers behind them lie beside them as JSON."""


@dataclass(frozen=True)
class Outcome:
    """What a call printed, and the files that it wrote: their content as text, or a digest of it."""

    printed: str
    files: Mapping[str, str]
    error: str = ""


@dataclass(frozen=True)
class Change:
    """Another value for one option.

    Attributes:
        value: The value.
        also: Options that both calls get, over the verb's own.
        files: Files each of which must differ; none: something that comes out must.
        echo: Whether repetitions of the value are blanked.
    """

    value: Any
    also: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    echo: bool = False


def to(value: Any, /, **also: Any) -> Change:
    """The value, and what both calls get besides."""
    return Change(value, also)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def call(verb: str, options: Mapping[str, Any], place: Path, world: Path) -> Outcome:
    """Run a verb in `place`, a new copy of `world`, where all paths are relative."""
    shutil.copytree(world, place)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    command = importlib.import_module(f"mumoe.commands.{verb}")
    printed, error = io.StringIO(), ""
    torch.manual_seed(0)
    with inside(place), contextlib.redirect_stdout(printed):
        try:
            command.run(command.Options(**options))
        except (UserError, JobError) as raised:
            error = f"{type(raised).__name__}: {raised}"
    files = {
        str(path.relative_to(place)): content(path)
        for path in sorted(place.rglob("*"))
        if path.is_file() and before.get(path) != path.stat().st_mtime_ns and not path.name.startswith(LEFT_OUT)
    }
    return Outcome(plain(printed.getvalue(), place), {name: plain(text, place) for name, text in files.items()}, error)


def plain(text: str, place: Path) -> str:
    """Without the place's own name and the seconds that something took."""
    return re.sub(r"\b[\d.]+ s\b", "TIME", text.replace(str(place), "PLACE"))


def content(path: Path) -> str:
    """A file as text that is equal for equal results."""
    if path.suffix in PICTURES:
        return "a picture"
    if path.suffix == ".json":
        return json.dumps(steady(json.loads(path.read_text())), indent=0)
    if path.suffix == ".jsonl":
        return "\n".join(json.dumps(steady(json.loads(line))) for line in path.read_text().splitlines())
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return hashlib.sha256(path.read_bytes()).hexdigest()


def without_echo(outcome: Outcome, *values: Any) -> Outcome:
    """With every repetition of these values, as a word of its own, blanked."""
    words = sorted({word for value in values for word in spellings(value)}, key=len, reverse=True)
    if not words:
        return outcome
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(word)}(?![\w.]\w)(?!\w)" for word in words))

    def blank(text: str) -> str:
        return re.sub(r" +|-{3,}", " ", pattern.sub("*", text))

    return Outcome(blank(outcome.printed), {name: blank(text) for name, text in outcome.files.items()}, outcome.error)


def spellings(value: Any) -> set[str]:
    """How a value is written in text and JSON."""
    if isinstance(value, tuple | list):
        return {word for part in value for word in spellings(part)}
    if isinstance(value, bool):
        return {str(value), str(value).lower()}
    found = {str(value), f"{value:g}"} if isinstance(value, int | float) else {str(value)}
    return {word for word in found if word and word != "None"}


def fields_of(verb: str) -> tuple[str, ...]:
    """Names of a verb's options."""
    options = importlib.import_module(f"mumoe.commands.{verb}").Options
    return tuple(item.name for item in dataclasses.fields(options))


def default_of(verb: str, name: str) -> Any:
    """An option's default; None where it has none."""
    options = importlib.import_module(f"mumoe.commands.{verb}").Options
    default = options.__dataclass_fields__[name].default
    return None if default is dataclasses.MISSING else default
