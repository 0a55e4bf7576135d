"""The main job on embedded data: train, evaluate, ablate every expert, rewrite experts for a minority, report.

Backbone and images come from package registries alone. Everything is measured at each run; the sentences report
the results, also where there is no effect (`mumoe.demo.demo_findings`).
"""

from __future__ import annotations

import functools
import shutil
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mumoe.analysis.analyzing import analyze_run
from mumoe.analysis.findings import Specialization, UnitStudy
from mumoe.analysis.interventions import intervene
from mumoe.analysis.layer_study import study_layer
from mumoe.analysis.study import Study
from mumoe.data import load_data
from mumoe.data.base import ImageData
from mumoe.demo.bias_bench import FeatureBench
from mumoe.demo.bias_heads import Settings
from mumoe.demo.demo_findings import DemoFindings, describe
from mumoe.demo.demo_page import CARD, write_card, write_demo_page
from mumoe.demo.demo_settings import DemoSettings
from mumoe.demo.planted_bias import planted_style
from mumoe.demo.strips import CONTROL, Strip, choose_strips
from mumoe.devices import resolve
from mumoe.editing.subgroup_fairness import FairnessReport
from mumoe.errors import UserError
from mumoe.files import holds_files, make_folder, write_json
from mumoe.models.backbones import create_backbone
from mumoe.models.features import extract_features
from mumoe.plots.effects import EffectRow, effects_figure
from mumoe.plots.style import save_figure
from mumoe.progress import Progress
from mumoe.records import to_plain
from mumoe.training import StoredRun, train
from mumoe.training.config import from_mapping

__all__ = ["Demo", "DemoSettings", "run_demo"]

RESAMPLES = 200
"""Bootstrap resamples of the run that is analyzed."""

MARK = "demo.json"


@dataclass(frozen=True)
class Demo:
    """A finished demo.

    Attributes:
        out: Its folder.
        page: Its page.
        found: Its results.
        expert: The purest strong expert of the run that is opened next, or a typical one; None if none has an effect.
        seconds: Time that it took.
    """

    out: Path
    page: Path
    found: DemoFindings
    expert: int | None
    seconds: float

    def lines(self) -> list[str]:
        """What was done, what came out and what to open, for the terminal."""
        found, many = self.found, self.out / "many" / "seed-0"
        took = f"All of it took {self.seconds:.0f} seconds."
        lines = ["What was done", *_indented([found.about, found.method, took])]
        for part in found.sections:
            lines += ["", part.title, *_indented(part.sentences)]
        opened = {
            str(self.page): "all of this on one page, and as a picture to share: " + str(self.out / CARD),
            f"mumoe dashboard {many} --split test": look_at(self.expert),
            f"mumoe report {self.out / 'many'} {self.out / 'linear'} -o {self.out / 'pages'}": "a page for each expert",
        }
        return [
            *lines,
            "",
            "What to open",
            *(line for command, why in opened.items() for line in _opened(command, why)),
        ]


def look_at(expert: int | None) -> str:
    """What to do first in the dashboard."""
    first = "" if expert is None else f"open expert {expert}, switch it off, "
    return f"{first}or try a picture of your own" if first else "switch experts off, or try a picture of your own"


def _indented(sentences: Sequence[str]) -> list[str]:
    """Sentences as paragraphs of at most 100 characters a line."""
    return [
        line for text in sentences for line in textwrap.wrap(text, 100, initial_indent="  - ", subsequent_indent="    ")
    ]


def _opened(command: str, why: str) -> list[str]:
    return [f"  {command}", f"      {why}"]


