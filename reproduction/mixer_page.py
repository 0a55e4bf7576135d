"""Table 5: MLP-Mixer from scratch, its MLPs ordinary ones or CP layers of as many parameters."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduction import exact
from reproduction.accuracy_pages import accuracies, gaps, seeds_text
from reproduction.recipe import Recipe, printed
from reproduction.sheets import Sheet, compared, mean_text, sheet_of, signed

__all__ = ["mixer_page"]

Records = Sequence[Mapping[str, Any]]


def mixer_page(recipe: Recipe, records: Records, folder: Path) -> Sheet:
    """The paper's layout where the data are the paper's, else ours beside its differences; the counts either way."""
    table = printed("table-5")
    sheet = sheet_of(recipe, seeds_text(records))
    mlp, *mixtures = recipe.heads
    rows = []
    for head in recipe.heads:
        row = table["rows"]["mlp" if head == mlp else "cp"]
        cells = [_cell(recipe, records, name, head, mlp, table, row) for name in recipe.data]
        counts = sorted({f"{int(r['parameters']):,}" for r in records if r["head"] == head})
        rows.append([head, " / ".join(counts) or "-", *cells])
    sheet.add("Measured:", ("MLPs", "parameters", *recipe.data), rows)
    paper = [ours - base for ours, base in _printed_pairs(table)]
    theirs = [
        [row["printed_as"], row["parameters"], *(f"{value:.2f}" for value in row["accuracy"])]
        for row in table["rows"].values()
    ]
    sheet.add("What the paper prints:", ("", "parameters", *table["data"]), theirs)
    for head in mixtures:
        for name in recipe.data:
            gap = gaps(records, name, head, mlp)
            if gap:
                sheet.findings.append(
                    f"{name}: {head} minus {mlp} {mean_text(gap, scale=100)} points; in the paper CP minus MLP is "
                    f"{signed(statistics.fmean(paper))} on average ({min(paper):+.2f} to {max(paper):+.2f})."
                )
    _counts(sheet)
    return sheet


def _cell(
    recipe: Recipe, records: Records, name: str, head: str, mlp: str, table: Mapping[str, Any], row: Mapping[str, Any]
) -> str:
    values = accuracies(records, name, head)
    if name in table["data"]:
        return compared(values, row["accuracy"][table["data"].index(name)], scale=100)
    return mean_text(values, scale=100)


def _printed_pairs(table: Mapping[str, Any]) -> list[tuple[float, float]]:
    rows = table["rows"]
    return list(zip(rows["cp"]["accuracy"], rows["mlp"]["accuracy"], strict=True))


def _counts(sheet: Sheet) -> None:
    """Parameters at the paper's sizes: which reading of the text gives the printed numbers."""
    counts = exact.mixer_parameters()
    printed_as = {"mlp": "18M", "cp": "19M", "cp, two layers": "19M"}
    rows = []
    for name, count in counts.items():
        millions = f"{count // 10**6}M"
        mark = "=" if millions == printed_as[name] else f"**≠ {printed_as[name]}**"
        rows.append([name, f"{count:,}", f"{millions} {mark}"])
    sheet.add("Parameters of S/16 with 1,000 classes, N = 128, rank 3.25 times the input's width:",
              ("MLPs", "parameters", "in millions, cut off"), rows)  # fmt: skip
    sheet.numbers["parameters"] = counts
