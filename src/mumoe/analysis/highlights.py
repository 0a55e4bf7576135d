"""Which experts to show first: the purest strong ones, and beside them a typical one and a control."""

from __future__ import annotations

from dataclasses import dataclass

from mumoe.analysis.findings import Effect, Specialization, UnitStudy

__all__ = ["Highlights", "choose_highlights", "combinations_to_show", "interest_order"]


@dataclass(frozen=True)
class Highlights:
    """Experts of one level to show for all, and a control beside them.

    Attributes:
        purest: Positions of the strong experts with the lowest polysemanticity, the purest first.
        typical: Position of the expert with the median polysemanticity among those with an effect, without those in
            `purest`; None if there is no other.
        control: The purest strong unit of the control of the same load, or its unit that costs some class most if
            none is strong; None if no unit has an effect.
    """

    purest: tuple[int, ...]
    typical: int | None
    control: Effect | None


def choose_highlights(units: UnitStudy, most: int = 4, mode: str = "zero") -> Highlights:
    """The experts of a level to show first.

    Args:
        units: The level.
        most: Number of purest strong experts.
        mode: What replaced an ablated expert.
    """
    part = units.modes[mode]
    strong = [effect.unit for effect in sorted(part.effects, key=_interest) if effect.strong][:most]
    others = sorted(
        (effect for effect in part.effects if effect.unit not in strong), key=lambda e: (e.polysemanticity, e.unit)
    )
    typical = others[(len(others) - 1) // 2].unit if others else None
    return Highlights(tuple(strong), typical, min(units.load_control.effects, key=_interest, default=None))


def interest_order(part: Specialization) -> list[int]:
    """Every unit of a level, in the order in which tables begin.

    Strong units first, the purest before the others; then units with an effect by the share of right answers that a
    class loses, the largest first; then units without effect by position.
    """
    measured = [effect.unit for effect in sorted(part.effects, key=_interest)]
    return [*measured, *sorted(set(range(part.units)) - set(measured))]


def combinations_to_show(units: UnitStudy, most: int = 40) -> list[int]:
    """Combinations to list first: those with an effect, as in `interest_order`, then those that most images use.

    Args:
        units: The combinations of a hierarchy.
        most: How many to list; at most half of them for their effect.
    """
    effects = [effect.unit for effect in sorted(units.modes["zero"].effects, key=_interest)][: most // 2]
    used = sorted(((unit, load) for unit, load in units.listed() if load), key=lambda pair: (-pair[1], pair[0]))
    return list(dict.fromkeys([*effects, *(unit for unit, _ in used[:most])]))[:most]


def _interest(effect: Effect) -> tuple[int, float, int]:
    return (0, effect.polysemanticity, effect.unit) if effect.strong else (1, -effect.top_loss, effect.unit)
