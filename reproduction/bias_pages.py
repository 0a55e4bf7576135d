"""Pages of the bias study: Tables 2 and 8, Figures 15 and 16."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mumoe.editing.subgroup_fairness import METRICS, FairnessReport
from mumoe.plots.style import save_figure
from mumoe.plots.subgroup_accuracy import subgroup_figure
from reproduction import exact
from reproduction.page_plots import score_figure
from reproduction.recipe import Recipe, printed
from reproduction.sheets import Sheet, compared, mean_text, sheet_of

__all__ = ["fairness_page", "scores_page", "subgroups_page"]

Records = Sequence[Mapping[str, Any]]
ROWS = ("Linear", "HighRankLinear", "", "+ oversample", "+ adversarial", "+ blind", "+ experts")
"""Rows of Table 2; the empty name is the head that is corrected."""

EXPERIMENTS = {
    "old-females-age": "(a) bias towards 'old females', 'Age' head",
    "blond-males-hair": "(b) bias towards 'blond males', 'Blond Hair' head",
    "planted": "emoji, planted: 'Animals & Nature' drawn by OpenMoji, cut to 0.3% of training",
    "natural": "emoji, natural: women with dark skin among people",
}


def values(records: Records, experiment: str, head: str, method: str, metric: str) -> list[float]:
    """A metric of a method over the seeds; the empty method is the head itself."""
    found = []
    for record in records:
        if record["experiment"] == experiment and record["head"] == head:
            report = record["reports"].get(method or head)
            if report and metric in report["metrics"]:
                found.append(float(report["metrics"][metric]["value"]))
    return found


def _sheet(recipe: Recipe, records: Records) -> Sheet:
    seeds = {name: len({r["seed"] for r in records if r["experiment"] == name}) for name in _experiments(records)}
    said = ", ".join(f"{count} seeds ({name})" for name, count in seeds.items())
    sheet = sheet_of(
        recipe,
        f"Mean ± standard deviation over {said}; test rows were opened once, "
        "after every strength had been chosen. Without a suffix: the paper's fixed strength (experts N, blind 2.5, "
        "balanced oversampling); *matched*: the least at which the target is as accurate on validation rows as its "
        "counterpart.",
    )
    facts = list(dict.fromkeys(line for record in records for line in record.get("facts", ())))
    sheet.notes += [f"Images: {line}" for line in facts]
    return sheet


def _experiments(records: Records) -> list[str]:
    return list(dict.fromkeys(record["experiment"] for record in records))


def _heads(records: Records, experiment: str) -> list[str]:
    return list(dict.fromkeys(record["head"] for record in records if record["experiment"] == experiment))


# Tables 2 and 8 ------------------------------------------------------------------------------------------------


def fairness_page(recipe: Recipe, records: Records, folder: Path) -> Sheet:
    """Tables 2 and 8: every method on every metric, the paper's rows beside or below."""
    sheet = _sheet(recipe, records)
    table = printed(recipe.item.name)
    for experiment in recipe.experiments:
        heads = _heads(records, experiment)
        theirs = table["experiments"].get(experiment)
        rows = [row for head in heads for row in _rows(records, experiment, head, theirs, len(heads) > 1)]
        sheet.add(f"{EXPERIMENTS[experiment]}:", ("", *METRICS.values(), "# params"), rows)
        sheet.findings += [line for head in heads for line in _verdicts(records, experiment, head)]
    if not set(recipe.experiments) & set(table["experiments"]):
        for experiment, rows_of in table["experiments"].items():
            caption = f"What the paper prints for CelebA, {EXPERIMENTS[experiment]}:"
            sheet.add(caption, ("", *METRICS.values()), _printed_rows(rows_of))
    if recipe.item.name == "table-8":
        columns, numbers = exact.fairness_columns()
        sheet.add("Parameters at the paper's sizes, = or ≠ what is printed:", ("head", "# layer params"), columns)
        sheet.numbers["parameters"] = numbers
    return sheet


def _rows(
    records: Records, experiment: str, head: str, theirs: Mapping[str, Any] | None, several: bool
) -> list[list[str]]:
    """A head's rows; a printed value where the experiment is the paper's."""
    rows = []
    for method in [name for base in ROWS for name in ((base, f"{base} matched") if base.startswith("+") else (base,))]:
        cells = [values(records, experiment, head, method, metric) for metric in METRICS]
        if not any(cells):
            continue
        name = method or head
        known = (theirs or {}).get(head, theirs or {}).get(method or "CP") if theirs else None
        text = [_cell(found, known, metric) for found, metric in zip(cells, METRICS, strict=True)]
        counts = {r["parameters"][name] for r in records if r["experiment"] == experiment and name in r["parameters"]
                  and r["head"] == head}  # fmt: skip
        label = f"{head} {method}" if several and method else name
        rows.append([label, *text, " / ".join(f"{count:,}" for count in sorted(counts))])
    return rows


def _cell(found: Sequence[float], known: Mapping[str, Any] | None, metric: str) -> str:
    if not found:
        return "-"
    if known is None or known.get(metric) is None:
        return mean_text(found, 3)
    return compared(found, known[metric], 3)


