"""The settings of an analysis and what they may be. Needs no torch, so that a wrong call fails at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mumoe.calling import check_argument
from mumoe.data.base import SPLITS
from mumoe.errors import UserError, unknown_argument

__all__ = ["LEAST_LOST", "MODES", "STRONG", "WHO", "Mode", "check_settings"]

WHO = "Run.analyze"

Mode = Literal["zero", "mean", "resampled"]

MODES = {
    "zero": "the expert's weight is zero, as in the paper",
    "mean": "the expert answers as the mean of all experts of its level would",
    "resampled": "the expert answers as it would to another image, drawn at random",
}
"""What replaces an ablated expert's answer; the coefficients stay as they are."""

STRONG = 0.5
"""A unit is strong if some class loses at least this share of its right answers .."""

LEAST_LOST = 5
""".. and at least this many: a class with a single right answer says nothing about an expert."""


def check_settings(
    *, split: str = "test", modes: Sequence[str] = ("zero",), threshold: float = 0.5, **counts: int
) -> None:
    """Raise `UserError` for a split, a mode or a number that an analysis cannot have."""
    if split not in SPLITS:
        raise unknown_argument(WHO, "split", split, SPLITS)
    check_argument(WHO, "modes", modes, Sequence[str])
    for mode in modes:
        if mode not in MODES:
            raise unknown_argument(WHO, "modes", mode, MODES)
    least = {"least_lost": 1, "batch_size": 1, "windows": 1}
    for name, value in counts.items():
        check_argument(WHO, name, value, int)
        if value < least.get(name, 0):
            raise UserError(f"{WHO}: expected `{name}` >= {least.get(name, 0)}, got {value}.")
    check_argument(WHO, "threshold", threshold, float)
    if not 0 < threshold <= 1:
        raise UserError(f"{WHO}: expected `threshold` above 0 and at most 1, got {threshold}. 0.5 is the default.")