@dataclass(frozen=True)
class _Set:
    """The images and their features, and the same images split by character, for the bias experiment."""

    data: ImageData
    by_character: ImageData
    features: Any
    backbone: Any = None

    def opened(self, run: Path) -> StoredRun:
        """A run of these images, which are not read again."""
        given: dict[str, Any] = {"data": self.data, "backbone": self.backbone, "features": self.features}
        return StoredRun(run, **given, device="cpu", progress=False)

    def batches(self, split: str, head: Any) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self.data.indices(split)  # type: ignore[arg-type]
        for part in np.array_split(rows, max(1, len(rows) // 1024)):
            with torch.no_grad():
                yield head.prepare(torch.from_numpy(self.features[part])), torch.from_numpy(self.data.labels[part])


def run_demo(out: str | Path = "runs/demo", *, settings: DemoSettings | None = None, progress: bool = True) -> Demo:
    """Run everything, and write it to a folder: runs, numbers, the card and the page.

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
    data = _load(settings, progress)
    numbers: dict[str, Any] = {"settings": to_plain(settings), "images": len(data.data)}
    numbers["classes"] = len(data.data.classes)
    numbers["accuracy"] = _train_all(settings, out, data, progress)
    numbers["polysemanticity"], strips = _ablate_all(settings, out, data, progress)
    numbers["rewriting"] = _rewrite(settings, data, progress)
    numbers["seconds"] = round(time.monotonic() - start, 1)
    found = describe(settings, numbers, strips)
    write_json(out / "metrics.json", {**numbers, "strips": strips, "found": found.sentences()})
    write_card(out, found, numbers, strips, data.data)
    expert = strips[0].unit if strips and strips[0].kind != CONTROL else None
    how = {"spec": settings.spec(settings.many), "look": f"{look_at(expert).capitalize()}:"}
    page = write_demo_page(out, found, numbers, strips, data.data, **how)
    return Demo(out, page, found, expert, numbers["seconds"])


def _clear(out: Path) -> None:
    if holds_files(out):
        if not (out / MARK).is_file():
            raise UserError(f"demo: expected a new folder or that of an earlier demo, got {out}. Give another `out`.")
        shutil.rmtree(out)
    make_folder(out, who="demo")
    write_json(out / MARK, {"made_by": "mumoe demo"})


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


def _ablate_all(
    settings: DemoSettings, out: Path, found: _Set, progress: bool
) -> tuple[dict[str, list[dict[str, Any]]], tuple[Strip, ...]]:
    """Specialization of the heads of few and of many experts, one entry a seed; the strips and figure of the first."""
    result: dict[str, list[dict[str, Any]]] = {"few": [], "many": []}
    shown: list[EffectRow] = []
    strips: tuple[Strip, ...] = ()
    with Progress("Ablating every expert", 2 * settings.seeds, enabled=progress) as bar:
        for name in result:
            for seed in range(settings.seeds):
                run = found.opened(out / name / f"seed-{seed}")
                first = name == "many" and seed == 0
                units = _analyzed(run, settings) if first else _studied(run, found, settings)
                strips = _strips(run, found, units) if first else strips
                special = units.modes["zero"]
                result[name].append({**_summary(special), "control": _summary(units.load_control)})
                if seed == 0:
                    shown.append(EffectRow(f"{special.units} experts", special.effects))
                bar.advance()
    title = "What each class loses when one expert is switched off"
    save_figure(effects_figure(shown, found.data.classes, title=title), out / "ablation", result)
    return result, strips


def _analyzed(run: StoredRun, settings: DemoSettings) -> UnitStudy:
    """The run that is opened next is analyzed as `mumoe analyze` does it."""
    study = analyze_run(run, resamples=RESAMPLES, least_lost=settings.least_lost)
    assert isinstance(study, Study)
    return study.units()


def _studied(run: StoredRun, found: _Set, settings: DemoSettings) -> UnitStudy:
    batches = functools.partial(found.batches, "test", run.head)
    return study_layer(run.head.layer, batches, resamples=0, least_lost=settings.least_lost).units[0]


def _strips(run: StoredRun, found: _Set, units: UnitStudy) -> tuple[Strip, ...]:
    interventions = intervene(run.head.layer, found.batches("test", run.head))
    return choose_strips(units, interventions, found.data.classes, found.data.indices("test"))


def _summary(special: Specialization) -> dict[str, Any]:
    names = ("units", "with_effect", "strong", "accuracy", "mean_polysemanticity", "mean_polysemanticity_strong")
    return {name: getattr(special, name) for name in (*names, "least_lost", "strong_images")}


# Rewriting -----------------------------------------------------------------------------------------------------


def _rewrite(settings: DemoSettings, found: _Set, progress: bool) -> list[dict[str, Any]]:
    """Accuracy of the minority and overall, before and after, one entry a seed."""
    bias = planted_style(found.by_character, found.features)
    head = settings.spec(settings.many)
    entries: list[dict[str, Any]] = []
    with Progress("Rewriting experts for a minority", settings.seeds, enabled=progress) as bar:
        for seed in range(settings.seeds):
            bench = FeatureBench(bias, seed, Settings(settings.bias_epochs, weight_decay=1.0, init="scaled"))
            bench.add(head, bench.train(head), base=True)
            result = bench.correct()
            picked = {"before": head, "experts": "+ experts matched", "blind": "+ blind matched"}
            fairness = {name: _fairness(result.reports[method]) for name, method in picked.items()}
            entries.append({**fairness, "support": result.support})
            bar.advance()
    return entries


def _fairness(report: FairnessReport) -> dict[str, float]:
    """Metrics, and the accuracy of each subgroup by its place beside the target."""
    names = {"minimum": "min_accuracy", "accuracy": "accuracy", "score": "rewriting_score"}
    found = {short: report.metrics[name].value for short, name in names.items() if name in report.metrics}
    label, studio = report.target.label, report.target.sensitive
    places = {(True, True): "target", (True, False): "same_label", (False, True): "same_studio", (False, False): "rest"}
    for group in report.subgroups:
        place = places[group.subgroup.label == label, group.subgroup.sensitive == studio]
        found[place] = group.accuracy.value
    return found
