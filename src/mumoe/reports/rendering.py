"""Pages of results, from templates; they open from disk without a server."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mumoe.editing.edit_reports import COMPARED, STAGES
from mumoe.editing.subgroup_fairness import METRICS, FairnessReport, SubgroupResult
from mumoe.errors import require
from mumoe.results import Spread
from mumoe.training.compare import spread

__all__ = ["asset", "exact", "fixed", "render", "short"]

TEMPLATES = Path(__file__).parent / "templates"

_TITLES = ("Before", "Blind threshold", "After")
TITLES = {name: title for names in (STAGES, COMPARED) for name, title in zip(names, _TITLES, strict=True)}
"""Names of the models of a comparison, as the pages show them."""


PLAIN_METRICS = {
    "rewriting_score": "the target's gain, less what others move",
    "target_accuracy": "accuracy of the target",
    "equal_opportunity_difference": "largest gap between subgroups of the target's label",
    "std_bias": "spread over subgroups",
    "min_accuracy": "accuracy of the worst subgroup",
    "accuracy": "accuracy of all images",
}
"""Metric of `METRICS` -> its heading in plain words; the paper's stands below it."""


def render(name: str, values: Mapping[str, Any]) -> str:
    """A template filled in; its values are shown as text, never read as HTML."""
    return str(_environment().get_template(name).render(values))


def asset(name: str) -> str:
    """The text of a style sheet or script."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Any:
    jinja2 = require("jinja2", "reports", "report")
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "exact": exact,
        "fixed": fixed,
        "names": lambda some: ", ".join(some) or "none",
        "labels": lambda found: list(dict.fromkeys(group.subgroup.label for group in found.subgroups)),
        "sensitive": lambda found: list(dict.fromkeys(group.subgroup.sensitive for group in found.subgroups)),
        "short": short,
        "spread": _spread,
        "subgroup": _subgroup,
        "title": lambda name: TITLES.get(name, name),
    }
    environment.globals |= {"METRICS": METRICS, "PLAIN_METRICS": PLAIN_METRICS}
    return environment


def exact(value: float | None) -> str:
    """A number with all its digits, empty for none."""
    return "" if value is None else repr(value)


def fixed(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number as it is shown: thousands apart, a dash for none, never a negative zero."""
    if value is None:
        return "–"
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    return text.lstrip("+-") if not text.strip("+-0.,") else text


def short(data: str) -> str:
    """A data set's name without the folders of a path: ``folder:a/b`` is ``folder:b``."""
    kind, colon, path = data.partition(":")
    return f"{kind}:{Path(path).name or path}" if colon else data


def _spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and standard deviation of the values that exist; None without any."""
    known = [value for value in values if value is not None]
    return spread(known) if known else None


def _subgroup(report: FairnessReport, label: int | str, sensitive: str) -> tuple[int, SubgroupResult | None]:
    """Position and accuracy of a subgroup; None where a report has no such combination."""
    for position, found in enumerate(report.subgroups):
        if (found.subgroup.label, found.subgroup.sensitive) == (label, sensitive):
            return position, found
    return -1, None
