"""Pages of what experts do: Figures 3 and 9 (trends), 5 and 6 (effects), 12 (load), 2, 7 and 8 (images)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mumoe.analysis import Effect, Usage
from mumoe.plots.effects import EffectRow, effects_figure, strong_effects
from mumoe.plots.loads import load_figure
from mumoe.plots.style import save_figure
from mumoe.plots.trend import Point, trend_figure
from reproduction.recipe import Recipe, printed
from reproduction.sheets import Sheet, mean_text, sheet_of

__all__ = ["effects_page", "images_page", "load_page", "points_of", "trend_page"]

Records = Sequence[Mapping[str, Any]]


def _experts(record: Mapping[str, Any]) -> int:
    return int(record["head"].rpartition("-e")[2])


# Trends --------------------------------------------------------------------------------------------------------


def points_of(records: Records) -> list[Point]:
    """A point of the trend for each analyzed run."""
    points = []
    several = len({record["backbone"] for record in records}) > 1
    for record in records:
        part = record["experts"]["specialization"]
        kind = record["head"].partition("MuMoE")[0]
        gate = record["gate"].replace("-frozen", ", gate frozen at random (control)")
        series = f"{kind}, {gate}" + (f", {record['backbone']}" if several else "")
        names = ("accuracy", "mean_polysemanticity", "strong", "mean_polysemanticity_strong", "with_effect")
        values = {name: part[name] for name in names}
        control = record["gate"].endswith("-frozen")
        values |= {"least_lost": part.get("least_lost", 1), "strong_images": part.get("strong_images")}
        same_load = record["experts"].get("load_control", {})
        values["control_polysemanticity"] = same_load.get("mean_polysemanticity")
        values["control_strong"] = same_load.get("strong")
        points.append(Point(series=series, experts=_experts(record), seed=record["seed"], control=control, **values))
    return points


def trend_page(recipe: Recipe, records: Records, folder: Path) -> Sheet:
    """Figures 3 and 9, from records or from the points of a sweep."""
    points = [Point(**record["point"]) for record in records if "point" in record]
    points += points_of([record for record in records if "point" not in record])
    ordered = sorted(points, key=lambda point: (point.control, point.series, point.experts, point.seed))
    says = printed(recipe.item.name)
    sheet = sheet_of(recipe, f"It says: {says['says']}. p is that of eq. 5; an expert is strong if a class loses half "
                   f"of its right answers without it{rule_text(point.least_lost for point in points)}.")  # fmt: skip
    name = recipe.item.name
    (data,) = recipe.data
    classes = int(recipe.data[data]["classes"])
    title = f"{name.replace('-', ' ').capitalize()} ({recipe.scale}): {recipe.item.title.lower()}"
    note = f"{data}, {recipe.split} split; means over seeds, bars one standard deviation"
    save_figure(trend_figure(ordered, title=title, note=note, classes=classes), folder / name, {})
    sheet.pictures.append(f"{name}.png")
    header = ("", "N", "seeds", "accuracy", "mean p", "with effect", "strong", "their p")
    controlled = any(point.control_strong is not None for point in points)
    sheet.add("Means over seeds:", (*header, *(CONTROLS if controlled else ())), _trend_rows(ordered, controlled))
    sheet.findings += _drops(ordered) if name == "figure-3" else _gates(ordered)
    return sheet


CONTROLS = ("same load: mean p", "same load: strong", "images behind the strong")
"""Columns of the control and of the images behind strong experts, if the results have them."""


def _trend_rows(points: Sequence[Point], controlled: bool) -> list[list[str]]:
    rows = []
    for series in dict.fromkeys(point.series for point in points):
        for n in sorted({point.experts for point in points if point.series == series}):
            chosen = [point for point in points if point.series == series and point.experts == n]
            rows.append([
                series, f"{n:,}", str(len(chosen)), mean_text([p.accuracy for p in chosen], 3),
                mean_text(_known(p.mean_polysemanticity for p in chosen), 3),
                mean_text([float(p.with_effect) for p in chosen], 0), mean_text([float(p.strong) for p in chosen], 1),
                mean_text(_known(p.mean_polysemanticity_strong for p in chosen), 2),
                *(_control_cells(chosen) if controlled else ()),
            ])  # fmt: skip
    return rows


def _control_cells(points: Sequence[Point]) -> list[str]:
    return [
        mean_text(_known(point.control_polysemanticity for point in points), 3),
        mean_text(_known(point.control_strong for point in points), 1),
        mean_text(_known(point.strong_images for point in points), 1),
    ]


def rule_text(least: Iterable[int]) -> str:
    """How many right answers a class had to lose in these results, as part of a sentence."""
    known = sorted(set(least))
    if known in ([], [1]):
        return ", however few these are"
    return f", and at least {' or '.join(map(str, known))} of them"


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _means(points: Sequence[Point], series: str) -> dict[int, float]:
    """Mean p by number of experts."""
    found: dict[int, list[float]] = {}
    for point in points:
        if point.series == series and point.mean_polysemanticity is not None:
            found.setdefault(point.experts, []).append(point.mean_polysemanticity)
    return {n: statistics.fmean(values) for n, values in sorted(found.items())}


def _drops(points: Sequence[Point]) -> list[str]:
    """Where the mean p falls with the number of experts, and where it rises."""
    found = []
    for series in dict.fromkeys(point.series for point in points):
        means = _means(points, series)
        steps = [f"{a:,} to {b:,}" for a, b in zip(means, list(means)[1:], strict=False) if means[b] < means[a]]
        text = ", ".join(steps) if steps else "never"
        found.append(f"{series}: the mean p falls from {text} ({', '.join(f'{p:.2f}' for p in means.values())}).")
    return found


def _gates(points: Sequence[Point]) -> list[str]:
    """At which numbers of experts entmax is below softmax."""
    names = {
        gate: next((p.series for p in points if gate in p.series and not p.control), "")
        for gate in ("entmax15", "softmax")
    }
    entmax, softmax = (_means(points, name) for name in names.values())
    below = [f"{n:,} ({softmax[n] - entmax[n]:.3f})" for n in entmax if n in softmax and entmax[n] < softmax[n]]
    above = [f"{n:,} ({entmax[n] - softmax[n]:.3f})" for n in entmax if n in softmax and entmax[n] >= softmax[n]]
    return [
        f"Mean p of entmax is below softmax at {', '.join(below) or 'no number of'} experts"
        + (f", and not at {', '.join(above)}." if above else ".")
    ]


# Effects -------------------------------------------------------------------------------------------------------


def effects_page(recipe: Recipe, records: Records, folder: Path) -> Sheet:
    """Figures 5 and 6: the first seed's bars, and how concentrated the effects of strong experts are over all seeds."""
    name = recipe.item.name
    rule = rule_text(record["experts"]["specialization"].get("least_lost", 1) for record in records)
    sheet = sheet_of(
        recipe, f"Shown are the first experts that cost some class at least half of its right answers{rule}."
    )
    first = [record for record in records if record["seed"] == 0 and _effects(record)]
    ordered = sorted(first, key=_experts)
    if ordered:
        classes = ordered[0]["experts"]["classes"]
        rows = [EffectRow(record["head"], _effects(record)) for record in ordered]
        title = f"{name.replace('-', ' ').capitalize()} ({recipe.scale}): {recipe.position} layer, {ordered[0]['data']}"
        save_figure(effects_figure(rows, classes, title=title), folder / name, {})
        sheet.pictures.append(f"{name}.png")
    header = ("head", "seeds", "accuracy", "strong experts", "classes that lose half, each")
    header = (*header, "largest loss of a strong expert", *(CONTROLS[1:] if _controlled(records) else ()))
    sheet.add("Over all seeds:", header, _effect_rows(records))
    return sheet


