"""Ablation of experts, at one level and in hierarchies, computed without subtracting anything.

Ablating experts zeroes their slices of the weight tensor. As the layer is linear in the coefficients of each
level, zeroing slices at one level is zeroing those coefficients. A set of single combinations is left out by
splitting the rest into products of index sets, one contraction each: no cancellation, and exact zeros.

The ablations in effect are a context variable: every thread and asyncio task has its own, and neither copies of a layer
nor its saved state contain them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mumoe.coefficients import Coefficients
from mumoe.errors import UserError

__all__ = ["Ablation", "ablated", "ablations", "active", "contract_ablated"]


@dataclass(frozen=True)
class Ablation:
    """Experts to leave out: all combinations with some experts at one level, or single combinations."""

    level: int | None
    experts: tuple[int, ...]
    combinations: tuple[tuple[int, ...], ...]

    @classmethod
    def parse(cls, experts: Any, level: int | None, num_experts: Sequence[int], who: str) -> Ablation:
        """From the argument of a caller: one index, several, a boolean mask, index tuples, or indices of one level.

        Raises:
            UserError: If a level or an index does not exist, or the length of a mask is not the level's.
        """
        listed = _listed(experts)
        if level is None and len(num_experts) > 1:
            return cls(None, (), tuple(_combination(item, num_experts, who) for item in listed))
        chosen = 0 if level is None else _index_of_level(level, len(num_experts), who)
        size = num_experts[chosen]
        if any(_is_bool(item) for item in listed):
            indices = _from_mask(listed, size, who)
        else:
            indices = tuple(_index(_alone(item), size, who) for item in listed)
        return cls(chosen, indices, tuple((n,) for n in indices) if len(num_experts) == 1 else ())


def _listed(experts: Any) -> list[Any]:
    """The indices as a list; a single index (an int, or one of numpy or torch) becomes a list of one."""
    if hasattr(experts, "tolist"):
        experts = experts.tolist()
    return list(experts) if isinstance(experts, Iterable) and not isinstance(experts, str) else [experts]


def _is_bool(item: Any) -> bool:
    return isinstance(item.item() if hasattr(item, "item") and getattr(item, "ndim", 0) == 0 else item, bool)


def _from_mask(mask: Sequence[Any], size: int, who: str) -> tuple[int, ...]:
    if len(mask) != size or not all(_is_bool(item) for item in mask):
        raise UserError(
            f"{who}: expected indices, or a mask of {size} booleans, got {len(mask)} values with booleans among them. "
            "Give mask.nonzero() or a mask of the level's length."
        )
    return tuple(n for n, chosen in enumerate(mask) if chosen)


def _index_of_level(level: Any, levels: int, who: str) -> int:
    if _is_bool(level) or not hasattr(level, "__index__") or not 0 <= level < levels:
        raise UserError(
            f"{who}: expected level in 0..{levels - 1}, got {level}. The layer has {levels} level{'s' * (levels > 1)}."
        )
    return int(level)


def _alone(item: Any) -> Any:
    return item[0] if isinstance(item, Sequence) and len(item) == 1 else item


def _index(item: Any, size: int, who: str) -> int:
    if _is_bool(item) or not hasattr(item, "__index__"):
        raise UserError(f"{who}: expected an expert's index, got {item!r}. Give a number in 0..{size - 1}.")
    number = int(item.__index__())
    if not 0 <= number < size:
        raise UserError(f"{who}: expected an expert in 0..{size - 1}, got {number}. There are {size} experts.")
    return number


def _combination(item: Any, num_experts: Sequence[int], who: str) -> tuple[int, ...]:
    item = item.tolist() if hasattr(item, "tolist") else item
    if not isinstance(item, Sequence) or len(item) != len(num_experts):
        raise UserError(
            f"{who}: expected one index for each of {len(num_experts)} levels, such as "
            f"{tuple(0 for _ in num_experts)}, got {item!r}. Or name a level: level=0."
        )
    return tuple(_index(n, size, who) for n, size in zip(item, num_experts, strict=True))


class _Entry:
    """One context of one layer."""

    def __init__(self, layer: object, ablation: Ablation) -> None:
        self.layer, self.ablation = layer, ablation


active: ContextVar[tuple[_Entry, ...]] = ContextVar("mumoe_ablations", default=())
"""The contexts of all layers in this thread or task."""


@contextmanager
def ablated(layer: object, ablation: Ablation) -> Iterator[None]:
    """Within the context `ablations(layer)` has one more; on exit exactly this one is removed."""
    entry = _Entry(layer, ablation)
    active.set((*active.get(), entry))
    try:
        yield
    finally:
        active.set(tuple(other for other in active.get() if other is not entry))


def ablations(layer: object) -> tuple[Ablation, ...]:
    """The layer's ablations in this thread or task."""
    return tuple([entry.ablation for entry in active.get() if entry.layer is layer])


def contract_ablated(
    contract: Callable[[Tensor, Sequence[Coefficients]], Tensor],
    x: Tensor,
    coefficients: Sequence[Coefficients],
    left_out: Sequence[Ablation],
) -> Tensor:
    """Contract with the experts of all ablations left out.

    Cost: one contraction, and one more for each first index (of each first level) among single combinations.
    """
    levels = list(coefficients)
    combinations: set[tuple[int, ...]] = set()
    for ablation in left_out:
        if ablation.level is None:
            combinations.update(ablation.combinations)
        else:
            levels[ablation.level] = levels[ablation.level].without(ablation.experts)
    return _complement(contract, x, levels, combinations, 0)


def _complement(
    contract: Callable[[Tensor, Sequence[Coefficients]], Tensor],
    x: Tensor,
    levels: list[Coefficients],
    combinations: set[tuple[int, ...]],
    depth: int,
) -> Tensor:
    """Everything but the combinations, whose indices from `depth` on are still open."""
    if not combinations:
        return contract(x, levels)
    firsts = sorted({combination[depth] for combination in combinations})
    y = contract(x, [*levels[:depth], levels[depth].without(firsts), *levels[depth + 1 :]])
    if depth == len(levels) - 1:
        return y
    for first in firsts:
        alone = [*levels[:depth], levels[depth].only(first), *levels[depth + 1 :]]
        inside = {combination for combination in combinations if combination[depth] == first}
        y = y + _complement(contract, x, alone, inside, depth + 1)
    return y
