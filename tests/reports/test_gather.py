"""What is gathered of a run equals what its files say, and what it lacks is named with a command."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import mumoe
from mumoe.analysis import CoefficientStore
from mumoe.editing.auditing import RunAudit
from mumoe.errors import UserError
from mumoe.records import to_plain
from mumoe.reports.gathering import open_images
from mumoe.reports.views import Missing
from mumoe.training.opening import StoredRun

sys.path.insert(0, str(Path(__file__).parent))

from made_up_report import NAMES, edited, named_data, reports, trained
from made_up_results import gathered, made_up_data, write_run


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Two seeds that were trained and nothing more."""
    folder = tmp_path_factory.mktemp("bare") / "run"
    trained(folder, seeds=2)
    return folder


def test_a_bare_run_shows_its_training_and_names_what_it_lacks(bare):
    (view,) = gathered(bare)
    facts = json.loads((bare / "seed-1" / "run.json").read_text())
    assert [seed.seed for seed in view.seeds] == [0, 1]
    assert view.seeds[1].evaluations["test"].accuracy == facts["result"]["evaluations"]["test"]["accuracy"]
    accuracies = [seed.evaluations["test"].accuracy for seed in view.seeds]
    assert view.accuracy["test"].mean == pytest.approx(np.mean(accuracies))
    assert view.accuracy["test"].sd == pytest.approx(np.std(accuracies, ddof=1))
    assert view.levels == ()
    lack = view.lacks("analysis")
    assert lack is not None
    assert lack.command == f"mumoe analyze {bare / 'seed-0'}"
    assert {found.part for found in view.missing} == {"analysis", "audit", "edits", "fairness", "stability"}


