"""Everything that is known of runs, gathered from what training, analysis and editing wrote into their folders.

Nothing is computed here that another room offers, and nothing fails because a part is missing: the part is named,
with the command that would make it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mumoe.costs import spec_costs
from mumoe.data.base import ImageData
from mumoe.errors import JobError, UserError
from mumoe.plots.training_curves import TrainingCurve
from mumoe.reports.corrections import read_audits, read_edits, read_fairness
from mumoe.reports.expert_views import Analyzed, evaluations_of, read_experts, read_study
from mumoe.reports.generalization import read_shifts, read_stability
from mumoe.reports.views import CostRow, HeadFacts, Missing, RunFacts, RunView, SeedView
from mumoe.results import Spread
from mumoe.training.compare import spread
from mumoe.training.config import TrainConfig
from mumoe.training.inputs import load_images
from mumoe.training.metrics_log import read_metrics
from mumoe.training.opening import StoredRun

__all__ = ["gather", "open_images", "run_names"]

CURVES = {
    "loss": "training loss (nats)",
    "val_loss": "validation loss (nats)",
    "val_accuracy": "validation accuracy",
    "lr": "learning rate",
}
"""Keys of metrics.jsonl that are drawn, and what they are."""


def gather(
    runs: Sequence[StoredRun], *, name: str, path: str | Path, data: ImageData | None = None, most_images: int = 20
) -> tuple[RunView, ...]:
    """What is known of some runs, one view for each head.

    Args:
        runs: The runs, as `load_runs` opens those of a folder.
        name: What the pages call them.
        path: The folder that holds them.
        data: Their images (see `open_images`); without them only images that the analysis drew are known.
        most_images: Images of each expert and kind.

    Raises:
        UserError: If a file of a run is damaged.
    """
    by_head: dict[str, list[StoredRun]] = {}
    for run in runs:
        by_head.setdefault(run.config.head, []).append(run)
    several = len(by_head) > 1
    return tuple(
        _view(f"{name}: {head}" if several else name, str(path), some, data, most_images)
        for head, some in by_head.items()
    )


def run_names(paths: Sequence[str | Path]) -> list[str]:
    """The shortest end of each path that no other has; a folder named after a seed keeps its parent's name."""
    parts = [Path(path).resolve().parts for path in paths]
    names = []
    for own in parts:
        most = 2 if own[-1].startswith("seed-") and len(own) > 2 else 1
        while most < len(own) and sum(other[-most:] == own[-most:] for other in parts) > 1:
            most += 1
        names.append("/".join(own[-most:]))
    return names


def open_images(run: StoredRun) -> ImageData | Missing:
    """The images of a run, or why they are not shown; nothing is downloaded that is not there."""
    if run.on_feature_file:
        return Missing("images", "The run was trained on features computed elsewhere: there are no images.")
    try:
        data = run.data if run.has_data else load_images(run.config.replace(download=False), run.progress)
    except (UserError, JobError, OSError) as error:
        return Missing("images", f"The image set could not be opened: {error}")
    if data.fingerprint != run.facts["data"]["fingerprint"]:
        return Missing("images", "The image set has changed since the run was trained: its images are not shown.")
    found: ImageData = data
    return found


# One head ------------------------------------------------------------------------------------------------------


