"""What "expert n did not contribute" means, for one level and for hierarchies, without subtracting anything.

Ablating experts zeroes their slices of the weight tensor. As the layer is linear in the coefficients of each
level, zeroing slices at one level is zeroing those coefficients. A set of single combinations is left out by
splitting the rest into products of index sets, one contraction each: no cancellation, and exact zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mumoe.errors import UserError

__all__ = ["Ablation", "contract_ablated"]


@dataclass(frozen=True)
class Ablation:
    """Experts to leave out: all combinations with some experts at one level, or single combinations."""

    level: int | None
    experts: tuple[int, ...]
    combinations: tuple[tuple[int, ...], ...]

    @classmethod
    def parse(cls, experts: int | Iterable[Any], level: int | None, num_experts: Sequence[int], who: str) -> Ablation:
        """From what a user writes: one index, indices, index tuples, or indices of one level.

        Raises:
            UserError: If a level or an index does not exist.
        """
        listed = [experts] if isinstance(experts, int) else list(experts)
        if level is None and len(num_experts) > 1:
            return cls(None, (), tuple(_combination(item, num_experts, who) for item in listed))
        chosen = 0 if level is None else level
        if not 0 <= chosen < len(num_experts):
            raise UserError(
                f"{who}: expected level in 0..{len(num_experts) - 1}, got {level}. "
                f"The layer has {len(num_experts)} levels."
            )
        indices = tuple(_index(_alone(item), num_experts[chosen], who) for item in listed)
        return cls(chosen, indices, tuple((n,) for n in indices) if len(num_experts) == 1 else ())


def _alone(item: Any) -> Any:
    return item[0] if isinstance(item, Sequence) and len(item) == 1 else item


def _index(item: Any, size: int, who: str) -> int:
    try:
        number = int(item.__index__())
    except AttributeError:
        raise UserError(f"{who}: expected an expert's index, got {item!r}. Give a number in 0..{size - 1}.") from None
    if not 0 <= number < size:
        raise UserError(f"{who}: expected an expert in 0..{size - 1}, got {number}. There are {size} experts.")
    return number


def _combination(item: Any, num_experts: Sequence[int], who: str) -> tuple[int, ...]:
    if not isinstance(item, Sequence) or len(item) != len(num_experts):
        raise UserError(
            f"{who}: expected one index for each of {len(num_experts)} levels, such as "
            f"{tuple(0 for _ in num_experts)}, got {item!r}. Or name a level: level=0."
        )
    return tuple(_index(n, size, who) for n, size in zip(item, num_experts, strict=True))


def contract_ablated(
    contract: Callable[[Tensor, Sequence[Tensor]], Tensor],
    x: Tensor,
    coefficients: Sequence[Tensor],
    ablations: Sequence[Ablation],
) -> Tensor:
    """Contract with the experts of all ablations left out.

    Cost: one contraction, and one more for each first index (of each first level) among single combinations.
    """
    levels = list(coefficients)
    combinations: set[tuple[int, ...]] = set()
    for ablation in ablations:
        if ablation.level is None:
            combinations.update(ablation.combinations)
        else:
            levels[ablation.level] = _without(levels[ablation.level], ablation.experts)
    return _complement(contract, x, levels, combinations, 0)


def _complement(
    contract: Callable[[Tensor, Sequence[Tensor]], Tensor],
    x: Tensor,
    levels: list[Tensor],
    combinations: set[tuple[int, ...]],
    depth: int,
) -> Tensor:
    """Everything but the combinations, whose indices from `depth` on are still open."""
    if not combinations:
        return contract(x, levels)
    firsts = sorted({combination[depth] for combination in combinations})
    rest = [*levels]
    rest[depth] = _without(levels[depth], firsts)
    y = contract(x, rest)
    if depth == len(levels) - 1:
        return y
    for first in firsts:
        alone = [*levels]
        alone[depth] = _only(levels[depth], first)
        inside = {combination for combination in combinations if combination[depth] == first}
        y = y + _complement(contract, x, alone, inside, depth + 1)
    return y


def _without(a: Tensor, experts: Sequence[int]) -> Tensor:
    return a.index_fill(-1, torch.tensor(experts, dtype=torch.long, device=a.device), 0)


def _only(a: Tensor, expert: int) -> Tensor:
    mask = torch.zeros(a.shape[-1], dtype=torch.bool, device=a.device)
    mask[expert] = True
    return a.where(mask, 0)
