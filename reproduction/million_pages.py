"""Page and figure of the study of a million experts, from its numbers.

The text of the page is written by hand and kept; its tables are replaced (`benchmarks.pages.fill`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.pages import fill
from mumoe.analysis.controls import FROZEN
from mumoe.files import read_json, write_text
from mumoe.plots.style import COLOURS, INK, MARKERS, PALE, bare_axes, new_figure, save_figure
from mumoe.records import render_table
from reproduction.networks import spread_text

__all__ = ["figure", "write_pages"]

Entry = Mapping[str, Any]
Records = Mapping[str, Mapping[str, Any]]
RANDOM = "untrained gate"
SAME = 0.99
"""Agreement of any two images above which a column tells them apart too rarely to be shown."""


def write_pages(out: Path) -> None:
    """Write README.md and the figure beside the numbers in a folder, `heads.json` and `costs.json` if it is there."""
    files = [path for name in ("heads", "costs") if (path := out / f"{name}.json").is_file()]
    records = {path.stem: read_json(path, "million_study") for path in files}
    page = out / "README.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else TEMPLATE
    write_text(page, fill(text, records, TABLES))
    save_figure(figure(records), out / "million", _shown(records))


# Numbers ------------------------------------------------------------------------------------------------------------


def _name(head: str) -> str:
    return head.replace(FROZEN, f", {RANDOM}")


def _experts(head: str) -> str:
    """Experts of each level, as text."""
    shape = head.removesuffix(FROZEN).rpartition("-e")[2].partition("-w")[0]
    return " x ".join(f"{int(size):,}" for size in shape.split("x")) if "-e" in head else ""


def _values(entry: Entry, *keys: Any) -> list[float]:
    """A number of each seed, those without it left out."""
    found = []
    for seed in entry["seeds"]:
        value: Any = seed
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else value[key]
            if value is None:
                break
        if value is not None:
            found.append(float(value))
    return found


def _mean(entry: Entry, *keys: Any, style: str = ".3f") -> str:
    """Mean over seeds, as text."""
    found = _values(entry, *keys)
    return f"{fmean(found):{style}}" if found else "none"


def _with_experts(records: Records) -> Iterator[tuple[str, str, Entry, int]]:
    """Data set, head, its numbers and its number of levels, for the heads with more than one level."""
    for data, found in records["heads"]["sets"].items():
        for head, entry in found["heads"].items():
            experts = entry["seeds"][0].get("experts")
            if experts and len(experts["usage"]["levels"]) > 1:
                yield data, head, entry, len(experts["usage"]["levels"])


def _first(records: Records) -> Entry:
    return next(iter(records["heads"]["sets"].values()))


def _flat(found: Entry) -> str:
    """The head of one level that the others are compared with."""
    return next(head for head in found["heads"] if head.startswith("CP"))


# Tables -------------------------------------------------------------------------------------------------------------


def accuracy(records: Records) -> str:
    """Test accuracy of every head, and paired differences to the linear head and to one level of CP."""
    header = ["head", "experts", "parameters", "setting", "test accuracy", "minus linear", "minus one level (CP)"]
    parts = []
    for data, found in records["heads"]["sets"].items():
        heads = found["heads"]
        flat, rows = _flat(found), []
        for head, entry in heads.items():
            own = _values(entry, "test")
            gaps = ["" if head == base else _gap(own, _values(heads[base], "test")) for base in ("linear", flat)]
            facts = [_name(head), _experts(head), f"{entry['seeds'][0]['parameters']:,}", entry["setting"]]
            rows.append([*facts, spread_text(own, ".3f"), *gaps])
        seeds = len(heads[flat]["seeds"])
        about = f"{found['images']:,} images, {found['classes']} classes, {seeds} seed{'s' * (seeds > 1)}"
        parts.append(f"{_title(data)}: {about}.\n\n{render_table(header, rows, 'markdown')}")
    return "\n".join(parts).rstrip()


def _title(data: str) -> str:
    return Path(data.rpartition(":")[2]).stem.capitalize()


def _gap(own: Sequence[float], other: Sequence[float]) -> str:
    return spread_text([a - b for a, b in zip(own, other, strict=True)], "+.3f")


def used(records: Records) -> str:
    """Combinations and experts that are used on the test split, beside shuffled levels."""
    header = ["data", "head", "possible", "used (shuffled)", "effective (shuffled)", "by 5 images or more (shuffled)"]
    header += ["per image", "effective per image", "used experts of each level", "effective"]
    rows = []
    for data, head, entry, levels in _with_experts(records):
        where = ("experts", "usage")
        pair = [
            f"{_mean(entry, *where, 'combinations', key, style=',.0f')} "
            f"({_mean(entry, *where, 'combinations_shuffled', key, style=',.0f')})"
            for key in ("distinct", "effective", "by_several")
        ]
        each = [_mean(entry, *where, "combinations", key, style=",.1f") for key in ("per_image", "effective_per_image")]
        experts = [
            ", ".join(_mean(entry, *where, "levels", level, key, style=",.0f") for level in range(levels))
            for key in ("distinct", "effective")
        ]
        rows.append([_title(data), _name(head), _mean(entry, *where, "possible", style=",.0f"), *pair, *each, *experts])
    return render_table(header, rows, "markdown").rstrip()


def retrieved(records: Records) -> str:
    """Experts that the PEER layers retrieve on the test split."""
    header = ["data", "head", "experts", "used", "effective", "by 5 images or more", "per image"]
    rows = []
    for data, found in records["heads"]["sets"].items():
        for head, entry in found["heads"].items():
            if "retrieved" in entry["seeds"][0]:
                keys = ("possible", "distinct", "effective", "by_several", "per_image")
                rows.append([_title(data), head, *(_mean(entry, "retrieved", key, style=",.0f") for key in keys)])
    return render_table(header, rows, "markdown").rstrip() if rows else "PEER was not measured."


def both(records: Records) -> str:
    """Purity of what combinations select, beside random subsets of what their experts select."""
    header = ["data", "head", "combinations", "images each", "class purity", "random subset of each level's images"]
    header += ["each level alone", "purer than all random subsets", "different commonest class (random)"]
    rows = []
    for data, head, entry, levels in _with_experts(records):
        place = ("experts", "and")
        lists = [
            ", ".join(_mean(entry, *place, key, level) for level in range(levels)) for key in ("random_subset", "alone")
        ]
        split = [_mean(entry, *place, key) for key in ("different_class", "different_class_random")]
        rows.append(
            [
                *(_title(data), _name(head), _mean(entry, *place, "combinations", style=",.0f")),
                *(_mean(entry, *place, "images_each", style=".1f"), _mean(entry, *place, "purity"), *lists),
                *(_mean(entry, *place, "better", style=".0%"), f"{split[0]} ({split[1]})"),
            ]
        )
    return render_table(header, rows, "markdown").rstrip()


def information(records: Records) -> str:
    """What the choices with the largest coefficients say about the class, of each level and of all."""
    header = ["data", "head", "information minus chance (nats)", "of all levels", "with chance (later levels shuffled)"]
    header += ["same class if chosen alike", "by all levels", "distinct choices"]
    rows = []
    for data, found in records["heads"]["sets"].items():
        for head, entry in found["heads"].items():
            if "experts" in entry["seeds"][0]:
                rows.append([_title(data), _name(head), *_informed(entry)])
        place = ("experts", "tops")
        most, alike = (_mean(found["heads"][_flat(found)], *place, key) for key in ("class_entropy", "same_class"))
        rows.append([_title(data), "the class itself, and any two images", most, "", "", alike, "", ""])
    return render_table(header, rows, "markdown").rstrip()


def _informed(entry: Entry) -> list[str]:
    """One row of `information`: a head with one level has no combinations."""
    place = ("experts", "tops")
    levels = [(*place, "levels", level) for level in range(len(entry["seeds"][0]["experts"]["tops"]["levels"]))]
    gains = ", ".join(_gain(entry, level) for level in levels)
    alike = ", ".join(_mean(entry, *level, "same_class_if_chosen_alike") for level in levels)
    distinct = ", ".join(_mean(entry, *level, "distinct", style=",.0f") for level in levels)
    if len(levels) == 1:
        return [gains, "", "", alike, "", distinct]
    whole = (*place, "all")
    raw = [_mean(entry, *where, "information") for where in (whole, (*place, "all_shuffled"))]
    joint = [_gain(entry, whole), f"{raw[0]} ({raw[1]})", alike, _mean(entry, *whole, "same_class_if_chosen_alike")]
    return [gains, *joint, f"{distinct}; {_mean(entry, *whole, 'distinct', style=',.0f')}"]


def _gain(entry: Entry, where: tuple[Any, ...]) -> str:
    """Information minus what shuffled classes give, mean over seeds."""
    pairs = zip(_values(entry, *where, "information"), _values(entry, *where, "chance"), strict=True)
    return f"{fmean(one - other for one, other in pairs):.3f}"


def attributes(records: Records) -> str:
    """How often images that are chosen alike share the values of other columns."""
    header = ["data", "head", "column", "any two images", "chosen alike by each level", "by all levels"]
    rows = []
    for data, head, entry, levels in _with_experts(records):
        if head.endswith(FROZEN):
            continue
        for column in entry["seeds"][0]["experts"]["attributes"]:
            place = ("experts", "attributes", column)
            if _or_zero(_values(entry, *place, "any")) > SAME:
                continue
            each = ", ".join(_mean(entry, *place, "levels", level) for level in range(levels))
            rows.append([_title(data), head, column, _mean(entry, *place, "any"), each, _mean(entry, *place, "all")])
    return render_table(header, rows, "markdown").rstrip() if rows else "No set has further columns."


def ablated(records: Records) -> str:
    """Strong experts and combinations, beside units of the same load made up of random contributions."""
    header = ["data", "head", "ablated", "units", "with 5 images or more", "with effect", "strong (control)"]
    header += ["mean p (control)", "images behind strong ones"]
    rows = []
    for data, found in records["heads"]["sets"].items():
        for head, entry in found["heads"].items():
            for what, place in _units(entry):
                pair = [
                    f"{_mean(entry, *place, key, style=style)} ({_mean(entry, *place, f'{key}_control', style=style)})"
                    for key, style in (("strong", ".1f"), ("polysemanticity", ".3f"))
                ]
                counts = [_mean(entry, *place, key, style=",.0f") for key in ("units", "by_several", "with_effect")]
                images = _mean(entry, *place, "strong_images", style=".0f")
                rows.append([_title(data), _name(head), what, *counts, *pair, images])
    return render_table(header, rows, "markdown").rstrip()


def _units(entry: Entry) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What is ablated, and where its numbers are."""
    experts = entry["seeds"][0].get("experts", {})
    for level in range(len(experts.get("ablated", ()))):
        yield f"level {level + 1}", ("experts", "ablated", level)
    if all("ablated_combinations" in seed.get("experts", {}) for seed in entry["seeds"]):
        yield "combinations", ("experts", "ablated_combinations")


