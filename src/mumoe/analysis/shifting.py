"""Do experts keep their meaning on shifted data? Accuracy and specialization of the same experts before and after.

The shift is another split of the run's own data (where a split holds out a studio or a hospital, the test split is
shifted), another set with the same classes, or the run's own images corrupted at three severities. A strong expert is
*kept* if it is strong for the same class afterwards. An expert whose class has too few right answers left cannot be
kept; the number of those that can is given as well. Controls are units of the same load made up of random
contributions, before and after, and heads without experts, such as the linear partner, whose accuracy is compared.

How many experts are strong depends on the number of images too: compare counts before and after with their controls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mumoe.analysis.purity import Measured, Purity, measure_purity
from mumoe.analysis.settings import LEAST_LOST
from mumoe.data.base import SPLITS, ImageData, SplitName
from mumoe.data.corruptions import CORRUPTIONS, corrupted
from mumoe.data.registry import DATASETS
from mumoe.errors import UserError, unknown_name
from mumoe.files import check_writable
from mumoe.local_paths import public_name
from mumoe.plots.shift_figure import shift_figure
from mumoe.records import Record, record
from mumoe.results import Spread
from mumoe.training.compare import spread
from mumoe.training.config import parse_options
from mumoe.training.inputs import FEATURES, Inputs
from mumoe.training.opening import StoredRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Condition", "Shift", "ShiftedRun", "measure_shift", "shift_runs"]

WHO = "Run.shift"

NUMBERS = (
    *("images", "accuracy", "change", "polysemanticity", "control_polysemanticity"),
    *("strong", "control_strong", "strong_images", "kept", "could_keep", "control_kept"),
)
"""Columns whose means over seeds are computed."""

PRINTED = {
    "polysemanticity": 3,
    "control_polysemanticity": 3,
    **dict.fromkeys(("strong", "control_strong", "kept", "could_keep", "control_kept"), 1),
}
"""Those that are printed beside the accuracy, with their digits."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Condition:
    """The same experts on shifted images.

    Attributes:
        name: What the images are.
        severity: Of a corruption, from 1; 1 for other shifts.
        purity: Accuracy and specialization.
        kept: Strong experts from before that are strong for the same class here; None without experts.
        could_keep: Those whose class has enough right answers here for an expert to be strong for it.
        control_kept: As `kept`, of the units of the control.
        left_out: Images that are not used: of classes that the run does not know, or that it was trained on.
    """

    name: str
    severity: int
    purity: Purity
    kept: int | None = None
    could_keep: int | None = None
    control_kept: int | None = None
    left_out: int = 0


@dataclass(frozen=True)
class ShiftedRun:
    """One run before and after."""

    run: str
    head: str
    seed: int
    before: Purity
    after: tuple[Condition, ...]


