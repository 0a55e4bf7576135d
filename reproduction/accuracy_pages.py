"""Pages of accuracies: Tables 3, 6 and 7, Figures 13 and 14, and Table 4's hierarchies."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mumoe.plots.style import save_figure
from mumoe.specs import parse_spec
from reproduction import exact
from reproduction import page_plots as plots
from reproduction.recipe import Recipe, printed
from reproduction.sheets import Sheet, compared, mean_text, sheet_of, signed

__all__ = ["accuracy_page", "curves_page", "hierarchy_page"]

Records = Sequence[Mapping[str, Any]]


def accuracies(records: Records, data: str, head: str) -> list[float]:
    """Test accuracies of a head on a data set, in the order of the seeds."""
    found = [(r["seed"], r["accuracy"]["test"]) for r in records if r["data"] == data and r["head"] == head]
    return [float(value) for _, value in sorted(found)]


def gaps(records: Records, data: str, head: str, other: str) -> list[float]:
    """Differences of two heads' accuracies, paired by seed."""
    ours = {r["seed"]: r["accuracy"]["test"] for r in records if r["data"] == data and r["head"] == head}
    theirs = {r["seed"]: r["accuracy"]["test"] for r in records if r["data"] == data and r["head"] == other}
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def accuracy_page(recipe: Recipe, records: Records, folder: Path) -> Sheet:
    """Tables 3, 6 and 7: the paper's layout where the data are the paper's, else ours beside its differences."""
    place = recipe.item.name
    table = printed(place)
    sheet = sheet_of(recipe, seeds_text(records))
    if set(recipe.data) & set(table["data"]):
        _same_data(sheet, recipe, records, table)
    else:
        _other_data(sheet, recipe, records, table)
    rows, counts = exact.parameter_columns(place)
    caption = (
        f"Number of layer parameters at the paper's sizes, = or ≠ what {table['place'].partition(' (')[0]} prints:"
    )
    sheet.add(caption, ("head", *table["data"]), rows)
    wrong = sum(count["ours"] != count["printed"] for count in counts)
    sheet.findings.append(f"{len(counts) - wrong} of {len(counts)} printed parameter counts are exact.")
    sheet.numbers["parameters"] = counts
    return sheet


def seeds_text(records: Records) -> str:
    """How many seeds there are of each run."""
    if not records:
        return "Nothing has been run yet."
    counts = sorted(
        {len([r for r in records if r["head"] == head and r["data"] == data]) for data, head in _pairs(records)}
    )
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Accuracy on the test split in percent, mean ± standard deviation over {seeds} seeds."


def _pairs(records: Records) -> set[tuple[str, str]]:
    return {(r["data"], r["head"]) for r in records}


def _same_data(sheet: Sheet, recipe: Recipe, records: Records, table: Mapping[str, Any]) -> None:
    names = [name for name in table["data"] if name in recipe.data]
    rows = []
    for theirs, row in table["rows"].items():
        head = recipe.rank_titles.get(theirs, theirs)
        cells = [head]
        for name in names:
            value = row["accuracy"][table["data"].index(name)][0]
            cells.append(compared(accuracies(records, name, head), value, scale=100))
        rows.append(cells)
    sheet.add("Measured (paper, difference):", ("head", *names), rows)


def _other_data(sheet: Sheet, recipe: Recipe, records: Records, table: Mapping[str, Any]) -> None:
    """On other data only differences to the linear head can be compared."""
    (name,) = recipe.data
    rows, agree = [], []
    for theirs, row in table["rows"].items():
        head = recipe.rank_titles.get(theirs, theirs)
        ours = gaps(records, name, head, "linear")
        paper = [
            mine[0] - base[0] for mine, base in zip(row["accuracy"], table["rows"]["linear"]["accuracy"], strict=True)
        ]
        verdict = "" if theirs == "linear" or not ours else _verdict(ours, paper)
        agree += [verdict] if verdict else []
        rows.append([
            head, _parameters(records, head), mean_text(accuracies(records, name, head), scale=100),
            "" if theirs == "linear" else mean_text(ours, scale=100),
            theirs, "" if theirs == "linear" else _ranged(paper),
            verdict,
        ])  # fmt: skip
    header = ("head", "parameters", name, "minus linear", "paper's head", "minus linear, mean of 7 sets (range)", "")
    sheet.add("Measured beside the paper's:", header, rows)
    if agree:
        same = sum(verdict == "same sign" for verdict in agree)
        clear = sum(verdict != "no clear difference here" for verdict in agree)
        sheet.findings.append(
            f"{clear} of {len(agree)} heads differ from linear by more than twice the standard error over seeds; "
            f"{same} of them in the paper's direction."
        )


def _ranged(values: Sequence[float]) -> str:
    return f"{signed(statistics.fmean(values))} ({min(values):+.2f} to {max(values):+.2f})"


def _verdict(ours: Sequence[float], paper: Sequence[float]) -> str:
    """Whether a difference is larger than twice its standard error, and has the sign of the paper's mean."""
    mean = statistics.fmean(ours)
    error = statistics.stdev(ours) / len(ours) ** 0.5 if len(ours) > 1 else float("inf")
    if abs(mean) <= 2 * error:
        return "no clear difference here"
    return "same sign" if mean * statistics.fmean(paper) > 0 else "opposite sign"


