"""The two kinds of errors that users see, and helpers that word them.

Every message reads ``who: expected what, got what. Remedy.`` and is one line. The command line turns a
`UserError` into exit status 2 and a `JobError` into exit status 1, without a traceback. An argument stands in
backticks, alone or with a value as in ``overwrite=True``, and a method of `mumoe.Run` as ``Run.evaluate``: there the
command line shows the flag and the verb.
"""

from __future__ import annotations

import difflib
import errno
import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from mumoe.printable import printable

__all__ = [
    "JobError",
    "UserError",
    "check_levels",
    "check_size",
    "names_no_file",
    "nearest",
    "one_line",
    "reason_of",
    "require",
    "shown",
    "unknown_argument",
    "unknown_name",
]


LONGEST = 2000
"""Most characters of a message. What a user or a file gave may be part of it, at any length."""


class _OneLine(Exception):
    """An error whose message is one line that can be shown, regardless of what it quotes."""

    def __init__(self, *message: object) -> None:
        super().__init__(*(one_line(part) if isinstance(part, str) else part for part in message))


class UserError(_OneLine, ValueError):
    """A mistake in the call: a wrong name, value, shape, path or key. Nothing was changed."""


class JobError(_OneLine, RuntimeError):
    """A valid job that could not be finished; what it had finished is kept."""


def one_line(text: str, most: int = LONGEST) -> str:
    """A text on one line, without characters that a terminal would act on, its middle left out if it is long."""
    if not text.isprintable():
        text = "".join(" " if letter.isspace() else _visible(letter) for letter in printable(text.strip()))
    if len(text) > most:
        text = f"{text[: most * 2 // 3]} ... {text[-most // 4 :]}"
    return text


def _visible(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("ascii", "backslashreplace").decode("ascii")


def shown(value: object, most: int = 80) -> str:
    """The representation of a value that someone gave, for a message; shortened to `most` characters."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


def reason_of(error: BaseException, most: int | None = None) -> str:
    """An error's message on one line, shortened to `most` characters; the name of its class if it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def names_no_file(error: BaseException) -> bool:
    """Whether an error says that no file can have a name: too long, empty, a null byte, half a letter."""
    if isinstance(error, OSError):
        return error.errno == errno.ENAMETOOLONG
    if isinstance(error, UnicodeEncodeError):
        return "surrogates" in str(error)
    return isinstance(error, ValueError) and any(word in str(error) for word in ("null byte", "has an empty name"))


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice closest to a misspelt name, or None when nothing is close."""
    options = [str(choice) for choice in choices]
    lowered = {option.lower(): option for option in reversed(options)}
    match = difflib.get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=0.5)
    return lowered[match[0]] if match else None


def unknown_name(who: str, what: str, name: str, choices: Iterable[str], *, most: int = 12) -> UserError:
    """The error for a name that is not one of the choices; it suggests the nearest one.

    >>> print(unknown_name("MuMoE", "factorization", "tuker", ["cp", "tucker"]))
    MuMoE: expected a factorization out of cp, tucker, got 'tuker'. Did you mean 'tucker'?
    """
    return UserError(f"{who}: expected a {what} {_out_of(name, choices, most)}")


def unknown_argument(who: str, argument: str, value: object, choices: Iterable[str]) -> UserError:
    """The error for an argument that is not one of the choices; it suggests the nearest one.

    >>> print(unknown_argument("Run.evaluate", "split", "vall", ["train", "val", "test"]))
    Run.evaluate: expected `split` out of test, train, val, got 'vall'. Did you mean 'val'?
    """
    return UserError(f"{who}: expected `{argument}` {_out_of(str(value), choices)}")


def _out_of(name: str, choices: Iterable[str], most: int = 12) -> str:
    options = sorted(str(choice) for choice in choices)
    shown = ", ".join(options[:most]) + (f" and {len(options) - most} more" if len(options) > most else "")
    close = nearest(name, options)
    remedy = f"Did you mean {close!r}?" if close else "Use one of these."
    return f"out of {shown}, got {name!r}. {remedy}"


def check_size(value: Any, name: str, who: str) -> int:
    """The value, an int of at least 1.

    Raises:
        UserError: For anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{who}: expected {name} as an int >= 1, got {value!r}. Give a positive whole number.")
    return value


def require(module: str, extra: str, who: str) -> ModuleType:
    """Import an optional dependency, or say which extra installs it.

    Raises:
        UserError: If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{who}: expected the package {module.partition('.')[0]!r}, got {error}. "
            f"Install it with: pip install 'mumoe[{extra}]'"
        ) from error


def check_levels(num_experts: int | Sequence[int], who: str) -> tuple[int, ...]:
    """Experts of each level, from one number or one for each level.

    Raises:
        UserError: For no level, or a number below 1.
    """
    if not isinstance(num_experts, int | Sequence) or isinstance(num_experts, str):
        raise UserError(
            f"{who}: expected num_experts as an int, or one int per level, got {num_experts!r}. Give 128 or (128, 4)."
        )
    sizes = (num_experts,) if isinstance(num_experts, int) else tuple(num_experts)
    if not sizes:
        raise UserError(f"{who}: expected num_experts of at least one level, got (). Give an int or a tuple.")
    return tuple(check_size(size, "num_experts", who) for size in sizes)
