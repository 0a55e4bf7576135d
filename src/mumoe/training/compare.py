"""Several seeds and partners: spreads and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mumoe.results import Comparison, RunResult, Spread, TrainResult
from mumoe.statistics import t_quantile

__all__ = ["compare", "spread", "summarize", "summary_lines"]


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
    """Spreads of every head, and comparisons of `head` with the others on the same seeds, on test (else on val)."""
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


def summary_lines(result: TrainResult) -> list[str]:
    """The lines that `mumoe train` prints about a job: each head with its accuracies, and the comparisons."""
    width = max(len(head) for head in result.accuracy)
    parameters = {run.head: run.parameters for run in result.runs}
    lines = []
    for head, splits in result.accuracy.items():
        numbers = "  ".join(f"{split} {spread}" for split, spread in splits.items())
        lines.append(f"{head:<{width}}  {parameters[head]:>11,} parameters  accuracy {numbers}")
        lines += _bits(result, head)
    lines += [comparison.headline() for comparison in result.comparisons]
    return [*lines, f"Written to {result.out}. Look closer: mumoe evaluate {result.out}"]


def _bits(result: TrainResult, head: str) -> list[str]:
    """A language model's bits per byte, mean over seeds."""
    found = []
    runs = [run for run in result.runs if run.head == head]
    for split in runs[0].evaluations:
        values = [run.evaluations[split].bits_per_byte for run in runs]
        known = [value for value in values if value is not None]
        found += [f"{split} {spread(known)}"] if known else []
    return [f"  bits per byte {'  '.join(found)}"] if found else []
