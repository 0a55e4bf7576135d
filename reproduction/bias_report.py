"""Run the emoji experiments and keep their results: JSON with every seed, the paper's table, and figures.

    python -m reproduction.bias_report --experiment planted --out docs/results/bias

About four minutes a seed on one core without load, after the features (half a minute) are in the cache.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mumoe.data import ImageData
from mumoe.demo.bias_bench import CRITERIA, SeedResult
from mumoe.demo.bias_heads import Settings
from mumoe.demo.planted_bias import BiasSet, planted_style
from mumoe.editing.fairness_tables import fairness_table, subgroup_table
from mumoe.files import write_json, write_text
from mumoe.parsing import parse
from mumoe.plots.style import save_svg
from mumoe.plots.subgroup_accuracy import subgroup_figure
from mumoe.plots.tradeoff import trade_off_figure
from reproduction.bias import BiasResults, run_bias
from reproduction.bias_sets import CELEBA_EXPERIMENTS, celeba_bias, natural_skin_tone
from reproduction.page_plots import score_figure

__all__ = ["Options", "emoji_sets", "emoji_source", "write_report"]


@dataclass(frozen=True)
class Options:
    """Correct a planted or a natural bias on emoji by every method, over several seeds."""

    experiment: Literal["planted", "natural", "old-females-age", "blond-males-hair"] = "planted"
    """on emoji, planted: animals drawn by OpenMoji nearly absent from training; natural: women with dark skin;
    on CelebA, the paper's two"""
    root: str = ""
    """folder of CelebA in its official layout (empty: the user's data folder)"""
    backbone: str = "clip-b32"
    """backbone of the CelebA experiments, frozen; emoji use the embedded one"""
    weights: str = ""
    """safetensors file with that backbone's weights (empty: its pretrained ones)"""
    out: str = "runs/bias"
    """folder to write to"""
    seeds: int = 3
    """number of seeds; each changes split, cut and initialization"""
    head: str = "CPMuMoE-r256-e128"
    """the head to correct"""
    split_by: Literal["character", "image"] = "character"
    """keep a character's drawings in one split, or split drawings at random"""
    preset: str = "plain"
    """preset of mumoe train for what is not set here: initial weights, dropout, the term for specialization"""
    epochs: int = 20
    """of training, for every head"""
    lr: float = 3e-3
    """peak learning rate, for every head"""
    weight_decay: float = 1.0
    """of AdamW, for every head; 0.1, 1 and 3 differ by less than half a point of validation accuracy"""
    edits_only: bool = False
    """leave out the linear heads and the methods that train again"""
    image_size: int = 96
    """pixels of the drawings"""
    cache_dir: str = ""
    """where drawings and features are kept (empty: the user cache)"""


def celeba_sets(options: Options) -> Callable[[int], BiasSet]:
    """Seed to one of the paper's experiments: CelebA in its official split, for every seed."""
    from mumoe.data import load_data
    from mumoe.models import create_backbone
    from mumoe.models.features import extract_features

    cache = options.cache_dir or None
    data = load_data("celeba", root=options.root or None, cache_dir=cache)
    backbone = create_backbone(options.backbone, weights=options.weights or None)
    bias = celeba_bias(data, extract_features(data, backbone, cache_dir=cache).x, options.experiment)
    return lambda seed: bias


def emoji_sets(options: Options) -> Callable[[int], BiasSet]:
    """Seed to the experiment's data; images and features are read once."""
    load, features = emoji_source(options)
    make = natural_skin_tone if options.experiment == "natural" else planted_style
    return lambda seed: make(load(seed), features)


def emoji_source(options: Options) -> tuple[Callable[[int], ImageData], npt.NDArray[np.float32]]:
    """Seed to the emoji set in that split, and the features of its images, which no split changes."""
    from mumoe.data import load_data
    from mumoe.models import create_backbone
    from mumoe.models.features import extract_features

    natural, cache = options.experiment == "natural", options.cache_dir or None
    load = partial(
        load_data,
        "emoji",
        cache_dir=cache,
        label="group",
        min_per_class=1,
        skin_tones=natural,
        split_by=options.split_by,
        fractions=(0.6, 0.2, 0.2),
    )
    backbone = create_backbone("efficientnet-lite0", image_size=options.image_size, cache_dir=cache)
    features = extract_features(load(), backbone, cache_dir=cache).x
    return (lambda seed: load(split_seed=seed, progress=False)), features


