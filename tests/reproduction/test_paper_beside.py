"""Our numbers beside the paper's, on records that are invented: every cell differs from every other, in size and sign.

A gap of the other sign, a neighbouring cell or the deviation in place of the mean would show.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mumoe.editing.subgroup_fairness import METRICS
from reproduction.make import draw
from reproduction.recipe import load_recipe, printed

SEEDS = (0, 1, 2)
SPREAD = (-0.1, 0.0, 0.1)
"""What the three seeds differ from their mean by, in points."""


def gaps() -> Iterator[float]:
    """Differences in points, each another one, positive and negative in turn."""
    number = 0
    while True:
        number += 1
        yield (1 if number % 2 else -1) * 0.07 * number


def record(data: str, head: str, seed: int, points: float) -> dict[str, Any]:
    accuracy = (points + SPREAD[seed]) / 100
    facts = {"data": data, "head": head, "seed": seed, "gate": "entmax15", "backbone": "clip-b32"}
    return {**facts, "parameters": 7, "accuracy": {"test": accuracy, "val": 0.5}}


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a markdown page, each a header and rows of cells."""
    found: list[list[list[str]]] = []
    for block in text.split("\n\n"):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if line[:1] == "|"]
        if rows:
            found.append([rows[0], *rows[2:]])
    return found


def beside(value: float, theirs: float, gap: float) -> str:
    return f"{value:.2f} ± 0.10 (paper {theirs:.2f}, {gap:+.2f})"


@pytest.mark.parametrize("item", ["table-3", "table-6", "table-7"])
def test_every_accuracy_stands_beside_its_own(item: str, tmp_path: Path) -> None:
    recipe, table, gap = load_recipe(item, "full"), printed(item), gaps()
    expected, records = {}, []
    for theirs, row in table["rows"].items():
        head = recipe.rank_titles.get(theirs, theirs)
        for name, (value, _) in zip(table["data"], row["accuracy"], strict=True):
            own = next(gap)
            expected[head, name] = beside(value + own, value, own)
            records += [record(name, head, seed, value + own) for seed in SEEDS]
    header, *rows = tables(draw(recipe, records, tmp_path).text)[0]
    found = {(cells[0], name): cell for cells in rows for name, cell in zip(header[1:], cells[1:], strict=True)}
    assert found == expected
    assert len(set(expected.values())) == len(expected) >= 21


def test_what_the_paper_prints_is_read_from_its_own_cells() -> None:
    """A few of the paper's numbers, typed from the paper."""
    table = printed("table-6")
    assert table["rows"]["linear"]["accuracy"][table["data"].index("CIFAR100")] == [87.62, 0.16]
    assert table["rows"]["linear"]["accuracy"][table["data"].index("ImageNET1k")] == [72.97, 0.07]
    assert table["rows"]["highrank-linear"]["accuracy"][table["data"].index("Food101")] == [86.54, 0.12]
    assert printed("table-5")["rows"]["cp"]["accuracy"][0] == 59.85
    target = printed("table-2")["experiments"]["old-females-age"]["Linear"]["target_accuracy"]
    assert target == 0.516


def test_hierarchies_stand_beside_their_own_and_one_level(tmp_path: Path) -> None:
    recipe, table, gap = load_recipe("table-4", "full"), printed("table-4"), gaps()
    (name,) = recipe.data
    records, expected = [], {}
    for theirs, part in table["parts"].items():
        head = recipe.rank_titles.get(theirs, theirs)
        first = 0.0
        for place, row in enumerate(part):
            value, own, levels = row["accuracy"][0], next(gap), "x".join(map(str, row["levels"]))
            first = first if place else value + own
            records += [record(name, f"{head}-e{levels}", seed, value + own) for seed in SEEDS]
            against = f"{value + own - first:.2f} ± 0.00" if place else ""
            printed_gap = f"{value - part[0]['accuracy'][0]:+.2f}" if place else ""
            deviation = f"{value:.2f} ± {row['accuracy'][1]:.2f}"
            expected[head, levels] = [beside(value + own, value, own), against, deviation, printed_gap]
    found = {}
    for header, *rows in tables(draw(recipe, records, tmp_path).text):
        if header[2].endswith(": accuracy"):
            head = header[2].removesuffix(": accuracy")
            found |= {(head, cells[0]): cells[2:] for cells in rows}
    assert without_signed_zero(found) == without_signed_zero(expected)


def without_signed_zero(cells: Mapping[Any, list[str]]) -> dict[Any, list[str]]:
    return {key: [cell.replace("-0.00", "0.00").replace("+0.00", "0.00") for cell in row] for key, row in cells.items()}


