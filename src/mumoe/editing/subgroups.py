"""Which subgroup each row belongs to: every combination of its true label and its sensitive attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from mumoe.data.columns import Column, find_value, object_array, read_column, require_value, sort_key, texts_of
from mumoe.errors import UserError

__all__ = [
    "Labels",
    "Sensitive",
    "Subgroup",
    "Subgroups",
    "as_labels",
    "find_subgroups",
    "sensitive_name",
]

Labels: TypeAlias = "npt.ArrayLike | torch.Tensor | Sequence[Any]"
"""One label per row: a list, a numpy array, a torch tensor or a pandas column."""

Sensitive: TypeAlias = "Labels | Mapping[str, Labels]"
"""One sensitive value per row, or several attributes by name (a subgroup is then a combination of their
values)."""


@dataclass(frozen=True)
class Subgroup:
    """The rows of one true label and one value of the sensitive attribute.

    Attributes:
        label: The true label, as the data writes it.
        sensitive: The sensitive value; several attributes are joined as ``woman, dark``, and a value that itself
            holds a comma is then quoted, so that different combinations have different names.
    """

    label: int | str
    sensitive: str

    def __str__(self) -> str:
        return f"{self.label} / {self.sensitive}"


@dataclass(frozen=True)
class Subgroups:
    """The subgroups of a data set.

    Attributes:
        groups: The subgroups, ordered by label and then by sensitive value.
        codes: (rows,) position of each row's subgroup in `groups`.
        counts: (groups,) rows of each subgroup, all above 0.
        labels: (groups,) position of each subgroup's label among the sorted labels.
        label_values: The sorted labels.
        sensitive_values: The names of the sensitive values, sorted as `sensitive_keys` are.
        sensitive_keys: The value of each attribute in each of them.
    """

    groups: tuple[Subgroup, ...]
    codes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    label_values: tuple[int | str, ...]
    sensitive_values: tuple[str, ...]
    sensitive_keys: tuple[tuple[str, ...], ...]

    def index(self, label: int | str, sensitive: object, *, who: str) -> int:
        """Position of one subgroup; 1, yes and true are one sensitive value, and so are 1 and 1.0.

        Raises:
            UserError: If there is no such label or sensitive value; the nearest one is suggested.
        """
        return self.label_index(label, who=who) * len(self.sensitive_values) + self._sensitive_index(sensitive, who)

    def _sensitive_index(self, asked: object, who: str) -> int:
        key = asked if isinstance(asked, tuple | list) else (asked,)
        if len(key) == len(self.sensitive_keys[0]):
            columns = [list(dict.fromkeys(column)) for column in zip(*self.sensitive_keys, strict=True)]
            places = [find_value(column, part) for column, part in zip(columns, key, strict=True)]
            found = tuple(c[place] for c, place in zip(columns, places, strict=True) if place is not None)
            if found in self.sensitive_keys:
                return self.sensitive_keys.index(found)
        name = require_value(who, "sensitive value", self.sensitive_values, sensitive_name(asked))
        return self.sensitive_values.index(name)

    def label_index(self, label: int | str, *, who: str) -> int:
        """Position of a label among `label_values`.

        Raises:
            UserError: If no row has this label.
        """
        if label in self.label_values:
            return self.label_values.index(label)
        texts = [str(value) for value in self.label_values]
        return texts.index(require_value(who, "label", texts, label))


def find_subgroups(y_true: Labels, sensitive_features: Sensitive, *, who: str) -> Subgroups:
    """Sort the rows into subgroups.

    Args:
        y_true: (rows,) true labels.
        sensitive_features: (rows,) sensitive values, or several such columns by name.
        who: The caller, named in errors.

    Raises:
        UserError: If there are no rows, a value is missing, lengths differ, there is only one label or one sensitive
            value, or a combination of label and sensitive value has no row (its accuracy would be 0/0).
    """
    truth = as_labels(y_true, "y_true", who)
    columns = _sensitive_columns(sensitive_features, who)
    require_equal_lengths(who, y_true=truth, sensitive_features=next(iter(columns.values())).codes)
    label_values, label_codes = _sorted_labels(truth)
    keys, value_codes = _combinations(list(columns.values()))
    values = tuple(sensitive_name(key) for key in keys)
    if len(label_values) < 2:
        raise UserError(
            f"{who}: expected at least two classes in y_true, got only {label_values[0]!r}. "
            "Subgroups differ in their error only where both outcomes occur; use a split that has both."
        )
    if len(values) < 2:
        raise UserError(
            f"{who}: expected at least two values in sensitive_features, got only {values[0]!r}. "
            "There is no other group to compare with; use another attribute."
        )
    codes = label_codes * len(values) + value_codes
    counts = np.bincount(codes, minlength=len(label_values) * len(values))
    groups = tuple(Subgroup(label, value) for label in label_values for value in values)
    _require_full(who, groups, counts, label_codes, value_codes)
    return Subgroups(
        groups=groups,
        codes=codes.astype(np.int64),
        counts=counts.astype(np.int64),
        labels=np.repeat(np.arange(len(label_values), dtype=np.int64), len(values)),
        label_values=label_values,
        sensitive_values=values,
        sensitive_keys=keys,
    )


def as_labels(values: Labels, name: str, who: str) -> npt.NDArray[Any]:
    """One discrete label per row as a numpy array of integers or strings.

    Raises:
        UserError: If the shape is not (rows,), there are no rows, a value is missing, or values are fractions.
    """
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iub" and values.size:
        whole = values.astype(np.int64)
        if whole.min() >= 0:  # nothing can be unknown: predictions of many strengths are compared
            return whole
    column, numeric = _complete_column(values, name, who)
    if numeric:
        return np.array([int(value) for value in column.values], np.int64)[column.codes]
    return np.array(column.values, np.str_)[column.codes]


def sensitive_name(value: object) -> str:
    """The name of one sensitive value: ``("woman", "dark")`` is ``woman, dark``."""
    parts = value if isinstance(value, tuple | list) else (value,)
    texts = texts_of([_number_for_bool(part) for part in parts])
    return texts[0] if len(texts) == 1 else ", ".join(map(_quoted, texts))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if "," in text or '"' in text else text


def _number_for_bool(value: Any) -> Any:
    return int(value) if isinstance(value, bool | np.bool_) else value


def _sensitive_columns(values: Sensitive, who: str) -> dict[str, Column]:
    columns = dict(values) if isinstance(values, Mapping) else {"sensitive_features": values}
    if not columns:
        raise UserError(f"{who}: expected at least one sensitive attribute, got none. Name one, e.g. 'Male'.")
    found = {str(name): _complete_column(column, str(name), who)[0] for name, column in columns.items()}
    require_equal_lengths(who, **{name: column.codes for name, column in found.items()})
    return found


def _complete_column(values: Labels, name: str, who: str) -> tuple[Column, bool]:
    """A column without missing values and fractions, and whether it is one of numbers."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    if isinstance(array, list | tuple):
        array = np.asarray(array) if np.ndim(array[0] if array else 0) else object_array(array)
    array = array if isinstance(array, np.ndarray) else np.asarray(array)
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    elif array.dtype.kind == "O":
        array = object_array([_number_for_bool(v) for v in array]) if array.ndim == 1 else array
    column = read_column(array, who=who, name=name)
    if not len(column.codes):
        raise UserError(f"{who}: expected at least one row in {name}, got none. Check the split or the filter.")
    if column.unknown:
        raise UserError(
            f"{who}: expected a value of {name} in every row, got none in {column.describe_unknown()}. "
            "Leave these rows out of every column."
        )
    numeric = array.dtype.kind in "iuf" or (
        array.dtype.kind == "O" and not any(isinstance(value, str | bytes) for value in array.tolist())
    )
    fraction = next((value for value in column.values if numeric and not value.lstrip("-").isdigit()), "")
    if numeric and column.kind != "name" and fraction:
        raise UserError(
            f"{who}: expected labels in {name}, got the fraction {fraction}. "
            "Turn scores into labels first (argmax, or logits > 0)."
        )
    return column, numeric and column.kind != "name"


