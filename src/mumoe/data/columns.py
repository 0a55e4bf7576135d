"""What the columns of a table mean: image, label or 0/1 targets, split, subgroups. For ``csv:`` and ``hf:``.

Unless options name them, columns are found by these rules (case does not count):

- image: the first called one of IMAGE_WORDS.
- split: the one called ``split``, ``partition`` or ``subset``, with the values ``train``, ``val``,
  ``test`` and their usual other spellings, or 0, 1, 2 as in CelebA.
- label: the one called one of LABEL_WORDS. Without it, every column whose values are 0/1 is a target
  (multi-label), if only a tenth of them or less are something else.
- subgroups: every further column with 2 to GROUP_LIMIT values, each of which two rows have on average.

0/1 values may also be written no/yes, false/true or, as in CelebA, -1/1. A 0/1 target is a subgroup column
too. An empty subgroup is unknown. Rows without a readable label, target or split are left out and named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.data.base import Attribute
from mumoe.data.build import UNDECIDED, yes_no
from mumoe.data.layout import SPLIT_WORDS
from mumoe.errors import UserError, unknown_name

__all__ = [
    "GROUP_LIMIT",
    "IMAGE_WORDS",
    "LABEL_WORDS",
    "Roles",
    "Rows",
    "choose_roles",
    "names_of",
    "read_rows",
]

IMAGE_WORDS = ("image", "path", "file", "filename", "file_name", "filepath", "image_path", "image_id")
LABEL_WORDS = ("label", "class", "category", "target", "fine_label")
GROUP_LIMIT = 64
"""A column of more values than this is not taken for a subgroup column unless it is named as one."""

_SPLIT_COLUMNS = ("split", "partition", "subset")
_SPLITS = {**SPLIT_WORDS, "0": 0, "1": 1, "2": 2}
_BINARY = {"0": 0, "1": 1, "no": 0, "yes": 1, "false": 0, "true": 1, "-1": 0, "0.0": 0, "1.0": 1}

Columns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Roles:
    """Which column is what; `label` is empty for a multi-label table, `targets` for a single-label one."""

    label: str
    targets: tuple[str, ...]
    groups: tuple[str, ...]
    split: str


@dataclass
class Rows:
    """The rows that could be read.

    Attributes:
        kept: Their positions in the table.
        classes: Names of classes or targets.
        labels: (len(kept),) or (len(kept), num_classes).
        split: (len(kept),) position in SPLITS, or UNDECIDED.
        attributes: Subgroup columns of the kept rows.
        problems: One line for each row left out.
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
    """The column that was asked for, else the first (by `words`) that has one of these names, else "".

    Raises:
        UserError: If the one that was asked for is not there.
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
) -> Roles:
    """Decide what each column is, by the rules at the top of the module.

    Args:
        who: Opens an error.
        columns: Name to values, without the image column.
        label_column: Name of the label column.
        target_columns: Names of the 0/1 target columns.
        group_columns: Names of the subgroup columns; empty: none; None: found by rule.
        split_column: Name of the split column.

    Raises:
        UserError: If a column is not there, or nothing can be a label or target.
    """
    targets, groups = names_of(target_columns), names_of(group_columns or ())
    for name in (*targets, *groups):
        find_column(who, columns, name, ())
    if label_column and targets:
        raise UserError(f"{who}: expected a label column or target columns, got both. Name one of them.")
    split = find_column(who, columns, split_column, _SPLIT_COLUMNS)
    label = "" if targets else find_column(who, columns, label_column, LABEL_WORDS)
    free = [name for name in columns if name not in (split, label, *groups)]
    if not label and not targets:
        targets = tuple(name for name in free if _mostly_binary(columns[name]))
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
) -> Rows:
    """Read labels, splits and subgroups.

    Args:
        who: Opens an error.
        columns: Name to values, all of one length.
        roles: What each column is.
        place: Position of a row to what to call it (``line 7``).
        classes: Names of the classes in order; labels are names or positions. Empty: the labels there are.

    Raises:
        UserError: If no row can be read.
    """
    count = len(next(iter(columns.values()), ()))
    wrong: dict[int, str] = {}
    split = _split(columns[roles.split], wrong) if roles.split else np.full(count, UNDECIDED)
    if roles.targets:
        names: list[str] = list(roles.targets)
        labels: npt.NDArray[Any] = _targets(columns, roles.targets, wrong)
    else:
        names, labels = _labels(columns[roles.label], names_of(classes), wrong)
    kept = [index for index in range(count) if index not in wrong]
    problems = [f"{place(index)}: {text}, left out" for index, text in sorted(wrong.items())]
    if not kept:
        reason = f"such as {problems[0]}" if problems else "there is none"
        raise UserError(f"{who}: expected rows that can be read, got none: {reason}. Check the columns.")
    attributes = {name: _group([columns[name][index] for index in kept]) for name in roles.groups}
    for position, name in enumerate(roles.targets):
        attributes[name] = yes_no(labels[kept, position])
    return Rows(kept, names, labels[kept], split[kept].astype(np.int64), attributes, problems)


def _mostly_binary(values: Sequence[str]) -> bool:
    right = sum(value.strip().lower() in _BINARY for value in values)
    return right > 0 and right >= 0.9 * len(values)


def _groups(values: Sequence[str]) -> bool:
    different = len({value.strip() for value in values} - {""})
    return 2 <= different <= min(GROUP_LIMIT, len(values) // 2)


def _split(values: Sequence[str], wrong: dict[int, str]) -> npt.NDArray[np.int64]:
    codes = [_SPLITS.get(value.strip().lower(), UNDECIDED) for value in values]
    if any(value.strip() for value in values):
        for index, code in enumerate(codes):
            if code == UNDECIDED:
                wrong.setdefault(index, f"split is {values[index]!r}, expected train, val or test")
    return np.array(codes, np.int64)


def _targets(columns: Columns, targets: Sequence[str], wrong: dict[int, str]) -> npt.NDArray[np.uint8]:
    table = np.zeros((len(columns[targets[0]]), len(targets)), np.uint8)
    for position, name in enumerate(targets):
        for index, value in enumerate(columns[name]):
            code = _BINARY.get(value.strip().lower())
            if code is None:
                wrong.setdefault(index, f"{name} is {value!r}, expected 0 or 1")
            table[index, position] = code or 0
    return table


def _labels(
    values: Sequence[str], classes: Sequence[str], wrong: dict[int, str]
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Names of the classes and the position of each row's label in them."""
    texts = [value.strip() for value in values]
    names = list(classes) or sorted({text for text in texts if text}, key=_numbers_first)
    codes = {name: code for code, name in enumerate(names)}
    if classes:
        codes = {str(code): code for code in range(len(names))} | codes
    labels = np.zeros(len(texts), np.int64)
    for index, text in enumerate(texts):
        if text in codes:
            labels[index] = codes[text]
        elif not text:
            wrong.setdefault(index, "the label is empty")
        else:
            wrong.setdefault(index, f"label {text!r} is none of the {len(names)} classes")
    return names, labels


def _numbers_first(text: str) -> tuple[int, int, str]:
    """Sorts 2 before 10, and numbers before words."""
    return (0, int(text), text) if text.isascii() and text.isdigit() else (1, 0, text)


def _group(values: Sequence[str]) -> Attribute:
    texts = [value.strip() for value in values]
    different = {text.lower() for text in texts} - {""}
    if different and different <= set(_BINARY):
        return Attribute(np.array([_BINARY.get(text.lower(), -1) for text in texts], np.int64), ("no", "yes"))
    names = sorted(set(texts) - {""}, key=_numbers_first)
    codes = {name: code for code, name in enumerate(names)}
    return Attribute(np.array([codes.get(text, -1) for text in texts], np.int64), tuple(names))
