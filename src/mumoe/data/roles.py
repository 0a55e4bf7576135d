"""The role of each column of a table: image, label or 0/1 targets, split, subgroups. For ``csv:`` and ``hf:``.

Unless options name them, columns are found by these rules (case is ignored):

- image: the first called one of IMAGE_WORDS.
- split: the one called ``split``, ``partition`` or ``subset``, with the values ``train``, ``val``,
  ``test`` and their usual other spellings, or 0, 1, 2 as in CelebA.
- label: the one called one of LABEL_WORDS. Without it, every column of 0/1 is a target (multi-label); up to a
  tenth of its values may be something else.
- subgroups: every further column with 2 to GROUP_LIMIT distinct values and, on average, at least two rows for each.

What the values of a column mean, and which of them are unknown, is decided by `mumoe.data.columns`. A 0/1 target is
a subgroup column too. A row may lack a subgroup; rows without a label, target or split are left out, and
reported by column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.data.base import Attribute
from mumoe.data.build import UNDECIDED
from mumoe.data.columns import UNKNOWN, binary_codes, is_missing, plain_number, read_column, yes_no
from mumoe.data.layout import SPLIT_WORDS
from mumoe.errors import UserError, unknown_name

__all__ = [
    "GROUP_LIMIT",
    "IMAGE_WORDS",
    "LABEL_WORDS",
    "Roles",
    "TableRows",
    "choose_roles",
    "find_column",
    "names_of",
    "read_rows",
]

IMAGE_WORDS = ("image", "path", "file", "filename", "file_name", "filepath", "image_path", "image_id")
LABEL_WORDS = ("label", "class", "category", "target", "fine_label")
GROUP_LIMIT = 64
"""A column with more values than this is a subgroup column only if it is named as one."""

_SPLIT_COLUMNS = ("split", "partition", "subset")
_SPLITS = {**SPLIT_WORDS, "0": 0, "1": 1, "2": 2}
_FEW = 3
"""Number of rows that a line on unknown values lists."""

Columns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Roles:
    """The role of each column; `label` is empty for a multi-label table, `targets` for a single-label one."""

    label: str
    targets: tuple[str, ...]
    groups: tuple[str, ...]
    split: str


@dataclass
class TableRows:
    """The rows that could be read.

    Attributes:
        kept: Their positions in the table.
        classes: Names of classes or targets.
        labels: (len(kept),) or (len(kept), num_classes).
        split: (len(kept),) position in SPLITS, or UNDECIDED.
        attributes: Subgroup columns of the kept rows.
        problems: One line for each column with unknown values, and for each other row left out.
    """

    kept: list[int]
    classes: list[str]
    labels: npt.NDArray[Any]
    split: npt.NDArray[np.int64]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def names_of(value: str | Sequence[str]) -> tuple[str, ...]:
    """A list given as a list or as text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())


def find_column(who: str, columns: Columns, asked: str, words: Sequence[str]) -> str:
    """The requested column, else the first (by `words`) that has one of these names, else "".

    Raises:
        UserError: If the requested column does not exist.
    """
    if asked:
        if asked not in columns:
            raise unknown_name(who, "column", asked, columns)
        return asked
    lowered = {name.lower(): name for name in reversed(list(columns))}
    return next((lowered[word] for word in words if word in lowered), "")


def choose_roles(
    who: str,
    columns: Columns,
    *,
    label_column: str = "",
    target_columns: str | Sequence[str] = (),
    group_columns: str | Sequence[str] | None = None,
    split_column: str = "",
    learnable: Collection[str] | None = None,
) -> Roles:
    """Decide the role of each column, by the rules at the top of the module.

    Args:
        who: Prefix of errors.
        columns: Name to values, without the image column.
        label_column: Name of the label column.
        target_columns: Names of the 0/1 target columns.
        group_columns: Names of the subgroup columns; empty for none, None to find them by the rules.
        split_column: Name of the split column.
        learnable: The columns that the rules may choose as label or targets; None for all.

    Raises:
        UserError: If a column does not exist, or none can be a label or target.
    """
    targets, groups = names_of(target_columns), names_of(group_columns or ())
    for name in (*targets, *groups):
        find_column(who, columns, name, ())
    if label_column and targets:
        raise UserError(f"{who}: expected a label column or target columns, got both. Name one of them.")
    split = find_column(who, columns, split_column, _SPLIT_COLUMNS)
    able = columns if learnable is None else {name: columns[name] for name in columns if name in learnable}
    label = "" if targets else find_column(who, columns if label_column else able, label_column, LABEL_WORDS)
    free = [name for name in columns if name not in (split, label, *groups)]
    if not label and not targets:
        targets = tuple(name for name in free if name in able and _mostly_binary(columns[name]))
    if not label and not targets:
        raise UserError(
            f"{who}: expected a column called one of {', '.join(LABEL_WORDS)}, or columns of 0/1, got "
            f"{', '.join(columns) or 'no further column'}. Name it with label_column or target_columns."
        )
    if group_columns is None:
        groups = tuple(name for name in free if name not in targets and _groups(columns[name]))
    return Roles(label, targets, groups, split)


