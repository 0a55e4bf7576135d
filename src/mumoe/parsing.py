"""A verb's arguments as its dataclass of options, by tyro; what is wrong with them in one line.

tyro has no errors but the framed text that it prints, so that this module reads the frame: sections between rules, each
with a title. `pyproject.toml` bounds tyro to the versions that the tests were run with, from the oldest to the newest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from mumoe.errors import UserError, nearest

__all__ = ["flag_of", "parse"]

_RULE = re.compile(r"[-─+╭╮╰╯│| ]*")  # lines of characters, or of ASCII where the terminal has no others
_MISSING, _UNKNOWN, _CLOSE = "Missing from", "Unrecognized options:", "Perhaps you meant:"
_LEFT_OUT = ("For full helptext", "Argument helptext")


def parse(options: type, arguments: list[str], prog: str, default: Any = None) -> Any:
    """The options as their dataclass, or None after --help.

    Args:
        options: The dataclass; its fields are the flags.
        arguments: What follows the verb.
        prog: The verb as it is called, for help and errors.
        default: Values of what is not among the arguments, where a verb reads them from elsewhere.

    Raises:
        UserError: For a wrong flag or value.
    """
    import tyro

    framed = io.StringIO()
    try:
        with _wide(), contextlib.redirect_stderr(framed):
            known = {} if default is None else {"default": default}
            return tyro.cli(options, args=arguments, prog=prog, **known)
    except SystemExit as stop:
        if not stop.code:
            return None
        names = [field.name.strip("_").replace("_", "-") for field in dataclasses.fields(options)]
        raise UserError(f"{prog}: {one_line(framed.getvalue(), names)} See {prog} --help.") from None


def flag_of(options: type, name: str) -> str:
    """The flag of a field, such as ``--batch-size`` of ``batch_size``; a name that is no field as it is."""
    hints = get_type_hints(options, include_extras=True)
    if name not in hints:
        return name
    named = [mark.name for mark in get_args(hints[name])[1:] if getattr(mark, "name", None)]
    return "--" + (named or [name])[0].strip("_").replace("_", "-")


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """Keep tyro from wrapping an error that is turned into one line (help keeps the real width)."""
    before = os.environ.get("COLUMNS")
    if sys.stderr.isatty() and before is None:
        yield
        return
    os.environ["COLUMNS"] = before or "100"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)


def one_line(framed: str, names: list[str]) -> str:
    """tyro's framed message as one sentence: what is wrong, then the nearest right flag (of `names`) or value."""
    said: list[str] = []
    meant: list[str] = []
    for first, *rest in _sections(framed):
        if first.startswith(_MISSING):
            said.append(_missing(rest))
        elif first.startswith(_UNKNOWN):
            words = " ".join([first.removeprefix(_UNKNOWN), *rest]).replace(",", " ").split()
            said.append(f"expected known options, got {' '.join(words)}")
            meant += [f"--{name}" for name in difflib.get_close_matches(words[0].lstrip("-"), names, cutoff=0.7)]
        elif first.startswith(_CLOSE):
            meant += [name for line in rest if line.startswith("--") for name in re.findall(r"--[\w-]+", line)[:1]]
        elif not first.startswith(_LEFT_OUT):
            said.append(" ".join([first, *rest]))
    text = "; ".join(part.rstrip(".") for part in said) or "the arguments could not be read"
    if choice := re.search(r"invalid choice '(.*?)'.*one of \((.*?)\)", text):
        meant += filter(None, [nearest(choice[1], re.findall(r"'([^']*)'", choice[2]))])
    return f"{text}. Did you mean {meant[0]!r}?" if meant else f"{text}."


def _sections(framed: str) -> Iterator[list[str]]:
    """The lines between two rules, without the frame and its title."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", framed).strip().splitlines() or [""]
    section: list[str] = []
    for line in lines:
        if not _RULE.fullmatch(line):
            section.append(line.strip("│| \t"))
        elif section:
            yield section
            section = []
    if section:
        yield section


def _missing(lines: list[str]) -> str:
    """Names of the arguments that are missing, each with its help: a name stands above the lines of its help."""
    entries: list[list[str]] = [[]]
    for line in lines:
        entries[-1].append(line)
        if line.endswith("(required)"):
            entries.append([])
    named = []
    for name, *words in filter(None, entries):
        help_text = " ".join(words).removesuffix("(required)").strip().rstrip(".")
        short = name.split()[0] if name.startswith("--") else name
        named.append(f"{short} ({help_text})" if help_text else short)
    return f"expected {' and '.join(named)}, got nothing"
