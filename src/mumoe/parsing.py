"""A verb's arguments: the fields of its dataclass `Options` as argparse's flags, help in groups, errors in one line.

A field's name is its flag, its type is what the flag takes, and the string below it is its help. `Argument` in an
`Annotated` type changes these. `Options.COMMON` maps the options that most calls need to an example of each; help shows
them first. A field's metadata may hold its ``flags`` and, unless it is a common one, the name of its ``group``.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from mumoe.errors import UserError, unknown_name

__all__ = ["Argument", "flag_of", "parse"]

_GENERAL = ("data", "device", "seed", "json", "quiet")
"""Options that mean the same for every verb; help shows them last."""
LARGEST = 2**63 - 1
"""Of the whole numbers that compiled code takes."""
_WORDS: Mapping[type, str] = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Argument:
    """What `Annotated` says about a field besides its type.

    Attributes:
        flags: The flags, long one last; empty: the field's name with hyphens.
        metavar: Placeholder of the value in help; of a positional argument its name.
        positional: Whether it is given by position.
        help: Help, instead of the string below the field.
    """

    flags: tuple[str, ...] = ()
    metavar: str = ""
    positional: bool = False
    help: str = ""


@dataclass(frozen=True)
class _Option:
    """A field of the options as argparse takes it."""

    field: dataclasses.Field[Any]
    type: Any
    many: bool
    argument: Argument
    help: str

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def required(self) -> bool:
        return self.field.default is dataclasses.MISSING

    @property
    def flags(self) -> tuple[str, ...]:
        given = self.argument.flags or self.field.metadata.get("flags")
        return given or ("--" + self.name.strip("_").replace("_", "-"),)

    @property
    def shown(self) -> str:
        """The name in messages."""
        return self.metavar.split()[0] if self.argument.positional else self.flags[-1]

    @property
    def metavar(self) -> str:
        if self.argument.metavar:
            return self.argument.metavar
        if get_origin(self.type) is Literal:
            return "{" + ",".join(map(str, get_args(self.type))) + "}"
        return {int: "N", float: "X"}.get(self.type, self.flags[-1].lstrip("-").replace("-", "_").upper())


def parse(options: type, arguments: list[str], prog: str, default: Any = None) -> Any:
    """The options as their dataclass, or None after --help.

    Args:
        options: The dataclass.
        arguments: What follows the verb.
        prog: The verb as it is called, for help and errors.
        default: Values of missing arguments, where a verb reads them from elsewhere.

    Raises:
        UserError: For a wrong flag or value.
    """
    fields = _options(options)
    parser = _parser(options, fields, prog)
    if "-h" in arguments or "--help" in arguments:
        sys.stdout.write(parser.format_help())
        return None
    try:
        found, unknown = parser.parse_known_intermixed_args([_hyphens(argument) for argument in arguments])
    except _Wrong as error:
        raise UserError(f"{prog}: {error} See {prog} --help.") from None
    if unknown:
        known = [flag for option in fields for flag in option.flags]
        raise UserError(f"{prog}: {_unknown(unknown, known)} See {prog} --help.")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(found).items()}
    if default is not None:
        return dataclasses.replace(default, **values)
    if missing := [option for option in fields if option.required and option.name not in values]:
        named = " and ".join(f"{option.shown} ({option.help.rstrip('.')})" for option in missing)
        raise UserError(f"{prog}: expected {named}, got nothing. See {prog} --help.")
    return options(**values)


def flag_of(options: type, name: str, value: str = "") -> str:
    """The flag of a field, such as ``--batch-size 8`` of ``batch_size=8``; other names are unchanged."""
    shown = next((option.shown for option in _options(options) if option.name == name), name)
    if shown == name:
        return f"{name}={value}" if value else name
    return shown if value in ("", "True") else f"{shown} {value}"


# Fields -----------------------------------------------------------------------------------------------------


@functools.cache
def _options(options: type) -> list[_Option]:
    """The fields of a dataclass of options, in order."""
    hints, texts = get_type_hints(options, include_extras=True), _texts(options)
    found = []
    for field in dataclasses.fields(options):
        kind, argument = hints[field.name], Argument()
        if get_origin(kind) is Annotated:
            kind, *extra = get_args(kind)
            argument = next((item for item in extra if isinstance(item, Argument)), argument)
        many = get_origin(kind) is tuple
        kind = get_args(kind)[0] if many else _without_none(kind)
        found.append(_Option(field, kind, many, argument, argument.help or texts.get(field.name, "")))
    return found


def _without_none(kind: Any) -> Any:
    parts = [part for part in get_args(kind) if part is not type(None)]
    return parts[0] if get_origin(kind) is types.UnionType and len(parts) == 1 else kind


def _texts(options: type) -> dict[str, str]:
    """The strings below the fields of a class and of its bases."""
    texts: dict[str, str] = {}
    for base in reversed(options.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match below:
                    case ast.Expr(value=ast.Constant(value=str() as text)):
                        texts[field.target.id] = " ".join(text.split())
    return texts


# Reading ----------------------------------------------------------------------------------------------------


class _Wrong(Exception):
    """An error in an argument; unlike a ValueError's, argparse keeps its message."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Reword the errors that argparse itself detects: a flag without its value, or a switch with one."""
        flag, _, what = message.removeprefix("argument ").rpartition(": ")
        flag = flag.rpartition("/")[2]
        if what == "expected one argument":
            raise _Wrong(f"expected a value for {flag}, got nothing.")
        raise _Wrong(f"{flag}: {what}.")


