"""``.. summary:: MODULE [MODULE ...]``: a table of modules' public names, each with the first line of its docstring.

The names are those of ``__all__``, or, after a colon, those that are given: ``mumoe.analysis.purity:Purity``. Each row
links to the full description on the page.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, ClassVar

from docutils.statemachine import StringList
from sphinx.ext.autosummary import Autosummary


class Summary(Autosummary):
    """autosummary's table, for all public names of modules."""

    has_content = False
    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[Any]:
        """The table."""
        self.options["nosignatures"] = None
        names = [name for argument in self.arguments[0].split() for name in public(argument)]
        self.content = StringList(names, source="summary")
        context = self.env.ref_context
        module = context.pop("py:module", None)  # names are complete, not relative to the section's module
        try:
            return super().run()
        finally:
            context["py:module"] = module


def public(argument: str) -> list[str]:
    """Dotted names of a module's classes and functions; constants have no docstring to summarize."""
    module, _, chosen = argument.partition(":")
    found = importlib.import_module(module)
    names = chosen.split(",") if chosen else found.__all__
    things = {name: getattr(found, name) for name in names}
    return [f"~{module}.{name}" for name, thing in things.items() if inspect.isclass(thing) or inspect.isroutine(thing)]


def setup(app: Any) -> dict[str, bool]:
    """Connect."""
    app.setup_extension("sphinx.ext.autosummary")
    app.add_directive("summary", Summary)
    return {"parallel_read_safe": True}
