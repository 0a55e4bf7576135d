"""Analysis of combinations of experts on several levels: which occur, and what the "and" of their experts selects.

A combination is used by the tokens that use all of its experts. That set is smaller than that of each expert, and a
smaller set of top tokens may be purer by chance. So purity is compared on equally many tokens: the top ones of a
combination with the top ones of each of its experts alone, and random ones that use it with random ones that use each
expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mumoe.decomposition.findings import CombinationFinding, CombinationPurity, Combinations, TokenInContext
from mumoe.decomposition.levels import Occurring

__all__ = ["CombinationSource", "combination_findings"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Purest = Callable[[Ints], tuple[str, float | None, float | None]]
Quotes = Callable[[Ints, Floats], tuple[TokenInContext, ...]]

SHOWN = 20
"""The most used combinations that are described."""
COMPARED = 300
"""Combinations, drawn at random, whose purity is compared with that of their experts."""


@dataclass(frozen=True)
class CombinationSource:
    """What combinations are described from.

    Attributes:
        occurring: The combinations of the tokens that are looked at.
        of_expert: (level, number) -> rows that use an expert, those with the largest coefficients first.
        purest: Most frequent tag of some rows, its share, and that above the base rate.
        quotes: Some rows in context, with the value of each.
        pure, least: As in `LookSettings`.
        seed: Of the random choices.
    """

    occurring: Occurring
    of_expert: Callable[[tuple[int, int]], Ints]
    purest: Purest
    quotes: Quotes
    pure: int
    least: int
    seed: int


def combination_findings(source: CombinationSource, ablate: Callable[[tuple[int, ...]], float | None]) -> Combinations:
    """Describe the most used combinations, and compare the purity of some with that of their experts.

    Args:
        source: Tokens and their labels.
        ablate: Change of the loss without a combination; None where it is not measured.
    """
    found = source.occurring
    keys, counts = found.counted()
    most = keys[np.argsort(-counts, kind="stable")[:SHOWN]]
    live = keys[counts >= source.least]
    drawn = np.random.default_rng(source.seed).permutation(live)[:COMPARED]
    return Combinations(
        possible=math.prod(found.sizes),
        tokens=found.rows,
        occurring=len(keys),
        live=len(live),
        purity=_purity(source, drawn.tolist()),
        found=tuple(_finding(source, int(key), ablate) for key in most),
    )


def _finding(
    source: CombinationSource, key: int, ablate: Callable[[tuple[int, ...]], float | None]
) -> CombinationFinding:
    experts = source.occurring.experts(key)
    rows, value = _ranked(source.occurring, key)
    size, tokens = min(source.pure, len(rows)), source.occurring.rows
    alone = [_rows_alone(source, place) for place in enumerate(experts)]
    tag, share, _ = source.purest(rows[:size])
    return CombinationFinding(
        experts=experts,
        rate=len(rows) / tokens,
        alone=tuple(len(one) / tokens for one in alone),
        mean=float(value.mean()),
        loss=ablate(experts),
        tag=tag,
        tag_share=share,
        tag_alone=tuple(source.purest(one[:size])[1] for one in alone),
        top=source.quotes(rows, value),
    )


def _ranked(found: Occurring, key: int) -> tuple[Ints, Floats]:
    """Rows that use a combination, those with the largest products first."""
    rows, value = found.of(key)
    order = np.argsort(-value, kind="stable")
    return rows[order], value[order]


def _rows_alone(source: CombinationSource, place: tuple[int, int]) -> Ints:
    """Rows that use an expert, of those that combinations were looked at on."""
    rows = source.of_expert(place)
    return rows[rows < source.occurring.rows]


def _purity(source: CombinationSource, keys: Sequence[int]) -> CombinationPurity | None:
    random = np.random.default_rng(source.seed)
    table = []
    for key in keys:
        rows, _ = _ranked(source.occurring, key)
        sets = [rows, *(_rows_alone(source, place) for place in enumerate(source.occurring.experts(key)))]
        size = min(source.pure, len(rows))
        chosen = [one[:size] for one in sets] + [random.permutation(one)[:size] for one in sets]
        table.append([source.purest(one)[1] for one in chosen])
    whole = np.array([row for row in table if None not in row], dtype=np.float64)
    if not len(whole):
        return None
    means = whole.mean(0).tolist()
    middle = len(means) // 2
    return CombinationPurity(len(whole), means[0], tuple(means[1:middle]), means[middle], tuple(means[middle + 1 :]))
