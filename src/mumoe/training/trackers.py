"""Where a job's numbers go: metrics.jsonl and TensorBoard always, Accelerate's wandb, trackio and mlflow on request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from types import TracebackType
from typing import Any

from mumoe.errors import require
from mumoe.training.config import TrainConfig
from mumoe.training.metrics_log import MetricsLog
from mumoe.training.run import RunFolder, disk_errors

__all__ = ["Trackers"]


class Trackers(AbstractContextManager["Trackers"]):
    """All logs of one session of one run; silent on processes other than the main one.

    Args:
        run: The run's folder.
        config: Its settings.
        step: Step at which this session starts; later entries of an earlier session are dropped.
        length: Bytes of metrics.jsonl to keep.
        enabled: Whether to write anything.

    Attributes:
        note: The newest numbers in a few words, for the progress bar.
    """

    def __init__(
        self, run: RunFolder, config: TrainConfig, *, step: int = 0, length: int = 0, enabled: bool = True
    ) -> None:
        self.run, self.config, self.enabled = run, config, enabled
        self.note = ""
        self._values: dict[str, float] = {}
        self._trackers: list[Any] = []
        self._since = time.monotonic(), step
        if enabled:
            self._open(step, length)

    def _open(self, step: int, length: int) -> None:
        tensorboard = require("torch.utils.tensorboard", "vision", "train")
        with disk_errors("log", self.run.path):
            self._log = MetricsLog(self.run.metrics, length)
            self._curves = tensorboard.SummaryWriter(str(self.run.tensorboard), purge_step=step + 1)
        known = dict(self.run.facts().get("trackers", {})) if self.config.track else {}
        for name in self.config.track:
            tracker = _start(name, self.config, self.config.run_name or self.run.path.name, known.get(name))
            self._trackers.append(tracker)
            known[name] = _identity(name, tracker.tracker)
        if known:
            self.run.update(trackers=known)

    def write(self, row: Mapping[str, Any]) -> None:
        """Log one row; `step` must be among its values. Speed goes to the curves only, since it varies."""
        self._values |= {key: value for key, value in row.items() if "loss" in key or "accuracy" in key}
        self.note = "  ".join(f"{key} {value:.3f}" for key, value in self._values.items())
        if not self.enabled:
            return
        step = int(row["step"])
        values = {key: value for key, value in row.items() if key != "step"}
        with disk_errors("log", self.run.path):
            self._log.write(row)
            for key, value in {**values, **self._speed(step)}.items():
                self._curves.add_scalar(key, value, step)
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def _speed(self, step: int) -> dict[str, float]:
        now, (then, before) = time.monotonic(), self._since
        if step <= before or now <= then:
            return {}
        self._since = now, step
        return {"steps_per_second": (step - before) / (now - then)}

    def sync(self) -> int:
        """Flush metrics.jsonl to disk; returns its length in bytes."""
        if not self.enabled:
            return 0
        with disk_errors("log", self.run.path):
            return self._log.sync()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.enabled:
            return
        self._log.close()
        self._curves.close()
        for tracker in self._trackers:
            tracker.finish()


def _start(name: str, config: TrainConfig, run_name: str, known: str | None) -> Any:
    """Accelerate's tracker of that name: a new run, or the one that an earlier session of the job wrote to."""
    require(name, "tracking", "train")
    kinds = require("accelerate.tracking", "vision", "train").LOGGER_TYPE_TO_CLASS
    settings = {key: str(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    options: dict[str, Any]
    if name == "mlflow":
        options = {"run_name": run_name, "run_id": known}
    elif name == "trackio":
        options = {"name": known or run_name, "resume": "allow" if known else "never", "config": settings}
    else:
        options = {"name": run_name, "id": known, "resume": "allow" if known else None, "config": settings}
    tracker: Any = kinds[name](config.project, **options)
    tracker.start()
    if name == "mlflow" and known is None:
        tracker.store_init_configuration(settings)
    return tracker


def _identity(name: str, run: Any) -> str:
    """Identifier of the tracker's run, by which it is resumed."""
    if name == "mlflow":
        return str(run.info.run_id)
    return str(run.name if name == "trackio" else run.id)