def costs(records: Records) -> str:
    """Time and peak memory, as ratios to the first head with two levels of the study."""
    if "costs" not in records:
        return "Costs were not measured."
    rows, table = records["costs"]["heads"], []
    base = next((row for row in rows if row["experts"] == 1 << 20), rows[0])
    for row in rows:
        cells = [row["head"], f"{row['experts']:,}", f"{row['parameters']:,}"]
        for kind in ("train", "infer"):
            times, one = row[kind], base[kind]
            cells += [f"{1e3 * times['least']:.1f}", f"{1e3 * times['median']:.1f}"]
            cells += [f"{times['least'] / one['least']:.2f}", f"{times['bytes'] / 1e6:,.0f}"]
        table.append(cells)
    kinds = [f"{kind}, {what}" for kind in ("step", "inference") for what in ("least ms", "median ms", "ratio", "MB")]
    header = ["head", "experts or combinations", "parameters", *kinds]
    return render_table(header, table, "markdown").rstrip()


TABLES: dict[str, Callable[[Records], str]] = {
    "million-accuracy": accuracy,
    "million-used": used,
    "million-retrieved": retrieved,
    "million-and": both,
    "million-information": information,
    "million-attributes": attributes,
    "million-ablated": ablated,
    "million-costs": costs,
}


