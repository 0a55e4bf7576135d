"""Pages of results, from templates; they open from disk without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mumoe.errors import require

__all__ = ["write_demo_page"]

TEMPLATES = Path(__file__).parent / "templates"


def _render(name: str, values: Mapping[str, Any]) -> str:
    jinja2 = require("jinja2", "reports", "report")
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return str(environment.get_template(name).render(values))


def write_demo_page(out: Path, lines: Sequence[str], numbers: Mapping[str, Any], credits: Sequence[str]) -> Path:
    """Write OUT/report.html: the sentences, the tables, the figures that stand beside it, and the credits."""
    page = out / "report.html"
    page.write_text(_render("demo.html", {"lines": lines, "numbers": numbers, "credits": credits}), encoding="utf-8")
    return page