def _printed_rows(rows_of: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, row in rows_of.items():
        methods = {name: row} if "accuracy" in row else {f"{name} {method}": part for method, part in row.items()}
        for label, part in methods.items():
            cells = ["-" if part[metric] is None else f"{part[metric]:.3f}" for metric in METRICS]
            rows.append([label, *cells])
    return rows


def _verdicts(records: Records, experiment: str, head: str) -> list[str]:
    """Experts against blind thresholding in re-writing score, at the fixed and at matched strength, by seed."""
    found = []
    for suffix, name in (("", "fixed"), (" matched", "matched")):
        ours = values(records, experiment, head, f"+ experts{suffix}", "rewriting_score")
        blind = values(records, experiment, head, f"+ blind{suffix}", "rewriting_score")
        gaps = [one - other for one, other in zip(ours, blind, strict=True)]
        if gaps:
            better = sum(gap > 0 for gap in gaps)
            found.append(
                f"{experiment}, {head}, {name} strength: experts minus blind in re-writing score "
                f"{statistics.fmean(gaps):+.3f}, ahead in {better} of {len(gaps)} seeds."
            )
    return found


# Figures 15 and 16 ---------------------------------------------------------------------------------------------


def _reports(records: Records, experiment: str, head: str, method: str) -> list[FairnessReport]:
    chosen = [r for r in records if r["experiment"] == experiment and r["head"] == head and method in r["reports"]]
    return [FairnessReport.from_dict(record["reports"][method]) for record in chosen]


def scores_page(recipe: Recipe, records: Records, folder: Path) -> Sheet:
    """Figure 15: bars of the re-writing score, experts and blind, for each head and strength."""
    sheet = _sheet(recipe, records)
    table = printed("table-8")["experiments"]
    for experiment in recipe.experiments:
        bars = {}
        rows = []
        for head in _heads(records, experiment):
            for suffix, word in (("", "fixed"), (" matched", "matched")):
                group = {
                    method: _reports(records, experiment, head, f"+ {method}{suffix}")
                    for method in ("experts", "blind")
                }
                bars[f"{head.replace('MuMoE', '', 1)}\n{word}"] = group
                found = [
                    values(records, experiment, head, f"+ {method}{suffix}", "rewriting_score") for method in group
                ]
                rows.append([head, word, *(mean_text(part, 3) for part in found)])
        if bars:
            name = f"{recipe.item.name}-{experiment}"
            figure = score_figure(bars)
            figure.set_size_inches(max(6.4, 1.5 * len(bars)), 3.8)
            figure.suptitle(EXPERIMENTS[experiment], fontsize=10.5)
            save_figure(figure, folder / name, {"drawn from": f"{recipe.item.name}.json"})
            sheet.pictures.append(f"{name}.png")
        header = ("head", "strength", "experts", "blind")
        sheet.add(f"Model re-writing score, {EXPERIMENTS[experiment]}:", header, rows)
        sheet.findings += [
            line for head in _heads(records, experiment) for line in _verdicts(records, experiment, head)
        ]
    theirs = [
        [name, head, *(f"{part[method]['rewriting_score']:.3f}" for method in ("+ experts", "+ blind"))]
        for name, heads in table.items()
        for head, part in heads.items()
    ]
    sheet.add(
        "What the paper prints (Table 8), CelebA, fixed strength:", ("experiment", "head", "experts", "blind"), theirs
    )
    return sheet


def subgroups_page(recipe: Recipe, records: Records, folder: Path) -> Sheet:
    """Figure 16: subgroups before, after and their difference, for experts and blind thresholding."""
    sheet = _sheet(recipe, records)
    for experiment in recipe.experiments:
        head = next(iter(_heads(records, experiment)), "")
        for method in ("+ experts", "+ experts matched", "+ blind matched"):
            reports = _reports(records, experiment, head, method)
            if reports:
                name = f"{recipe.item.name}-{experiment}-{method.removeprefix('+ ').replace(' ', '-')}"
                figure = subgroup_figure(reports, title=f"{EXPERIMENTS[experiment]}: {method.removeprefix('+ ')}")
                save_figure(figure, folder / name, {"drawn from": f"{recipe.item.name}.json"})
                sheet.pictures.append(f"{name}.png")
        sheet.add(f"Accuracy of subgroups, {EXPERIMENTS[experiment]}:", _subgroup_header(records, experiment, head),
                  _subgroup_rows(records, experiment, head))  # fmt: skip
    sheet.notes.append(
        "The paper's figure is an image without numbers in its text; what it prints of the target is in Table 2."
    )
    return sheet


def _subgroup_header(records: Records, experiment: str, head: str) -> list[str]:
    reports = _reports(records, experiment, head, head)
    if not reports:
        return [""]
    target = reports[0].target
    names = [
        f"label {g.subgroup.label}, {g.subgroup.sensitive}" + (" (target)" if g.subgroup == target else "")
        for g in reports[0].subgroups
    ]
    return ["", *names]


def _subgroup_rows(records: Records, experiment: str, head: str) -> list[list[str]]:
    rows = []
    for method in (head, "+ blind", "+ blind matched", "+ experts", "+ experts matched"):
        reports = _reports(records, experiment, head, method)
        if reports:
            groups = range(len(reports[0].subgroups))
            rows.append([method, *(mean_text([r.subgroups[i].accuracy.value for r in reports], 3) for i in groups)])
    return rows
