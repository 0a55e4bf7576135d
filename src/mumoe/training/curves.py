"""Curves of training, read from the logs of runs."""

from __future__ import annotations

from pathlib import Path

from mumoe.results import TrainResult
from mumoe.training.run import RunFolder, read_metrics

__all__ = ["job_curves", "read_curve"]

Curve = list[tuple[int, float]]

LABELS = {"val_accuracy": "validation accuracy", "loss": "training loss"}


def read_curve(path: Path, name: str) -> Curve:
    """(step, value) of one column of a metrics.jsonl, by ascending step."""
    rows = [row for row in read_metrics(path) if isinstance(row.get(name), int | float)]
    return [(int(row["step"]), float(row[name])) for row in rows]


def job_curves(result: TrainResult) -> tuple[str, dict[str, list[Curve]]]:
    """What to draw of a job: a label, and one curve for each seed of each head.

    That is the validation accuracy, or the training loss where the accuracy was measured less than twice.
    """
    for name in LABELS:
        curves: dict[str, list[Curve]] = {}
        for run in result.runs:
            curves.setdefault(run.head, []).append(read_curve(RunFolder(run.run).metrics, name))
        if all(len(curve) > 1 for seeds in curves.values() for curve in seeds):
            break
    return LABELS[name], curves