def _controlled(records: Records) -> bool:
    return any("load_control" in record["experts"] for record in records)


def _effects(record: Mapping[str, Any]) -> tuple[Effect, ...]:
    found = record["experts"]["specialization"].get("effects") or ()
    return tuple(Effect(**{**effect, "losses": tuple(map(tuple, effect["losses"]))}) for effect in found)


def concentration(record: Mapping[str, Any]) -> tuple[float, float] | None:
    """Of the strong experts of a run: classes that lose at least half, and the largest loss; means."""
    strong = strong_effects(EffectRow("", _effects(record)))
    if not strong:
        return None
    many = [sum(loss >= 0.5 for _, loss in effect.losses) for effect in strong]
    return statistics.fmean(many), statistics.fmean(effect.top_loss for effect in strong)


def _effect_rows(records: Records) -> list[list[str]]:
    rows = []
    for head in sorted({record["head"] for record in records}, key=lambda head: int(head.rpartition("-e")[2])):
        chosen = [record for record in records if record["head"] == head]
        parts = [record["experts"]["specialization"] for record in chosen]
        spread = [record.get("concentration") or concentration(record) for record in chosen]
        known = [pair for pair in spread if pair]
        rows.append([
            head, str(len(chosen)), mean_text([part["accuracy"] for part in parts], 3),
            mean_text([float(part["strong"]) for part in parts], 1),
            mean_text([pair[0] for pair in known], 2), mean_text([pair[1] for pair in known], 2),
            *(_control_cells(points_of(chosen))[1:] if _controlled(records) else ()),
        ])  # fmt: skip
    return rows