@record
class Shift(Record):
    """Accuracy and specialization of runs before and after a shift; made by `Run.shift` and `Job.shift`.

    Attributes:
        to: The shift: a split, a data name or a corruption.
        data: Name of the runs' data.
        before: Split before the shift.
        level: Level of a hierarchy.
        least_lost: An expert is strong if a class loses at least this many right answers, and at least half of them.
        runs: One for each run.
    """

    to: str
    data: str
    before: str
    level: int
    least_lost: int
    runs: tuple[ShiftedRun, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each run and set of images: accuracy, p and strong experts beside their controls, those kept."""
        return [row for run in self.runs for row in self._rows(run)]

    def _rows(self, run: ShiftedRun) -> Iterator[dict[str, Any]]:
        who = {"head": run.head, "seed": run.seed}
        strong, control = run.before.strong, run.before.control_strong
        kept = {"kept": strong, "could_keep": strong, "control_kept": control}
        rest = {**run.before.row(), **kept, "left_out": 0}
        yield {**who, "on": f"{self.before} split", "severity": 0, "change": 0.0, **rest}
        for found in run.after:
            yield {
                **who,
                "on": found.name,
                "severity": found.severity,
                "change": found.purity.accuracy - run.before.accuracy,
                **found.purity.row(),
                **{name: getattr(found, name) for name in (*kept, "left_out")},
            }

    def means(self) -> list[dict[str, Any]]:
        """Means over seeds as `Spread`, one row for each head and set of images; None where no run has the number."""
        grouped: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        for row in self.rows():
            grouped.setdefault((row["head"], row["on"], row["severity"]), []).append(row)
        return [
            {"head": head, "on": on, "severity": severity, **{name: _spread(rows, name) for name in NUMBERS}}
            for (head, on, severity), rows in grouped.items()
        ]

    def headline(self) -> str:
        last: dict[str, dict[str, Any]] = {}
        first: dict[str, dict[str, Any]] = {}
        for row in self.means():
            first.setdefault(row["head"], row)
            last[row["head"]] = row
        parts = [_sentence(head, first[head], last[head]) for head in first]
        return f"{self.to}, {next(iter(last.values()))['on']} against the {self.before} split: " + "; ".join(parts)

    def sentences(self) -> list[str]:
        """What `mumoe shift` prints: one line for each head and set of images, means over seeds."""
        heads = ("accuracy", "mean p", "control", "strong", "control", "kept", "of", "control")
        widths = (17, 8, 8, 7, 8, 6, 6, 8)
        means = self.means()
        wide, on = max(len(row["head"]) for row in means), max(len(row["on"]) for row in means)
        lines = [self.headline(), _line(("", ""), heads, (wide, on), widths)]
        for row in means:
            cells = [_number(row[name], digits) for name, digits in PRINTED.items()]
            accuracy = _with_spread(row["accuracy"])
            lines.append(_line((row["head"], row["on"]), (accuracy, *cells), (wide, on), widths))
        seeds = len({run.seed for run in self.runs})
        note = f"Means over {seeds} seeds, ± their standard deviation. " if seeds > 1 else ""
        return [
            *lines,
            *([self.left_out()] if self.left_out() else []),
            f"{note}Kept: strong experts that stay strong for the same class; of: those whose class has enough right "
            "answers left. Control: units of the same load made up of random contributions.",
        ]

    def left_out(self) -> str:
        """How many shifted images were not used, in one sentence; empty for none."""
        counts = [part.left_out for run in self.runs for part in run.after]
        if not any(counts):
            return ""
        shown = f"{min(counts):,}" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,}"
        return f"Left out: {shown} images whose class a run does not know or that it was trained on."

    def plot(self) -> Figure:
        """Accuracy, mean p and strong experts by severity, a line for each head, controls dashed.

        Raises:
            UserError: If matplotlib is not installed.
        """
        return shift_figure(self.rows(), title=f"{self.data}: {self.to}")


def _spread(rows: Sequence[dict[str, Any]], name: str) -> Spread | None:
    known = [float(row[name]) for row in rows if row[name] is not None]
    return spread(known) if known else None


def _sentence(head: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    text = f"{head} {before['accuracy'].mean:.3f} -> {after['accuracy'].mean:.3f}"
    if before["strong"] is None:
        return text
    of = f"{after['kept'].mean:.1f} of {before['strong'].mean:.1f} strong experts kept"
    return f"{text}, {of} (control {after['control_kept'].mean:.1f} of {before['control_strong'].mean:.1f})"


def _number(value: Spread | None, digits: int) -> str:
    return "-" if value is None else f"{value.mean:.{digits}f}"


def _with_spread(value: Spread) -> str:
    return f"{value.mean:.4f}" if value.sd is None else f"{value.mean:.4f} ± {value.sd:.4f}"


def _line(names: Sequence[str], cells: Sequence[str], wide: Sequence[int], widths: Sequence[int]) -> str:
    left = [f"{name:<{width}}" for name, width in zip(names, wide, strict=True)]
    return "  ".join([*left, *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))]).rstrip()


# Measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Images:
    """Shifted images of one run: what the head sees of them and which are used."""

    name: str
    severity: int
    inputs: Inputs
    rows: Ints
    left_out: int = 0


def shift_runs(
    runs: Sequence[StoredRun], to: str | ImageData, folder: Path, *, out: str | Path | None = None, **settings: Any
) -> Shift:
    """Measure runs before and after a shift, and write the result.

    Args:
        runs: The runs.
        to: The shift, as for `measure_shift`.
        folder: Folder for shift-NAME.json.
        out: File to write instead.
        settings: As for `measure_shift`.

    Raises:
        UserError: As `measure_shift`.
        JobError: If the file cannot be written.
    """
    name = to if isinstance(to, str) else to.name
    words = [name, *settings.get("data_options", ())]
    file = Path(out) if out else folder / f"shift-{re.sub(r'[^a-z0-9]+', '-', '-'.join(words).lower()).strip('-')}.json"
    check_writable(file, who=WHO)
    found = measure_shift(runs, to, **settings)
    found.save(file)
    return found


def measure_shift(
    runs: Sequence[StoredRun],
    to: str | ImageData,
    *,
    before: SplitName | str = "",
    split: SplitName = "test",
    data_options: Sequence[str] = (),
    images: int = 0,
    level: int = 0,
    least_lost: int = LEAST_LOST,
    seed: int = 0,
) -> Shift:
    """Accuracy and specialization of runs before and after a shift.

    Args:
        runs: The runs.
        to: A split (train, val, test); a corruption of the run's images of the split `before` (gaussian-noise, blur,
            low-contrast); or other data: a name such as ``folder:PATH`` or ``features:FILE``, or an `ImageData`. Their
            classes are known by name; images of other classes, and those that the run was trained on, are left out.
        before: Split before the shift; empty: test, or val where `to` is test.
        split: Split of other data that is used.
        images: Images of the split `before` that are used, drawn at random, of a corruption the same before and after;
            0 for all.
        data_options: Options of other data as KEY=VALUE, such as ``held_out=twemoji``, over those of the run where the
            name is the same.
        level: Level of a hierarchy.
        least_lost: An expert is strong if a class loses at least this many right answers, and at least half of them.
        seed: Seed of the controls and of a corruption.

    Raises:
        UserError: If the shift is unknown, a split is empty, no class is common, or a run has no images to corrupt.
        JobError: If a run has no complete checkpoint.
    """
    before = before or ("val" if to == "test" else "test")
    for name, value in (("before", before), ("split", split)):
        if value not in SPLITS:
            raise unknown_name(WHO, f"`{name}`", value, SPLITS)
    if least_lost < 1:
        raise UserError(f"{WHO}: expected `least_lost` >= 1, got {least_lost}. {LEAST_LOST} is the default.")
    if images < 0:
        raise UserError(f"{WHO}: expected `images` >= 0, got {images}. 0 uses all.")
    reader = _reader(to, split, data_options, seed)
    settings = {"level": level, "least_lost": least_lost, "seed": seed}
    shifted = tuple(_shifted(run, _rows(run, before, images, seed), reader, settings) for run in runs)
    name = to if isinstance(to, str) else to.name
    words = " ".join([name, *data_options])
    return Shift(words, str(runs[0].facts["data"]["name"]), before, level, least_lost, shifted)


def _rows(run: StoredRun, split: str, images: int, seed: int) -> Ints:
    """Positions of the images before the shift."""
    rows: Ints = run.inputs.data.indices(split)
    if not len(rows):
        raise UserError(
            f"{WHO}: expected images in the {split} split of {run.path}, got none. Choose another `before`."
        )
    if not images or images >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, size=images, replace=False))


def _shifted(
    run: StoredRun, rows: Ints, images: Callable[[StoredRun, Ints], Iterable[_Images]], settings: dict[str, int]
) -> ShiftedRun:
    own = measure_purity(run.head, run.inputs, rows, **settings)
    after = tuple(_condition(run, own, found, settings) for found in images(run, rows))
    return ShiftedRun(str(run.path), run.config.head, int(run.facts["seed"]), own.purity, after)


def _condition(run: StoredRun, own: Measured, found: _Images, settings: dict[str, int]) -> Condition:
    there = measure_purity(run.head, found.inputs, found.rows, **settings)
    condition = Condition(found.name, found.severity, there.purity, left_out=found.left_out)
    if own.purity.strong is None:
        return condition
    classes = own.strong[own.strong >= 0]
    return replace(
        condition,
        kept=_kept(own.strong, there.strong),
        could_keep=int((there.right[classes] >= settings["least_lost"]).sum()),
        control_kept=_kept(own.control, there.control),
    )


def _kept(before: Ints, after: Ints) -> int:
    return int(((before == after) & (before >= 0)).sum())


# Images ------------------------------------------------------------------------------------------------------------


def _reader(
    to: str | ImageData, split: SplitName, options: Sequence[str], seed: int
) -> Callable[[StoredRun, Ints], Iterable[_Images]]:
    """What gives the shifted images of a run and its images before the shift."""
    if isinstance(to, ImageData):
        return lambda run, rows: [_other(run, to, None, split)]
    if to in SPLITS:
        return lambda run, rows: [_own_split(run, to)]
    if to in CORRUPTIONS:
        return lambda run, rows: _corrupted(run, rows, to, seed)
    if to.partition(":")[0] not in DATASETS and not to.startswith(FEATURES):
        raise unknown_name(WHO, "split, corruption or data name", to, [*SPLITS, *CORRUPTIONS, *DATASETS])
    return lambda run, rows: [_named(run, to, split, options)]


def _own_split(run: StoredRun, split: str) -> _Images:
    rows = run.inputs.data.indices(split)
    if not len(rows):
        raise UserError(f"{WHO}: expected images in the {split} split of {run.path}, got none. Choose another.")
    return _Images(f"{split} split", 1, run.inputs, rows)


def _corrupted(run: StoredRun, rows: Ints, name: str, seed: int) -> Iterator[_Images]:
    """Images of a run at each severity."""
    if run.on_feature_file:
        raise UserError(
            f"{WHO}: expected a run on images for {name}, got one on features computed elsewhere ({run.config.data}), "
            f"which have no images to corrupt. Name a split or another file of features."
        )
    data = run.inputs.data
    for severity in range(1, len(CORRUPTIONS[name].amounts) + 1):
        found = corrupted(data, rows, name, severity, seed=seed)
        features = run.features_of(found)
        inputs = Inputs(found, None, features, int(features.shape[1]))
        yield _Images(f"{name} {severity}", severity, inputs, np.arange(len(rows), dtype=np.int64))


def _named(run: StoredRun, name: str, split: SplitName, options: Sequence[str]) -> _Images:
    """Other data by name, with the run's own options where the name is the same."""
    kept = run.config.data_options if name == run.config.data else ()
    given = parse_options(options)
    merged = (*(item for item in kept if item.partition("=")[0].strip() not in given), *options)
    return _other(run, *run.other_data(name, merged), split)