def _parameters(records: Records, head: str) -> str:
    found = {int(r["parameters"]) for r in records if r["head"] == head}
    return " / ".join(f"{count:,}" for count in sorted(found)) if found else "-"


# Figures 13 and 14 ---------------------------------------------------------------------------------------------


def curves_page(recipe: Recipe, records: Records, folder: Path) -> Sheet:
    """Accuracy against the number of experts, a curve for each head, linear heads as lines."""
    sheet = sheet_of(recipe, seeds_text(records))
    kinds = [head for head in recipe.heads if "MuMoE" in head]
    baselines = [head for head in recipe.heads if "MuMoE" not in head]
    panels = {}
    for name in recipe.data:
        curves = {head: {n: accuracies(records, name, f"{head}-e{n}") for n in recipe.experts} for head in kinds}
        panels[name] = (curves, {head: accuracies(records, name, head) for head in baselines})
        header = ("head", *(f"{n:,} experts" for n in recipe.experts))
        rows = [[head, *(mean_text(values, scale=100) for values in curve.values())] for head, curve in curves.items()]
        lines = [
            [head, *[mean_text(values, scale=100)] * len(recipe.experts)] for head, values in panels[name][1].items()
        ]
        sheet.add(f"{name}:", header, rows + lines)
        sheet.findings += _against_linear(records, name, curves, baselines)
    title = f"{recipe.item.name.replace('-', ' ').capitalize()} ({recipe.scale}): accuracy by number of experts"
    figure = plots.accuracy_curves(panels, title=title, note="means over seeds, bars one standard deviation")
    save_figure(figure, folder / recipe.item.name, {})
    sheet.pictures.append(f"{recipe.item.name}.png")
    return sheet


def _against_linear(
    records: Records, name: str, curves: Mapping[str, plots.Curve], baselines: Sequence[str]
) -> list[str]:
    """Per baseline, how many of the curve's points are above it, and the largest spread along a curve."""
    found = []
    for baseline in baselines:
        means = [
            statistics.fmean(paired)
            for head, curve in curves.items()
            for n in curve
            if (paired := gaps(records, name, f"{head}-e{n}", baseline))
        ]
        if means:
            above = sum(mean > 0 for mean in means)
            found.append(
                f"{name}: {above} of {len(means)} points lie above {baseline}; differences from "
                f"{100 * min(means):+.2f} to {100 * max(means):+.2f} points."
            )
    return found


# Table 4 -------------------------------------------------------------------------------------------------------


def hierarchy_page(recipe: Recipe, records: Records, folder: Path) -> Sheet:
    """Table 4: each hierarchy against one level of 128 experts, and the exact columns."""
    sheet, table = sheet_of(recipe, seeds_text(records)), printed("table-4")
    (name,) = recipe.data
    numbers = []
    for theirs, part in table["parts"].items():
        head = recipe.rank_titles.get(theirs, theirs)
        rows = [_hierarchy_row(recipe, records, head, name, row, part[0]) for row in part]
        header = (
            "levels",
            "experts",
            f"{head}: accuracy",
            "minus one level",
            f"{theirs} in the paper",
            "minus one level",
        )
        sheet.add(f"{head} on {name}, beside {theirs} on ImageNet-1k:", header, rows)
        clear = [row for row in rows if row[3] and _is_clear(records, name, head, row[0])]
        sheet.findings.append(
            f"{head}: {len(clear)} of {len(rows) - 1} hierarchies differ from one level of 128 experts by more than "
            "twice the standard error over seeds."
        )
        counts, exact_numbers = exact.hierarchy_columns(theirs)
        columns = ("levels", "experts", "# params", "with 1 hierarchy", "with regular MoE")
        sheet.add(f"{theirs}, parameters at the paper's sizes, = or ≠ what is printed:", columns, counts)
        numbers += [{"head": theirs, **entry} for entry in exact_numbers]
    wrong = [entry for entry in numbers if entry["ours"] != entry["printed"]]
    sheet.findings.append(f"{len(numbers) - len(wrong)} of {len(numbers)} printed parameter counts are exact.")
    sheet.numbers["parameters"] = numbers
    return sheet


def _hierarchy_row(
    recipe: Recipe, records: Records, head: str, name: str, row: Mapping[str, Any], first: Mapping[str, Any]
) -> list[str]:
    levels = "x".join(map(str, row["levels"]))
    spec, one = f"{head}-e{levels}", f"{head}-e128"
    ours, theirs = accuracies(records, name, spec), row["accuracy"]
    gap = gaps(records, name, spec, one) if spec != one else []
    measured = compared(ours, theirs[0], scale=100) if recipe.scale == "full" else mean_text(ours, scale=100)
    printed_gap = signed(theirs[0] - first["accuracy"][0]) if spec != one else ""
    experts = 1
    for n in parse_spec(spec)["num_experts"]:
        experts *= n
    return [
        levels,
        f"{experts:,}",
        measured,
        mean_text(gap, scale=100) if gap else "",
        f"{theirs[0]:.2f} ± {theirs[1]:.2f}",
        printed_gap,
    ]


def _is_clear(records: Records, name: str, head: str, levels: str) -> bool:
    gap = gaps(records, name, f"{head}-e{levels}", f"{head}-e128")
    return len(gap) > 1 and abs(statistics.fmean(gap)) > 2 * statistics.stdev(gap) / len(gap) ** 0.5