# The figure ---------------------------------------------------------------------------------------------------------


def _shown(records: Records) -> Any:
    """The numbers that the figure shows."""
    sets = records["heads"]["sets"].items()
    accuracies = {
        data: {head: _values(entry, "test") for head, entry in found["heads"].items()} for data, found in sets
    }
    return {"test": accuracies, "costs": records.get("costs", {}).get("heads", [])}


def figure(records: Records) -> Any:
    """Accuracy minus the linear head, what combinations select, and time and memory of a training step."""
    drawn = new_figure(13.6, 8.2)
    panels = drawn.subplots(2, 2)
    for panel in panels.flat:
        bare_axes(panel)
    _accuracies(panels[0][0], records)
    _purities(panels[0][1], records)
    for panel, key, label, scale in (
        (panels[1][0], "least", "training step, ms", 1e3),
        (panels[1][1], "bytes", "peak memory of a training step, MB", 1e-6),
    ):
        _grown(panel, records.get("costs", {}).get("heads", []), key, label, scale)
    return drawn


def _accuracies(panel: Any, records: Records) -> None:
    """A row of dots for each head, one dot a seed."""
    heads = [head for head in _first(records)["heads"] if head != "linear"]
    for colour, (data, found) in enumerate(records["heads"]["sets"].items()):
        linear = _values(found["heads"]["linear"], "test")
        for place, entry in enumerate(list(found["heads"].values())[1:]):
            gaps = [100 * (a - b) for a, b in zip(_values(entry, "test"), linear, strict=True)]
            y = [place + 0.22 * colour] * len(gaps)
            panel.plot(gaps, y, MARKERS[colour], color=COLOURS[colour], ms=4, alpha=0.5)
            panel.plot(
                [fmean(gaps)], y[:1], "|", color=COLOURS[colour], ms=15, mew=2, label=None if place else _title(data)
            )
    panel.axvline(0, color=PALE, linewidth=1)
    panel.set_yticks(range(len(heads)), [_name(head) for head in heads])
    panel.invert_yaxis()
    panel.set_xlabel("test accuracy minus linear, points", color=PALE)
    panel.set_title(
        "Accuracy at equal parameters, but for e1048576",
        fontsize=11,
        color=INK,
        loc="left",
    )
    panel.legend(frameon=False, fontsize=9)


