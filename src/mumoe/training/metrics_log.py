"""The log of a run's metrics, and the curves that are read from it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mumoe.files import sync_file
from mumoe.results import TrainResult

__all__ = ["METRICS_FILE", "MetricsLog", "job_curves", "read_curve", "read_metrics"]

METRICS_FILE = "metrics.jsonl"

Curve = list[tuple[int, float]]

LABELS = {"val_accuracy": "validation accuracy", "loss": "training loss"}


class MetricsLog:
    """metrics.jsonl: one JSON object per line, the same bytes for the same training.

    Args:
        path: The file.
        length: Bytes of an existing file to keep: a resumed job removes what was logged after its checkpoint.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115 (closed in close)
        self._file.truncate(min(length, os.path.getsize(path)))
        self._file.seek(0, os.SEEK_END)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a line."""
        self._file.write((json.dumps(row) + "\n").encode())
        self._file.flush()

    def sync(self) -> int:
        """Flush the log to disk; returns its length in bytes."""
        sync_file(self._file)
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that is cut short is left out, and a missing file has none."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def read_curve(path: Path, name: str) -> Curve:
    """(step, value) of one column of a metrics.jsonl, by ascending step."""
    rows = [row for row in read_metrics(path) if isinstance(row.get(name), int | float)]
    return [(int(row["step"]), float(row[name])) for row in rows]


def job_curves(result: TrainResult) -> tuple[str, dict[str, list[Curve]]]:
    """The curves of a job to plot: a label, and one curve for each seed of each head.

    That is the validation accuracy, or the training loss if the accuracy was measured less than twice.
    """
    for name in LABELS:
        curves: dict[str, list[Curve]] = {}
        for run in result.runs:
            curves.setdefault(run.head, []).append(read_curve(Path(run.run) / METRICS_FILE, name))
        if all(len(curve) > 1 for seeds in curves.values() for curve in seeds):
            break
    return LABELS[name], curves
