"""The log of a run's metrics: what a resumed run keeps of it, and the curves that are read from it."""

from __future__ import annotations

import json
from pathlib import Path

from mumoe.results import RunResult, TrainResult
from mumoe.training.metrics_log import METRICS_FILE, MetricsLog, job_curves, read_curve


def test_the_log_keeps_only_what_the_checkpoint_knows(tmp_path):
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path)
    log.write({"step": 1})
    length = log.sync()
    log.write({"step": 2})
    log.close()
    log = MetricsLog(path, length)
    log.write({"step": 3})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'
    log = MetricsLog(path, 1000)
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def logged(folder: Path, *rows: dict) -> RunResult:
    """A run with this log, cut short in its last line."""
    folder.mkdir()
    (folder / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo')
    return RunResult(str(folder), "linear", 0, 10, 4, 0.1, {})


def test_curves_are_of_the_accuracy_or_else_of_the_loss(tmp_path):
    loss = [{"step": 2, "loss": 0.5}, {"step": 4, "loss": 0.25}]
    whole = logged(tmp_path / "a", *loss, {"step": 2, "val_accuracy": 0.5}, {"step": 4, "val_accuracy": 1})
    once = logged(tmp_path / "b", *loss, {"step": 4, "val_accuracy": 0.5})
    assert job_curves(TrainResult("", "linear", (whole,), {})) == (
        "validation accuracy",
        {"linear": [[(2, 0.5), (4, 1.0)]]},
    )
    label, curves = job_curves(TrainResult("", "linear", (whole, once), {}))
    assert label == "training loss"
    assert curves == {"linear": [[(2, 0.5), (4, 0.25)]] * 2}
    assert read_curve(tmp_path / "nothing", "loss") == []