def _view(name: str, path: str, runs: Sequence[StoredRun], data: ImageData | None, most_images: int) -> RunView:
    pairs = sorted(((_seed(run), run) for run in runs), key=lambda pair: pair[0].seed)
    seeds = tuple(seed for seed, _ in pairs)
    shown = next((n for n, seed in enumerate(seeds) if seed.specialized is not None), 0)
    run = pairs[shown][1]
    head, costs, missing = _head(run)
    if head.kind == "linear":
        lack = Missing("analysis", "The head has neither experts nor neurons that could be ablated.")
        experts = Analyzed(missing=(lack,))
    else:
        experts = read_experts(run, data=data, most_images=most_images)
    edits, no_edits = read_edits(run.path)
    audits, no_audits = read_audits(run.path, bool(run.facts["multi_label"]))
    if not (head.gate and head.position == "final"):
        reason = "Only experts that make the logits can be {}: this head has none."
        no_edits = no_edits if edits else (Missing("edits", reason.format("edited")),)
        no_audits = no_audits if audits else (Missing("audit", reason.format("audited")),)
    fairness, no_fairness = read_fairness(run.path, bool(run.facts["multi_label"]))
    stability, unstable = read_stability(path, runs, head)
    analyzed = [seed.specialized for seed in seeds if seed.specialized]
    return RunView(
        name=name,
        path=path,
        facts=_facts(run),
        head=head,
        seeds=seeds,
        shown=shown,
        accuracy=_accuracy(seeds),
        polysemanticity=_spread(part.mean_polysemanticity for part in analyzed),
        strong=_spread(part.strong for part in analyzed),
        polysemanticity_strong=_spread(part.mean_polysemanticity_strong for part in analyzed),
        split=experts.split,
        levels=experts.levels,
        combinations=experts.combinations,
        occurrence=experts.occurrence,
        edits=edits,
        fairness=fairness,
        audits=audits,
        costs=costs,
        missing=(*missing, *_unfinished(seeds), *experts.missing, *no_edits, *no_fairness, *no_audits, *unstable),
        stability=stability,
        shifts=read_shifts(path, runs),
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


def _facts(run: StoredRun) -> RunFacts:
    facts, config = run.facts, run.folder.config()
    sections: dict[str, dict[str, Any]] = {}
    for item in dataclasses.fields(TrainConfig):
        if item.name not in ("out", "cache_dir"):
            sections.setdefault(item.metadata["section"], {})[item.name] = getattr(config, item.name)
    return RunFacts(
        data=facts["data"]["name"],
        fingerprint=facts["data"]["fingerprint"],
        images=facts["data"]["images"],
        classes=run.classes,
        multi_label=bool(facts["multi_label"]),
        num_features=int(facts["num_features"]),
        backbone="" if run.on_feature_file else config.backbone,
        mode=config.mode,
        image_size=config.image_size,
        credits=tuple(facts.get("credits", ())),
        settings=sections,
        versions=dict(facts.get("versions", {})),
        commit=facts.get("commit") or "",
    )


def _head(run: StoredRun) -> tuple[HeadFacts, tuple[CostRow, ...], list[Missing]]:
    config, width = run.config, int(run.facts["num_features"])
    out = width if config.position == "penultimate" else len(run.classes)
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


def _seed(run: StoredRun) -> SeedView:
    facts, study = run.facts, read_study(run.path)
    result, units = facts.get("result") or {}, study.units() if study else None
    return SeedView(
        path=str(run.path),
        seed=int(facts["seed"]),
        state=str(facts.get("state", "unknown")),
        started=str(facts.get("started", "")),
        seconds=result.get("seconds"),
        step=result.get("step"),
        parameters=facts.get("parameters"),
        evaluations=evaluations_of(facts),
        curves=_curves(run.folder.metrics),
        specialized=units.modes["zero"] if units else None,
        control=units.load_control if units else None,
        analysis_split=study.split if study else None,
    )


def _curves(path: Path) -> tuple[TrainingCurve, ...]:
    """The lines of a training log that are drawn; a last line cut short is left out, a missing log has none."""
    points: dict[str, list[tuple[int, float, float]]] = {name: [] for name in CURVES}
    for row in read_metrics(path):
        for name, found in points.items():
            step, epoch, value = row.get("step"), row.get("epoch", 0), row.get(name)
            if isinstance(step, int) and isinstance(epoch, int | float) and isinstance(value, int | float):
                found.append((step, float(epoch), float(value)))
    return tuple(TrainingCurve(name, CURVES[name], tuple(found)) for name, found in points.items() if found)
