"""Train and analyze a grid of heads, gates and seeds, and draw Figures 3, 6 and 9.

A cell is one head, gate and seed. Its run goes to OUT/cells/..; a finished cell is never trained again, and one that
was stopped resumes from its checkpoint. Cells differ in head, gate and seed alone. The figures show every finished
cell of OUT, so that a second call with another grid extends it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mumoe.analysis.controls  # noqa: F401 (registers the frozen gates)
from mumoe.analysis.analyzing import study_head
from mumoe.analysis.findings import Effect
from mumoe.calling import checked
from mumoe.devices import AUTO, resolve
from mumoe.errors import UserError
from mumoe.files import read_json, write_json
from mumoe.plots.effects import EffectRow, effects_figure
from mumoe.plots.style import save_figure
from mumoe.plots.trend import Point, summary, trend_figure
from mumoe.progress import Progress
from mumoe.records import Record, read_typed, reading, record, to_plain
from mumoe.training.config import SWEPT, TrainConfig, from_mapping
from mumoe.training.inputs import Inputs
from mumoe.training.jobs import resume, train
from mumoe.training.opening import StoredRun
from mumoe.training.tasks import load_inputs, task_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Cell", "Sweep", "grid", "sweep"]

WHO = "mumoe.sweep"
_AGAIN = "Delete it, and call sweep again."


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    head: str
    experts: int
    gate: str
    seed: int

    @property
    def spec(self) -> str:
        """The head's specification."""
        return f"{self.head}-e{self.experts}"

    @property
    def name(self) -> str:
        """Its folder below OUT/cells."""
        return f"{self.spec}-{self.gate}-seed{self.seed}"

    @property
    def series(self) -> str:
        """The line of a figure it belongs to."""
        kind = self.head.partition("MuMoE")[0]
        return f"{kind}, {self.gate.replace('-frozen', ', gate frozen at random (control)')}"


@record
class Sweep(Record):
    """All trained and analyzed models of a sweep's folder.

    Attributes:
        out: The folder.
        points: One for each model, by head, gate, number of experts and seed.
    """

    out: str
    points: tuple[Point, ...]

    def headline(self) -> str:
        return f"{len(self.points)} models in {self.out}"

    def rows(self) -> list[dict[str, Any]]:
        return [vars(point) for point in self.points]

    def means(self) -> list[dict[str, Any]]:
        """Means over seeds, one row for each series and number of experts, beside units of the same load as control.

        None where no model has a value.
        """
        keys = dict.fromkeys((point.series, point.experts) for point in self.points)
        order = {series: place for place, series in enumerate(dict.fromkeys(series for series, _ in keys))}
        return [_mean(self.points, *key) for key in sorted(keys, key=lambda key: (order[key[0]], key[1]))]

    def plot(self) -> Figure:
        """Figure 3 and 9: polysemanticity, strong experts and accuracy against the number of experts."""
        return trend_figure(self.points, title="Specialization by number of experts")


def _mean(points: Sequence[Point], series: str, experts: int) -> dict[str, Any]:
    chosen = [point for point in points if (point.series, point.experts) == (series, experts)]
    mean = summary(chosen, lambda point: point.mean_polysemanticity)
    strong = summary(chosen, lambda point: point.mean_polysemanticity_strong)
    return {
        "series": series,
        "experts": experts,
        "accuracy": summary(chosen, lambda point: point.accuracy)[0][1],
        "mean_polysemanticity": mean[0][1] if mean else None,
        "sd_polysemanticity": mean[0][2] if mean else None,
        "with_effect": summary(chosen, lambda point: float(point.with_effect))[0][1],
        "strong": summary(chosen, lambda point: float(point.strong))[0][1],
        "mean_polysemanticity_strong": strong[0][1] if strong else None,
        "strong_images": _mean_or_none(point.strong_images for point in chosen),
        "control_polysemanticity": _mean_or_none(point.control_polysemanticity for point in chosen),
        "control_strong": _mean_or_none(point.control_strong for point in chosen),
    }