def _sorted_labels(truth: npt.NDArray[Any]) -> tuple[tuple[int | str, ...], npt.NDArray[np.int64]]:
    """The different labels, numbers in their order, and each row's position among them."""
    found, codes = np.unique(truth, return_inverse=True)
    values = found.tolist()
    order = sorted(range(len(values)), key=lambda place: sort_key(str(values[place])))
    return tuple(values[place] for place in order), np.argsort(order)[codes]


def _combinations(columns: Sequence[Column]) -> tuple[tuple[tuple[str, ...], ...], npt.NDArray[np.int64]]:
    """The combinations of values that occur, and each row's position among them."""
    rows, codes = np.unique(np.stack([column.codes for column in columns], axis=1), axis=0, return_inverse=True)
    keys = tuple(tuple(c.values[code] for c, code in zip(columns, row, strict=True)) for row in rows.tolist())
    return keys, codes.reshape(-1).astype(np.int64)


def require_equal_lengths(who: str, **columns: npt.NDArray[Any]) -> None:
    """Refuse columns of different lengths.

    Raises:
        UserError: Naming every column with its length.
    """
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise UserError(f"{who}: expected columns of equal length, got {lengths}. Pass columns of the same rows.")


def _require_full(
    who: str,
    groups: tuple[Subgroup, ...],
    counts: npt.NDArray[np.int64],
    label_codes: npt.NDArray[np.int64],
    value_codes: npt.NDArray[np.int64],
) -> None:
    if counts.all():
        return
    empty = int(np.flatnonzero(counts == 0)[0])
    label, value = groups[empty].label, groups[empty].sensitive
    width = len(groups) // (int(label_codes.max()) + 1)
    classes = len(np.unique(label_codes[value_codes == empty % width]))
    detail = f"; {value!r} has one class only" if classes == 1 else ""
    raise UserError(
        f"{who}: expected rows in every subgroup, got none with label {label!r} and sensitive "
        f"value {value!r}{detail}. Merge or leave out this value, or use a split that has it."
    )
