"""What a column of labels or sensitive values means. All tables, feature files and arrays are read by these rules.

The meaning is decided once, for the whole column:

- A *missing* value (None, NaN, NaT, pandas.NA, a masked entry, an empty text, or a text of MISSING) is unknown. It
  is never a value of its own.
- A column whose values are 0 and 1, no and yes, or false and true is *binary*. So is one of -1 and 1, where -1 is no.
- A column of *numbers* compares and sorts its values as numbers: ``1`` and ``1.0`` are one value, and ``2`` comes
  before ``10``. Infinite values are unknown. Numbers written with a leading zero are codes, hence names.
- In a column of whole numbers from 0, -1 is unknown: it means uncertain in medical data, unlabelled elsewhere.
- Anything else is a *name*, without the spaces around it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.data.base import Attribute
from mumoe.errors import UserError, unknown_name

__all__ = [
    "MISSING",
    "UNKNOWN",
    "Column",
    "binary_codes",
    "distinct_texts",
    "find_value",
    "is_missing",
    "number_of",
    "object_array",
    "plain_number",
    "read_column",
    "require_value",
    "sort_key",
    "texts_of",
    "yes_no",
]

UNKNOWN = -1
"""Code of a row without a known value."""

MISSING = frozenset(
    {"", "None", "nan", "NaN", "NAN", "-nan", "NaT", "<NA>", "NA", "N/A", "n/a", "#N/A", "null", "NULL"}
)
"""Texts by which pandas, R, spreadsheets and databases write a missing value."""

_WORDS = {"0": 0, "no": 0, "false": 0, "1": 1, "yes": 1, "true": 1}
_MINUS = -1
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)")
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """A column whose meaning has been decided.

    Attributes:
        codes: (rows,) int64; ``values[codes[i]]`` is row i's value, or UNKNOWN.
        values: The distinct values; numbers in ascending order.
        kind: ``binary``, ``number`` or ``name``.
        unknown: Each spelling of an unknown value -> number of rows with it.
    """

    codes: npt.NDArray[np.int64]
    values: tuple[str, ...]
    kind: str
    unknown: Mapping[str, int] = field(default_factory=dict)

    def attribute(self) -> Attribute:
        """The column as subgroups; a binary one has the values ``no`` and ``yes``."""
        if self.kind != "binary":
            return Attribute(self.codes, self.values)
        meaning = binary_codes(self.values)
        codes = np.array([*(meaning[value] for value in self.values), UNKNOWN], np.int64)
        return yes_no(codes[self.codes])

    def describe_unknown(self) -> str:
        """The unknown rows in words, such as ``3 of 16 rows (2 empty, 1 '-1')``; "" if there are none."""
        if not self.unknown:
            return ""
        parts = ", ".join(f"{count} {repr(text) if text else 'empty'}" for text, count in self.unknown.items())
        return f"{sum(self.unknown.values())} of {len(self.codes)} rows ({parts})"


def read_column(values: Any, *, who: str = "data", name: str = "column") -> Column:
    """Decide what a column means, by the rules at the top of the module.

    Args:
        values: (rows,) texts, numbers or objects: a list, a numpy array, a pandas column.
        who: Prefix of errors.
        name: Name of the column, for errors.

    Raises:
        UserError: If the shape is not (rows,), or bytes in it are not UTF-8.
    """
    different, places = distinct_texts(values, who, name)
    known = [text for text in different if not is_missing(text)]
    kind, written = _meaning_of(known)
    names = sorted({text for text in written.values() if text}, key=sort_key)
    position = {text: code for code, text in enumerate(names)}
    lookup = np.array([position.get(written.get(text, ""), UNKNOWN) for text in different], np.int64)
    codes = lookup[places] if len(different) else np.zeros(0, np.int64)
    counts = np.bincount(places, minlength=len(different))
    unknown: Counter[str] = Counter()
    for text, code, count in zip(different, lookup, counts, strict=True):
        if code == UNKNOWN:
            unknown[text] += int(count)
    return Column(codes, tuple(names), kind, dict(unknown))


def object_array(values: Sequence[Any]) -> npt.NDArray[np.object_]:
    """(rows,) the values themselves; None for a masked value, which numpy would turn into 0.0."""
    array = np.empty(len(values), object)
    for place, value in enumerate(values):
        array[place] = None if value is np.ma.masked else value
    return array


def texts_of(values: Any, *, who: str = "data", name: str = "column") -> list[str]:
    """(rows,) each value as text; `is_missing` recognizes the missing ones.

    Raises:
        UserError: As `read_column`.
    """
    different, places = distinct_texts(values, who, name)
    return [different[place] for place in places]


def is_missing(text: str) -> bool:
    """Whether a text stands for a missing value."""
    return text.strip() in MISSING


def number_of(text: str) -> Decimal | None:
    """The exact number that a text spells; None if it is not a number or has a leading zero."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def plain_number(text: str) -> str:
    """A number as it is usually written (1 for 1.0); any other text unchanged."""
    number = number_of(text)
    if number is None:
        return text
    return str(int(number)) if _whole(number) else format(number.normalize(), "f")


def sort_key(text: str) -> tuple[int, Decimal, str]:
    """Sorts 2 before 10, numbers before names, and names alphabetically."""
    number = number_of(text.lstrip("0") or "0") if text.isdecimal() and text.isascii() else number_of(text)
    return (1, Decimal(0), text) if number is None else (0, number, text)


