"""The main job on embedded data: train, evaluate, ablate every expert, rewrite experts for a minority, report.

Backbone and images come from package registries alone. Everything is measured anew at each run; the sentences say
what was found, also when an effect is not there.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mumoe.analysis.findings import Specialization, UnitStudy
from mumoe.analysis.hints import specialization_hint
from mumoe.analysis.layer_study import study_layer, write_coefficients
from mumoe.data import load_data
from mumoe.data.base import ImageData
from mumoe.demo.bias_bench import FeatureBench
from mumoe.demo.bias_heads import Settings
from mumoe.demo.planted_bias import planted_style
from mumoe.devices import AUTO, resolve
from mumoe.editing.subgroup_fairness import FairnessReport
from mumoe.errors import UserError
from mumoe.files import write_json
from mumoe.layers import MuMoE
from mumoe.models.backbones import create_backbone
from mumoe.models.features import extract_features
from mumoe.plots.effects import EffectRow, effects_figure
from mumoe.plots.expert_sheet import write_grid
from mumoe.plots.style import save_figure
from mumoe.progress import Progress
from mumoe.records import to_plain
from mumoe.reports.rendering import write_demo_page
from mumoe.training import StoredRun, train
from mumoe.training.config import from_mapping

__all__ = ["DemoSettings", "run_demo"]

MARK = "demo.json"
GROUP, STUDIO = "Animals & Nature", "OpenMoji"


@dataclass(frozen=True)
class DemoSettings:
    """What the demo trains.

    Attributes:
        few, many: Numbers of experts that are compared.
        rank: CP rank.
        seeds: Seeds of every head.
        epochs: Passes over the training split, as in the presets.
        bias_epochs: The same of the bias experiment, whose heads have the preset specialized (docs/results/bias).
        size: Side of the images in pixels.
        least_lost: Right answers that a class must lose, besides half of its own, for an expert to be strong.
        device: Where features are extracted and heads are trained.
    """

    few: int = 8
    many: int = 128
    rank: int = 256
    seeds: int = 3
    epochs: int = 30
    bias_epochs: int = 30
    size: int = 96
    least_lost: int = 5
    device: str = AUTO

    def spec(self, experts: int) -> str:
        """Specification of the head with so many experts."""
        return f"CPMuMoE-r{self.rank}-e{experts}"


@dataclass(frozen=True)
class _Set:
    """The images and their features, and the same images split by character, for the bias experiment."""

    data: ImageData
    by_character: ImageData
    features: Any
    backbone: Any = None

    def batches(self, split: str, head: Any) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self.data.indices(split)  # type: ignore[arg-type]
        for part in np.array_split(rows, max(1, len(rows) // 1024)):
            with torch.no_grad():
                yield head.prepare(torch.from_numpy(self.features[part])), torch.from_numpy(self.data.labels[part])


def run_demo(
    out: str | Path = "runs/demo", *, settings: DemoSettings | None = None, progress: bool = True
) -> tuple[list[str], Path]:
    """Run everything; returns what was found, in sentences, and the report's path.

    Args:
        out: Folder to write; the folder of an earlier demo is replaced.
        settings: What to train.
        progress: Whether to show progress.

    Raises:
        UserError: If the folder holds something else than a demo.
        JobError: If the images cannot be fetched or a job fails.
    """
    settings, out, start = settings or DemoSettings(), Path(out), time.monotonic()
    _clear(out)
    found = _load(settings, progress)
    numbers: dict[str, Any] = {"settings": to_plain(settings), "images": len(found.data)}
    numbers["classes"] = len(found.data.classes)
    accuracy = _train_all(settings, out, found, progress)
    numbers["accuracy"] = accuracy
    numbers["polysemanticity"] = _ablate_all(settings, out, found, progress)
    numbers["rewriting"] = _rewrite(settings, found, progress)
    numbers["seconds"] = round(time.monotonic() - start, 1)
    lines = _sentences(settings, numbers)
    write_json(out / "metrics.json", {**numbers, "found": lines})
    return lines, write_demo_page(out, lines, numbers, found.data.credits)


def _clear(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise UserError(f"demo: expected a new folder or that of an earlier demo, got {out}. Give another `out`.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text(json.dumps({"made_by": "mumoe demo"}) + "\n")


def _load(settings: DemoSettings, progress: bool) -> _Set:
    data = load_data("emoji", split_by="image", size=settings.size, progress=progress)
    by_character = load_data("emoji", split_by="character", size=settings.size, progress=progress)
    assert by_character.ids == data.ids
    backbone = create_backbone("efficientnet-lite0", image_size=settings.size)
    device = resolve(settings.device, who="demo")
    features = extract_features(data, backbone, device=device, progress=progress).x
    return _Set(data, by_character, features, backbone)


# Training ------------------------------------------------------------------------------------------------------


def _jobs(settings: DemoSettings) -> dict[str, dict[str, Any]]:
    """Name -> what differs from one job to the next; docs/results/heads measures the presets."""
    few, many = settings.spec(settings.few), settings.spec(settings.many)
    return {
        "linear": {"head": "linear", "preset": "accurate"},
        "accurate": {"head": many, "preset": "accurate"},
        "few": {"head": few, "preset": "specialized"},
        "many": {"head": many, "preset": "specialized"},
    }


def _train_all(settings: DemoSettings, out: Path, found: _Set, progress: bool) -> dict[str, list[float]]:
    """Test accuracy of every job, one number a seed."""
    shared = {
        "data": "emoji",
        "data_options": ("split_by=image", f"size={settings.size}"),
        "image_size": settings.size,
        "device": settings.device,
        "epochs": settings.epochs,
        "eval_every": 0,
        "keep": 1,
    }
    accuracy: dict[str, list[float]] = {}
    jobs = _jobs(settings)
    with Progress("Training heads", len(jobs) * settings.seeds, enabled=progress) as bar:
        for name, values in jobs.items():
            accuracy[name] = []
            for seed in range(settings.seeds):
                run = {"seed": seed, "out": str(out / name / f"seed-{seed}")}
                config = from_mapping({**shared, **values, **run}, "demo").of_head(values["head"])
                held: dict[str, Any] = {"data": found.data, "backbone": found.backbone, "features": found.features}
                result = train(config, **held, progress=False)
                accuracy[name].append(result.runs[0].evaluations["test"].accuracy)
                bar.advance(note=f"{values['head']}, accuracy {accuracy[name][-1]:.3f}")
    return accuracy


# Ablation ------------------------------------------------------------------------------------------------------


def _ablate_all(settings: DemoSettings, out: Path, found: _Set, progress: bool) -> dict[str, list[dict[str, Any]]]:
    """Specialization of the heads of few and of many experts, one entry a seed; figures of the first seed."""
    result: dict[str, list[dict[str, Any]]] = {"few": [], "many": []}
    shown: list[EffectRow] = []
    with Progress("Ablating every expert", 2 * settings.seeds, enabled=progress) as bar:
        for name in result:
            for seed in range(settings.seeds):
                units = _specialization(out / name / f"seed-{seed}", found, settings)
                special = units.modes["zero"]
                result[name].append({**_summary(special), "control": _summary(units.load_control)})
                if seed == 0:
                    shown.append(EffectRow(f"{special.units} experts", special.effects))
                bar.advance()
    title = "What each class loses when one expert is ablated"
    save_figure(effects_figure(shown, found.data.classes, title=title), out / "ablation", result)
    _draw_images(out, found)
    return result


def _specialization(run: Path, found: _Set, settings: DemoSettings) -> UnitStudy:
    head = StoredRun(run, device="cpu").head
    batches = functools.partial(found.batches, "test", head)
    studied = study_layer(head.layer, batches, resamples=200, least_lost=settings.least_lost)
    return studied.units[0]


def _summary(special: Specialization) -> dict[str, Any]:
    names = ("units", "with_effect", "strong", "accuracy", "mean_polysemanticity", "mean_polysemanticity_strong")
    return {name: getattr(special, name) for name in (*names, "least_lost", "strong_images")}


def _draw_images(out: Path, found: _Set) -> None:
    head = StoredRun(out / "many" / "seed-0", device="cpu").head
    layer = head.layer
    assert isinstance(layer, MuMoE)
    rows = found.data.indices("test")
    store = write_coefficients(layer, lambda: found.batches("test", head), out / "coefficients", images=rows)
    write_grid(out / "images", store.level(), found.data, rows, most_experts=8, each=6, size=72)


# Rewriting -----------------------------------------------------------------------------------------------------


def _rewrite(settings: DemoSettings, found: _Set, progress: bool) -> list[dict[str, Any]]:
    """Accuracy of the minority and overall, before and after, one entry a seed."""
    bias = planted_style(found.by_character, found.features)
    head = settings.spec(settings.many)
    entries: list[dict[str, Any]] = []
    with Progress("Rewriting experts for a minority", settings.seeds, enabled=progress) as bar:
        for seed in range(settings.seeds):
            bench = FeatureBench(bias, seed, Settings.of_preset("specialized", epochs=settings.bias_epochs))
            bench.add(head, bench.train(head), base=True)
            result = bench.correct()
            picked = {"before": head, "experts": "+ experts matched", "blind": "+ blind matched"}
            fairness = {name: _fairness(result.reports[method]) for name, method in picked.items()}
            entries.append({**fairness, "support": result.support})
            bar.advance()
    return entries


def _fairness(report: FairnessReport) -> dict[str, float]:
    names = {"target": "target_accuracy", "minimum": "min_accuracy", "accuracy": "accuracy", "score": "rewriting_score"}
    return {short: report.metrics[name].value for short, name in names.items() if name in report.metrics}


# Words ---------------------------------------------------------------------------------------------------------


def _spread(values: list[float], digits: int = 3) -> str:
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def _sentences(settings: DemoSettings, numbers: Mapping[str, Any]) -> list[str]:
    """Ten lines of what was found."""
    return [*_about_accuracy(settings, numbers), *_about_experts(settings, numbers), *_about_bias(numbers)]


def _about_accuracy(settings: DemoSettings, numbers: Mapping[str, Any]) -> list[str]:
    accuracy = numbers["accuracy"]
    gap = [one - other for one, other in zip(accuracy["accurate"], accuracy["linear"], strict=True)]
    cost = [one - other for one, other in zip(accuracy["many"], accuracy["accurate"], strict=True)]
    clear = len(gap) > 1 and abs(mean(gap)) > 2 * stdev(gap)
    verdict = ("better than" if mean(gap) > 0 else "worse than") if clear else "as good as"
    return [
        f"Data: {numbers['images']:,} emoji by six studios in {numbers['classes']} classes, "
        "split at random (the same character drawn by another studio may be in training).",
        f"Numbers are of the test split, over {settings.seeds} seeds of weights and order, ± their standard deviation.",
        f"Accuracy: {settings.spec(settings.many)} {_spread(accuracy['accurate'])}, "
        f"linear {_spread(accuracy['linear'])}: the head of experts is {verdict} linear ({mean(gap):+.3f}).",
        f"With the preset specialized, whose experts matter more, accuracy is {_spread(accuracy['many'])} "
        f"({mean(cost):+.3f}), and {_spread(accuracy['few'])} with {settings.few} experts.",
    ]


def _about_experts(settings: DemoSettings, numbers: Mapping[str, Any]) -> list[str]:
    few, many = numbers["polysemanticity"]["few"], numbers["polysemanticity"]["many"]
    p_few = [entry["mean_polysemanticity"] for entry in few]
    p_many = [entry["mean_polysemanticity"] for entry in many]
    falls = max(p_many) < min(p_few)
    strong = [entry["mean_polysemanticity_strong"] for entry in many if entry["mean_polysemanticity_strong"]]
    purer = f"; their p is {_spread(strong, 2)}" if strong else ""
    return [
        f"Polysemanticity p (0: an expert answers for one class alone): {_spread(p_few, 2)} with {settings.few} "
        f"experts, {_spread(p_many, 2)} with {settings.many}: more experts are "
        + ("purer, as the paper says." if falls else "not clearly purer here."),
        f"Strong experts (some class loses half its right answers without them, at least {settings.least_lost}): "
        f"{_spread([entry['strong'] for entry in few], 1)} of {settings.few} and "
        f"{_spread([entry['strong'] for entry in many], 1)} of {settings.many}{purer}. The mean alone would mislead.",
        *_about_controls(settings, many),
    ]


def _about_controls(settings: DemoSettings, many: list[dict[str, Any]]) -> list[str]:
    """The head of many experts beside its control, means over seeds, and a hint where it is no better."""
    controls = [entry["control"] for entry in many]
    p, control_p = (_known_mean(entries, "mean_polysemanticity") for entries in (many, controls))
    strong, control_strong = (mean(entry["strong"] for entry in entries) for entries in (many, controls))
    shown = "none" if control_p is None else f"{control_p:.2f}"
    line = (
        f"Control, units of the same load made up of random contributions, {settings.many} of them: mean p {shown}, "
        f"{_spread([entry['strong'] for entry in controls], 1)} strong. The strong experts rest on "
        f"{_spread([entry['strong_images'] for entry in many], 1)} distinct images."
    )
    hint = specialization_hint(p, control_p, strong, control_strong)
    return [line, hint] if hint else [line]


def _known_mean(entries: list[dict[str, Any]], name: str) -> float | None:
    known = [entry[name] for entry in entries if entry[name] is not None]
    return mean(known) if known else None


def _about_bias(numbers: Mapping[str, Any]) -> list[str]:
    entries = numbers["rewriting"]

    def over(method: str, name: str) -> list[float]:
        return [entry[method][name] for entry in entries]

    scores, blind = over("experts", "score"), over("blind", "score")
    gains = [one - other for one, other in zip(scores, blind, strict=True)]
    verdict = f"rewriting experts is more precise in every seed ({mean(gains):+.3f})"
    if min(gains) <= 0:
        better = sum(gain > 0 for gain in gains)
        verdict = f"no clear gain from experts here (better in {better} of {len(gains)} seeds)"
    return [
        f"A minority: {GROUP} by {STUDIO}, cut to {entries[0]['support']} training images (split by character), is "
        f"recognized with accuracy {_spread(over('before', 'target'))}.",
        f"Rewriting its experts, without training (strength chosen on validation): "
        f"{_spread(over('experts', 'target'))}; overall accuracy {_spread(over('before', 'accuracy'))} -> "
        f"{_spread(over('experts', 'accuracy'))}.",
        f"Rewriting score (what the minority gains minus what others move) {_spread(scores)}, against "
        f"{_spread(blind)} for shifting every image alike: {verdict}.",
        f"All this took {numbers['seconds']:.0f} seconds.",
    ]
