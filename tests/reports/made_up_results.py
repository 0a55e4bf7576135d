"""A run's folder written by hand: results of as many experts as wanted, and no training."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from mumoe.analysis.class_effects import Answers, Changes, shuffle_units, specialization
from mumoe.analysis.coefficient_store import CoefficientStore, CoefficientWriter
from mumoe.data.base import ImageData
from mumoe.files import write_json
from mumoe.records import to_plain
from mumoe.reports.gathering import gather
from mumoe.results import EvalResult, RunResult
from mumoe.training.config import TrainConfig, to_toml
from mumoe.training.opening import StoredRun
from mumoe.training.run import find_run

COLOURS = ("#d33", "#3a3", "#33d", "#999", "#111", "#e90", "#80c", "#0aa")


def gathered(path, data=None, most_images=20):
    """What is known of the runs in a folder, one view for each head."""
    runs = [StoredRun(run.path, progress=False) for run in find_run(path)]
    return gather(runs, name=path.name, path=path, data=data, most_images=most_images)


def open_image(index):
    side = 40 + index % 7
    picture = Image.new("RGB", (side, 48), COLOURS[index % len(COLOURS)])
    picture.paste("#fff", (index % 30, 8, index % 30 + 8, 20))
    return picture


def made_up_data(images, classes, name="made-up"):
    """Images of single-label classes, all of them in the test split."""
    return ImageData(
        name=name,
        classes=tuple(classes),
        multi_label=False,
        labels=np.arange(images) % len(classes),
        split=np.full(images, 2, dtype=np.int8),
        ids=tuple(f"{index}.png" for index in range(images)),
        open_image=open_image,
        fingerprint=f"f{images}{len(classes)}",
        credits=("Made up by nobody, CC0.",),
    )


def write_run(folder, data, *, experts=16, seed=0, head="", width=64, focused=0.0):
    """A finished, analyzed run; a share `focused` of the images goes to one expert for each class."""
    rng = np.random.default_rng(seed)
    head = head or f"CPMuMoE-r8-e{experts}"
    folder.mkdir(parents=True)
    config = TrainConfig(data=data.name, head=head, seed=seed, epochs=4)
    (folder / "config.toml").write_text(to_toml(config))
    right = rng.random(len(data)) < 0.8
    rows = [{"step": s, "epoch": s / 2, "loss": 2.0 / s, "lr": 0.01} for s in range(1, 9)]
    rows += [{"step": s, "epoch": s / 2, "val_loss": 2.5 / s, "val_accuracy": 0.1 * s} for s in (4, 8)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "run.json", _facts(data, config, right, width, str(folder)))
    _write_analysis(folder / "analysis", data, right, experts, head, seed, rng, focused)
    return folder


def _facts(data, config, right, width, path):
    labels = data.labels
    shares = {name: float(right[labels == c].mean()) for c, name in enumerate(data.classes)}
    counts = {name: int((labels == c).sum()) for c, name in enumerate(data.classes)}
    test = EvalResult(path, "test", 8, len(data), 0.7, float(right.mean()), shares, counts)
    result = RunResult(path, config.head, config.seed, 1234, 8, 12.5, {"test": test})
    return {
        "state": "finished",
        "versions": {"mumoe": "0"},
        "commit": None,
        "seed": config.seed,
        "head": config.head,
        "parameters": 1234,
        "data": {"name": data.name, "fingerprint": data.fingerprint, "images": len(data)},
        "credits": list(data.credits),
        "classes": list(data.classes),
        "multi_label": False,
        "num_features": width,
        "started": "2026-01-01T00:00:00Z",
        "result": to_plain(result),
    }


def _write_analysis(folder, data, right, experts, head, seed, rng, focused):
    store = _coefficients(folder / "coefficients", data, experts, rng, focused)
    table = store.level()
    block = next(table.blocks(len(table.experts)))
    lost = rng.random(len(block.row)) < block.value * (0.5 + focused / 2)
    lost &= right[block.row] | (rng.random(len(block.row)) < 0.3)
    image, unit = block.row[lost], block.expert[lost]
    changes = Changes(image, unit, data.labels[image], np.where(right[image], -1, 1), experts)
    answers = Answers(data.labels, right, len(data.classes))
    usage = table.usage()
    unit_study = {
        "units": "experts",
        "modes": {"zero": specialization(answers, changes, resamples=20)},
        "load_control": specialization(answers, shuffle_units(changes, usage.touched)),
        "load": usage.touched,
        "silent": 0,
        "rechecked": 0,
    }
    study = {"usage": [usage], "units": [unit_study], "combinations": []}
    content = {"classes": data.classes, "seed": seed, "folder": "", "split": "test", "head": head, "study": study}
    write_json(folder / "analysis.json", {**content, "experts_skipped": 0})
    near = [[[(n + k) % experts, 0.9 / k] for k in (1, 2, 3)] for n in range(experts)]
    write_json(folder / "neighbours.json", {"levels": [{"by_weight": near, "by_coefficient": near}]})


def _coefficients(folder, data, experts, rng, focused):
    """Two experts for each image, of which the first processes it."""
    a = np.zeros((len(data), experts), dtype=np.float32)
    rows = np.arange(len(data))
    strength = rng.uniform(0.5, 1.0, len(data)).astype(np.float32)
    first = rows % max(experts - 1, 1)
    if focused:
        first = np.where(rng.random(len(data)) < focused, data.labels, first)
    a[rows, first] = strength
    a[rows, (first + 1) % max(experts - 1, 1)] += 1 - strength
    with CoefficientWriter(folder, {"layer": (experts,)}, images=rows) as writer:
        for start in range(0, len(data), 4096):
            writer.append("layer", [a[start : start + 4096]])
    return CoefficientStore(folder)
