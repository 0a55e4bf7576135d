"""The navigation: it lists the pages that exist, and its captions have a level.

Pages that exist are those beside a results README, and those of rooms named by `NAME*` in the index.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"


def add_neighbours(app: Any, name: str, source: list[str]) -> None:
    """Append a hidden table of contents to `results/*/README`: GitHub shows the page without it."""
    folder, _, page = name.rpartition("/")
    below = sorted(doc for doc in app.env.found_docs if doc.startswith(f"{folder}/") and doc != name)
    if name.startswith("results/") and page == "README" and below:
        source[0] += HIDDEN.format(entries="\n".join(f"/{doc}" for doc in below))


def expand(app: Any, name: str, source: list[str]) -> None:
    """In the index, replace `NAME*` by the pages of that name, if any (Sphinx's own globs warn of none)."""
    if name == "index":
        source[0] = re.sub(r"(?m)^([\w/*]+\*(?:/\w+)?)\n", lambda line: _matching(app, line[1]), source[0])


def _matching(app: Any, pattern: str) -> str:
    wanted = re.compile(pattern.replace("*", "[^/]*"))
    return "".join(f"{doc}\n" for doc in sorted(app.env.found_docs) if wanted.fullmatch(doc))


def level_captions(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Captions of the navigation are headings, and a heading has a level."""
    tree = context.get("furo_navigation_tree")
    if tree:
        context["furo_navigation_tree"] = tree.replace('role="heading">', 'role="heading" aria-level="2">')


def setup(app: Any) -> dict[str, bool]:
    """Connect."""
    app.connect("source-read", add_neighbours)
    app.connect("source-read", expand)
    app.connect("html-page-context", level_captions, priority=900)  # after the theme
    return {"parallel_read_safe": True}
