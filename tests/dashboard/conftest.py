"""One trained and analyzed run for the whole room, and its session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mumoe
from dashboard.made_up_run import make_run
from mumoe.analysis.layer_study import study_layer, write_coefficients
from mumoe.dashboard.server import Running, serving
from mumoe.dashboard.session import Session, open_session
from mumoe.files import write_json
from mumoe.training.opening import StoredRun


def analyze(path: Path) -> None:
    """What `mumoe analyze` writes, without its figures."""
    run = mumoe.load(path, progress=False).editing()
    rows = run.data.indices("test")

    def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(run.inputs(rows), torch.from_numpy(run.data.labels[rows]))]

    store = write_coefficients(run.layer, batches, path / "analysis" / "coefficients", images=rows)
    found = study_layer(run.layer, batches, store=store, resamples=20)
    content = {"split": "test", "head": "CPMuMoE-r8-e12", "study": found, "experts_skipped": 0}
    write_json(path / "analysis" / "analysis.json", {"classes": run.data.classes, "seed": 0, **content})


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = make_run(tmp_path_factory.mktemp("dashboard"))
    analyze(path)
    return path


@pytest.fixture(scope="session")
def session(run: Path) -> Session:
    return open_session(StoredRun(run, progress=False))


@pytest.fixture(scope="session")
def running(session: Session) -> Iterator[Running]:
    """The server, with the session of the other tests."""
    with serving(lambda report: session) as found:
        yield found