def test_curves_are_the_training_log(bare):
    (view,) = gathered(bare)
    rows = [json.loads(line) for line in (bare / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    curves = {curve.name: curve.points for curve in view.seeds[0].curves}
    expected = [(row["step"], row["epoch"], row["val_loss"]) for row in rows if "val_loss" in row]
    assert list(curves["val_loss"]) == expected
    assert len(expected) >= 4


@pytest.mark.parametrize("head", ["CPMuMoE-r6-e12x2", "linear", "highrank-linear-r6", "sparse-moe-e4-k2"])
def test_costs_count_the_parameters_of_the_run(tmp_path, head):
    trained(tmp_path / "run", head)
    (view,) = gathered(tmp_path / "run")
    assert view.costs[0].parameters == view.seed.parameters
    names = [row.name for row in view.costs]
    assert names == ["this head", "linear", "dense, the same experts"][: len(names)]
    assert ("dense, the same experts" in names) is bool(view.head.experts)


def test_experts_are_those_of_the_analysis(whole):
    (view,) = gathered(whole, named_data(), 3)
    study = json.loads((whole / "analysis" / "analysis.json").read_text())["study"]
    assert [level.name for level in view.levels] == ["level 0", "level 1"]
    for position, level in enumerate(view.levels):
        unit, usage = study["units"][position], study["usage"][position]
        effects = {effect["unit"]: effect for effect in unit["modes"]["zero"]["effects"]}
        assert level.modes["zero"].mean_polysemanticity == unit["modes"]["zero"]["mean_polysemanticity"]
        assert level.control.strong == unit["load_control"]["strong"]
        assert [expert.load for expert in level.experts] == usage["load"]
        for expert in level.experts:
            effect = effects.get(expert.expert)
            assert expert.with_effect is (effect is not None)
            if effect:
                assert expert.polysemanticity == effect["polysemanticity"]
                assert [[loss.position, loss.loss] for loss in expert.losses] == effect["losses"]
                assert [list(loss.interval) for loss in expert.losses] == effect["loss_intervals"]
                assert all(loss.name == NAMES[loss.position] for loss in expert.losses)
            assert len(expert.random) == len(expert.top) == min(3, usage["load"][expert.expert])
            assert expert.by_weight or level.usage.experts < 3
    assert sorted(list(c.experts) for c in view.combinations) == sorted(c["experts"] for c in study["combinations"])
    assert view.lacks("analysis") is None
    assert view.lacks("images") is None


def test_combinations_that_occur_have_loads_effects_controls_and_images(whole):
    (view,) = gathered(whole, named_data(), 3)
    study = json.loads((whole / "analysis" / "analysis.json").read_text())["study"]
    joint, found = study["units"][2], view.occurrence
    loads = dict(zip(joint["occurring"], joint["load"], strict=True))
    sizes = [level.modes["zero"].units for level in view.levels]
    assert (found.total, found.occurring) == (sizes[0] * sizes[1], len(loads))
    assert (found.least, found.most) == (min(loads.values()), max(loads.values()))
    assert found.control.strong == joint["load_control"]["strong"]
    assert len(found.shown) == min(40, len(loads))
    effects = {effect["unit"]: effect for effect in joint["modes"]["zero"]["effects"]}
    controls = {effect["unit"]: effect for effect in joint["load_control"]["effects"]}
    store = CoefficientStore(whole / "analysis" / "coefficients")
    rows = list(store.images)
    tables = [store.level(level=level).dense(0, len(rows)) for level in (0, 1)]
    for c in found.shown:
        n, m = c.experts
        unit = n * sizes[1] + m
        product = tables[0][:, n] * tables[1][:, m]
        assert c.load == loads[unit] == (product > 0).sum()
        assert c.polysemanticity == effects.get(unit, {}).get("polysemanticity")
        assert (c.control and c.control.polysemanticity) == controls.get(unit, {}).get("polysemanticity")
        assert [item.coefficient for item in c.top] == sorted(product[product > 0].tolist(), reverse=True)[:6]
        assert all(product[rows.index(item.image)] == item.coefficient for item in c.top)
    places = [(c.polysemanticity is None, c.load) for c in found.shown[20:]]
    assert [load for _, load in places] == sorted((load for _, load in places), reverse=True)


def test_right_answers_are_counted_from_the_evaluation(whole):
    (view,) = gathered(whole)
    found = view.seed.evaluations["test"]
    losses = [loss for expert in view.levels[0].experts for loss in expert.losses]
    assert losses
    for loss in losses:
        share = found.per_class[loss.name]
        assert loss.right == round(share * found.class_counts[loss.name])


def test_without_the_image_set_the_drawn_images_are_shown(whole):
    (view,) = gathered(whole)
    shown = [item for expert in view.levels[0].experts for item in (*expert.random, *expert.top)]
    assert shown
    assert all(Path(item.thumbnail).is_file() for item in shown)
    assert "could not be opened" in view.lacks("images").reason


def test_edits_are_shown_before_and_after_beside_the_blind_shift(whole):
    by_hand, subgroup = gathered(whole)[0].edits
    assert by_hand.change.classes == (("<b>green</b>", 0.5, 1.0),)
    assert (by_hand.change.before, by_hand.change.after) == (0.5, 0.75)
    found = subgroup.fairness
    assert [report.to_dict() for report in found.models.values()] == reports()
    assert (found.target, found.sensitive, found.split) == ("old <u>", "sex", "test")
    assert (found.blind.strength, subgroup.choice.strength) == (2, 1)


def test_audits_are_shown_by_experts_and_by_named_attributes(whole):
    (view,) = gathered(whole)
    (shown,) = view.audits
    stored = RunAudit.load(whole / shown.file)
    assert (shown.title, shown.images, shown.labels) == ("Test images", 300, NAMES)
    assert [ranking.kind for ranking in shown.rankings] == ["experts", "named attributes"]
    for ranking, audit in zip(shown.rankings, (stored, stored.by_attributes), strict=True):
        assert ranking.findings == audit.findings[:20]
        assert ranking.total == len(audit.findings)
        assert audit.significant
    assert shown.label_name(stored.findings[0]) == NAMES[stored.findings[0].label]


def test_a_run_without_an_audit_says_how_to_make_one(bare, tmp_path):
    assert gathered(bare)[0].lacks("audit").command.startswith("mumoe audit ")
    trained(tmp_path / "run")
    (tmp_path / "run" / "audit" / "val").mkdir(parents=True)
    (tmp_path / "run" / "audit" / "val" / "audit.json").write_text("{}")
    (view,) = gathered(tmp_path / "run")
    assert view.audits == ()
    assert view.lacks("audit").reason.startswith("val/audit.json could not be read")


def test_a_damaged_file_of_edits_is_named_and_the_rest_shown(whole, tmp_path):
    trained(tmp_path / "run")
    edited(tmp_path / "run")
    (tmp_path / "run" / "edits" / "by-hand.json").write_text("{")
    (view,) = gathered(tmp_path / "run")
    assert [edit.name for edit in view.edits] == ["old-sex-b"]
    assert view.lacks("edits").reason.startswith("by-hand.json could not be read")


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    trained(tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    facts.pop("result")
    (tmp_path / "run" / "run.json").write_text(json.dumps({**facts, "state": "interrupted"}))
    (view,) = gathered(tmp_path / "run")
    assert view.accuracy == {}
    assert view.lacks("evaluation") == Missing(
        "evaluation", "Seed 0 is interrupted: it has no result yet.", f"mumoe train --resume {tmp_path / 'run'}"
    )


def test_an_older_analysis_is_shown_without_what_it_lacks(tmp_path):
    data = made_up_data(60, ["a", "b", "c"])
    run = write_run(tmp_path / "run", data, experts=5)
    path = run / "analysis" / "analysis.json"
    content = json.loads(path.read_text())
    for effect in content["study"]["units"][0]["modes"]["zero"]["effects"]:
        effect.pop("loss_intervals")
    path.write_text(json.dumps(content))
    (run / "analysis" / "neighbours.json").unlink()
    (view,) = gathered(run, data)
    assert all(loss.interval is None for expert in view.levels[0].experts for loss in expert.losses)
    assert {found.part for found in view.missing} >= {"loss intervals", "neighbours"}
    assert view.lacks("neighbours").command == f"mumoe analyze {run}"


def test_views_are_plain_json(whole, bare):
    for folder in (whole, bare):
        (view,) = gathered(folder, named_data())
        assert json.loads(json.dumps(to_plain(view), allow_nan=False))["name"] == view.name


def test_several_heads_are_several_views(tmp_path):
    trained(tmp_path / "run", against=("linear",))
    views = gathered(tmp_path / "run")
    assert sorted(view.head.kind for view in views) == ["cp", "linear"]
    assert len({view.name for view in views}) == 2
    linear = next(view for view in views if view.head.kind == "linear")
    assert linear.lacks("analysis").command == linear.lacks("edits").command == ""


def test_images_that_cannot_be_had_are_said(bare):
    found = open_images(StoredRun(bare / "seed-0", progress=False))
    assert isinstance(found, Missing)
    assert found.reason.startswith("The image set could not be opened:")


def test_a_run_and_a_job_write_their_pages_from_python(tmp_path):
    data = made_up_data(60, ["a", "b"])
    for seed in (0, 1):
        write_run(tmp_path / "job" / f"seed-{seed}", data, experts=4, seed=seed)
    job = mumoe.load(tmp_path / "job", data=data, progress=False)
    written = job.report(tmp_path / "out", max_images=1)
    assert Path(written.page).read_text().count("seed 1") > 0
    assert written.headline() == f"Written to {tmp_path / 'out' / 'index.html'}. Open it in a browser."
    assert {row["run"] for row in written.rows()} == {"job"}
    assert "mumoe edit" in written.to_frame()["command"][0]
    alone = job.runs[1].report(tmp_path / "alone", max_images=1)
    assert list(alone.missing) == ["job/seed-1"]
    assert len(list((tmp_path / "alone" / "images").glob("*.webp"))) > 0  # drawn from the data that were given
    with pytest.raises(UserError, match=r"report: expected max_images >= 0, got -1\."):
        job.report(tmp_path / "other", max_images=-1)