def _mean_or_none(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def grid(heads: Sequence[str], experts: Sequence[int], gates: Sequence[str], seeds: int) -> list[Cell]:
    """The cells, seed after seed, so that a sweep that is stopped has whole curves.

    Raises:
        UserError: If there is none, or a number is below 1.
    """
    for name, values in (("heads", heads), ("experts", experts), ("gates", gates)):
        if not values:
            raise UserError(f"{WHO}: expected at least one of {name}, got none. Name one.")
    if min(experts) < 1 or seeds < 1:
        raise UserError(f"{WHO}: expected experts and seeds >= 1, got {tuple(experts)}, {seeds}.")
    order = itertools.product(range(seeds), heads, gates, experts)
    return [Cell(head, number, gate, seed) for seed, head, gate, number in order]


@checked
def sweep(
    config: TrainConfig | None = None,
    *,
    out: str | Path = "runs/sweep",
    heads: Sequence[str] = ("CPMuMoE-r256",),
    experts: Sequence[int] = (8, 32, 128, 512, 1024),
    gates: Sequence[str] = ("entmax15", "softmax", "entmax15-frozen"),
    seeds: int = 3,
    split: str = "test",
    least_lost: int = 5,
    limit: int = 0,
    device: str = AUTO,
    progress: bool = True,
    data: Any = None,
    backbone: Any = None,
    features: Any = None,
    **settings: Any,
) -> Sweep:
    """Train and analyze every cell that is not finished, and draw the figures of all that are.

    Args:
        config: Settings of every cell, by default those of the preset ``specialized``; head, gate, seed and out are the
            sweep's.
        out: Folder of the sweep; a second call continues it.
        heads: Specifications without their experts, such as ``CPMuMoE-r256``.
        experts: Numbers of experts.
        gates: Names of gates; one that ends in ``-frozen`` keeps its initial projection: the control.
        seeds: Seeds of every cell, each with its own split and initial weights.
        split: Split that is analyzed; choose settings on val.
        least_lost: An expert is strong if a class loses at least this many right answers, and at least half of them.
        limit: Stop after this many newly trained cells; 0 trains all.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        progress: Whether to show progress on stderr.
        data: The data, as a name (``folder:birds``) or an object as in `mumoe.training.train`.
        backbone: The backbone, as a name or a module.
        features: (num_images, num_features), used instead of extracting them.
        settings: Further settings of training over those of `config`, such as ``epochs=20``.

    Raises:
        UserError: If a setting is wrong, or `out` holds a sweep with other settings.
        JobError: If a cell fails; finished cells are kept.

    >>> mumoe.sweep(data="folder:birds", heads=["CPMuMoE-r64"], experts=(16, 64), seeds=2).to_frame()
    """
    cells = grid(heads, experts, gates, seeds)
    if least_lost < 1:
        raise UserError(f"{WHO}: expected least_lost >= 1, got {least_lost}. 5 is the default.")
    objects = {"data": data, "backbone": backbone, "features": features}
    named = {name: value for name, value in objects.items() if isinstance(value, str)}
    held = {name: value for name, value in objects.items() if value is not None and name not in named}
    known = {"preset": SWEPT, **(dataclasses.asdict(config) if config else {}), **settings, **named}
    base = from_mapping(known, WHO).replace(vary_split=True, seeds=1, against=(), device=device).absolute()
    job = _Job(Path(out), base, split, least_lost, progress, held)
    job.claim()
    todo = [cell for cell in cells if not job.result(cell).is_file()][: limit or None]
    with Progress("Training and analyzing", len(todo), enabled=progress) as bar:
        for cell in todo:
            job.do(cell)
            bar.advance(note=cell.name)
    points = {cell: job.point(cell) for cell in job.finished()}
    if points:
        _draw(points, job)
    return Sweep(str(out), tuple(points.values()))


@dataclass(frozen=True)
class _Job:
    """A sweep's folder and settings."""

    out: Path
    base: TrainConfig
    split: str
    least_lost: int
    progress: bool
    given: Mapping[str, Any]

    def claim(self) -> None:
        """Refuse to mix cells of different settings in one folder."""
        base = self.base.replace(head="", gate="", seed=0, out="", cache_dir="", device="")
        settings, chosen = dataclasses.asdict(base), {"split": self.split, "least_lost": self.least_lost}
        path = self.out / "sweep.json"
        if not path.is_file():
            write_json(path, {"settings": settings, **chosen})
            return
        before = read_typed(dict[str, Any], read_json(path, WHO), f"{WHO}: {path}")
        defaults = to_plain(dataclasses.asdict(TrainConfig()))  # of settings that an older sweep does not record
        known_before = {key: before[key] for key in chosen if key in before}
        first = {**defaults, "least_lost": 1, **before.get("settings", {}), **known_before}
        for key, value in {**settings, **chosen}.items():
            known = first.get(key)
            if known != (list(value) if isinstance(value, tuple) else value):
                raise UserError(
                    f"{WHO}: expected the settings that {self.out} was started with ({key}={known!r}), "
                    f"got {key}={value!r}. Choose another `out`."
                )

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.name

    def result(self, cell: Cell) -> Path:
        return self.folder(cell) / "cell.json"

    def finished(self) -> list[Cell]:
        """All finished cells of the folder, by head, gate, experts and seed."""
        found = []
        for path in (self.out / "cells").glob("*/cell.json"):
            with reading(path, _AGAIN):
                found.append(read_typed(Cell, read_json(path, WHO)["cell"], f"{WHO}: {path}"))
        return sorted(found, key=lambda cell: (cell.head, cell.gate, cell.experts, cell.seed))

    @functools.cached_property
    def shared(self) -> Inputs:
        """Data, backbone and features of all cells, loaded once."""
        device = resolve(self.base.device, who=WHO)
        return load_inputs(self.base, device=device, progress=self.progress, **self.given)

    def do(self, cell: Cell) -> None:
        """Train or resume a cell, analyze it, and write cell.json last."""
        folder = self.folder(cell)
        varied = self.base.replace(head=cell.spec, gate=cell.gate, seed=cell.seed, out=str(folder))
        inputs = self.shared if "data" in self.given else task_of(varied).with_seed(self.shared)
        held: dict[str, Any] = {"data": inputs.data, "backbone": inputs.backbone, "features": inputs.features}
        if (folder / "config.toml").is_file():
            resume(folder, device=self.base.device, progress=False, **held)
        else:
            train(varied.replace(vary_split=False, split_seed=self.base.split_seed + cell.seed), progress=False, **held)
        stored = StoredRun(folder, device=self.base.device)
        rows = inputs.data.indices(self.split)
        found, _ = study_head(stored.head, inputs, rows, resamples=0, least_lost=self.least_lost)
        units, facts = found.units[0], stored.facts
        result = {
            "cell": cell,
            "accuracy": {name: part["accuracy"] for name, part in facts["result"]["evaluations"].items()},
            "parameters": facts["parameters"],
            "seconds": facts["result"]["seconds"],
            "study": dataclasses.replace(units.modes["zero"], effects=()),
            "load_control": dataclasses.replace(units.load_control, effects=()),
            "effects": units.modes["zero"].effects,
            "experts_per_image": sum(units.load) / len(rows),
        }
        write_json(self.result(cell), result)

    def point(self, cell: Cell) -> Point:
        with reading(self.result(cell), _AGAIN):
            return self._point(cell, read_json(self.result(cell), WHO))

    def _point(self, cell: Cell, found: Mapping[str, Any]) -> Point:
        part, control = found["study"], found.get("load_control", {})
        shown = ("accuracy", "mean_polysemanticity", "strong", "mean_polysemanticity_strong", "with_effect")
        return Point(
            series=cell.series,
            experts=cell.experts,
            seed=cell.seed,
            least_lost=part.get("least_lost", 1),
            control=cell.gate.endswith("-frozen"),
            strong_images=part.get("strong_images"),
            control_polysemanticity=control.get("mean_polysemanticity"),
            control_strong=control.get("strong"),
            **{name: part[name] for name in shown},
        )


# Figures --------------------------------------------------------------------------------------------------


def _draw(points: Mapping[Cell, Point], job: _Job) -> None:
    """Figure 3 over the heads with one gate, Figure 9 over the gates of one head, controls in both; Figure 6."""
    classes = read_json(job.result(next(iter(points))), WHO)["study"]["classes"]
    note = f"{job.base.data}, {job.split} split; means over seeds, bars one standard deviation"
    gates = Counter(cell.gate for cell in points if not points[cell].control)
    gate = "entmax15" if "entmax15" in gates else next(iter(gates), None)
    by_head = {head: {cell.gate for cell in points if cell.head == head} for head in sorted({c.head for c in points})}
    head = max(by_head, key=lambda name: len(by_head[name]))
    third = [point for cell, point in points.items() if point.control or cell.gate == gate]
    ninth = [point for cell, point in points.items() if cell.head == head]
    for number, title, shown in ((3, "specialization by number of experts", third), (9, "gates compared", ninth)):
        ordered = sorted(shown, key=lambda point: point.control)
        figure = trend_figure(ordered, title=f"Figure {number}: {title}", note=note, classes=classes)
        save_figure(figure, job.out / f"figure-{number}", ordered)
    first = min(cell.seed for cell in points)
    cells = [cell for cell in points if (cell.head, cell.gate, cell.seed) == (head, gate, first)]
    if cells:
        _draw_effects(cells, job, f"Figure 6 on {job.base.data} ({job.split} split): final layer")
    write_json(job.out / "points.json", list(points.values()))


def _draw_effects(cells: Sequence[Cell], job: _Job, title: str) -> None:
    """The classes that depend on single experts, one row for each number of experts."""
    results = {cell.spec: read_json(job.result(cell), WHO)["effects"] for cell in cells}
    rows = [EffectRow(spec, tuple(read_typed(tuple[Effect, ...], found, WHO))) for spec, found in results.items()]
    classes = read_json(job.folder(cells[0]) / "run.json", WHO)["classes"]
    figure = effects_figure(rows, classes, title=title)
    save_figure(figure, job.out / "figure-6", {"classes": classes, "rows": rows})