# Load ----------------------------------------------------------------------------------------------------------


def load_page(recipe: Recipe, records: Records, folder: Path) -> Sheet:
    """Figure 12: the first seed's bars, and counts over all seeds."""
    says = printed("figure-12")["says"]
    sheet = sheet_of(recipe, f"It says: {says}. Images of the {recipe.split} split with a coefficient of at least "
                   f"{recipe.threshold:g} are counted.")  # fmt: skip
    first = sorted((record for record in records if record["seed"] == 0), key=_experts)
    if first:
        usages = [(record["head"], _usage(record)) for record in first]
        title = f"Figure 12 ({recipe.scale}): expert load, {first[0]['data']}, {recipe.split} split"
        save_figure(load_figure(usages, title=title), folder / "figure-12", {})
        sheet.pictures.append("figure-12.png")
    header = ("head", "seeds", "experts with such an image", "of all, %", "dead", "largest share of these images, %",
              "experts per image", "images with such an expert, %")  # fmt: skip
    sheet.add("Over all seeds:", header, _load_rows(records))
    return sheet


def _usage(record: Mapping[str, Any]) -> Usage:
    part = record["experts"]["usage"][0]
    made: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in part.items()}
    return Usage(**made)


def _load_rows(records: Records) -> list[list[str]]:
    rows = []
    for head in sorted({record["head"] for record in records}, key=lambda head: int(head.rpartition("-e")[2])):
        used = [_usage(record) for record in records if record["head"] == head]
        rows.append([
            head, str(len(used)), mean_text([float(u.experts_above_threshold) for u in used], 1),
            mean_text([100 * u.experts_above_threshold / u.experts for u in used], 0),
            mean_text([float(u.dead) for u in used], 1),
            mean_text([100 * max(u.load) / max(1, sum(u.load)) for u in used], 1),
            mean_text([u.support_mean for u in used], 1),
            mean_text([100 * sum(u.load) / u.rows for u in used], 0),
        ])  # fmt: skip
    return rows


# Images --------------------------------------------------------------------------------------------------------


def images_page(recipe: Recipe, records: Records, folder: Path) -> Sheet:
    """Figures 2, 7 and 8: sheets of images, made by `make` if the images are available."""
    lead = (
        f"For each expert, images of the {recipe.split} split that it processes with a coefficient of at least "
        f"{recipe.threshold:g}: some drawn at random, and those with the largest coefficients."
    )
    sheet = sheet_of(recipe, lead)
    for record in sorted(records, key=_experts, reverse=True):
        name = f"{recipe.item.name}-e{_experts(record)}.png"
        if (folder / name).is_file():
            sheet.pictures.append(name)
    rows = []
    for record in sorted(records, key=_experts):
        usage = _usage(record)
        rows.append([record["head"], f"{usage.experts_above_threshold:,} of {usage.experts:,}", *_purity(record)])
    caption = "How many classes the images of an expert have (experts with at least 5 such images):"
    header = ("head", "experts with such an image", "experts counted", "classes per expert", "share of the largest, %")
    sheet.add(caption, header, rows)
    credits = list(dict.fromkeys(line for record in records for line in record.get("credits", ())))
    sheet.notes += [f"Images: {line}" for line in credits]
    return sheet


def _purity(record: Mapping[str, Any]) -> list[str]:
    counts = record["experts"].get("purity") or []
    if not counts:
        return ["-", "-", "-"]
    classes, shares = [part[0] for part in counts], [100 * part[1] for part in counts]
    return [str(len(counts)), mean_text(classes, 1), mean_text(shares, 0)]