def test_mixers_stand_beside_their_own(tmp_path: Path) -> None:
    recipe, table, gap = load_recipe("table-5", "full"), printed("table-5"), gaps()
    records, expected = [], {}
    for head in recipe.heads:
        for name in recipe.data:
            own = next(gap)
            value = table["rows"]["mlp" if head == recipe.heads[0] else "cp"]["accuracy"][table["data"].index(name)]
            records += [record(name, head, seed, value + own) for seed in SEEDS]
            expected[head, name] = beside(value + own, value, own)
    made = draw(recipe, records, tmp_path)
    header, *rows = tables(made.text)[0]
    found = {(cells[0], name): cell for cells in rows for name, cell in zip(header[2:], cells[2:], strict=True)}
    assert found == expected
    pairs = zip(table["rows"]["cp"]["accuracy"], table["rows"]["mlp"]["accuracy"], strict=True)
    paper = [ours - base for ours, base in pairs]
    said = f"in the paper CP minus MLP is {statistics.fmean(paper):+.2f} on average ({min(paper):+.2f} to"
    assert made.text.count(said) == len(recipe.data) * (len(recipe.heads) - 1)
    assert statistics.fmean(paper) > 0


def report(metrics: Mapping[str, float]) -> dict[str, Any]:
    return {"metrics": {name: {"value": value} for name, value in metrics.items()}}


@pytest.mark.parametrize("item", ["table-2", "table-8"])
def test_fairness_stands_beside_its_own(item: str, tmp_path: Path) -> None:
    recipe, table, gap = load_recipe(item, "full"), printed(item), gaps()
    records, expected = [], {}
    several = len(recipe.heads) > 1
    for experiment in recipe.experiments:
        for head in recipe.heads:
            known = table["experiments"][experiment]
            known = known.get(head, known)
            reports, counts = {}, {}
            for theirs, row in known.items():
                method = head if theirs == "CP" else theirs
                own = {
                    name: round(row[name] + next(gap) / 10, 3) - row[name]
                    for name in METRICS
                    if row.get(name) is not None
                }
                reports[method] = report({name: row[name] + part for name, part in own.items()})
                counts[method] = 1000
                label = f"{head} {method}" if several and method != head else method
                expected[experiment, label] = [
                    f"{row[name] + own[name]:.3f} ± 0.000 (paper {row[name]:.3f}, {own[name]:+.3f})"
                    if name in own
                    else "-"
                    for name in METRICS
                ]
            facts = {"experiment": experiment, "head": head, "reports": reports, "parameters": counts}
            records += [{**facts, "seed": seed, "strengths": {}} for seed in SEEDS]
    found: dict[Any, list[str]] = {}
    shown = tables(draw(recipe, records, tmp_path).text)[: len(recipe.experiments)]
    for experiment, (_, *rows) in zip(recipe.experiments, shown, strict=True):
        found |= {(experiment, cells[0]): cells[1:-1] for cells in rows}
    assert found == expected
    assert len(expected) >= 8


@pytest.mark.parametrize(
    ("sign", "verdict"), [(1, "same sign"), (-1, "opposite sign"), (0, "no clear difference here")]
)
def test_on_other_data_the_direction_is_compared(sign: int, verdict: str, tmp_path: Path) -> None:
    recipe, table = load_recipe("table-6"), printed("table-6")
    (name,) = recipe.data
    linear = [value for value, _ in table["rows"]["linear"]["accuracy"]]
    records = [record(name, "linear", seed, 80.0) for seed in SEEDS]
    signs = []
    for theirs, row in table["rows"].items():
        if theirs != "linear":
            paper = statistics.fmean(mine - base for (mine, _), base in zip(row["accuracy"], linear, strict=True))
            signs.append(paper > 0)
            own = sign * (3.0 if paper > 0 else -3.0)
            head = recipe.rank_titles.get(theirs, theirs)
            # every seed's gap another one, so that a difference of 0 is within its error
            records += [record(name, head, seed, 80.0 + own + (seed - 1) * 0.5) for seed in SEEDS]
    assert set(signs) == {True, False}, "the paper has heads on both sides of linear"
    text = draw(recipe, records, tmp_path).text
    rows = [row for row in tables(text)[0][1:] if row[0] != "linear"]
    assert {row[-1] for row in rows} == {verdict}
    clear = len(rows) if sign else 0
    assert f"{clear} of {len(rows)} heads differ" in text
    assert f"{len(rows) if sign > 0 else 0} of them in the paper's direction" in text
