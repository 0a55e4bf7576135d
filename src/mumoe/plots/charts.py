"""Figures of the report: each as SVG in two widths, for light and dark pages, with its numbers as JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mumoe.files import write_bytes, write_json
from mumoe.plots.style import BLUE, COLOURS, GREY, GRID, INK, PALE, RED, rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NARROW", "WIDE", "Chart", "csv_text", "save_chart"]

WIDE, NARROW = 8.6, 3.7
"""Widths in inches; 96 CSS pixels each."""

ON_DARK = {
    INK: "#e6ebf0",
    PALE: "#a9b6c2",
    GRID: "#3a4652",
    "#ffffff": "#161c22",
    "#000000": "#e6ebf0",
    BLUE: "#5bb8e0",
    RED: "#ff8a93",
    COLOURS[2]: "#a3c97e",
    COLOURS[3]: "#c79ad8",
    COLOURS[4]: "#e5b04c",
    COLOURS[5]: "#8fb1d9",
    GREY: "#9aa3ad",
}
"""The colour on a dark page for each colour on a light one."""

Rows = Sequence[Mapping[str, Any]]
Draw = Callable[[bool], "Figure"]
"""Draws a figure, narrow or wide."""


@dataclass(frozen=True)
class Chart:
    """A figure in a folder.

    Attributes:
        name: Base name of its files.
        caption: What is shown, in words.
        alt: The same for readers who do not see it.
        title: What it shows, in a few plain words.
        paper: The figure of the paper that it corresponds to; empty for none.
    """

    name: str
    caption: str
    alt: str
    title: str = ""
    paper: str = ""


def save_chart(
    folder: Path, name: str, draw: Draw, rows: Rows, *, caption: str, alt: str, title: str = "", paper: str = ""
) -> Chart:
    """Write NAME.svg, NAME-dark.svg, NAME-narrow.svg, NAME-narrow-dark.svg, NAME.json and NAME.csv."""
    for form, narrow in (("", False), ("-narrow", True)):
        text = rendered(draw(narrow), "svg", {"metadata": {"Date": None}}).decode()
        write_bytes(folder / f"{name}{form}.svg", text.encode())
        write_bytes(folder / f"{name}{form}-dark.svg", _darkened(text).encode())
    write_json(folder / f"{name}.json", list(rows))
    write_bytes(folder / f"{name}.csv", csv_text(rows).encode())
    return Chart(name, caption, alt, title, paper)


def csv_text(rows: Rows) -> str:
    """Rows as CSV with a heading; numbers are written in full precision."""
    text = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _darkened(text: str) -> str:
    for light, dark in ON_DARK.items():
        text = text.replace(light, f"\0{dark[1:]}").replace(light.upper(), f"\0{dark[1:]}")
    return text.replace("\0", "#")
