"""Trackers: a resumed run continues the same run of the tracker, under the configured project and name."""

from __future__ import annotations

import sys
import types
from collections import defaultdict
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
from test_engine import rows, stop_at

from mumoe.training import Interrupted, resume, train
from mumoe.training.run import RunFolder


class Server:
    """Stands in for a tracker's package: runs by identity, each with project, name and logged steps."""

    def __init__(self, kind: str) -> None:
        self.kind, self.runs, self.current = kind, defaultdict(dict), ""
        self.steps: dict[str, list[int]] = defaultdict(list)
        self.finished = 0

    def open(self, identity: str | None, **facts: Any) -> Any:
        self.current = identity or f"{self.kind}-{len(self.runs)}"
        assert (identity in self.runs) == (identity is not None)
        self.runs[self.current] |= {key: value for key, value in facts.items() if value is not None}
        return types.SimpleNamespace(id=self.current, name=self.current, log=self.log, finish=self.finish)

    def init(self, project, name, config, id=None, resume=None) -> Any:
        """As `wandb.init` and `trackio.init`."""
        known = (name if self.kind == "trackio" else id) if resume == "allow" else None
        assert resume in ("allow", "never" if self.kind == "trackio" else None)
        return self.open(known, project=project, config=config, name=None if known == name else name)

    def log(self, values: dict[str, float], step: int) -> None:
        assert all(isinstance(value, float) for value in values.values() if value != int(value))
        self.steps[self.current].append(step)

    def finish(self) -> None:
        self.finished += 1

    def install(self, monkeypatch) -> None:
        module = types.ModuleType(self.kind)
        module.__spec__ = ModuleSpec(self.kind, None)  # Accelerate looks for it
        module.init = self.init
        if self.kind == "mlflow":
            module.search_experiments = lambda filter_string: []
            module.create_experiment = lambda name, **_: name
            module.start_run = self.start_run
            module.log_metrics = self.log
            module.log_params = lambda values: self.runs[self.current].update(config=values)
            module.end_run = self.finish
            module.utils = types.SimpleNamespace(
                validation=types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
            )
        monkeypatch.setitem(sys.modules, self.kind, module)

    def start_run(self, run_id, experiment_id, run_name, **_: Any) -> Any:
        run = self.open(run_id, project=experiment_id, name=run_name)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run.id))


@pytest.mark.parametrize("kind", ["wandb", "trackio", "mlflow"])
def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker(kind, config, data, features, monkeypatch) -> None:
    server = Server(kind)
    server.install(monkeypatch)
    config = config.replace(track=(kind,), project="birds", run_name="first", log_every=1)
    with monkeypatch.context() as once:
        stop_at(once, 4)
        with pytest.raises(Interrupted):
            train(config, data=data, features=features, progress=False)
    (identity,) = server.runs
    assert RunFolder(config.out).facts()["trackers"] == {kind: identity}
    resume(config.out, data=data, features=features, progress=False)
    assert list(server.runs) == [identity]
    about = server.runs[identity]
    assert (about["project"], about["name"]) == ("birds", "first")
    assert str(about["config"]["head"]) == config.head
    assert server.steps[identity] == [row["step"] for row in rows(config.out)]
    assert server.finished == 2


def test_every_run_of_a_job_has_a_name_of_its_own(config, data, features, monkeypatch) -> None:
    server = Server("wandb")
    server.install(monkeypatch)
    config = config.replace(track=("wandb",), epochs=1, seeds=2)
    train(config.replace(run_name="mine"), data=data, features=features, progress=False)
    train(config.replace(out=f"{config.out}-2"), data=data, features=features, progress=False)
    names = [f"mine-{config.head}-seed-{seed}" for seed in (0, 1)] + ["seed-0", "seed-1"]
    assert [about["name"] for about in server.runs.values()] == names
    assert {about["project"] for about in server.runs.values()} == {"mumoe"}