def write_report(results: BiasResults, folder: str | Path) -> None:
    """Write NAME.json, NAME.md and two figures into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{results.name}.json", results.to_dict())
    write_text(folder / f"{results.name}.md", _page(results))
    settings = {"paper's fixed": "", "matched": " matched", "best worst group": " best worst group"}
    scores = {
        name: {method: results.reports[f"+ {method}{suffix}"] for method in ("experts", "blind")}
        for name, suffix in settings.items()
    }
    save_svg(score_figure(scores), folder / f"{results.name}-scores.svg")
    matched = results.reports["+ experts matched"]
    save_svg(subgroup_figure(matched, title="experts, matched"), folder / f"{results.name}-subgroups.svg")
    first: SeedResult = results.seeds[0]
    curves = {name: first.choices[f"+ {name}{CRITERIA['match']}"] for name in ("experts", "blind")}
    save_svg(trade_off_figure(curves), folder / f"{results.name}-trade-off.svg")


def _page(results: BiasResults) -> str:
    support = ", ".join(str(seed.support) for seed in results.seeds)
    target = results.seeds[0].reports[results.head].target
    difference = [
        seed.reports["+ experts matched"].metrics["rewriting_score"].value
        - seed.reports["+ blind matched"].metrics["rewriting_score"].value
        for seed in results.seeds
    ]
    lines = [
        f"# {results.name}",
        "",
        f"Target subgroup: label {target.label}, {target.sensitive}; {support} of its images in training (by seed). "
        f"Mean ± standard deviation over {len(results.seeds)} seeds, each with its own split, of test rows that were "
        "opened once, after every strength had been chosen on validation rows. No suffix: the paper's fixed strength "
        "(experts: N, blind: 2.5; retraining: the first of its grid).",
        "",
        fairness_table(results.reports, parameters=results.seeds[0].parameters),
        f"Matched, experts minus blind, re-writing score by seed: {', '.join(f'{x:+.3f}' for x in difference)} "
        f"(mean {sum(difference) / len(difference):+.3f}).",
        "",
        "Accuracy of subgroups (sizes of the first seed's test rows):",
        "",
        subgroup_table(_chosen(results, ["", " matched"])),
        f"Settings: {json.dumps(dict(results.settings))}, head {results.head}.",
        "",
        f"![re-writing scores]({results.name}-scores.svg)",
        "",
        f"![subgroups before and after]({results.name}-subgroups.svg)",
        "",
        f"![trade-off on validation rows, first seed]({results.name}-trade-off.svg)",
        "",
        "Images: " + "; ".join(results.facts) + ".",
    ]
    return "\n".join(lines) + "\n"


def _chosen(results: BiasResults, suffixes: Sequence[str]) -> dict[str, list]:  # type: ignore[type-arg]
    names = [results.head, *(f"+ {method}{suffix}" for method in ("blind", "experts") for suffix in suffixes)]
    return {name: results.reports[name] for name in names}


def main(options: Options) -> None:
    """Run seed by seed; finished seeds are on disk."""
    make = celeba_sets(options) if options.experiment in CELEBA_EXPERIMENTS else emoji_sets(options)
    settings = Settings(
        options.epochs,
        learning_rate=options.lr,
        weight_decay=options.weight_decay,
        preset=options.preset,
        progress=True,
    )
    compared: dict[str, Any] = {"retraining": (), "linear": False} if options.edits_only else {}
    done: list[SeedResult] = []
    for seed in range(options.seeds):
        found = run_bias(make, seeds=(seed,), head=options.head, settings=settings, **compared)
        done.append(found.seeds[0])
        write_report(dataclasses.replace(found, seeds=tuple(done)), options.out)
        sys.stderr.write(f"Seed {seed} is in {options.out}\n")


if __name__ == "__main__":
    options = parse(Options, sys.argv[1:], "python -m reproduction.bias_report")
    if options is not None:
        main(options)
