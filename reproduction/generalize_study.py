"""Do experts generalize, over seeds and to shifted data? Each head beside a linear one and its controls.

    python -m reproduction.generalize_study --out docs/results/generalize

On every data set each variant of ``--config`` is trained over the seeds, the experts of every two seeds are matched
(`Job.stability`), and the runs are measured on shifted data (`Job.shift`). Runs are kept in ``--work``: a second call
resumes stopped runs and trains nothing twice.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mumoe
import mumoe.analysis.controls  # registers the frozen gates
from mumoe.analysis.matching import MEASURES
from mumoe.analysis.shifting import Shift
from mumoe.analysis.stability import Stability
from mumoe.api import Job, open_job
from mumoe.data import load_data
from mumoe.data.splits import stratified_split
from mumoe.data.subset import subset
from mumoe.errors import UserError, require, unknown_name
from mumoe.files import read_json, write_json, write_text
from mumoe.parsing import parse
from mumoe.plots.style import save_svg
from mumoe.records import render_table
from mumoe.results import Spread
from mumoe.training.compare import compare, spread
from mumoe.training.config import parse_options

__all__ = ["Options", "Study", "main", "measure_set", "read_study"]

WHO = "generalize_study"

SHOWN = ("share", "similarity", "similarity_all")
"""Measures of agreement in the tables; the JSON has all."""


@dataclass(frozen=True)
class Options:
    """Train heads on several data sets and measure whether their experts reappear and keep their meaning."""

    out: str = "docs/results/generalize"
    """folder of the page and its numbers"""
    work: str = "runs/generalize"
    """folder of the runs"""
    config: str = str(Path(__file__).parent / "generalize-small.toml")
    """settings: seeds, variants of the head, data sets"""
    sets: tuple[str, ...] = ()
    """data sets to measure (default: all of the settings)"""
    seeds: int = 0
    """seeds (0: those of the settings)"""
    root: str = ""
    """folder of the data sets that are not embedded (empty: the usual one)"""
    quiet: bool = False
    """show no progress"""


@dataclass(frozen=True)
class Study:
    """The settings of the study; see the TOML file."""

    seeds: int
    draws: int
    drawn: str
    settings: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    sets: Mapping[str, Mapping[str, Any]]


def read_study(options: Options) -> Study:
    """The settings, with the requested sets and seeds.

    Raises:
        UserError: If a set is unknown.
    """
    values = tomllib.loads(Path(options.config).read_text(encoding="utf-8"))
    for name in options.sets:
        if name not in values["sets"]:
            raise unknown_name(WHO, "data set", name, values["sets"])
    chosen = {name: values["sets"][name] for name in options.sets or values["sets"]}
    return Study(**{**values, "sets": chosen, "seeds": options.seeds or values["seeds"]})


def main(options: Options) -> None:
    """Run the study, writing the results after each data set."""
    study, out = read_study(options), Path(options.out)
    for name in study.sets:
        measured = measure_set(study, name, Path(options.work), root=options.root, progress=not options.quiet)
        _write(measured, study, name, out)
        sys.stdout.write(f"{name}: written to {out}\n")
    write_text(out / "README.md", page(out, tomllib.loads(Path(options.config).read_text("utf-8"))))


# Measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One variant on one data set."""

    accuracy: tuple[float, ...]
    stability: Stability | None
    shifts: tuple[Shift, ...]


def measure_set(study: Study, name: str, work: Path, *, root: str = "", progress: bool = True) -> dict[str, Measured]:
    """Train and measure every variant on one data set; the linear one is measured beside each.

    Raises:
        UserError: If a setting is wrong, or the folder holds runs of other settings.
        JobError: If a run fails.
    """
    about, place = study.sets[name], work / name
    settings = {**study.settings, **about["settings"], **({"root": root} if root else {}), "seeds": study.seeds}
    held: dict[str, Any] = {"progress": progress}
    if "table" in about:
        settings["data"] = f"features:{_table(about['table'], place / 'table')}"
    if about.get("images"):
        held |= _reduced(settings, int(about["images"]))
    jobs = {key: _trained(place / key, {**settings, **_own(own, about)}, held) for key, own in study.variants.items()}
    return {key: _measured(key, job, jobs, study, about, place) for key, job in jobs.items()}