def binary_codes(texts: Iterable[str]) -> dict[str, int]:
    """Meaning of each text in a column of 0 and 1: 0, 1, or UNKNOWN for -1 alongside 0. Other texts are left out."""
    meaning = {text: found for text in set(texts) if (found := _word(text)) is not None}
    minus = UNKNOWN if 0 in meaning.values() else 0
    return {text: minus if found == _MINUS else found for text, found in meaning.items()}


def yes_no(values: npt.ArrayLike) -> Attribute:
    """A column of 0 and 1 (UNKNOWN if it is not known) as subgroups with the values ``no`` and ``yes``."""
    return Attribute(np.asarray(values).astype(np.int64), ("no", "yes"))


def find_value(values: Sequence[str], asked: object) -> int | None:
    """Position of a value that may be spelled differently: 1, yes and true are the same, and so are 1 and 1.0.

    >>> find_value(("no", "yes"), "1"), find_value(("0", "1"), True), find_value(("2", "10"), 2.0)
    (1, 1, 0)
    """
    text = _text(asked, "value", "value").strip()
    if text in values:
        return list(values).index(text)
    number = number_of(text)
    same = [place for place, value in enumerate(values) if number is not None and number_of(value) == number]
    if not same and _word(text) in (0, 1):
        meaning = binary_codes(values)
        if len(meaning) == len(values) and UNKNOWN not in meaning.values():
            same = [place for place, value in enumerate(values) if meaning[value] == _word(text)]
    if not same:
        same = [place for place, value in enumerate(values) if value.lower() == text.lower()]
    return same[0] if len(same) == 1 else None


def require_value(who: str, what: str, values: Sequence[str], asked: object) -> str:
    """The requested value, as the column spells it.

    Raises:
        UserError: If there is no such value; the message suggests the nearest one.
    """
    place = find_value(values, asked)
    if place is None:
        raise unknown_name(who, what, str(asked), values)
    return values[place]


# Reading --------------------------------------------------------------------------------------------------


def distinct_texts(values: Any, who: str = "data", name: str = "column") -> tuple[list[str], npt.NDArray[np.int64]]:
    """The distinct texts of a column, and for each row the position of its text among them."""
    array = values if isinstance(values, np.ndarray) else _as_array(values)
    if array.ndim != 1:
        raise UserError(f"{who}: expected {name} of shape (rows,), got {array.shape}. Pass one value per row.")
    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    plain = np.asarray(array)
    if plain.dtype.kind == "O":
        texts = [_text(value, who, name).strip() for value in plain.tolist()]
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        rows = np.array([places[text] for text in texts], np.int64)
    else:
        found, inverse = np.unique(plain, return_inverse=True)
        texts = [_text(value, who, name).strip() for value in found]
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        rows = np.array([places[text] for text in texts], np.int64)[inverse] if len(texts) else inverse
    if mask is not None and mask.any():
        rows = np.where(mask, places.setdefault("<NA>", len(places)), rows)
    return list(places), rows.astype(np.int64)


def _as_array(values: Any) -> npt.NDArray[Any]:
    """Anything with one value per row, as an array that keeps the type of each value."""
    if isinstance(values, list | tuple):
        return np.asarray(values) if np.ndim(values[0] if values else 0) else object_array(values)
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _text(value: Any, who: str, name: str) -> str:
    """One value as text; every kind of missing value becomes one of MISSING."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        return _decoded(value, who, name)
    if value is None or value is np.ma.masked or type(value).__name__ == "NAType":
        return "None" if value is None else "<NA>"
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0 and value.dtype.kind in "mM":
        return "NaT" if np.isnat(value) else str(value)
    if isinstance(value, float | np.floating):
        return np.format_float_positional(value, trim="-") if np.isfinite(value) else str(float(value))
    return str(value)


def _decoded(value: bytes, who: str, name: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{who}: expected text in UTF-8 in {name!r}, got byte {value[error.start]:#04x} at {error.start}. "
            "Decode the column first."
        ) from error


def _word(text: str) -> int | None:
    """0, 1 or _MINUS for a text that may occur in a column of 0 and 1."""
    number = number_of(text)
    if number is None:
        return _WORDS.get(text.strip().lower())
    return int(number) if number in (0, 1, _MINUS) else None


def _meaning_of(known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The kind of a column, and text -> how its value is usually written; unknown texts are left out."""
    finite = [text for text in known if not _INFINITE.fullmatch(text)]
    binary = binary_codes(finite)
    if finite and len(binary) == len(finite):
        written: dict[int, str] = {}
        for text in sorted(finite, key=sort_key):
            written.setdefault(binary[text], plain_number(text))
        return "binary", {text: written[code] for text, code in binary.items() if code != UNKNOWN}
    numbers = {text: number for text in finite if (number := number_of(text)) is not None}
    if len(numbers) < len(finite):
        return "name", {text: text for text in known}
    uncertain = 0 in numbers.values() and min(numbers.values()) == _MINUS and all(map(_whole, numbers.values()))
    return "number", {
        text: plain_number(text) for text, value in numbers.items() if not (uncertain and value == _MINUS)
    }


def _whole(number: Decimal) -> bool:
    return number == number.to_integral_value()