def _parser(options: type, fields: list[_Option], prog: str) -> argparse.ArgumentParser:
    common: dict[str, str] = getattr(options, "COMMON", {})
    parser = _Parser(
        prog=prog,
        usage=_usage(prog, fields),
        description=" ".join((options.__doc__ or "").split()),
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    for title, members in _grouped(fields, list(common)).items():
        group = parser.add_argument_group(title)
        for option in members:
            _add(group, option, _help_text(option, common.get(option.name)))
    return parser


def _add(group: Any, option: _Option, text: str) -> None:
    if option.argument.positional:
        kind, nargs = _reader(option), "*" if option.many else "?"
        group.add_argument(option.name, nargs=nargs, type=kind, metavar=option.metavar, help=text)
    elif option.type is bool and option.field.default is True:
        group.add_argument(*option.flags, dest=option.name, action=argparse.BooleanOptionalAction, help=text)
    elif option.type is bool:
        off = "--no-" + option.flags[-1].removeprefix("--")
        group.add_argument(*option.flags, dest=option.name, action="store_true", help=text)
        group.add_argument(off, dest=option.name, action="store_false", help=argparse.SUPPRESS)
    else:
        kind, many = _reader(option), {"nargs": "*", "action": "extend"} if option.many else {}
        group.add_argument(*option.flags, dest=option.name, type=kind, metavar=option.metavar, help=text, **many)


def _reader(option: _Option) -> Callable[[str], Any]:
    """A function that reads one value of an option."""
    choices = {str(choice): choice for choice in get_args(option.type)}

    def read(text: str) -> Any:
        if choices:
            if text not in choices:
                raise _Wrong(str(unknown_name("", option.shown, text, choices)).removeprefix(": "))
            return choices[text]
        try:
            value = option.type(text)
        except ValueError:
            raise _Wrong(f"expected {option.shown} as {_WORDS[option.type]}, got {text!r}.") from None
        if option.type is int and not -LARGEST <= value <= LARGEST:
            raise _Wrong(f"expected {option.shown} of at most {LARGEST:,}, got {text}.")
        return value

    return read


def _hyphens(argument: str) -> str:
    """``--batch_size=8`` as ``--batch-size=8``."""
    flag, equals, value = argument.partition("=")
    return (flag.replace("_", "-") if flag.startswith("--") else flag) + equals + value


def _unknown(words: list[str], known: Iterable[str]) -> str:
    text = f"expected known options, got {' '.join(words)}."
    close = difflib.get_close_matches(words[0].partition("=")[0], known, n=1, cutoff=0.7)
    return f"{text} Did you mean {close[0]!r}?" if close else text


# Help -------------------------------------------------------------------------------------------------------


def _grouped(fields: list[_Option], common: list[str]) -> dict[str, list[_Option]]:
    """Options by group: positional ones, the common ones in their order, the rest, those of every verb."""
    by_name = {option.name: option for option in fields}
    groups = {
        "arguments": [option for option in fields if option.argument.positional],
        "common options": [by_name.pop(name) for name in common],
    }
    last = [by_name.pop(name) for name in _GENERAL if name in by_name]
    for option in by_name.values():
        if not option.argument.positional:
            groups.setdefault(option.field.metadata.get("group", "more options"), []).append(option)
    groups["general options"] = last
    return {name: members for name, members in groups.items() if members}


def _help_text(option: _Option, example: str | None) -> str:
    """What an option does, an example, and its default where that says anything."""
    text, default = option.help, option.field.default
    if example is not None:
        text += f"; e.g. {option.flags[-1]} {example}".rstrip()
    if not option.required and default not in ("", (), None, False):
        text += f" (default: {_shown(default)})"
    return text.replace("%", "%%")


def _shown(default: Any) -> str:
    if default is True:
        return "on"
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _usage(prog: str, fields: list[_Option]) -> str:
    places = [option.metavar for option in fields if option.argument.positional]
    needed = [
        f"{option.flags[-1]} {option.metavar}"
        for option in fields
        if option.required and not option.argument.positional
    ]
    return " ".join([prog, *places, *needed, "[options]"])


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Without a break inside a value such as ``set-output:5``."""
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """``-o, --out OUT``, on every version of Python."""
        flags = ", ".join(action.option_strings)
        if not flags or action.nargs == 0:
            return flags or str(action.metavar)
        return f"{flags} {action.metavar}" + (" ..." if action.nargs == "*" else "")