def _own(variant: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a variant, with the head of a data set that has one of its own."""
    own = dict(variant)
    return own if own["head"] == "linear" or "head" not in about else {**own, "head": about["head"]}


def _trained(out: Path, settings: dict[str, Any], held: Mapping[str, Any]) -> Job:
    """The job of one variant: trained, resumed, or only opened."""
    known = out.with_name(f"{out.name}-settings.json")
    if known.is_file() and read_json(known, WHO) != settings:
        raise UserError(f"{out}: expected runs with these settings, got others. Give another --work, or delete it.")
    write_json(known, settings)
    if (out / "summary.json").is_file():
        return open_job(out, **held)
    if (out / "config.toml").is_file():
        return mumoe.resume(out, **held)
    named = {key: value for key, value in settings.items() if key not in held}
    return mumoe.train(**{**named, **held, "out": str(out)})


def _measured(
    key: str, job: Job, jobs: Mapping[str, Job], study: Study, about: Mapping[str, Any], place: Path
) -> Measured:
    accuracy = tuple(run.evaluations["test"].accuracy for run in sorted(job.result.runs, key=lambda run: run.seed))
    if study.variants[key]["head"] == "linear":
        return Measured(accuracy, None, ())
    stability = job.stability(draws=study.draws) if study.seeds > 1 else None
    shifts = []
    for shift in about["shifts"]:
        given = {**shift}
        if "noise" in given:
            given["to"] = f"features:{_noisy(place / 'table', float(given.pop('noise')))}"
        shifts.append(job.shift(**given, against=jobs["linear"].runs))
    return Measured(accuracy, stability, tuple(shifts))


def _reduced(settings: Mapping[str, Any], images: int) -> dict[str, Any]:
    """A part of a large set, the same for every seed, and its backbone, as objects."""
    from mumoe.models.backbones import create_backbone

    data = load_data(
        settings["data"], root=settings.get("root") or None, **parse_options(settings.get("data_options", ()))
    )
    rows = np.random.default_rng(0).permutation(len(data))[:images]
    size = settings.get("image_size") or None
    return {"data": subset(data, np.sort(rows)), "backbone": create_backbone("efficientnet-lite0", image_size=size)}


def _table(name: str, folder: Path) -> Path:
    """A table of scikit-learn as a file of features with labels and a split."""
    file = folder / "x.npy"
    if not file.is_file():
        sets = require("sklearn.datasets", "test", WHO)
        found = getattr(sets, f"load_{name}")()
        labels = np.array([str(found.target_names[label]) for label in found.target])
        _save(folder, found.data.astype(np.float32), labels, stratified_split(labels))
    return file.resolve()


def _noisy(folder: Path, share: float) -> Path:
    """The table with gaussian noise of this share of each column's deviation."""
    x, file = np.load(folder / "x.npy"), folder.parent / f"noise-{share:g}" / "x.npy"
    if not file.is_file():
        noise = np.random.default_rng(0).standard_normal(x.shape, dtype=np.float32)
        _save(file.parent, x + share * x.std(0) * noise, np.load(folder / "labels.npy"), np.load(folder / "split.npy"))
    return file.resolve()


def _save(folder: Path, x: Any, labels: Any, split: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("x", x), ("labels", labels), ("split", split)):
        np.save(folder / f"{name}.npy", values, allow_pickle=False)


# Writing -----------------------------------------------------------------------------------------------------------


def _write(measured: Mapping[str, Measured], study: Study, name: str, out: Path) -> None:
    """Numbers of one data set, and the figures of the variant that is drawn."""
    out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"seeds": study.seeds, "settings": {**study.settings, **study.sets[name]["settings"]}}
    content["variants"] = {}
    for key, found in measured.items():
        stability = found.stability and dataclasses.replace(found.stability, data=_name(found.stability.data))
        shifts = [_plain(shift) for shift in found.shifts]
        content["variants"][key] = {
            "settings": _own(study.variants[key], study.sets[name]),
            "accuracy": found.accuracy,
            "stability": None if stability is None else _without_matches(stability).to_dict(),
            "shifts": [shift.to_dict() for shift in shifts],
        }
        if key == study.drawn and stability is not None:
            save_svg(stability.plot(), out / f"{name}-stability.svg")
        for shift in shifts if key == study.drawn else ():
            save_svg(shift.plot(), out / f"{name}-{shift.to}.svg")
    write_json(out / f"{name}.json", content)


