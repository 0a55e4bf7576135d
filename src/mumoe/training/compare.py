"""Several seeds and partners: spreads, paired differences, and ranks that match a budget of parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import torch

from mumoe.errors import UserError
from mumoe.results import Comparison, RunResult, Spread, TrainResult
from mumoe.training.config import TrainConfig

__all__ = ["compare", "match_rank", "spread", "summarize", "t_quantile"]


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation over seeds."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Spread(mean, None, len(values))
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Spread(mean, math.sqrt(variance), len(values))


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t, by bisection on its distribution function (error below 1e-9)."""
    if degrees < 1 or not 0 < probability < 1:
        raise ValueError(f"t_quantile: expected degrees >= 1 and 0 < p < 1, got {degrees}, {probability}.")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while _t_distribution(high, degrees) < probability:
        low, high = high, high * 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_distribution(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _t_distribution(t: float, degrees: int) -> float:
    """P(T <= t) for whole degrees of freedom, in closed form (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(degrees))
    squared = math.cos(angle) ** 2
    if degrees % 2 == 0:
        term = total = 1.0
        for k in range(2, degrees - 1, 2):
            term *= squared * (k - 1) / k
            total += term
        return 0.5 + 0.5 * math.sin(angle) * total
    term = total = math.cos(angle) if degrees > 1 else 0.0
    for k in range(3, degrees - 1, 2):
        term *= squared * (k - 1) / k
        total += term
    return 0.5 + (angle + math.sin(angle) * total) / math.pi


def compare(
    head: str, partner: str, split: str, ours: Sequence[float], theirs: Sequence[float]
) -> Comparison:
    """Paired by seed: the mean difference, its deviation and 95% t-interval."""
    differences = tuple(a - b for a, b in zip(ours, theirs, strict=True))
    found = spread(differences)
    interval = None
    if found.sd is not None:
        half = t_quantile(0.975, len(differences) - 1) * found.sd / math.sqrt(len(differences))
        interval = (found.mean - half, found.mean + half)
    return Comparison(head, partner, split, differences, found.mean, found.sd, interval)


def summarize(out: str, head: str, runs: Sequence[RunResult]) -> TrainResult:
    """Spreads of every head and comparisons of `head` with the others, on test (val if there is no test)."""
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
        if name != head and splits
    )
    return TrainResult(out, head, tuple(runs), accuracy, comparisons)


def _accuracies(runs: Sequence[RunResult], split: str) -> list[float]:
    return [run.evaluations[split].accuracy for run in runs]


def match_rank(config: TrainConfig, spec: str, count: Callable[[TrainConfig], int]) -> str:
    """A specification with its rank, if it left one out: the rank whose parameters are nearest the head's.

    Args:
        config: The job of the head that sets the budget.
        spec: The partner, e.g. ``highrank-linear`` or ``TRMuMoE-e128``.
        count: Number of parameters of a config's head.
    """
    kind, _, rest = spec.partition("-")
    ranked = "mumoe" in kind.lower() or spec.lower().startswith("highrank-linear")
    if not ranked or re.search(r"-r\d", spec) or kind.lower().startswith("dense"):
        return spec
    stem, tail = (
        ("highrank-linear", "") if spec.lower().startswith("highrank") else (kind, f"-{rest}" if rest else "")
    )

    def parameters(rank: int) -> int:
        return count(config.replace(head=f"{stem}-r{rank}{tail}"))

    budget = count(config)
    low, high = 1, 2
    while parameters(high) < budget:
        low, high = high, high * 2
        if high > 1 << 20:
            raise UserError(
                f"--against: expected {spec!r} to reach {budget} parameters, got fewer at any rank."
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) < budget else (low, middle)
    rank = min((low, high), key=lambda rank: abs(parameters(rank) - budget))
    return f"{stem}-r{rank}{tail}"


def parameter_count(module: torch.nn.Module) -> int:
    """Number of parameters that are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