def _other(run: StoredRun, data: ImageData, features: Any, split: SplitName) -> _Images:
    known = _in_classes_of(run, data)
    rows = known.indices(split)
    if not len(rows):
        raise UserError(
            f"{WHO}: expected images in the {split} split of {data.name}, got none. Choose another `split`."
        )
    usable = (known.labels[rows] >= 0) if known.labels.ndim == 1 else np.ones(len(rows), dtype=bool)
    usable &= ~_seen(run, data, rows)
    if not usable.any():
        raise UserError(
            f"{WHO}: expected images of {data.name} whose class {run.path} knows and that it was not trained on, got "
            f"none of {len(rows)}. Give other data."
        )
    x = run.features_of(data) if features is None else features
    if x.shape[1] != run.head.mean.shape[0]:
        raise UserError(f"{WHO}: expected {run.head.mean.shape[0]} features as in {run.path}, got {x.shape[1]}.")
    inputs = Inputs(known, None, x, int(x.shape[1]))
    return _Images(f"{public_name(data.name)} ({split} split)", 1, inputs, rows[usable], int((~usable).sum()))


def _in_classes_of(run: StoredRun, data: ImageData) -> ImageData:
    """The set with labels as positions in the run's classes, -1 where a run does not know the class."""
    common = [name for name in run.classes if name in data.classes]
    if (
        data.multi_label != bool(run.facts["multi_label"])
        or not common
        or (data.multi_label and common != [*run.classes])
    ):
        raise UserError(
            f"{WHO}: expected data with the classes of {run.path} ({', '.join(run.classes[:4])}, ..), got "
            f"{', '.join(data.classes[:4])}, .. in {data.name}."
        )
    if data.multi_label:
        labels: Any = data.labels[:, [data.classes.index(name) for name in run.classes]]
    else:
        place = {name: position for position, name in enumerate(run.classes)}
        labels = np.array([place.get(name, -1) for name in data.classes], dtype=np.int64)[data.labels]
    return replace(data, classes=run.classes, labels=labels)


def _seen(run: StoredRun, data: ImageData, rows: Ints) -> npt.NDArray[np.bool_]:
    """Whether a run was trained on each of these images: those of the same name are known by id."""
    if data.name != run.facts["data"]["name"]:
        return np.zeros(len(rows), dtype=bool)
    own = run.data
    trained = {own.ids[row] for row in own.indices("train")}
    return np.array([data.ids[row] in trained for row in rows], dtype=bool)