def _without_matches(found: Stability) -> Stability:
    pairs = tuple(dataclasses.replace(pair, matches=()) for pair in found.pairs)
    return dataclasses.replace(found, pairs=pairs)


def _plain(shift: Shift) -> Shift:
    """Without paths of the machine that measured it."""
    runs = tuple(
        dataclasses.replace(
            run, run="", after=tuple(dataclasses.replace(part, name=_name(part.name)) for part in run.after)
        )
        for run in shift.runs
    )
    return dataclasses.replace(shift, to=_name(shift.to), data=_name(shift.data), runs=runs)


def _name(text: str) -> str:
    """A data name without the path of a file of features."""
    return f"{Path(text.removeprefix('features:')).parent.name}" if text.startswith("features:") else text


def page(out: Path, values: Mapping[str, Any]) -> str:
    """The page: a summary of every measured data set, then for each its seeds and shifts as tables."""
    found = {
        name: json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        for name in values["sets"]
        if (out / f"{name}.json").is_file()
    }
    titles = {name: str(values["sets"][name]["title"]) for name in found}
    parts = [INTRODUCTION, _summary(found, titles, str(values["drawn"]))]
    return "\n".join([*parts, *(_section(name, titles[name], content, out) for name, content in found.items())])


def _summary(found: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], drawn: str) -> str:
    """One row for each data set: the drawn variant beside linear, its strong experts, and what is left of them."""
    header = ["data", "linear", f"{drawn} minus linear", "strong (control)", "reappear in another seed (control)"]
    header += ["kept on shifted data, of those that could be (control)"]
    rows = []
    for name, content in found.items():
        own, linear = content["variants"][drawn], content["variants"]["linear"]["accuracy"]
        record = Stability.from_dict(own["stability"])
        share, control = record.spreads()["share"]
        kept = [_kept(Shift.from_dict(entry)) for entry in own["shifts"]]
        row = [titles[name], _text(spread(linear)), _gap(own["accuracy"], linear), _purity_cells(record)[1]]
        rows.append([*row, f"{_text(share)} ({_text(control)})", "; ".join(kept)])
    return render_table(header, rows, "markdown")


def _kept(shift: Shift) -> str:
    """A shift in a few words, such as ``blur 3.0 of 4.8 to 0.0 of 2.3 (0.0)``: its mildest and its heaviest form."""
    after = [row for row in shift.means() if row["head"] != "linear" and row["kept"] is not None][1:]
    ends = [after[0], after[-1]] if len(after) > 1 else after
    shown = " to ".join(f"{_text(row['kept'], 1, sd=False)} of {_text(row['could_keep'], 1, sd=False)}" for row in ends)
    return f"{shift.to} {shown} ({max(row['control_kept'].mean for row in after):.1f})"


INTRODUCTION = """# Do experts generalize?

```sh
python -m reproduction.generalize_study --out docs/results/generalize
```

Over seeds, the experts of every two seeds of a head are matched one to one by the correlation of their coefficients
on images that neither was trained on. A strong expert (some class loses at least half of its right answers without
it, and at least five) *reappears* if its match is strong for the same class and correlates with it by at least 0.5. For
shifted data, the same experts are ablated on images before and after the shift; a strong expert is *kept* if it is
strong for the same class afterwards.

Controls, in brackets: for seeds, gates of the same shape drawn at random and matched in the same way; for mean p and
strong experts, units of the same load made up of random contributions. `frozen` is a trained control: the same head
whose gate keeps its random weights. Numbers are means over seeds, or over pairs of seeds, ± their standard deviation;
pairs share seeds, so they are not independent. Settings are in `reproduction/generalize-small.toml`; the JSON files
beside this page hold the numbers.
"""


