"""Text that a decomposed language model writes: with the original MLP, with its experts, and with one expert scaled.

Beside it stands the text with another expert scaled by the same factor, one that is used about as often: any change of
this size may change a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from mumoe.dashboard import WHO
from mumoe.errors import UserError

if TYPE_CHECKING:
    from mumoe.dashboard.background import Report
    from mumoe.decomposition.opened import Decomposition

__all__ = ["MOST_FACTOR", "MOST_TOKENS", "Steering", "asked"]

MOST_PROMPT = 2000
"""Characters of a prompt."""
MOST_TOKENS = 100
"""Tokens that are written."""
MOST_FACTOR = 20.0
"""Largest factor of a coefficient."""
KEPT = 32
"""Texts without scaling that are kept, so that moving a slider writes two texts instead of four."""


class Steering:
    """Writes texts with the experts of a decomposition.

    Args:
        decomposition: The decomposition; its language model is loaded on first use.
        used: (level, expert) -> share of tokens that use it, for the choice of controls.
    """

    def __init__(self, decomposition: Decomposition, used: Mapping[tuple[int, int], float]) -> None:
        self.decomposition, self.used = decomposition, used
        self._known: dict[tuple[str, int], dict[str, str]] = {}

    def write(
        self, prompt: str, tokens: int, expert: int, factor: float, report: Report, *, level: int = 0
    ) -> dict[str, Any]:
        """What follows a prompt, the likeliest token each time.

        Args:
            prompt: How the text begins.
            tokens: Tokens to write.
            expert: Whose coefficient is multiplied, within its level.
            factor: By what.
            report: Called with the progress.
            level: The level of the expert.

        Returns:
            ``original`` with the MLP that was decomposed, ``plain`` with its experts, ``steered`` with one expert's
            coefficient multiplied by `factor`, ``controlled`` with that of the expert ``control`` (both None without
            another expert); ``prompt``, ``expert`` and ``factor`` as given.

        Raises:
            UserError: If there is no such expert.
        """
        plain = self._without_scaling(prompt, tokens, report)
        report(2, 4, f"Writing with expert {expert} × {factor:g}")
        steered = self._generate(prompt, tokens, scale={(level, expert): factor})
        control = self.control(expert, level)
        report(3, 4, f"Writing with expert {control} × {factor:g}")
        controlled = None if control is None else self._generate(prompt, tokens, scale={(level, control): factor})
        found = {"prompt": prompt, "expert": expert, "factor": factor, **plain, "steered": steered}
        return {**found, "control": control, "controlled": controlled}

    def control(self, expert: int, level: int = 0) -> int | None:
        """The other expert of the level that is used by the most similar share of tokens; None if there is no other."""
        rate = self.used.get((level, expert), 0.0)
        others = {number: share for (where, number), share in self.used.items() if where == level and number != expert}
        return min(others, key=lambda other: (abs(others[other] - rate), other), default=None)

    def _without_scaling(self, prompt: str, tokens: int, report: Report) -> dict[str, str]:
        if found := self._known.get((prompt, tokens)):
            return found
        report(0, 4, "Writing with the original MLP")
        original = self._generate(prompt, tokens, original=True)
        report(1, 4, "Writing with the experts")
        found = {"original": original, "plain": self._generate(prompt, tokens)}
        if len(self._known) >= KEPT:
            self._known.pop(next(iter(self._known)))
        self._known[prompt, tokens] = found
        return found

    def _generate(self, prompt: str, tokens: int, **how: Any) -> str:
        """What is written after the prompt."""
        text = self.decomposition.generate(prompt, tokens, **how)
        return text.removeprefix(prompt)


def asked(given: Mapping[str, Any]) -> tuple[str, int, int, float, int]:
    """Prompt, tokens, expert, factor and level of a request; without a level the first.

    Raises:
        UserError: If one of them is missing or out of range.
    """
    prompt, tokens, expert, factor = (given.get(name) for name in ("prompt", "tokens", "expert", "factor"))
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > MOST_PROMPT:
        raise UserError(f"{WHO}: expected a prompt of 1 to {MOST_PROMPT:,} characters. Write how the text begins.")
    if not _whole(tokens) or not 1 <= tokens <= MOST_TOKENS:
        raise UserError(f"{WHO}: expected 1 to {MOST_TOKENS} tokens to write, got {tokens!r}.")
    if not _whole(expert):
        raise UserError(f"{WHO}: expected the number of an expert, got {expert!r}.")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not abs(factor) <= MOST_FACTOR:
        raise UserError(f"{WHO}: expected a factor from {-MOST_FACTOR:g} to {MOST_FACTOR:g}, got {factor!r}.")
    level = given.get("layer", 0)
    if not _whole(level):
        raise UserError(f"{WHO}: expected the number of a level, got {level!r}.")
    return prompt, tokens, expert, float(factor), level


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