def _purities(panel: Any, records: Records) -> None:
    """Bars of class purity: combinations, random subsets of each level's images, and each level alone."""
    rows = [(data, head, entry, levels) for data, head, entry, levels in _with_experts(records)]
    width, ticks = 0.2, []
    for place, (data, head, entry, levels) in enumerate(rows):
        where = ("experts", "and")
        bars = [("all levels", _values(entry, *where, "purity"))]
        for name, key in (("random subset, same size", "random_subset"), ("one level alone", "alone")):
            # of the level whose images are purest
            bars.append((name, max((_values(entry, *where, key, level) for level in range(levels)), key=_or_zero)))
        for n, (name, values) in enumerate(bars):
            x = place + (n - 1) * width
            panel.bar(x, _or_zero(values), width * 0.9, color=COLOURS[n], label=None if place else name)
            panel.plot([x] * len(values), values, "o", color=INK, ms=2.5)
        lines = [_title(data), head[:2], _experts(head).replace(" x ", " x\n"), "random" * head.endswith(FROZEN)]
        ticks.append("\n".join(filter(None, lines)))
    panel.set_xticks(range(len(rows)), ticks, fontsize=7)
    panel.set_ylabel("class purity of unseen images", color=PALE)
    panel.set_title("What combinations select, beside its controls", fontsize=11, color=INK, loc="left")
    panel.set_ylim(top=1.25 * panel.get_ylim()[1])
    panel.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")


def _or_zero(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _grown(panel: Any, rows: Sequence[Entry], key: str, label: str, scale: float) -> None:
    """A line for each kind of head against experts or combinations."""
    kinds = {
        "CP, two levels": [row for row in rows if row["head"].count("x") == 1 and row["head"].startswith("CP")],
        "CP, three levels": [row for row in rows if row["head"].count("x") == 2],
        "CP, one level": [row for row in rows if "x" not in row["head"] and row["head"].startswith("CP")],
        "PEER": [row for row in rows if row["head"].startswith("PEER")],
    }
    for place, (name, part) in enumerate(kinds.items()):
        if part:
            points = sorted((row["experts"], row["train"][key] * scale) for row in part)
            x, y = zip(*points, strict=True)
            panel.plot(x, y, color=COLOURS[place], marker=MARKERS[place], ms=5, lw=1.6, label=name)
    if rows:
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
    panel.set_xlabel("experts, or combinations of experts", color=PALE)
    panel.set_ylabel(label, color=PALE)
    if rows:
        panel.legend(frameon=False, fontsize=9)


def _blocks() -> str:
    titles = {
        "accuracy": "Accuracy at equal parameters",
        "used": "How many combinations are used",
        "retrieved": "Experts that PEER retrieves",
        "and": 'What the "and" selects',
        "information": "What the choices say about the class",
        "attributes": "Other columns of the data",
        "ablated": "Ablation",
        "costs": "Time and memory",
    }
    return "\n".join(f"## {title}\n\n<!-- table million-{name} -->\n<!-- end -->\n" for name, title in titles.items())


TEMPLATE = f"""# A million experts

![Accuracy, what combinations select, time and memory](million.png)

{_blocks()}"""
"""The page of a first run; text around the tables is kept from then on."""