def _section(name: str, title: str, content: Mapping[str, Any], out: Path) -> str:
    variants = content["variants"]
    lines = [f"## {title}", "", f"{content['seeds']} seeds.", "", _seeds_table(variants)]
    if (out / f"{name}-stability.svg").is_file():
        lines.append(f"![Agreement of seeds, {title}]({name}-stability.svg)\n")
    shifts = [Shift.from_dict(entry) for found in variants.values() for entry in found["shifts"]]
    for to in dict.fromkeys(shift.to for shift in shifts):
        lines += [f"### {title}: {to}", "", _shift_table(variants, to)]
        if (out / f"{name}-{to}.svg").is_file():
            lines.append(f"![Before and after, {to}]({name}-{to}.svg)\n")
    return "\n".join(lines)


def _seeds_table(variants: Mapping[str, Any]) -> str:
    linear = next((found["accuracy"] for found in variants.values() if found["stability"] is None), None)
    header = ["head", "test accuracy", "minus linear", "mean p (control)", "strong (control)", "images behind them"]
    header += [f"{MEASURES[name]} (control)" for name in SHOWN]
    rows = []
    for key, found in variants.items():
        gap = "" if linear is None or found["stability"] is None else _gap(found["accuracy"], linear)
        row = [key, _text(spread(found["accuracy"])), gap]
        if found["stability"] is None:
            rows.append([*row, *[""] * (len(header) - 3)])
            continue
        record = Stability.from_dict(found["stability"])
        row += _purity_cells(record)
        pairs = [record.spreads()[name] for name in SHOWN]
        row += [f"{_text(own)} ({_text(control)})" for own, control in pairs]
        rows.append(row)
    return render_table(header, rows, "markdown")


def _purity_cells(record: Stability) -> list[str]:
    """Mean p, strong experts and images behind them, over seeds, the first two beside their controls."""
    cells = []
    for own, control, digits in (("polysemanticity", "control_polysemanticity", 3), ("strong", "control_strong", 1)):
        pair = [_over(getattr(part, name) for part in record.purity) for name in (own, control)]
        cells.append(f"{_text(pair[0], digits)} ({_text(pair[1], digits)})")
    return [*cells, _text(_over(part.strong_images for part in record.purity), 1)]


def _gap(ours: Sequence[float], theirs: Sequence[float]) -> str:
    found = compare("", "", "test", ours, theirs)
    return f"{found.mean:+.3f}" if found.sd is None else f"{found.mean:+.3f} ± {found.sd:.3f}"


def _shift_table(variants: Mapping[str, Any], to: str) -> str:
    header = ["head", "images", "accuracy", "mean p (control)", "strong (control)", "kept (control)", "could be kept"]
    rows: list[list[str]] = []
    for key, found in variants.items():
        for entry in found["shifts"]:
            record = Shift.from_dict(entry)
            if record.to == to:
                shown = [
                    row for row in record.means() if row["head"] != "linear" or not rows or key == _first(variants)
                ]
                rows += [_shift_row("linear" if row["head"] == "linear" else key, row) for row in shown]
    return render_table(header, sorted(rows, key=lambda row: row[0] != "linear"), "markdown")


def _first(variants: Mapping[str, Any]) -> str:
    """The first variant with shifts; the linear head is shown with it alone."""
    return next(key for key, found in variants.items() if found["shifts"])


def _shift_row(key: str, row: Mapping[str, Any]) -> list[str]:
    def pair(own: str, control: str, digits: int) -> str:
        return "" if row[own] is None else f"{_text(row[own], digits)} ({_text(row[control], digits)})"

    return [
        key,
        str(row["on"]),
        _text(row["accuracy"]),
        pair("polysemanticity", "control_polysemanticity", 3),
        pair("strong", "control_strong", 1),
        pair("kept", "control_kept", 1),
        "" if row["could_keep"] is None else _text(row["could_keep"], 1),
    ]


def _over(values: Iterable[float | None]) -> Spread | None:
    known = [float(value) for value in values if value is not None]
    return spread(known) if known else None


def _text(value: Spread | None, digits: int = 3, *, sd: bool = True) -> str:
    if value is None:
        return "none"
    text = f"{value.mean:.{digits}f}"
    return text if value.sd is None or not sd else f"{text} ± {value.sd:.{digits}f}"


if __name__ == "__main__":
    options = parse(Options, sys.argv[1:], "python -m reproduction.generalize_study")
    if options is not None:
        main(options)
