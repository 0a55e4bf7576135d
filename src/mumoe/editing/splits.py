"""Rows to learn from, rows to choose on, and rows whose labels stay sealed until the final report.

A strength chosen on the rows that it is then judged by looks better than it is. Two guards against that, both
by
construction: `Splits` cannot be made from overlapping rows, and the labels of the test rows are held by
`SealedRows`, which gives them out only to somebody who says what for, and writes that down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from mumoe.editing.subgroups import Labels, Sensitive, as_labels, require_equal_lengths, sensitive_names
from mumoe.errors import UserError

__all__ = ["Rows", "SealedRows", "Splits", "split_rows"]


@dataclass(frozen=True)
class Rows:
    """Labels and sensitive values of some rows, in one order with their predictions.

    Attributes:
        y_true: (rows,) true labels.
        sensitive_features: (rows,) sensitive values.
    """

    y_true: npt.NDArray[Any]
    sensitive_features: npt.NDArray[np.str_]

    @staticmethod
    def of(y_true: Labels, sensitive_features: Sensitive) -> Rows:
        """Rows from any kind of column.

        Raises:
            UserError: If lengths differ or values are not labels.
        """
        truth = as_labels(y_true, "y_true", "Rows")
        names = sensitive_names(sensitive_features, "Rows")
        require_equal_lengths("Rows", y_true=truth, sensitive_features=names)
        return Rows(truth, names)

    def __len__(self) -> int:
        return len(self.y_true)


class SealedRows:
    """Rows whose labels and sensitive values nobody sees before the final report.

    Only `len` is free. `open` hands the rows out and notes the purpose in `opened`; every other way to look
    (an attribute, an index, a conversion to an array, pickling) is refused.

    Args:
        rows: What to seal. Keep no other reference to it.
    """

    __slots__ = ("__opened", "__rows")

    def __init__(self, rows: Rows) -> None:
        self.__rows = rows
        self.__opened: list[str] = []

    def __len__(self) -> int:
        return len(self.__rows)

    @property
    def opened(self) -> tuple[str, ...]:
        """The purposes for which the rows were handed out so far."""
        return tuple(self.__opened)

    def open(self, purpose: str) -> Rows:
        """Hand the rows out, and write down what for."""
        self.__opened.append(purpose)
        return self.__rows

    def __getattr__(self, name: str) -> NoReturn:
        if name in {"y_true", "sensitive_features"}:
            self._refuse()
        raise AttributeError(name)

    def __getitem__(self, index: object) -> NoReturn:
        self._refuse()

    def __iter__(self) -> NoReturn:
        self._refuse()

    def __array__(self, *args: object, **kwargs: object) -> NoReturn:
        self._refuse()

    def __reduce__(self) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(
            "SealedRows: expected nobody to look at test labels before the final report, got an access. "
            "Choose on validation rows, then call open('final report')."
        )


@dataclass(frozen=True)
class Splits:
    """Positions of the rows to train on, to choose on and to report on; disjoint, or the object cannot be
    made.

    Attributes:
        train: Positions of the training rows: mean coefficients come from these.
        val: Positions of the validation rows: strengths are chosen on these.
        test: Positions of the test rows: used once, for the final report.
    """

    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        for name, rows in parts.items():
            if len(np.unique(rows)) != len(rows):
                raise UserError(f"Splits: expected each row once in {name}, got some twice. Remove them.")
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = np.intersect1d(parts[first], parts[second])
            if len(shared):
                raise UserError(
                    f"Splits: expected disjoint splits, got {len(shared)} rows in both {first} and {second} "
                    f"(the first is {shared[0]}). Take them out of one."
                )

    def seal(self, y_true: Labels, sensitive_features: Sensitive) -> tuple[Rows, Rows, SealedRows]:
        """Rows for training and choosing, and the sealed test rows, out of columns over all rows."""
        rows = Rows.of(y_true, sensitive_features)

        def take(positions: npt.NDArray[np.int64]) -> Rows:
            return Rows(rows.y_true[positions], rows.sensitive_features[positions])

        return take(self.train), take(self.val), SealedRows(take(self.test))


def split_rows(
    rows: int, *, shares: Mapping[str, float] | None = None, seed: int = 0, units: Labels | None = None
) -> Splits:
    """Split rows at random, keeping rows of one unit (a person, a character) together.

    Args:
        rows: Number of rows.
        shares: Share of each split, summing to 1; train 0.6, val 0.2 and test 0.2 by default.
        seed: Of the shuffling.
        units: (rows,) what must not be torn apart; each row alone by default.

    Raises:
        UserError: If shares are wrong, or a split would be empty.
    """
    shares = {"train": 0.6, "val": 0.2, "test": 0.2} if shares is None else dict(shares)
    if set(shares) != {"train", "val", "test"} or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(
            f"split_rows: expected positive shares of train, val and test that sum to 1, got {shares}. "
            "Take for instance train 0.6, val 0.2, test 0.2."
        )
    names = np.arange(rows) if units is None else as_labels(units, "units", "split_rows")
    require_equal_lengths("split_rows", rows=np.arange(rows), units=names)
    codes = np.unique(names, return_inverse=True)[1]
    count = int(codes.max(initial=-1)) + 1
    order = np.random.default_rng(seed).permutation(count)
    first, second = round(shares["train"] * count), round((shares["train"] + shares["val"]) * count)
    part = np.empty(count, dtype=np.int64)
    for position, chosen in enumerate((order[:first], order[first:second], order[second:])):
        if not len(chosen):
            raise UserError(f"split_rows: expected rows for three splits, got {count} units. Add data.")
        part[chosen] = position
    return Splits(*(np.flatnonzero(part[codes] == position).astype(np.int64) for position in range(3)))
