"""Edits by hand as short texts, for a command line: ``ablate:17``, ``scale:3=0.5``, ``set-output:5:Blond_Hair=2``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mumoe.editing.expert_edits import Ablate, Correct, ExpertEdit, Scale, SetOutput, Swap
from mumoe.errors import UserError, unknown_name

__all__ = ["FORMS", "parse_edit"]

FORMS = {
    "ablate": "ablate:17",
    "scale": "scale:3=0.5",
    "swap": "swap:4=9",
    "set-output": "set-output:5:CLASS=2.0",
    "correct": "correct:5:CLASS=0.3",
}
"""An example of each kind."""


def parse_edit(text: str, classes: Sequence[str], *, who: str = "parse_edit") -> ExpertEdit:
    """An edit from its text, KIND:EXPERT, KIND:EXPERT=VALUE or KIND:EXPERT:CLASS=VALUE.

    An expert is its number at the first level, or ``LEVEL/NUMBER``; where a class is named it is one of the whole
    layer, in a hierarchy a number per level: ``17,3``. Whether it exists is known when the edit meets a layer.

    Raises:
        UserError: If the kind or the class is not known (the nearest is offered), or a number is none.

    >>> parse_edit("scale:1/3=0.5", ["ant", "bee"])
    Scale(expert=3, factor=0.5, level=1, strength=1.0)
    >>> parse_edit("set-output:5:bee=2", ["ant", "bee"])
    SetOutput(expert=(5,), head=1, value=2.0, strength=1.0)
    """
    kind, _, rest = text.partition(":")
    if kind not in FORMS:
        raise unknown_name(who, "kind of edit", kind, FORMS)

    def number(value: str, convert: Callable[[str], float] = float) -> float:
        try:
            found = convert(value)
        except ValueError:
            raise _malformed(who, kind, text) from None
        if not math.isfinite(found):
            raise _malformed(who, kind, text)
        return found

    def index(value: str) -> int:
        return int(number(value, int))

    def place(value: str) -> tuple[int, int]:
        level, slash, expert = value.partition("/")
        return (index(level), index(expert)) if slash else (0, index(value))

    if kind == "ablate":
        level, expert = place(rest)
        return Ablate(expert, level)
    left, _, right = rest.rpartition("=")
    if kind in ("scale", "swap"):
        level, expert = place(left)
        if kind == "scale":
            return Scale(expert, float(number(right)), level)
        return Swap(expert, index(right), level)
    experts, _, name = left.partition(":")
    combination, value = tuple(index(part) for part in experts.split(",")), float(number(right))
    if name not in classes:
        raise unknown_name(who, "class", name, classes)
    head = list(classes).index(name)
    return SetOutput(combination, head, value) if kind == "set-output" else Correct.of(head, {combination: value})


def _malformed(who: str, kind: str, text: str) -> UserError:
    return UserError(f"{who}: expected an edit such as {FORMS[kind]}, got {text!r}. Write it in this form.")
