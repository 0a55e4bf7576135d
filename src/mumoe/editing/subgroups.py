"""Which subgroup each row belongs to: every combination of its true label and its sensitive attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from mumoe.errors import UserError, unknown_name

__all__ = [
    "Labels",
    "Sensitive",
    "Subgroup",
    "Subgroups",
    "as_labels",
    "find_subgroups",
    "sensitive_name",
    "sensitive_names",
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
        sensitive: The sensitive value; several attributes are joined as ``woman, dark``.
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
        sensitive_values: The sorted sensitive values.
    """

    groups: tuple[Subgroup, ...]
    codes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    label_values: tuple[int | str, ...]
    sensitive_values: tuple[str, ...]

    def index(self, label: int | str, sensitive: object, *, who: str) -> int:
        """Position of one subgroup.

        Raises:
            UserError: If there is no such label or sensitive value; the nearest one is offered.
        """
        name = sensitive_name(sensitive)
        if name not in self.sensitive_values:
            raise unknown_name(who, "sensitive value", name, self.sensitive_values)
        return self.label_index(label, who=who) * len(self.sensitive_values) + self.sensitive_values.index(name)

    def label_index(self, label: int | str, *, who: str) -> int:
        """Position of a label among `label_values`.

        Raises:
            UserError: If no row has this label.
        """
        if label not in self.label_values:
            raise unknown_name(who, "label", str(label), map(str, self.label_values))
        return self.label_values.index(label)


def find_subgroups(y_true: Labels, sensitive_features: Sensitive, *, who: str) -> Subgroups:
    """Sort the rows into subgroups.

    Args:
        y_true: (rows,) true labels.
        sensitive_features: (rows,) sensitive values, or several such columns by name.
        who: The caller, named in errors.

    Raises:
        UserError: If there are no rows, lengths differ, there is only one label or one sensitive value, or a
            combination of label and sensitive value has no row (its accuracy would be 0/0).
    """
    truth = as_labels(y_true, "y_true", who)
    names = sensitive_names(sensitive_features, who)
    require_equal_lengths(who, y_true=truth, sensitive_features=names)
    label_values, label_codes = np.unique(truth, return_inverse=True)
    values, value_codes = np.unique(names, return_inverse=True)
    if len(label_values) < 2:
        raise UserError(
            f"{who}: expected at least two classes in y_true, got only {label_values[0].item()!r}. "
            "Subgroups differ in their error only where both outcomes occur; take a split that has both."
        )
    if len(values) < 2:
        raise UserError(
            f"{who}: expected at least two values in sensitive_features, got only {str(values[0])!r}. "
            "There is nobody to compare with; take another attribute."
        )
    codes = label_codes * len(values) + value_codes
    counts = np.bincount(codes, minlength=len(label_values) * len(values))
    groups = tuple(Subgroup(label.item(), str(value)) for label in label_values for value in values)
    _require_full(who, groups, counts, label_codes, value_codes)
    return Subgroups(
        groups=groups,
        codes=codes.astype(np.int64),
        counts=counts.astype(np.int64),
        labels=np.repeat(np.arange(len(label_values), dtype=np.int64), len(values)),
        label_values=tuple(label.item() for label in label_values),
        sensitive_values=tuple(str(value) for value in values),
    )


def as_labels(values: Labels, name: str, who: str) -> npt.NDArray[Any]:
    """One discrete label per row as a numpy array of integers or strings.

    Raises:
        UserError: If the shape is not (rows,), there are no rows, or values are not discrete (scores, NaN).
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.ndim != 1:
        raise UserError(f"{who}: expected {name} of shape (rows,), got {array.shape}. Pass one label per row.")
    if not len(array):
        raise UserError(f"{who}: expected at least one row in {name}, got none. Check the split or the filter.")
    if array.dtype == np.bool_:
        return array.astype(np.int64)
    if np.issubdtype(array.dtype, np.floating):
        if not np.array_equal(array, np.round(array)):
            raise UserError(
                f"{who}: expected labels in {name}, got fractions or NaN. Turn scores into labels first "
                "(argmax, or logits > 0) and leave out rows without a label."
            )
        return array.astype(np.int64)
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.str_)


def sensitive_names(values: Sensitive, who: str) -> npt.NDArray[np.str_]:
    """The sensitive value of each row as text; several attributes are joined row by row."""
    if not isinstance(values, Mapping):
        return as_labels(values, "sensitive_features", who).astype(np.str_)
    if not values:
        raise UserError(f"{who}: expected at least one sensitive attribute, got none. Name one, e.g. 'Male'.")
    columns = {str(name): as_labels(column, str(name), who).astype(np.str_) for name, column in values.items()}
    require_equal_lengths(who, **columns)
    joined, *rest = columns.values()
    for column in rest:
        joined = np.char.add(np.char.add(joined, ", "), column)
    return joined


def sensitive_name(value: object) -> str:
    """The text by which one sensitive value is known: ``("woman", "dark")`` is ``woman, dark``."""
    if isinstance(value, tuple | list):
        return ", ".join(sensitive_name(part) for part in value)
    return str(int(value)) if isinstance(value, bool) else str(value)


def require_equal_lengths(who: str, **columns: npt.NDArray[Any]) -> None:
    """Refuse columns of different lengths.

    Raises:
        UserError: Naming every column with its length.
    """
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise UserError(f"{who}: expected columns of equal length, got {lengths}. Take all from the same rows.")


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
        f"value {value!r}{detail}. Merge or leave out this value, or take a split that holds it."
    )
