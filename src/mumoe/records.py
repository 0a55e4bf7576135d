"""Results as typed records: written to JSON and read back, shown as short tables, turned into data frames.

A record is a class made by `record`: a frozen dataclass whose fields are numbers, strings, tuples, mappings and other
dataclasses. A number that does not exist is None, since JSON has no NaN. `Record.rows` says what its table shows, and
`Record.headline` sums it up in one sentence; everything else follows from these two.

>>> @record
... class Score(Record):
...     split: str
...     accuracy: float | None = None
>>> Score.from_json(Score("test", 0.75).to_json()) == Score("test", 0.75)
True
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, dataclass_transform

from mumoe.errors import JobError, UserError, reason_of, require, unknown_name
from mumoe.files import read_json, to_plain, write_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Record", "read_typed", "reading", "record", "render_table", "to_plain"]

SHOWN = 10
"""Rows of a table that are printed; `Record.to_frame` has all of them."""

Class = TypeVar("Class", bound=type)
Format = Literal["text", "markdown", "html"]


@dataclass_transform(frozen_default=True)
def record(kind: Class) -> Class:
    """Make a class a frozen dataclass that prints as `Record` says."""
    made: Class = dataclasses.dataclass(frozen=True, repr=False)(kind)  # type: ignore[assignment]
    return made


class Record:
    """Base of every result: JSON, tables and data frames of a frozen dataclass."""

    schema_version: ClassVar[int] = 1
    """Raised when a field changes its meaning; files of a later version are refused."""

    # What a record shows ------------------------------------------------------------------------------------

    def headline(self) -> str:
        """The result in one sentence; empty for none."""
        return ""

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One mapping, column to value, for each row of the table; by default one row with the plain fields."""
        return [{name: value for name, value in vars(self).items() if not isinstance(value, Mapping | tuple | list)}]

    def to_frame(self) -> pd.DataFrame:
        """The rows as a data frame.

        Raises:
            UserError: If pandas is not installed.
        """
        pandas = require("pandas", "reports", f"{type(self).__name__}.to_frame")
        frame: pd.DataFrame = pandas.DataFrame([dict(row) for row in self.rows()])
        return frame

    def __repr__(self) -> str:
        rows = list(self.rows())
        parts = [type(self).__name__ + (f": {line}" if (line := self.headline()) else "")]
        if rows:
            parts.append(_table(rows, "text").rstrip("\n"))
        return "\n".join([*parts, *_rest(rows)])

    def _repr_html_(self) -> str:
        rows = list(self.rows())
        parts = [f"<p>{html.escape(line)}</p>" for line in [self.headline(), *_rest(rows)] if line]
        return "\n".join([*parts[:1], *([_table(rows, "html")] if rows else []), *parts[1:]])

    # JSON ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The record as dicts, lists, strings and numbers, with its `schema_version`."""
        return {"schema_version": self.schema_version, **to_plain(self)}

    def to_json(self) -> str:
        """The record as a JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], who: str = "") -> Self:
        """The record that `to_dict` wrote, with the types of its fields; keys that are not fields are ignored.

        Args:
            values: What `to_dict` returned, or an older version's.
            who: What an error names, e.g. the file; by default the class.

        Raises:
            UserError: If a field is missing or has another type, or if the values are of a later version.
        """
        who = who or f"{cls.__name__}.from_dict"
        version = values.get("schema_version", 1) if isinstance(values, Mapping) else 1
        if not isinstance(version, int) or version > cls.schema_version:
            raise UserError(
                f"{who}: expected schema_version up to {cls.schema_version}, got {version!r}. "
                "Read it with the version of mumoe that wrote it, or a later one."
            )
        return read_typed(cls, values, who)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The record that `to_json` wrote.

        Raises:
            UserError: If the text is not JSON, or as `from_dict`.
        """
        who = f"{cls.__name__}.from_json"
        try:
            values = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{who}: expected JSON, got {reason_of(error)}. Give what to_json returned.") from None
        return cls.from_dict(values, who)

    def save(self, path: str | Path) -> None:
        """Write the record as a JSON file, replacing one that exists.

        Raises:
            JobError: If the file cannot be written.
        """
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the file that `save` wrote.

        Raises:
            UserError: If there is no such file, or as `from_dict`.
        """
        if not Path(path).is_file():
            raise UserError(f"{cls.__name__}.load: expected a file, got {str(path)!r}, which does not exist.")
        return cls.from_dict(read_json(Path(path), f"{cls.__name__}.load"), str(path))


@contextlib.contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn what goes wrong with values of a file that was damaged or changed by hand into a `JobError`.

    For a block that takes such values apart; where their types are known, `read_typed` says more.
    """
    try:
        yield
    except (UserError, JobError):
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        what = f"{type(error).__name__}: {reason_of(error, 120)}"
        raise JobError(f"{path}: expected what mumoe wrote, got other values ({what}). {remedy}") from error


Read = TypeVar("Read")


def read_typed(kind: type[Read], values: Any, who: str) -> Read:
    """JSON values as a dataclass, list or mapping of the types that its annotations state.

    Raises:
        UserError: If the values do not fit.
    """
    import msgspec

    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:  # ValueError: text that is not UTF-8
        text = str(error).replace("$", "").replace("`", "")
        raise UserError(f"{who}: expected {kind.__name__.lstrip('_')}, got values that do not fit: {text}.") from None


# Tables -----------------------------------------------------------------------------------------------------


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], format: Format = "text") -> str:
    """A table with aligned columns: the first to the left, the others to the right.

    Raises:
        UserError: If the format is unknown.
    """
    if format == "html":
        return _html_table(header, rows)
    if format not in ("text", "markdown"):
        raise unknown_name("render_table", "format", format, ["html", "markdown", "text"])
    lines = [list(header), *(list(row) for row in rows)]
    if format == "markdown":
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    first, *others = [_aligned(line, widths) for line in lines]
    if format == "text":
        rule = ["-" * width for width in widths]
        return "\n".join("  ".join(line).rstrip() for line in [first, rule, *others]) + "\n"
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [first, rule, *others]) + "\n"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    pairs = enumerate(zip(line, widths, strict=True))
    return [cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in pairs]


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _table(rows: Sequence[Mapping[str, Any]], format: Format) -> str:
    shown = rows[:SHOWN]
    header = list(dict.fromkeys(name for row in shown for name in row))
    return render_table(header, [[_cell(row.get(name)) for name in header] for row in shown], format)


def _rest(rows: Sequence[Any]) -> list[str]:
    return [f"{len(rows) - SHOWN:,} more rows; to_frame() has all."] if len(rows) > SHOWN else []


def _cell(value: Any) -> str:
    """A value in few characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, tuple | list):
        return ", ".join(map(_cell, value))
    return str(value)
