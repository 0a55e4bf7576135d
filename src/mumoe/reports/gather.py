"""Everything that is known of a run, gathered from what training, analysis and editing wrote into its folder.

Nothing is computed here that another room offers, and nothing fails because a part is missing: the part is named,
with the command that would make it. The report and the dashboard both stand on what this returns.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mumoe.costs import spec_costs
from mumoe.data.base import ImageData
from mumoe.errors import JobError, UserError
from mumoe.reports.corrections import read_edits, read_fairness
from mumoe.reports.experts import Analyzed, read_analysis, read_experts, specialized
from mumoe.reports.views import CostRow, Curve, HeadFacts, Missing, RunFacts, RunView, SeedView
from mumoe.results import EvalResult, Spread
from mumoe.training.compare import spread
from mumoe.training.config import TrainConfig
from mumoe.training.run import RunFolder, find_run

__all__ = ["gather", "gather_run", "open_images", "read_curves"]

FEATURES = "features:"

CURVES = {
    "loss": "training loss (nats)",
    "val_loss": "validation loss (nats)",
    "val_accuracy": "validation accuracy",
    "lr": "learning rate",
}
"""Keys of metrics.jsonl that are drawn, and what they are."""


def gather(
    path: str | Path, *, data: ImageData | None = None, most_images: int = 20, name: str = ""
) -> tuple[RunView, ...]:
    """What is known of the run at a path; a folder of several heads gives one view for each.

    Args:
        path: Folder of a run, or of several seeds or heads, as `mumoe train` made it.
        data: Its image set (see `open_images`); without it only images that the analysis drew are known.
        most_images: Images of each expert and kind.
        name: Name of the run; by default that of its folder.

    Raises:
        UserError: If there is no run, or a file of it is damaged.
        JobError: If a run.json is damaged.
    """
    by_head: dict[str, list[RunFolder]] = {}
    for run in find_run(path):
        by_head.setdefault(run.config().head, []).append(run)
    title = name or Path(path).resolve().name
    return tuple(
        _view(f"{title}: {head}" if len(by_head) > 1 else title, Path(path), runs, data, most_images)
        for head, runs in by_head.items()
    )


def gather_run(path: str | Path, *, data: ImageData | None = None, most_images: int = 20) -> RunView:
    """The only head of a folder.

    Raises:
        UserError: If it holds several, or as `gather`.
    """
    views = gather(path, data=data, most_images=most_images)
    if len(views) > 1:
        names = ", ".join(view.head.spec for view in views[:4])
        raise UserError(f"{path}: expected runs of one head, got {len(views)} ({names}). Name the folder of one.")
    return views[0]


def open_images(path: str | Path, *, progress: bool = False) -> ImageData | Missing:
    """The image set of a run, or why it cannot be had; nothing is downloaded that is not there."""
    run = find_run(path)[0]
    config = run.config()
    if config.data.startswith(FEATURES):
        return Missing("images", "The run was trained on features computed elsewhere: there are no images.")
    try:
        data = _load(config, progress)
    except (UserError, JobError, OSError) as error:
        return Missing("images", f"The image set could not be opened: {error}")
    if data.fingerprint != run.facts()["data"]["fingerprint"]:
        return Missing("images", "The image set has changed since the run was trained: its images are not shown.")
    return data


def _load(config: TrainConfig, progress: bool) -> ImageData:
    from mumoe.training.inputs import load_images

    return load_images(config.replace(download=False), progress)


# One head ------------------------------------------------------------------------------------------------------


def _view(name: str, path: Path, runs: Sequence[RunFolder], data: ImageData | None, most_images: int) -> RunView:
    facts = [run.facts() for run in runs]
    config = runs[0].config()
    seeds = tuple(_seed(run, found) for run, found in zip(runs, facts, strict=True))
    seeds = tuple(sorted(seeds, key=lambda seed: seed.seed))
    shown = next((n for n, seed in enumerate(seeds) if seed.specialized is not None), 0)
    run_facts = _facts(facts[0], config)
    head, costs, missing = _head(facts[0], config)
    seed = seeds[shown]
    experts = _experts(seed, head, data, most_images, run_facts)
    edits, no_edits = read_edits(Path(seed.path))
    if not edits and not (head.gate and head.position == "final"):
        no_edits = (Missing("edits", "Only experts that make the logits can be edited: this head has none."),)
    fairness, no_fairness = read_fairness(Path(seed.path), run_facts.multi_label)
    return RunView(
        name=name,
        path=str(path),
        facts=run_facts,
        head=head,
        seeds=seeds,
        shown=shown,
        accuracy=_accuracy(seeds),
        polysemanticity=_spread(seed.specialized.mean_polysemanticity for seed in seeds if seed.specialized),
        strong=_spread(seed.specialized.strong for seed in seeds if seed.specialized),
        polysemanticity_strong=_spread(
            seed.specialized.mean_polysemanticity_strong for seed in seeds if seed.specialized
        ),
        split=experts.split,
        levels=experts.levels,
        combinations=experts.combinations,
        edits=edits,
        fairness=fairness,
        costs=costs,
        missing=(*missing, *_unfinished(seeds), *experts.missing, *no_edits, *no_fairness),
    )


def _experts(seed: SeedView, head: HeadFacts, data: ImageData | None, most: int, facts: RunFacts) -> Analyzed:
    return read_experts(
        Path(seed.path),
        data=data,
        most_images=most,
        evaluations=seed.evaluations,
        has_experts=head.kind != "linear",
        has_images=bool(facts.backbone),
        multi_label=facts.multi_label,
    )


def _spread(values: Iterable[float | None]) -> Spread | None:
    known = [float(value) for value in values if value is not None]
    return spread(known) if known else None


def _accuracy(seeds: Sequence[SeedView]) -> dict[str, Spread]:
    splits = dict.fromkeys(split for seed in seeds for split in seed.evaluations)
    return {
        split: spread([seed.evaluations[split].accuracy for seed in seeds if split in seed.evaluations])
        for split in splits
    }


def _unfinished(seeds: Sequence[SeedView]) -> list[Missing]:
    return [
        Missing(
            "evaluation",
            f"Seed {seed.seed} is {seed.state}: it has no result yet.",
            f"mumoe train --resume {seed.path}",
        )
        for seed in seeds
        if not seed.evaluations
    ]


def _facts(facts: Mapping[str, Any], config: TrainConfig) -> RunFacts:
    sections: dict[str, dict[str, Any]] = {}
    for item in dataclasses.fields(config):
        if item.name not in ("out", "cache_dir"):
            sections.setdefault(item.metadata["section"], {})[item.name] = getattr(config, item.name)
    return RunFacts(
        data=facts["data"]["name"],
        fingerprint=facts["data"]["fingerprint"],
        images=facts["data"]["images"],
        classes=tuple(facts["classes"]),
        multi_label=bool(facts["multi_label"]),
        num_features=int(facts["num_features"]),
        backbone="" if config.data.startswith(FEATURES) else config.backbone,
        mode=config.mode,
        image_size=config.image_size,
        credits=tuple(facts.get("credits", ())),
        settings=sections,
        versions=dict(facts.get("versions", {})),
        commit=facts.get("commit") or "",
    )


def _head(facts: Mapping[str, Any], config: TrainConfig) -> tuple[HeadFacts, tuple[CostRow, ...], list[Missing]]:
    width, classes = int(facts["num_features"]), len(facts["classes"])
    out = width if config.position == "penultimate" else classes
    try:
        own = spec_costs(config.head, width, out)
    except UserError as error:
        head = HeadFacts(config.head, "unknown", (), "", "", config.position, width, out)
        return head, (), [Missing("costs", f"The cost of this head is not known: {error}")]
    gated = own.kind not in ("linear", "highrank-linear", "sparse-moe")
    gate, norm = (config.gate, config.norm) if gated else ("", "")
    head = HeadFacts(config.head, own.kind, own.num_experts, gate, norm, config.position, width, out)
    return head, _costs(config.head, own.num_experts, width, out), []


def _costs(spec: str, experts: Sequence[int], width: int, out: int) -> tuple[CostRow, ...]:
    """This head, a linear layer, and a dense mixture of the same experts."""
    named = {"this head": spec, "linear": "linear"}
    if experts:
        named["dense, the same experts"] = f"DenseMuMoE-e{'x'.join(map(str, experts))}"
    rows = {name: (text, spec_costs(text, width, out)) for name, text in named.items()}
    found = tuple(CostRow(name, text, cost.parameters, cost.flops) for name, (text, cost) in rows.items())
    return found[:1] if spec == "linear" else found


# One seed ------------------------------------------------------------------------------------------------------


def _seed(run: RunFolder, facts: Mapping[str, Any]) -> SeedView:
    result = facts.get("result") or {}
    analysis = read_analysis(run.path)
    unit = analysis["study"]["units"][0] if analysis else None
    return SeedView(
        path=str(run.path),
        seed=int(facts["seed"]),
        state=str(facts["state"]),
        started=str(facts.get("started", "")),
        seconds=result.get("seconds"),
        step=result.get("step"),
        parameters=facts.get("parameters"),
        evaluations={split: EvalResult(**values) for split, values in result.get("evaluations", {}).items()},
        curves=read_curves(run.metrics),
        specialized=specialized(unit["modes"]["zero"]) if unit else None,
        control=specialized(unit["load_control"]) if unit else None,
        analysis_split=str(analysis["split"]) if analysis else None,
    )


def read_curves(path: Path) -> tuple[Curve, ...]:
    """The lines of a training log that are drawn; a last line cut short is left out, a missing log has none."""
    points: dict[str, list[tuple[int, float, float]]] = {name: [] for name in CURVES}
    for row in _rows(path):
        for name, found in points.items():
            value = row.get(name)
            if isinstance(value, int | float) and "step" in row:
                found.append((int(row["step"]), float(row.get("epoch", 0)), float(value)))
    return tuple(Curve(name, CURVES[name], tuple(found)) for name, found in points.items() if found)


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
