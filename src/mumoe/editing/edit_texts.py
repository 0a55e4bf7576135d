"""Edits by hand as short texts, for a command line: ``ablate:17``, ``scale:3=0.5``, ``set-output:5:Blond_Hair=2``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

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


_WHOLE, _NUMBER = r"[+-]?\d+", r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_PLACE = rf"(?:({_WHOLE})/)?({_WHOLE})"
_OUTPUT = rf"({_WHOLE}(?:,{_WHOLE})*):(.*)=({_NUMBER})"
_PATTERNS = {
    "ablate": _PLACE,
    "scale": rf"{_PLACE}=({_NUMBER})",
    "swap": rf"{_PLACE}=({_WHOLE})",
    "set-output": _OUTPUT,
    "correct": _OUTPUT,
}


def parse_edit(text: str, classes: Sequence[str], *, who: str = "parse_edit") -> ExpertEdit:
    """An edit from its text, KIND:EXPERT, KIND:EXPERT=VALUE or KIND:EXPERT:CLASS=VALUE.

    An expert is its number at the first level, or ``LEVEL/NUMBER``; where a class is named it is one of the whole
    layer, in a hierarchy a number per level: ``17,3``. Whether it exists is checked when the edit is applied to a
    layer.

    Raises:
        UserError: If the kind or the class is unknown (the nearest is suggested), or a number is not one.

    >>> parse_edit("scale:1/3=0.5", ["ant", "bee"])
    Scale(expert=3, factor=0.5, level=1, strength=1.0)
    >>> parse_edit("set-output:5:bee=2", ["ant", "bee"])
    SetOutput(expert=(5,), head=1, value=2.0, strength=1.0)
    """
    kind, _, rest = text.partition(":")
    if kind not in FORMS:
        raise unknown_name(who, "kind of edit", kind, FORMS)
    found = re.fullmatch(_PATTERNS[kind], rest)
    if found is None or not math.isfinite(float(found.groups()[-1])):
        raise UserError(f"{who}: expected an edit such as {FORMS[kind]}, got {text!r}. Write it in this form.")
    if kind in ("set-output", "correct"):
        experts, name, value = found.groups()
        if name not in classes:
            raise unknown_name(who, "class", name, classes)
        combination, head = tuple(map(int, experts.split(","))), list(classes).index(name)
        if kind == "correct":
            return Correct.of(head, {combination: float(value)})
        return SetOutput(combination, head, float(value))
    level, expert, *others = found.groups()
    place = {"level": int(level or 0)}
    if kind == "ablate":
        return Ablate(int(expert), **place)
    if kind == "scale":
        return Scale(int(expert), float(others[0]), **place)
    return Swap(int(expert), int(others[0]), **place)
