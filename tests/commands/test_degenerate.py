"""Runs in which something is missing: every verb that shows a run gives an answer, or one line that says why not."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mumoe.cli import main
from mumoe.dashboard import expert_panel
from mumoe.dashboard.session import open_session
from mumoe.errors import JobError
from mumoe.records import to_plain
from mumoe.training import TrainConfig, train
from mumoe.training.opening import StoredRun


def write(folder, *, classes=3, rows=120, split=(0.5, 0.25, 0.25), noise=0.3):
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    x = rng.normal(size=(classes, 6))[labels] + noise * rng.normal(size=(rows, 6))
    parts = rng.choice(3, rows, p=split)
    names = {"classes": json.dumps([f"class {n}" for n in range(classes)])}
    file = folder / "features.safetensors"
    save_file({"features": x.astype(np.float32), "labels": labels, "split": parts}, file, metadata=names)
    return file


def trained(folder, *, head="CPMuMoE-r4-e6", epochs=4, data=None, **settings):
    file = write(folder, **(data or {}))
    config = TrainConfig(
        data=f"features:{file}", head=head, batch_size=30, epochs=epochs, lr=0.02, out=str(folder / "run")
    )
    train(config.replace(**settings), progress=False)
    return folder / "run"


RUNS = {
    "five steps": {"epochs": 2, "log_every": 50},
    "one step": {"epochs": 1, "batch_size": 500, "eval_every": 0},
    "one expert": {"head": "CPMuMoE-r4-e1"},
    "a hierarchy of one expert": {"head": "CPMuMoE-r4-e3x1"},
    "no right answer but of one class": {"epochs": 1, "lr": 1e-9, "data": {"noise": 5.0}},
    "no test split": {"data": {"split": (0.6, 0.4, 0.0)}},
    "no validation split": {"data": {"split": (0.6, 0.0, 0.4)}},
    "training alone": {"data": {"split": (1.0, 0.0, 0.0)}},
    "dead experts": {"head": "CPMuMoE-r4-e64", "lr": 0.3},
    "two images to test": {"data": {"rows": 40, "split": (0.85, 0.1, 0.05)}},
    "sparse mixture": {"head": "sparse-moe-e4"},
    "penultimate": {"position": "penultimate"},
}


class Text(HTMLParser):
    """What a page says."""

    def __init__(self):
        super().__init__()
        self.parts = []

    def handle_data(self, data):
        self.parts.append(data)


def said_on(page):
    reader = Text()
    reader.feed(page.read_text())
    return " ".join(reader.parts)


def call(capsys, *arguments):
    status = main([*map(str, arguments), "--quiet"])
    found = capsys.readouterr()
    return status, found.out, found.err


@pytest.mark.parametrize("name", RUNS)
def test_every_verb_answers(name, tmp_path, capsys):
    run = trained(tmp_path, **RUNS[name])
    split = "train" if name == "training alone" else "val" if name == "no test split" else "test"
    bare = call(capsys, "report", run, "--out", tmp_path / "bare")
    assert bare[0] == 0, bare
    analyzed = call(capsys, "analyze", run, "--split", split, "--resamples", 20)
    assert analyzed[0] == 0, analyzed
    assert "No sheets of images: features:" in analyzed[1]
    content = json.loads((run / "analysis" / "analysis.json").read_text())
    assert content["study"]["units"][0]["modes"]["zero"]["images"] > 0
    assert not (run / "analysis" / "images").exists()
    status, out, err = call(capsys, "report", run, "--out", tmp_path / "report")
    assert status == 0, err
    pages = [*(tmp_path / "report").rglob("*.html")]
    assert len(pages) >= 3
    for page in pages:
        assert "nan" not in said_on(page).lower().replace("finance", "")
    for file in (tmp_path / "report").rglob("*.json"):
        assert "NaN" not in file.read_text()
    for verb in (("audit", run, "--split", split), ("edit", run, "--do", "ablate:0", "--split", split)):
        status, out, err = call(capsys, *verb)
        assert status in (0, 1, 2)
        assert (status == 0 and err == "") or (out == "" and err.count("\n") == 1 and ": expected" in err), (out, err)


@pytest.mark.parametrize("name", RUNS)
def test_the_dashboard_opens(name, tmp_path):
    run = trained(tmp_path, **RUNS[name])
    session = open_session(StoredRun(run, progress=False))
    for split in session.available():
        found = session.split(split)
        for level in range(len(session.num_experts)):
            columns = expert_panel.expert_columns(session, found, level, expert_panel.Filter())
            json.dumps(to_plain(columns), allow_nan=False)
            json.dumps(to_plain(expert_panel.expert_detail(session, found, level, 0)), allow_nan=False)


def test_analyze_checks_what_it_can_before_it_computes(tmp_path, capsys, monkeypatch):
    run = trained(tmp_path, epochs=1)
    monkeypatch.setattr("mumoe.analysis.analyzing.study_layer", lambda *_, **__: pytest.fail("it computed"))
    for arguments, text in (
        (("--experts", 6), "expected --experts in 0..5, got 6"),
        (("--threshold", 2), "expected --threshold above 0 and at most 1, got 2.0"),
        (("--least-lost", 0), "expected --least-lost >= 1, got 0"),
    ):
        status, out, err = call(capsys, "analyze", run, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert text in err


def test_coefficients_that_are_no_numbers_are_one_line(tmp_path, capsys, monkeypatch):
    """As of a run that diverged."""
    run = trained(tmp_path, epochs=1)
    load = StoredRun.head.fget

    def diverged(self):
        head = load(self)
        with torch.no_grad():
            head.layer.gate.weights[0][0, 0] = torch.nan
        return head

    monkeypatch.setattr(StoredRun, "head", property(diverged))
    status, out, err = call(capsys, "analyze", run)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "expected coefficients that are numbers, got NaN" in err
    with pytest.raises(JobError, match="expected coefficients that are numbers, got NaN"):
        open_session(StoredRun(run, progress=False))
    assert not (run / "analysis" / "coefficients").exists()
