"""Heads with the package's own settings against a linear head that is tuned for the data, with what their experts do.

    python -m reproduction.recipe_study --data emoji
    python -m reproduction.recipe_study --data icons

The linear head is tried with every learning rate and dropout of a grid; the setting with the best mean validation
accuracy over all seeds is the one that the others are compared with. Heads of experts have the settings of their
preset; nothing is tuned for them. A curve shows how much accuracy the first head loses for strong experts as its gate's
scale and the weight of the term for specialization change. Each seed has its own split and weights. There are two
controls: the same head with its gate frozen at random, and contributions dealt at random among units of the same load.
Runs are kept under ``--work`` and not trained again.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mumoe.analysis.analyzing import study_head
from mumoe.analysis.controls import FROZEN
from mumoe.files import write_text
from mumoe.parsing import parse
from mumoe.plots.style import save_figure
from mumoe.progress import Progress
from mumoe.results import RunResult
from mumoe.training import StoredRun, TrainConfig, resume, train
from mumoe.training.config import from_mapping
from mumoe.training.inputs import Inputs
from mumoe.training.tasks import load_inputs, settled, task_of

__all__ = ["Options", "compare"]

HEADS = (
    "CPMuMoE-r256-e128",
    "TRMuMoE-r70-e128",
    "TTMuMoE-r128-e128",
    "TuckerMuMoE-r66-e128",
    "CPMuMoE-r256-e128x4",
    "TRMuMoE-r70-e128x4",
    "TTMuMoE-r128-e128x4",
    "TuckerMuMoE-r66-e128x4",
)


@dataclass(frozen=True)
class Options:
    """Compare heads of experts with a tuned linear head."""

    data: str = "emoji"
    """embedded set, or any other name that mumoe train takes"""
    out: str = "docs/results/heads"
    """folder of the numbers"""
    work: str = "runs/recipe"
    """folder of the runs"""
    heads: tuple[str, ...] = HEADS
    """heads with the preset accurate; the first also with specialized"""
    seeds: int = 6
    """seeds, each with its own split and initial weights"""
    split_seed: int = 1000
    """seed of the first split; settings were chosen on others"""
    lr: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    """learning rates tried for the linear head"""
    dropout: tuple[float, ...] = (0.0, 0.1, 0.2)
    """dropouts tried for the linear head"""
    curve_seeds: int = 3
    """seeds of the curve (0: no curve)"""

    @property
    def name(self) -> str:
        """Name of the data in files and folders."""
        return Path(self.data.rpartition(":")[2]).stem


@dataclass(frozen=True)
class _Job:
    """One trained head; `preset` and `changes` say with what settings."""

    name: str
    head: str
    preset: str
    changes: tuple[tuple[str, Any], ...] = ()

    def config(self, options: Options, seed: int) -> TrainConfig:
        """Settings of one seed, the split drawn by the job itself."""
        values = {"data": options.data, "preset": self.preset, "head": self.head, "seed": seed, "eval_every": 0}
        out = f"{options.work}/{options.name}/{self.name}/seed-{seed}"
        config = from_mapping({**values, "keep": 1, "split_seed": options.split_seed + seed, "out": out})
        return settled(config.of_head(self.head).replace(**dict(self.changes)))


def _jobs(options: Options) -> list[_Job]:
    linear = [
        _Job(f"linear-lr{lr:g}-d{dropout:g}", "linear", "accurate", (("linear_lr", lr), ("linear_dropout", dropout)))
        for lr, dropout in itertools.product(options.lr, options.dropout)
    ]
    first = options.heads[0]
    controls = [
        _Job(f"{first}-{preset}{FROZEN}", first, preset, (("gate", f"entmax15{FROZEN}"),))
        for preset in ("accurate", "specialized")
    ]
    accurate = [_Job(f"{head}-accurate", head, "accurate") for head in options.heads]
    return [*linear, *accurate, _Job(f"{first}-specialized", first, "specialized"), *controls]


def _curve(options: Options) -> dict[str, list[_Job]]:
    """Lines of the trade-off: what changes -> one job for each of its values, in the preset accurate."""
    head = options.heads[0]
    values = {"gate_scale": (0.25, 0.5, 0.75, 1.0, 1.5), "specialize": (0.0, 0.1, 0.3, 1.0)}
    return {
        name: [_Job(f"{head}-{name}-{value:g}", head, "accurate", ((name, value),)) for value in choices]
        for name, choices in values.items()
    }


def _trade_off(options: Options, shared: Inputs, progress: bool) -> dict[str, Any]:
    """What changes -> its values, and rows of the seeds for each."""
    lines = _curve(options)
    found: dict[str, Any] = {name: [] for name in lines}
    with Progress("Curve", sum(map(len, lines.values())) * options.curve_seeds, enabled=progress) as bar:
        for name, jobs in lines.items():
            for job in jobs:
                rows = []
                for seed in range(options.curve_seeds):
                    rows.append(_measure(job.config(options, seed), shared))
                    bar.advance(note=job.name)
                points = {key: [row[key] for row in rows] for key in ("test", "p", "strong")}
                found[name].append({"value": job.changes[0][1], **points})
    return found


def compare(options: Options, *, progress: bool = True) -> dict[str, Any]:
    """Train and analyze every head on every seed.

    Returns a JSON-able dict with the grid of the linear head, the setting chosen, and per head its test accuracies,
    differences to the chosen linear head and what its experts do, one number a seed.
    """
    jobs = _jobs(options)
    shared = load_inputs(jobs[0].config(options, 0), progress=progress)
    found: dict[str, list[dict[str, Any]]] = {job.name: [] for job in jobs}
    with Progress("Heads", len(jobs) * options.seeds, enabled=progress) as bar:
        for seed, job in itertools.product(range(options.seeds), jobs):
            found[job.name].append(_measure(job.config(options, seed), shared))
            bar.advance(note=job.name)
    curve = _trade_off(options, shared, progress) if options.curve_seeds else {}
    return {**_summary(options, jobs, found, shared), "curve": curve}


def _measure(config: TrainConfig, shared: Inputs) -> dict[str, Any]:
    """Accuracies of one run, and of its experts on the test split."""
    inputs = task_of(config.replace(vary_split=True, split_seed=config.split_seed - config.seed)).with_seed(shared)
    given: dict[str, Any] = {"data": inputs.data, "backbone": inputs.backbone, "features": inputs.features}
    done = Path(config.out, "run.json").is_file()
    result = (resume(config.out, progress=False, **given) if done else train(config, progress=False, **given)).runs[0]
    row = {"parameters": result.parameters, "seconds": result.seconds, **_accuracies(result)}
    return row if config.head == "linear" else {**row, **_specialization(config, inputs)}


def _accuracies(result: RunResult) -> dict[str, float]:
    return {split: result.evaluations[split].accuracy for split in ("val", "test")}


def _specialization(config: TrainConfig, inputs: Inputs) -> dict[str, Any]:
    """What the experts do on the test split, and the control of the same load."""
    stored = StoredRun(config.out, data=inputs.data, features=inputs.features, progress=False)
    rows = inputs.data.indices("test")
    units = study_head(stored.head, inputs, rows, resamples=0)[0].units[0]
    own, control = units.modes["zero"], units.load_control
    return {
        "p": own.mean_polysemanticity,
        "strong": own.strong,
        "p_control": control.mean_polysemanticity,
        "strong_control": control.strong,
        "experts_per_image": sum(units.load) / len(rows),
    }


def _summary(
    options: Options, jobs: Sequence[_Job], found: Mapping[str, list[dict[str, Any]]], shared: Inputs
) -> dict[str, Any]:
    linear = [job.name for job in jobs if job.head == "linear"]
    chosen = max(linear, key=lambda name: mean(row["val"] for row in found[name]))
    base = [row["test"] for row in found[chosen]]
    heads = {}
    for job in jobs:
        if job.head == "linear" and job.name != chosen:
            continue
        rows = found[job.name]
        columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("parameters", "val")}
        gaps = [row["test"] - other for row, other in zip(rows, base, strict=True)]
        heads[job.name] = {"head": job.head, "parameters": rows[0]["parameters"], **columns, "minus_linear": gaps}
    grid = {name: {"val": mean(r["val"] for r in found[name]), "test": mean(r["test"] for r in found[name])}
            for name in linear}  # fmt: skip
    facts = {"images": len(shared.data), "classes": len(shared.data.classes)}
    return {**facts, "options": asdict(options), "linear": {"grid": grid, "chosen": chosen}, "heads": heads}


def table(results: Mapping[str, Any]) -> str:
    """The results as a markdown table: means over seeds, ± standard deviations."""
    head = ["head and settings", "parameters", "test accuracy", "minus linear", "mean p", "strong", "experts per image"]
    rows = [f"| {' | '.join(head)} |", "|---|--:|--:|--:|--:|--:|--:|"]
    for name, entry in results["heads"].items():
        special = [_spread(entry[key], style) if key in entry else ""
                   for key, style in (("p", ".2f"), ("strong", ".1f"), ("experts_per_image", ".1f"))]  # fmt: skip
        gap = "" if name == results["linear"]["chosen"] else _spread(entry["minus_linear"], "+.3f")
        cells = [name, f"{entry['parameters']:,}", _spread(entry["test"], ".3f"), gap, *special]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def titled(name: str, results: Mapping[str, Any]) -> str:
    """The table as a page; docs include it from the third line on."""
    return f"# Heads on {name}\n\n{table(results)}"


def _spread(values: Sequence[float | None], style: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    return f"{mean(known):{style}} ± {stdev(known):{style.lstrip('+')}}" if len(known) > 1 else f"{known[0]:{style}}"


def draw(out: Path) -> None:
    """Draw the curves of every set whose results are in the folder."""
    from matplotlib.figure import Figure

    files = [path for path in sorted(out.glob("recipe-*.json")) if json.loads(path.read_text())["curve"]]
    if not files:
        return
    figure = Figure(figsize=(5 * len(files), 3.9), layout="constrained")
    for place, path in enumerate(files):
        axes = figure.add_subplot(1, len(files), place + 1)
        _draw_set(axes, json.loads(path.read_text()), path.stem[7:])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save_figure(figure, out / "trade-off", [json.loads(path.read_text())["curve"] for path in files])


def _draw_set(axes: Any, results: Mapping[str, Any], name: str) -> None:
    linear = results["heads"][results["linear"]["chosen"]]["test"]
    words = {"gate_scale": "scale of the gate's logits", "specialize": "weight of the term for specialization"}
    for line, marker, below in zip(words, "os", (False, True), strict=True):
        points = results["curve"][line]
        base = mean(linear[: len(points[0]["test"])])
        strong = [mean(point["strong"]) for point in points]
        gap = [100 * (mean(point["test"]) - base) for point in points]
        axes.plot(strong, gap, marker=marker, label=words[line])
        for point, x, y in zip(points, strong, gap, strict=True):
            beside = (4, -11 if below else 5)
            axes.annotate(f"{point['value']:g}", (x, y), textcoords="offset points", xytext=beside, size=8)
    axes.axhline(0, color="0.6", linewidth=1)
    axes.set(title=name, xlabel="strong experts", ylabel="test accuracy minus tuned linear (points)")


def main(options: Options) -> None:
    """Run the study."""
    results = compare(options)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"recipe-{options.name}.json", json.dumps(results, indent=1) + "\n")
    write_text(out / f"recipe-{options.name}.md", titled(options.name, results))
    draw(out)
    sys.stdout.write(table(results))


if __name__ == "__main__":
    options = parse(Options, sys.argv[1:], "python -m reproduction.recipe_study")
    if options is not None:
        main(options)
