"""The page of the command line, written from the verbs' own option classes."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
from typing import Any, get_args, get_type_hints

from mumoe.cli import VERBS

MARK = "<!-- verbs -->"


def explanations(options: type) -> dict[str, str]:
    """Field -> the text below it in the source, in the class or in those it builds on."""
    found: dict[str, str] = {}
    for kind in reversed(options.__mro__[:-1]):
        body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = " ".join(str(text.value.value).split())  # type: ignore[union-attr]
    return found


def flag(field: dataclasses.Field[Any], hint: Any) -> str:
    """How the option is written: `NAME` by position, or `--name`."""
    marks = " ".join(map(repr, get_args(hint)[1:]))
    if "Positional" in marks or "POSITIONAL" in marks:
        return field.name.upper()
    return "--" + field.name.rstrip("_").replace("_", "-")


def default(field: dataclasses.Field[Any]) -> str:
    """The default in brackets, if there is one worth showing."""
    if field.default in (dataclasses.MISSING, None, "", (), False):
        return ""
    words = field.default if isinstance(field.default, tuple) else (field.default,)
    return f" [{' '.join(map(str, words))}]"


def section(verb: str) -> str:
    """A verb with all its options."""
    options = importlib.import_module(f"mumoe.commands.{verb.replace('-', '_')}").Options
    texts, hints = explanations(options), get_type_hints(options, include_extras=True)
    lines = [f"## mumoe {verb}", "", " ".join((options.__doc__ or VERBS[verb]).split()), ""]
    for field in dataclasses.fields(options):
        text = texts.get(field.name, "").replace("*", "\\*").replace("<", "&lt;")
        lines += [f"`{flag(field, hints[field.name])}`", f": {text or '(no description)'}{default(field)}", ""]
    return "\n".join(lines)


def fill(app: Any, name: str, source: list[str]) -> None:
    """Insert the sections at the page's mark."""
    if MARK in source[0]:
        source[0] = source[0].replace(MARK, "\n".join(map(section, VERBS)))


def setup(app: Any) -> dict[str, bool]:
    """Connect."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
