"""The page of an item, with tables and sentences, and the numbers behind it.

Numbers of ours stand beside the paper's. An equal integer is marked ``=``, another one ``≠`` with the printed value; a
measured mean is followed by the printed one and the difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mumoe.records import render_table
from reproduction.recipe import Recipe

__all__ = ["Sheet", "Table", "compared", "count_beside", "mean_text", "sheet_of", "signed"]


@dataclass(frozen=True)
class Table:
    """One table of a page.

    Attributes:
        caption: A line above it.
        header: Titles of the columns.
        rows: Cells as text.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def render(self) -> str:
        """As markdown."""
        return f"{self.caption}\n\n" + render_table(self.header, self.rows, "markdown")


@dataclass
class Sheet:
    """A page under construction.

    Attributes:
        title: Its heading.
        lead: What is shown, on which data.
        tables: In their order.
        findings: Sentences computed from the numbers.
        notes: What to keep in mind.
        pictures: Files that are shown.
        numbers: What goes into the JSON beside it.
    """

    title: str
    lead: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def add(self, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Append a table."""
        self.tables.append(Table(caption, tuple(header), tuple(tuple(row) for row in rows)))

    def render(self) -> str:
        """The page as markdown."""
        parts = [f"# {self.title}", *self.lead]
        parts += [f"![{self.title}]({picture})" for picture in self.pictures]
        parts += [table.render().rstrip() for table in self.tables]
        if self.findings:
            parts.append("\n".join(f"- {line}" for line in self.findings))
        if self.notes:
            parts.append("Notes:\n\n" + "\n".join(f"- {line}" for line in self.notes))
        return "\n\n".join(parts) + "\n"


def sheet_of(recipe: Recipe, lead: str) -> Sheet:
    """The beginning of an item's page: its title and notes, its place in the paper, and an introduction."""
    number = recipe.item.name.replace("-", " ").capitalize()
    sheet = Sheet(f"{number} ({recipe.scale}): {recipe.item.title}", notes=list(recipe.notes))
    sheet.lead.append(f"The paper's is in {recipe.item.place}. {lead}")
    return sheet


def count_beside(ours: int, theirs: int) -> str:
    """A count of ours, and the printed one where it differs: ``608,768 =`` or ``2,323,072 ≠ 2,421,376``."""
    return f"{ours:,} =" if ours == theirs else f"{ours:,} **≠ {theirs:,}**"


def mean_text(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """``64.93 ± 1.10``; without a deviation for one value, a dash for none."""
    if not values:
        return "-"
    mean = scale * statistics.fmean(values)
    return f"{mean:.{digits}f}" + (f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}"


def compared(values: Sequence[float], theirs: float, digits: int = 2, scale: float = 1.0) -> str:
    """A measured mean, the paper's, and the difference: ``88.01 ± 0.10 (paper 88.11, -0.10)``."""
    if not values:
        return f"not run (paper {theirs:.{digits}f})"
    gap = scale * statistics.fmean(values) - theirs
    return f"{mean_text(values, digits, scale)} (paper {theirs:.{digits}f}, {signed(gap, digits)})"
