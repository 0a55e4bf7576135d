"""`mumoe sweep`: train and analyze a grid of heads, and draw Figures 3, 6 and 9.

A cell is one head, gate and seed. Its run goes to OUT/cells/..; a cell that is finished is never trained again,
and one that was stopped goes on from its checkpoint. The cells differ in nothing but head, gate and seed. The
figures show every finished cell of OUT, so a grid can be extended by calling with another one.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mumoe.analysis.findings import Effect
from mumoe.errors import UserError
from mumoe.files import read_json, write_json
from mumoe.parsing import Argument
from mumoe.plots.effects import EffectRow, effects_figure
from mumoe.plots.style import save_figure
from mumoe.plots.trend import Point, trend_figure
from mumoe.progress import Progress
from mumoe.training.config import TrainConfig, read_config

if TYPE_CHECKING:
    from mumoe.training.inputs import Inputs

__all__ = ["Cell", "Options", "cells", "run", "sweep"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train and analyze heads of many experts, gates and seeds; draws Figures 3 and 9 into OUT."""

    COMMON: ClassVar = {
        "heads": "CPMuMoE-r256 TRMuMoE-r64",
        "experts": "32 128 512",
        "gates": "entmax15 softmax",
        "seeds": "5",
        "out": "runs/sweep",
    }
    """Shown first in help, with an example of each."""

    out: Annotated[str, Argument(("-o", "--out"))] = "runs/sweep"
    """folder of the sweep; called again, it goes on where it was stopped"""
    config: str = ""
    """TOML file with the settings of every cell (head, gate, seed and out are the sweep's)"""
    set: tuple[str, ...] = ()
    """further settings as KEY=VALUE, e.g. weight_decay=3.0"""
    heads: Annotated[tuple[str, ...], Argument(("--spec",))] = ("CPMuMoE-r256",)
    """heads without their experts, e.g. CPMuMoE-r256 TRMuMoE-r64"""
    experts: tuple[int, ...] = (8, 32, 128, 512, 1024)
    """numbers of experts"""
    gates: tuple[str, ...] = ("entmax15", "softmax", "entmax15-frozen")
    """gates; one that ends in -frozen keeps the projection it was drawn with: the control"""
    seeds: int = 3
    """seeds of every cell, each with its own split and initial weights"""
    split: str = "test"
    """split that is analyzed; choose settings on val"""
    least_lost: int = 5
    """right answers that a class must lose, besides half of its own, for an expert to count as strong"""
    limit: int = 0
    """stop after this many newly trained cells (0: do all)"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    quiet: bool = False
    """show no progress"""


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
        gate = self.gate.replace("-frozen", ", gate frozen at random (control)")
        return f"{kind}, {gate}"


@dataclass
class _Shared:
    """Inputs that cells share, loaded once."""

    inputs: Inputs | None = field(default=None)


def cells(options: Options) -> list[Cell]:
    """The grid, seed after seed, so that a sweep that is stopped has whole curves.

    Raises:
        UserError: If it is empty or a number is below 1.
    """
    for name in ("heads", "experts", "gates"):
        if not getattr(options, name):
            raise UserError(f"mumoe sweep: expected at least one of {name}, got none. Name one.")
    if options.least_lost < 1:
        raise UserError(f"mumoe sweep: expected least_lost >= 1, got {options.least_lost}. 5 is the default.")
    if min(options.experts) < 1 or options.seeds < 1:
        raise UserError(f"mumoe sweep: expected experts and seeds >= 1, got {options.experts}, {options.seeds}.")
    order = itertools.product(range(options.seeds), options.heads, options.gates, options.experts)
    return [Cell(head, experts, gate, seed) for seed, head, gate, experts in order]


def run(options: Options) -> None:
    """Sweep, then say where the figures are."""
    points = sweep(options)
    sys.stdout.write("\n".join(_table(points)) + f"\nWritten to {options.out}\n")


def sweep(options: Options, **given: Any) -> list[Point]:
    """Train and analyze every cell that is not finished, and draw the figures of all that are.

    Args:
        options: The grid and the settings.
        given: `data`, `backbone` or `features` to take instead of loading what the settings name.

    Raises:
        UserError: If a setting is wrong, or OUT holds a sweep with other settings.
        JobError: If a cell fails; finished cells are kept.
    """
    import mumoe.analysis.controls  # noqa: F401 (makes the frozen gates known)

    grid, base, out = cells(options), _base(options), Path(options.out)
    _claim(out, base, options)
    shared, trained = _Shared(), 0
    missing = [cell for cell in grid if not _result(out, cell).is_file()]
    todo = missing[: options.limit or None]
    with Progress("Training and analyzing", len(todo), enabled=not options.quiet) as progress:
        for cell in todo:
            _do(cell, base, out, options, shared, given)
            trained += 1
            progress.advance(note=cell.name)
    done = {cell: _point(out, cell) for cell in _finished(out)}
    if done:
        _draw(done, out, base, options)
    return list(done.values())


def _base(options: Options) -> TrainConfig:
    from mumoe.training.config import from_mapping, parse_options

    config = read_config(options.config) if options.config else TrainConfig()
    known = {item.name: getattr(config, item.name) for item in dataclasses.fields(TrainConfig)}
    changed = from_mapping({**known, **parse_options(options.set)}, "mumoe sweep")
    return changed.replace(vary_split=True, seeds=1, against=(), device=options.device).absolute()


def _claim(out: Path, base: TrainConfig, options: Options) -> None:
    """Refuse to mix cells of different settings in one folder."""
    settings = dataclasses.asdict(base.replace(head="", gate="", seed=0, out="", cache_dir="", device=""))
    chosen = {"split": options.split, "least_lost": options.least_lost}
    record = {"settings": settings, **chosen}
    path = out / "sweep.json"
    if not path.is_file():
        write_json(path, record)
        return
    before = read_json(path, "mumoe sweep")
    first = {"least_lost": 1, **before.get("settings", {}), **{key: before[key] for key in chosen if key in before}}
    for key, value in {**settings, **chosen}.items():
        known = first.get(key)
        if known != (list(value) if isinstance(value, tuple) else value):
            raise UserError(
                f"mumoe sweep: expected the settings that {out} was started with ({key}={known!r}), "
                f"got {key}={value!r}. Choose another --out."
            )


def _finished(out: Path) -> list[Cell]:
    """All finished cells of a folder, by head, gate, experts and seed."""
    records = [read_json(path, "mumoe sweep") for path in (out / "cells").glob("*/cell.json")]
    found = [Cell(**record["cell"]) for record in records]
    return sorted(found, key=lambda cell: (cell.head, cell.gate, cell.experts, cell.seed))


def _result(out: Path, cell: Cell) -> Path:
    return out / "cells" / cell.name / "cell.json"


def _do(cell: Cell, base: TrainConfig, out: Path, options: Options, shared: _Shared, given: dict[str, Any]) -> None:
    """Train a cell or go on with it, analyze it, and write cell.json last."""
    from mumoe.analysis.analyzing import study_head
    from mumoe.devices import resolve
    from mumoe.training import resume, train
    from mumoe.training.inputs import load_inputs, with_seed
    from mumoe.training.opening import StoredRun

    folder = out / "cells" / cell.name
    varied = base.replace(head=cell.spec, gate=cell.gate, seed=cell.seed, out=str(folder))
    config = varied.replace(vary_split=False, split_seed=base.split_seed + cell.seed)
    if shared.inputs is None:
        device = resolve(options.device, who="mumoe sweep")
        shared.inputs = load_inputs(config, device=device, progress=not options.quiet, **given)
    inputs = shared.inputs if "data" in given else with_seed(shared.inputs, varied)
    held: dict[str, Any] = {"data": inputs.data, "backbone": inputs.backbone, "features": inputs.features}
    if (folder / "run.json").is_file():
        resume(folder, device=options.device, progress=False, **held)
    else:
        train(config, progress=False, **held)
    stored = StoredRun(folder, device=options.device)
    head, facts = stored.head, stored.facts
    rows = inputs.data.indices(options.split)
    found, _ = study_head(head, inputs, rows, resamples=0, least_lost=options.least_lost)
    units = found.units[0]
    record = {
        "cell": cell,
        "accuracy": {name: part["accuracy"] for name, part in facts["result"]["evaluations"].items()},
        "parameters": facts["parameters"],
        "seconds": facts["result"]["seconds"],
        "study": dataclasses.replace(units.modes["zero"], effects=()),
        "load_control": dataclasses.replace(units.load_control, effects=()),
        "effects": units.modes["zero"].effects,
        "experts_per_image": sum(units.load) / len(rows),
    }
    write_json(folder / "cell.json", record)


def _point(out: Path, cell: Cell) -> Point:
    record = read_json(_result(out, cell), "mumoe sweep")
    part = record["study"]
    return Point(
        series=cell.series,
        experts=cell.experts,
        seed=cell.seed,
        accuracy=part["accuracy"],
        mean_polysemanticity=part["mean_polysemanticity"],
        strong=part["strong"],
        mean_polysemanticity_strong=part["mean_polysemanticity_strong"],
        with_effect=part["with_effect"],
        least_lost=part.get("least_lost", 1),
        control=cell.gate.endswith("-frozen"),
    )


def _draw(done: Mapping[Cell, Point], out: Path, base: TrainConfig, options: Options) -> None:
    """Figure 3 over the heads with one gate, Figure 9 over the gates of one head, controls in both; Figure 6."""
    record = read_json(_result(out, next(iter(done))), "mumoe sweep")
    note = f"{base.data}, {options.split} split; means over seeds, bars one standard deviation"
    gates = Counter(cell.gate for cell in done if not done[cell].control)
    gate = "entmax15" if "entmax15" in gates else next(iter(gates), None)
    heads = {head: len({cell.gate for cell in done if cell.head == head}) for head in sorted({c.head for c in done})}
    head = max(heads, key=lambda name: heads[name])
    third = [point for cell, point in done.items() if point.control or cell.gate == gate]
    ninth = [point for cell, point in done.items() if cell.head == head]
    for number, title, points in ((3, "specialization by number of experts", third), (9, "gates compared", ninth)):
        ordered = sorted(points, key=lambda point: point.control)
        figure = trend_figure(ordered, title=f"Figure {number}: {title}", note=note, classes=record["study"]["classes"])
        save_figure(figure, out / f"figure-{number}", ordered)
    shown = [
        cell for cell in done if cell.head == head and cell.gate == gate and cell.seed == min(c.seed for c in done)
    ]
    if shown:
        _draw_effects(shown, out, f"Figure 6 on {base.data} ({options.split} split): final layer")
    write_json(out / "points.json", list(done.values()))


def _draw_effects(shown: Sequence[Cell], out: Path, title: str) -> None:
    """The classes that single experts answer for, one row for each number of experts."""
    rows = []
    for cell in shown:
        found = read_json(_result(out, cell), "mumoe sweep")["effects"]
        effects = [{**effect, "losses": tuple(map(tuple, effect["losses"]))} for effect in found]
        rows.append(EffectRow(cell.spec, tuple(Effect(**effect) for effect in effects)))
    classes = read_json(out / "cells" / shown[0].name / "run.json", "mumoe sweep")["classes"]
    figure = effects_figure(rows, classes, title=title)
    save_figure(figure, out / "figure-6", {"classes": classes, "rows": rows})


def _table(points: Sequence[Point]) -> list[str]:
    """One line for each series and number of experts, means over seeds."""
    from mumoe.plots.trend import summary

    lines = [f"{'':<44} {'experts':>7} {'accuracy':>9} {'mean p':>15} {'effect':>7} {'strong':>7} {'their p':>8}"]
    for series in dict.fromkeys(point.series for point in points):
        for experts in sorted({point.experts for point in points if point.series == series}):
            chosen = [point for point in points if point.series == series and point.experts == experts]
            accuracy = summary(chosen, lambda point: point.accuracy)[0][1]
            mean = summary(chosen, lambda point: point.mean_polysemanticity)
            effect = summary(chosen, lambda point: float(point.with_effect))[0][1]
            strong = summary(chosen, lambda point: float(point.strong))[0][1]
            pure = summary(chosen, lambda point: point.mean_polysemanticity_strong)
            said = f"{mean[0][1]:.3f} (sd {mean[0][2]:.3f})" if mean else "none"
            theirs = f"{pure[0][1]:.3f}" if pure else "none"
            lines.append(
                f"{series:<44} {experts:>7,} {accuracy:>9.4f} {said:>15} {effect:>7.1f} {strong:>7.1f} {theirs:>8}"
            )
    return lines
