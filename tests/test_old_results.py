"""Analyses, edits, audits and saved models of the version before the rooms were rebuilt are read as they were meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mumoe
from mumoe.analysis.study import Study
from mumoe.cli import main
from mumoe.editing.group_audit import Audit

LANDED = Path(__file__).parent / "fixtures" / "landed"
DATA = f"features:{LANDED.parent / 'runs' / 'attributes.safetensors'}"


@pytest.fixture
def landed(tmp_path: Path) -> Path:
    """A copy, so that no test changes what is committed."""
    shutil.copytree(LANDED, tmp_path / "landed")
    return tmp_path / "landed"


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main([*map(str, arguments), "--data", DATA, "--json", "--quiet", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("edits", "wanted"), [("edits.json", "fairness.json"), ("hand.json", "fairness-hand.json")])
def test_edits_change_the_answers_that_they_changed(landed: Path, edits: str, wanted: str, capsys) -> None:
    people = ["--target", "bee", "--sensitive", "cat"]
    found = printed(capsys, "fairness", landed / "analyzed", *people, "--edits", landed / edits, "--resamples", 20)
    expected = json.loads((landed / wanted).read_text())
    for name, report in expected.items():
        assert found[name]["subgroups"] == report["subgroups"]
        assert found[name]["metrics"] == report["metrics"]


def test_an_audit_finds_what_it_found(landed: Path, capsys) -> None:
    found = printed(capsys, "audit", landed / "analyzed", "--target", "bee")
    expected = json.loads((landed / "audit.json").read_text())
    assert expected["findings"]
    for now, then in zip(found.pop("findings"), expected.pop("findings"), strict=True):
        gaps = now.pop("gap"), then.pop("gap")
        assert gaps[0]["value"] == gaps[1]["value"]  # intervals of pooled labels are other ones since
        assert {name: now[name] for name in then} == then
    assert {name: found[name] for name in expected} == expected


def test_an_audit_is_read_with_the_score_that_it_had_no_name_for(landed: Path) -> None:
    old = Audit.load(landed / "audit.json")
    (first,) = old.findings
    assert first.score == first.rows * first.gap.value / (first.rows + 20) == -0.5 * 4 / 24
    assert (first.attributes, first.merged, old.merge) == ((), (), 0)


def test_an_analysis_is_read_and_equals_one_made_now(landed: Path) -> None:
    old = Study.load(landed / "analyzed")
    assert (old.split, old.seed, old.classes) == ("test", 0, ("ant", "bee", "cat"))
    run = mumoe.load(landed / "analyzed", data=DATA, device="cpu", progress=False)
    new = run.analyze(images=2, resamples=50, modes=("zero", "mean"), out=str(landed / "new"))
    assert [row["expert"] for row in old.rows()] == [0, 1, 2, 3]
    same(old.rows("mean"), new.rows("mean"))
    same(old.rows(), new.rows())
    same(old.rows(control=True), new.rows(control=True))


def same(first: list[Any], second: list[Any]) -> None:
    """Rows are equal but for the last digits of mean coefficients, which are now those of the sparse gate."""
    assert [{**row, "mean_coefficient": 0} for row in first] == [{**row, "mean_coefficient": 0} for row in second]
    means = [[row["mean_coefficient"] or 0.0 for row in rows] for rows in (first, second)]
    assert means[0] == pytest.approx(means[1], rel=1e-6)


def test_a_report_is_made_of_an_old_analysis(landed: Path, tmp_path: Path) -> None:
    assert main(["report", str(landed / "analyzed"), "-o", str(tmp_path / "report"), "--quiet"]) == 0
    assert "TuckerMuMoE-r2x2x3-e4" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize("name", ["saved", "converted"])
def test_a_saved_model_computes_the_logits_that_it_computed(name: str) -> None:
    wanted = json.loads((LANDED / name / "logits.json").read_text())
    model, _ = mumoe.load(LANDED / name, device="cpu")
    size = wanted["size"]
    found = model.eval()(torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size))
    torch.testing.assert_close(found, torch.tensor([wanted["logits"]]), atol=1e-5, rtol=1e-5)