def read_rows(
    who: str,
    columns: Columns,
    roles: Roles,
    place: Callable[[int], str],
    *,
    classes: str | Sequence[str] = (),
) -> TableRows:
    """Read labels, splits and subgroups.

    Args:
        who: Prefix of errors.
        columns: Name to values, all of one length.
        roles: What each column is.
        place: Position of a row -> its name in messages (``line 7``).
        classes: Names of the classes in order; labels are names or positions. If empty, the labels that occur.

    Raises:
        UserError: If no row can be read.
    """
    count = len(next(iter(columns.values()), ()))
    wrong: dict[int, str] = {}
    unknown: dict[str, list[int]] = {}
    split = _split(columns[roles.split], roles.split, wrong, unknown) if roles.split else np.full(count, UNDECIDED)
    if roles.targets:
        names: list[str] = list(roles.targets)
        labels: npt.NDArray[Any] = _targets(columns, roles.targets, wrong, unknown)
    else:
        names, labels = _labels(columns[roles.label], roles.label, names_of(classes), wrong, unknown)
    out = set(wrong).union(*unknown.values())
    kept = [index for index in range(count) if index not in out]
    problems = [_unknown_line(name, columns[name], rows, place) for name, rows in unknown.items()]
    problems += [f"{place(index)}: {text}, left out" for index, text in sorted(wrong.items())]
    if not kept:
        reason = f"such as {problems[0]}" if problems else "the table is empty"
        raise UserError(f"{who}: expected rows that can be read, got none: {reason}. Check the columns.")
    attributes = {name: _group(columns[name], kept) for name in roles.groups}
    for position, name in enumerate(roles.targets):
        attributes[name] = yes_no(labels[kept, position])
    return TableRows(kept, names, labels[kept], split[kept].astype(np.int64), attributes, problems)


def _unknown_line(name: str, values: Sequence[str], rows: Sequence[int], place: Callable[[int], str]) -> str:
    """A line on the rows without a known value in a column: their number, their spellings and the first few."""
    written = Counter(values[row].strip() for row in rows)
    ways = ", ".join(f"{count} {repr(text) if text else 'empty'}" for text, count in written.items())
    shown = ", ".join(place(row) for row in rows[:_FEW]) + (", ..." if len(rows) > _FEW else "")
    return f"{name}: no value in {len(rows)} of {len(values)} rows ({ways}), left out ({shown})"


def _mostly_binary(values: Sequence[str]) -> bool:
    codes = binary_codes(values)
    right = sum(value in codes for value in values)
    return right > 0 and right >= 0.9 * len(values)


def _groups(values: Sequence[str]) -> bool:
    return 2 <= len(read_column(values).values) <= min(GROUP_LIMIT, len(values) // 2)


def _split(
    values: Sequence[str], name: str, wrong: dict[int, str], unknown: dict[str, list[int]]
) -> npt.NDArray[np.int64]:
    codes = [_SPLITS.get(plain_number(value.strip().lower()), UNDECIDED) for value in values]
    missing = [index for index, value in enumerate(values) if is_missing(value)]
    if len(missing) == len(values):
        return np.array(codes, np.int64)
    if missing:
        unknown[name] = missing
    for index in np.flatnonzero(np.array(codes) == UNDECIDED).tolist():
        if not is_missing(values[index]):
            wrong.setdefault(index, f"split is {values[index]!r}, expected train, val or test")
    return np.array(codes, np.int64)


def _targets(
    columns: Columns, targets: Sequence[str], wrong: dict[int, str], unknown: dict[str, list[int]]
) -> npt.NDArray[np.uint8]:
    table = np.zeros((len(columns[targets[0]]), len(targets)), np.uint8)
    for position, name in enumerate(targets):
        codes = binary_codes(columns[name])
        for index, value in enumerate(columns[name]):
            code = UNKNOWN if is_missing(value) else codes.get(value)
            if code == UNKNOWN:
                unknown.setdefault(name, []).append(index)
            elif code is None:
                wrong.setdefault(index, f"{name} is {value!r}, expected 0 or 1")
            table[index, position] = code == 1
    return table


def _labels(
    values: Sequence[str], name: str, classes: Sequence[str], wrong: dict[int, str], unknown: dict[str, list[int]]
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Names of the classes and the position of each row's label in them."""
    if not classes:
        column = read_column(values, name=name)
        missing = np.flatnonzero(column.codes == UNKNOWN).tolist()
        names, labels = list(column.values), np.maximum(column.codes, 0)
    else:
        names, texts = list(classes), [value.strip() for value in values]
        codes = {str(code): code for code in range(len(names))} | {text: code for code, text in enumerate(names)}
        found = [codes.get(text, codes.get(plain_number(text), UNKNOWN)) for text in texts]
        missing = [k for k, text in enumerate(texts) if found[k] == UNKNOWN and is_missing(text)]
        for index in sorted({k for k, code in enumerate(found) if code == UNKNOWN} - set(missing)):
            wrong.setdefault(index, f"label {texts[index]!r} is not one of the {len(names)} classes")
        labels = np.maximum(np.array(found, np.int64), 0)
    if missing:
        unknown[name] = missing
    return names, labels


def _group(values: Sequence[str], kept: Sequence[int]) -> Attribute:
    """Subgroups of the kept rows; the meaning of values is decided over the whole column."""
    whole = read_column(values).attribute()
    codes = whole.codes[np.asarray(kept, np.int64)]
    if whole.values == ("no", "yes"):
        return Attribute(codes, whole.values)
    present = np.unique(codes[codes >= 0])
    lookup = np.full(len(whole.values) + 1, UNKNOWN, np.int64)
    lookup[present] = np.arange(len(present))
    return Attribute(lookup[codes], tuple(whole.values[code] for code in present))
