"""Our docstrings as reStructuredText: plain text with bars in it, and attributes that are sentences."""

from __future__ import annotations

import re
from typing import Any

PLAIN = ("attribute", "data", "property")
_BARS = re.compile(r"(``.*?``)|(?<!\\)\|")


def escape_bars(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """A bar is a bar, not the start of a substitution."""
    lines[:] = [_BARS.sub(lambda found: found[1] or "\\|", line) for line in lines]


def hide(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep sentences about attributes from napoleon, which treats text before a colon as a type."""
    if what in PLAIN:
        _hidden[name] = list(lines)
        lines.clear()


def show(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Bring them back."""
    if name in _hidden:
        lines[:] = _hidden.pop(name)


_hidden: dict[str, list[str]] = {}


def setup(app: Any) -> dict[str, bool]:
    """Connect around napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", escape_bars, priority=400)
    app.connect("autodoc-process-docstring", hide, priority=410)
    app.connect("autodoc-process-docstring", show, priority=600)
    return {"parallel_read_safe": True}
