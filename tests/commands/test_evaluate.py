"""`mumoe evaluate` as it is typed."""

from __future__ import annotations

import json

import pytest

from mumoe.cli import main
from mumoe.results import EvalResult

RESULT = EvalResult(
    run="runs/x",
    split="val",
    step=1500,
    count=1200,
    loss=0.51236,
    accuracy=0.75,
    per_class={"ant": 0.9, "bee": 0.25, "cat": None, "dog": 0.5},
    class_counts={"ant": 1000, "bee": 150, "cat": 0, "dog": 50},
)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Runs on disk, and what the command asks about them."""
    from mumoe.training.config import TrainConfig
    from mumoe.training.opening import StoredRun
    from mumoe.training.run import RunFolder

    calls = []

    def evaluate(self, split):
        calls.append((self.path, split))
        return RESULT

    monkeypatch.setattr(StoredRun, "evaluate", evaluate)
    facts = {
        "seed": 0,
        "head": "linear",
        "data": {"name": "x", "fingerprint": "0", "images": 9},
        "classes": [],
        "multi_label": False,
    }
    facts |= {"num_features": 6, "backbone": None}
    for name in ("seed-10", "seed-9"):
        RunFolder.create(
            tmp_path / "job" / name, TrainConfig(), {**facts, "num_features": 6, "backbone": None}
        ).release()
    return calls


def test_it_names_the_hardest_classes(asked, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "job" / "seed-9"), "--split", "val", "--classes", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "runs/x  val: accuracy 0.7500, loss 0.5124 on 1,200 images (step 1,500)",
        "  0.2500  bee (150)",
        "  0.5000  dog (50)",
        "  1 classes have no image in this split",
    ]


def test_a_job_is_evaluated_run_by_run_as_json(asked, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "job"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["accuracy"] for row in rows] == [0.75, 0.75]
    assert [run.name for run, _ in asked] == ["seed-9", "seed-10"]
    assert {split for _, split in asked} == {"test"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "folder of the run"),
        (["jo"], "Did you mean 'job'?"),
        (["job", "--split", "tst"], "Did you mean 'test'?"),
        (["."], "which has no run.json"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job").mkdir()
    assert main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
