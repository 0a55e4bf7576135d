"""Accuracy of MuMoE heads against linear ones of as many parameters, on the embedded images.

    python -m reproduction.head_study --out docs/results/heads

Every head gets the same tuning effort: the same grid of learning rate and weight decay, judged on the validation
split of the first seed. Test labels are read once, by the chosen setting, over all seeds; each seed changes the
split and the initial weights. Finished runs are kept under ``--work`` and not trained again.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mumoe
from mumoe.data import ImageData, load_data
from mumoe.files import write_text
from mumoe.models import create_backbone
from mumoe.models.features import extract_features
from mumoe.models.heads import matched_spec
from mumoe.parsing import parse
from mumoe.progress import Progress
from mumoe.results import RunResult
from reproduction.networks import spread_text

__all__ = ["Options", "compare_heads"]

PARTNERS = ("linear", "highrank-linear", "TRMuMoE", "TTMuMoE", "TuckerMuMoE")


@dataclass(frozen=True)
class Options:
    """Compare heads at equal parameters on emoji."""

    out: str = "docs/results/heads"
    """folder of the table and its numbers"""
    work: str = "runs/heads"
    """folder of the runs"""
    head: str = "CPMuMoE-r256-e128"
    """head whose parameters the others match"""
    split: Literal["image", "character", "studio"] = "image"
    """how images are split"""
    seeds: int = 3
    """seeds, each with its own split and initial weights"""
    epochs: int = 20
    """passes over the training split"""
    lr: tuple[float, ...] = (1e-3, 3e-3)
    """learning rates tried"""
    weight_decay: tuple[float, ...] = (0.01, 0.3, 1.0)
    """weight decays tried"""
    size: int = 96
    """side of the images in pixels"""


def compare_heads(options: Options, *, progress: bool = True) -> dict[str, Any]:
    """Choose each head's setting on validation, then test it over the seeds.

    Returns a JSON-able dict: per head its specification, parameters, chosen setting, the validation accuracy of
    every setting tried, and test accuracies; and the paired differences to the linear head.
    """
    sets = [load_data("emoji", split_by=options.split, split_seed=s, size=options.size) for s in range(options.seeds)]
    backbone = create_backbone("efficientnet-lite0", image_size=options.size)
    features = extract_features(sets[0], backbone, progress=progress).x
    classes = len(sets[0].classes)
    heads = [options.head, *(matched_spec(name, options.head, features.shape[1], classes) for name in PARTNERS)]
    grid = list(itertools.product(options.lr, options.weight_decay))
    results: dict[str, Any] = {}
    with Progress("Heads", len(heads) * (len(grid) + options.seeds - 1), enabled=progress) as bar:
        for head in heads:
            tried = {}
            for lr, decay in grid:
                tried[lr, decay] = _train(options, head, lr, decay, 0, sets[0], features)
                bar.advance(note=head)
            lr, decay = max(grid, key=lambda setting: tried[setting].evaluations["val"].accuracy)
            runs = [tried[lr, decay]]
            for seed in range(1, options.seeds):
                runs.append(_train(options, head, lr, decay, seed, sets[seed], features))
                bar.advance(note=head)
            results[head] = _entry(runs, lr, decay, tried)
    return {"split": options.split, "classes": classes, "images": len(sets[0]), "heads": results}


def _train(
    options: Options, head: str, lr: float, decay: float, seed: int, data: ImageData, features: Any
) -> RunResult:
    out = Path(options.work) / options.split / f"{head}-lr{lr:g}-wd{decay:g}" / f"seed-{seed}"
    given: dict[str, Any] = {"data": data, "features": features, "progress": False}
    if (out / "config.toml").is_file():
        return mumoe.resume(out, **given).result.runs[0]
    job = mumoe.train(
        **given,
        preset="plain",
        data_options=(f"split_by={options.split}", f"size={options.size}"),
        split_seed=seed,
        image_size=options.size,
        head=head,
        lr=lr,
        weight_decay=decay,
        epochs=options.epochs,
        seed=seed,
        eval_every=0,
        keep=1,
        out=str(out),
    )
    return job.result.runs[0]


def _entry(
    runs: Sequence[RunResult], lr: float, decay: float, tried: Mapping[tuple[float, float], RunResult]
) -> dict[str, Any]:
    return {
        "parameters": runs[0].parameters,
        "lr": lr,
        "weight_decay": decay,
        "validation": {f"lr {lr:g}, wd {wd:g}": run.evaluations["val"].accuracy for (lr, wd), run in tried.items()},
        "test": [run.evaluations["test"].accuracy for run in runs],
        "seconds": [run.seconds for run in runs],
    }


def table(results: Mapping[str, Any]) -> str:
    """The results as a markdown table, differences paired by seed."""
    linear = results["heads"]["linear"]["test"]
    rows = ["| head | parameters | lr | weight decay | test accuracy | minus linear |", "|---|--:|--:|--:|--:|--:|"]
    for head, entry in results["heads"].items():
        gaps = [one - other for one, other in zip(entry["test"], linear, strict=True)]
        cells = (head, f"{entry['parameters']:,}", f"{entry['lr']:g}", f"{entry['weight_decay']:g}")
        gap = "" if head == "linear" else spread_text(gaps, "+.3f")
        rows.append(f"| {' | '.join(cells)} | {spread_text(entry['test'], '.3f')} | {gap} |")
    return "\n".join(rows) + "\n"


def main(options: Options) -> None:
    """Run the study."""
    results = compare_heads(options)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{options.split}.json", json.dumps(results, indent=1) + "\n")
    write_text(out / f"{options.split}.md", table(results))
    sys.stdout.write(table(results))


if __name__ == "__main__":
    options = parse(Options, sys.argv[1:], "python -m reproduction.head_study")
    if options is not None:
        main(options)
