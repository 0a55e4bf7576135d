"""The report says what the results say, and the same numbers give the same bytes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from made_up_emoji import emoji
from mumoe.demo.bias_heads import Settings
from mumoe.demo.planted_bias import planted_style
from mumoe.editing.subgroup_fairness import Bootstrap
from mumoe.errors import UserError
from mumoe.plots.subgroup_accuracy import subgroup_figure
from mumoe.plots.tradeoff import trade_off_figure
from reproduction.bias import Retraining, run_bias
from reproduction.bias_report import write_report
from reproduction.page_plots import score_figure


@pytest.fixture(scope="module")
def results():
    return run_bias(
        lambda seed: planted_style(*emoji(seed), support=0.005),
        seeds=(0, 1),
        head="CPMuMoE-r8-e8",
        settings=Settings(epochs=2, batch_size=64),
        retraining=(Retraining("oversample", (1.0,)),),
        bootstrap=Bootstrap(20),
    )


def test_report_holds_the_results(results, tmp_path):
    write_report(results, tmp_path)
    name = results.name
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == sorted(
        [f"{name}{end}" for end in (".json", ".md", "-scores.svg", "-subgroups.svg", "-trade-off.svg")]
    )
    page = (tmp_path / f"{name}.md").read_text()
    mean, deviation = results.mean("+ experts matched", "rewriting_score")
    row = next(line for line in page.splitlines() if line.startswith("| + experts matched "))
    assert f"{mean:.3f} ± {deviation:.3f}" in row
    blind = results.mean("+ blind matched", "rewriting_score")[0]
    assert f"(mean {mean - blind:+.3f})" in page
    assert "drawn by" in page
    data = json.loads((tmp_path / f"{name}.json").read_text())
    assert data["summary"]["+ experts matched"]["rewriting_score"]["mean"] == mean
    curve = data["seeds"][0]["choices"]["+ experts matched"]["curve"]
    assert len(curve) <= 81
    assert data["seeds"][0]["strengths"]["+ experts matched"] in [point["strength"] for point in curve]
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write_report(results, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_one_seed_is_enough(results, tmp_path):
    write_report(dataclasses.replace(results, seeds=results.seeds[:1]), tmp_path)
    assert "over 1 seeds" in (tmp_path / f"{results.name}.md").read_text()


def test_figures_show_the_numbers(results):
    matched = results.reports["+ experts matched"]
    figure = subgroup_figure(matched)
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert len(texts) == 12
    first = [sum(report.subgroups[0].before.value for report in matched) / 2]
    assert texts[0] == f"{first[0]:.3f}"
    change = sum(group.accuracy.value - group.before.value for group in (r.subgroups[3] for r in matched)) / 2
    assert texts[-1] == f"{change:+.3f}"
    bars = score_figure({"matched": {"experts": matched, "blind": results.reports["+ blind matched"]}})
    heights = [patch.get_height() for patch in bars.axes[0].patches]
    expected = [results.mean(f"+ {name} matched", "rewriting_score")[0] for name in ("experts", "blind")]
    assert heights == pytest.approx(expected)
    curve = trade_off_figure({"experts": results.seeds[0].choices["+ experts matched"]})
    assert curve.axes[0].get_xlabel() == "overall accuracy (validation)"
    with pytest.raises(UserError, match="expected reports with y_pred_before, got one without"):
        subgroup_figure(results.reports["Linear"])
