"""`Run.fairness`, `rewrite`, `edit` and `audit`: typed results, and reports of what the saved stack does."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import mumoe
from commands.test_editing import METADATA, trained, write_features
from mumoe.editing.auditing import RunAudit
from mumoe.editing.edit_files import load_edits, read_edit_file
from mumoe.editing.edit_reports import ChangeReport, FairnessComparison, RewritingReport
from mumoe.editing.subgroup_fairness import METRICS
from mumoe.errors import UserError
from mumoe.training import TrainConfig, train

WHOM = {"target": "blond", "sensitive": "male"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("correcting"))


@pytest.fixture
def run(folder):
    return mumoe.load(folder, device="cpu", progress=False)


@pytest.fixture(scope="module")
def edit(folder):
    return mumoe.load(folder, device="cpu", progress=False).rewrite(**WHOM, value=1, max_loss=0.05)


def accuracies(opened, rows, guess):
    """Overall and by (label, male), by hand."""
    truth, male = opened.data.labels[rows, 0], opened.data.labels[rows, 1]
    groups = [(truth == label) & (male == value) for label in (0, 1) for value in (0, 1)]
    return float((guess == truth).mean()), [float((guess == truth)[group].mean()) for group in groups]


def reported(report):
    return report.metrics["accuracy"].value, [group.accuracy.value for group in report.subgroups]


def test_the_saved_stack_does_exactly_what_the_report_says(folder, edit, tmp_path):
    edit.save(tmp_path / "blond.json")
    opened = mumoe.load(folder, device="cpu", progress=False).editing()
    rows = opened.data.indices("test")
    with load_edits(tmp_path / "blond.json", opened.layer):
        guess = opened.logits(rows, 0) > 0
    assert accuracies(opened, rows, guess) == reported(edit.report.models["after"])
    assert accuracies(opened, rows, opened.logits(rows, 0) > 0) == reported(edit.report.models["before"])
    about = read_edit_file(tmp_path / "blond.json").provenance
    assert about["metrics_after"] == edit.report.models["after"].to_dict()


def test_the_blind_shift_of_the_report_is_one_threshold_chosen_on_validation(folder, edit):
    opened = mumoe.load(folder, device="cpu", progress=False).editing()
    shift = edit.report.blind.strength
    assert shift > 0
    rows = opened.data.indices("test")
    assert accuracies(opened, rows, opened.logits(rows, 0) + shift > 0) == reported(edit.report.models["blind"])
    val = opened.data.indices("val")
    tried = {}
    for point in edit.report.blind.curve:
        overall, groups = accuracies(opened, val, opened.logits(val, 0) + point.strength > 0)
        tried[point.strength] = (overall, min(groups))
    allowed = {s: worst for s, (overall, worst) in tried.items() if overall >= tried[0][0] - 0.05}
    assert shift == min(allowed, key=lambda s: (-allowed[s], s))


def test_labels_of_test_images_choose_nothing(tmp_path):
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "features.safetensors"
        write_features(file)
        tensors = load_file(file)
        if name == "b":
            test = tensors["split"] == 2
            tensors["labels"][test, 0] = 1 - tensors["labels"][test, 0]
            save_file(tensors, file, metadata=METADATA)
        config = TrainConfig(data=f"features:{file}", head="CPMuMoE-r4-e4", epochs=3, lr=0.02, out=f"{file.parent}/run")
        train(config, progress=False)
        run = mumoe.load(config.out, device="cpu", progress=False)
        found.append(run.rewrite(**WHOM, value=1, max_loss=0.05, resamples=0))
    first, second = (edit.report for edit in found)
    assert first.choice == second.choice
    assert first.blind == second.blind
    assert list(found[0].stack.edits.values()) == list(found[1].stack.edits.values())
    assert first.models["after"].metrics != second.models["after"].metrics


def test_a_rewriting_shows_itself_beside_the_model_and_the_blind_shift(edit, tmp_path):
    report = edit.report
    frame = report.to_frame()
    assert list(frame["model"]) == ["before", "blind", "after"]
    assert list(frame.columns) == ["model", "strength", *METRICS]
    assert frame["strength"].iloc[2] == report.strength == edit.stack["rewrite-1"].strength > 0
    assert np.isnan(frame["strength"].iloc[0])
    subgroups = report.to_frame(metrics=False)
    assert len(subgroups) == 12
    assert set(subgroups[subgroups.is_target]["male"]) == {"1"}
    assert "<table>" in edit._repr_html_()
    assert "rewrite-1: rewrite output 0 by +" in repr(edit)
    assert RewritingReport.from_json(report.to_json()) == report
    report.save(tmp_path / "report.json")
    assert RewritingReport.load(tmp_path / "report.json") == report
    axes = report.plot().axes[0]
    assert [line.get_label() for line in axes.get_legend().get_lines()] == ["experts", "blind threshold"]


def test_fairness_of_the_model_and_of_edits(run, edit, tmp_path):
    edit.save(tmp_path / "blond.json")
    alone = run.fairness(**WHOM)
    assert list(alone.models) == ["model"]
    assert alone.blind is None
    frame = alone.to_frame()
    assert list(frame.columns)[:4] == ["model", "blond", "male", "images"]
    assert frame["images"].sum() == len(run.data.indices("test"))
    assert frame[frame.is_target]["accuracy"].iloc[0] == frame[frame.blond == 1]["accuracy"].min()
    for edits in (edit, edit.stack, tmp_path / "blond.json", str(tmp_path / "blond.json")):
        found = run.fairness(**WHOM, value=1, edits=edits)
        assert list(found.models) == ["model", "+ blind", "+ edits"]
        assert found.models["+ edits"] == edit.report.models["after"]
    # chosen as the edits were, whose objective and loss are on record
    assert run.fairness(**WHOM, value=1, edits=edit).blind == edit.report.blind
    assert run.fairness(**WHOM, value=1, edits=edit, objective="match").blind != edit.report.blind
    assert run.fairness(**WHOM, value=1, edits=edit, max_loss=0.0).blind.max_loss == 0
    assert run.fairness(**WHOM, value=1, edits=run.edit("ablate:1")).blind.max_loss == 0.01
    assert list(run.fairness(**WHOM, edits=edit, split="val").models) == ["model", "+ edits"]
    assert FairnessComparison.from_json(found.to_json()) == found
    assert len(found.plot().axes[0].get_yticks()) == 4


def test_the_command_prints_the_blind_shift_as_a_row(folder, edit, tmp_path, capsys):
    from mumoe.cli import main

    edit.save(tmp_path / "blond.json")
    arguments = ["fairness", folder, "--target", "blond", "--sensitive", "male", "--value", "1", "--quiet"]
    arguments += ["--edits", str(tmp_path / "blond.json")]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["model", "+ blind", "+ edits"]
    assert found["+ blind"] == edit.report.models["blind"].to_dict()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("\n+ blind ") == 2


def test_edits_by_hand(run):
    found = run.edit(mumoe.Ablate(1), mumoe.Scale(2, 0.5), "swap:4=5")
    assert list(found.stack.edits.values()) == [mumoe.Ablate(1), mumoe.Scale(2, 0.5), mumoe.Swap(4, 5)]
    opened = run.editing()
    rows = opened.data.indices("val")
    truth = opened.data.labels[rows]
    old = opened.answers(rows) == truth
    with found.stack:
        new = opened.answers(rows) == truth
    report = found.report
    assert report.accuracy == (old.mean(), new.mean())
    assert report.classes["smiling"] == (old[:, 2].mean(), new[:, 2].mean())
    assert (report.mended, report.broken) == ((new & ~old).sum(), (old & ~new).sum())
    frame = report.to_frame()
    assert frame["change"].abs().is_monotonic_decreasing
    assert ChangeReport.from_json(report.to_json()) == report
    report.plot()
    grouped = run.edit("ablate:3", **WHOM, value="yes", resamples=0)
    assert list(grouped.report.fairness.models) == ["before", "after"]
    assert ChangeReport.from_json(grouped.report.to_json()) == grouped.report


def test_edits_on_top_leave_those_below_alone(run, edit):
    upper = run.rewrite(**WHOM, value=0, label=0, strength=2, base=edit, resamples=0)
    assert list(upper.stack.edits) == ["rewrite-1", "rewrite-2"]
    assert list(edit.stack.edits) == ["rewrite-1"]
    assert upper.report.choice is None
    assert upper.report.strength == -2
    assert [axes.get_title() for axes in upper.report.plot().axes] == ["before", "after", "difference"]


def test_an_audit(run, tmp_path):
    found = run.audit("blond", split="test")
    assert len(found.to_frame()) == len(found.findings)
    assert found.to_frame()["significant"].sum() == len(found.significant) > 0
    assert RunAudit.from_json(found.to_json()) == found
    assert len(found.plot(5).axes[0].get_yticks()) == 5
    with pytest.raises(UserError, match="expected an audit made by Run.audit, got one read from a file"):
        RunAudit.from_json(found.to_json()).pictured()
    assert found.by_experts is found
    named = found.by_attributes
    assert {name for finding in named.findings for name, _ in finding.attributes} >= {"male", "smiling"}
    assert "blond" not in {name for finding in named.findings for name, _ in finding.attributes}
    first = next(finding for finding in named.findings if finding.attributes == (("male", "1"),))
    assert first.label == 1  # blond men, the planted subgroup
    assert first in named.significant
    opened = run.editing()
    rows = opened.data.indices("test")
    inside = (opened.data.labels[rows][:, :2] == 1).all(1)
    assert (first.rows, first.accuracy) == (inside.sum(), (opened.logits(rows, 0) > 0)[inside].mean())
    shown = found.pictured(3, 2, by="attributes")
    assert [item.finding for item in shown] == list(named.findings[:3])
    with pytest.raises(UserError, match="expected `by` out of attributes, experts, got 'names'"):
        found.pictured(by="names")
    (path,) = found.propose(tmp_path / "proposals", top=1)
    assert read_edit_file(path).provenance["finding"] == str(found.findings[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.fairness("blnd", "male"), "Run.fairness: expected `target` out of blond, male, smiling, got"),
        (lambda run: run.fairness("blond", "mal"), "Run.fairness: expected `sensitive` out of "),
        (
            lambda run: run.fairness("blond", "male", split="tset"),
            "Run.fairness: expected `split` out of test, train,",
        ),
        (lambda run: run.rewrite("blond", "male", 7), "Run.rewrite: expected `value` out of 0, 1, got '7'."),
        (lambda run: run.rewrite("blond", "male", 1, label=2), "Run.rewrite: expected `label` 0 or 1, got 2."),
        (lambda run: run.rewrite("blond", "male", 1, strength="papr"), "got 'papr'. Did you mean 'paper'?"),
        (lambda run: run.rewrite("blond", "male", 1, strength=-1), "expected `strength` from 0, got -1."),
        (lambda run: run.rewrite("blond", "male", 1, reading="level"), "expected `reading` out of joint, levels, got"),
        (lambda run: run.edit(), "Run.edit: expected at least one edit, got none."),
        (
            lambda run: run.edit("ablate:1", target="blond", sensitive="male", value=3),
            "expected `value` out of 0, 1, got",
        ),
        (lambda run: run.edit("ablate:99"), "Ablate: expected an expert in 0..7, got 99."),
        (lambda run: run.edit(mumoe.Ablate(1), target="blond"), "got `target` alone. Give all three or none."),
        (lambda run: run.audit("blnd"), "Run.audit: expected `target` out of blond, male, smiling, got 'blnd'."),
        (lambda run: run.audit("blond", threshold=2), "audit: expected `threshold` above 0 and at most 1, got 2."),
    ],
)
def test_a_wrong_call_names_the_argument(run, call, message):
    with pytest.raises(UserError) as error:
        call(run)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fairness", "--target", "blnd", "--sensitive", "male"], "mumoe fairness: expected --target out of "),
        (["fairness", "--target", "blond", "--sensitive", "mal"], "mumoe fairness: expected --sensitive out of "),
        (["edit", "--do", "ablate:1", "--split", "vall"], "mumoe edit: expected --split out of test, train, val, got"),
        (["audit", "--target", "blond", "--threshold", "2"], "audit: expected --threshold above 0 and at most 1, got"),
        (["audit", "--target", "blond", "--min-rows", "1"], "audit: expected --min-rows >= 2, got 1."),
    ],
)
def test_a_wrong_call_of_a_verb_names_the_flag(folder, capsys, arguments, message):
    from mumoe.cli import main

    verb, *rest = arguments
    assert main([verb, folder, *rest, "--quiet"]) == 2
    assert capsys.readouterr().err.startswith(message)
