"""Several seeds and partners: spreads, paired differences, and sizes that match a budget of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mumoe.results import Comparison, RunResult, Spread, TrainResult
from mumoe.statistics import t_quantile
from mumoe.training.config import TrainConfig

__all__ = ["compare", "partner_spec", "spread", "summarize"]


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation over seeds."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Spread(mean, None, len(values))
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Spread(mean, math.sqrt(variance), len(values))


def compare(head: str, partner: str, split: str, ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Paired by seed: the mean difference, its deviation and 95% t-interval."""
    differences = tuple(a - b for a, b in zip(ours, theirs, strict=True))
    found = spread(differences)
    interval = None
    if found.sd is not None:
        half = t_quantile(0.975, len(differences) - 1) * found.sd / math.sqrt(len(differences))
        interval = (found.mean - half, found.mean + half)
    return Comparison(head, partner, split, differences, found.mean, found.sd, interval)


def summarize(out: str, head: str, runs: Sequence[RunResult]) -> TrainResult:
    """Spreads of every head, and comparisons of `head` with the others of the same seeds, on test (else on val)."""
    by_head: dict[str, list[RunResult]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        by_head.setdefault(run.head, []).append(run)
    accuracy = {
        name: {split: spread(_accuracies(group, split)) for split in group[0].evaluations}
        for name, group in by_head.items()
    }
    splits = [split for split in ("test", "val") if split in accuracy[head]]
    comparisons = tuple(
        compare(head, name, splits[0], _accuracies(by_head[head], splits[0]), _accuracies(group, splits[0]))
        for name, group in by_head.items()
        if name != head and splits and _seeds(group) == _seeds(by_head[head])
    )
    return TrainResult(out, head, tuple(runs), accuracy, comparisons)


def _seeds(runs: Sequence[RunResult]) -> list[int]:
    return [run.seed for run in runs]


def _accuracies(runs: Sequence[RunResult], split: str) -> list[float]:
    return [run.evaluations[split].accuracy for run in runs]


def partner_spec(config: TrainConfig, partner: str, num_features: int, num_classes: int) -> str:
    """A partner's full specification: as given, or of the size whose parameters match the head's.

    Args:
        config: The job whose head sets the budget.
        partner: A full specification, ``linear``, or one without its size: ``highrank-linear``,
            ``sparse-moe`` or a factorization's title such as ``TRMuMoE``.
        num_features: Width of the features.
        num_classes: Number of classes.
    """
    from mumoe.factorizations import FACTORIZATIONS
    from mumoe.models.heads import matched_spec

    sizeless = {"highrank-linear", "sparse-moe", *(kind.title for kind in FACTORIZATIONS.values())}
    if partner not in sizeless:
        return partner
    width = num_features if config.position == "penultimate" else num_classes
    return matched_spec(partner, config.head, num_features, width)
