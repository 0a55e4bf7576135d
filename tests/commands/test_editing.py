"""`mumoe fairness`, `mumoe edit` and `mumoe audit` on a run that was trained here, through the command line."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

import mumoe
from mumoe.cli import main
from mumoe.editing import subgroup_fairness as fairness
from mumoe.editing.auditing import RunAudit
from mumoe.editing.edit_files import load_edits, read_edit_file
from mumoe.editing.expert_edits import Ablate, Rewrite, SetOutput, Swap
from mumoe.editing.runs import edited_head, editing_run
from mumoe.models.heads import build_head
from mumoe.training import StoredRun, TrainConfig, train
from training.made_up_training import made_up_image

CLASSES = ("blond", "male", "smiling")


METADATA = {"classes": json.dumps(CLASSES), "group_sex": json.dumps(["woman", "man"])}


def write_features(path, *, single=False, rows=1200):
    """Blond men are few in training and look less blond; the gate can tell men from women."""
    rng = np.random.default_rng(0)
    split = rng.choice([0, 1, 2], rows, p=[0.6, 0.2, 0.2])
    blond, smiling = rng.integers(0, 2, (2, rows))
    male = (rng.random(rows) < np.where((blond == 1) & (split == 0), 0.02, 0.5)).astype(np.int64)
    x = rng.normal(size=(rows, 8))
    x[:, 0] += 2.5 * (2 * blond - 1) - 1.5 * blond * male
    x[:, 1] += 4 * (2 * male - 1)
    x[:, 2] += 2 * (2 * smiling - 1)
    labels = blond if single else np.stack([blond, male, smiling], 1)
    group = np.where(rng.random(rows) < 0.1, -1, male)
    tensors = {"features": x.astype(np.float32), "labels": labels.astype(np.int64), "split": split}
    metadata = METADATA | ({"classes": json.dumps(CLASSES[:2])} if single else {})
    save_file({**tensors, "group_sex": group, "group_old": group.copy()}, path, metadata=metadata)


def trained(tmp_path, head="CPMuMoE-r8-e8", **options):
    file = tmp_path / "features.safetensors"
    write_features(file, **options)
    config = TrainConfig(
        data=f"features:{file}", head=head, epochs=8, batch_size=64, lr=0.02, out=str(tmp_path / "run")
    )
    train(config, progress=False)
    return config.out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("editing"))


def call(capsys, *arguments):
    status = main([*map(str, arguments), "--quiet"])
    said = capsys.readouterr()
    return status, said.out, said.err


WHO = ("--target", "blond", "--sensitive", "male", "--value", "1")


def test_fairness_prints_what_the_metrics_say(run, capsys):
    status, out, _ = call(capsys, "fairness", run, "--target", "blond", "--sensitive", "male", "--json")
    assert status == 0
    found = json.loads(out)["model"]
    assert found["target"] == {"label": 1, "sensitive": "1"}  # the worst of label 1, which no argument names
    opened = mumoe.load(run, progress=False).editing()
    rows = opened.data.indices("test")
    with torch.no_grad():
        guess = opened.head(torch.from_numpy(opened.features[rows]))[:, 0] > 0
    expected = fairness.std_bias(opened.data.labels[rows, 0], guess, sensitive_features=opened.data.labels[rows, 1])
    assert found["metrics"]["std_bias"]["value"] == pytest.approx(expected)
    status, out, _ = call(capsys, "fairness", run, "--target", "blond", "--sensitive", "sex", "--resamples", 0)
    assert status == 0
    unknown = int((opened.data.attributes["sex"].codes[rows] < 0).sum())
    assert 0 < unknown < len(rows)
    assert f"(sex is unknown for {unknown} test images, left out)" in out
    assert "1 / man (target)" in out
    assert "Equality of opp. (↓)" in out


def test_edit_corrects_writes_and_exports(run, capsys, tmp_path):
    file, exported = tmp_path / "edit.json", tmp_path / "head.safetensors"
    status, out, _ = call(capsys, "edit", run, *WHO, "--out", file, "--export", exported, "--max-loss", 0.05)
    assert status == 0
    assert "<- chosen" in out
    assert out.rstrip().endswith(f"Written: {exported}")
    about = read_edit_file(file).provenance
    before = about["metrics_before"]["metrics"]["target_accuracy"]["value"]
    after = about["metrics_after"]["metrics"]["target_accuracy"]["value"]
    assert after > before + 0.1
    assert about["lambda"] > 0
    assert about["subgroup"]["training_images"] > 0
    status, out, _ = call(capsys, "fairness", run, *WHO, "--edits", file, "--json")
    again = json.loads(out)["+ edits"]["metrics"]
    assert again["target_accuracy"]["value"] == pytest.approx(after)
    assert again["rewriting_score"] == about["metrics_after"]["metrics"]["rewriting_score"]
    opened = mumoe.load(run, progress=False).editing()
    x = torch.from_numpy(opened.features[:50].copy())
    state = load_file(exported)
    plain = build_head("CPMuMoE-r9-e8", 8, 3)
    plain.load_state_dict(state)
    with torch.no_grad():
        expected = edited_head(opened.head, load_edits(file, opened.layer))(x)
        torch.testing.assert_close(plain.eval()(x), expected)
        with load_edits(file, opened.layer):
            torch.testing.assert_close(opened.head(x), expected)


@pytest.mark.parametrize("value", ["1", "yes", "True", "1.0"])
def test_a_value_of_a_zero_one_attribute_may_be_written_in_several_ways(run, capsys, tmp_path, value):
    """An attribute writes it yes, a label of the set 1."""
    for sensitive, name in (("old", "yes"), ("male", "1")):
        who, file = ("--target", "blond", "--sensitive", sensitive, "--value", value), tmp_path / "edit.json"
        status, out, error = call(capsys, "edit", run, *who, "--lambda", 1, "--out", file, "--resamples", 0)
        assert (status, error) == (0, "")
        assert ("old is unknown for" in out) == (sensitive == "old")
        about = read_edit_file(file).provenance
        assert about["subgroup"]["value"] == about["metrics_after"]["target"]["sensitive"] == name
        assert about["subgroup"]["training_images"] > 0
        status, out, _ = call(capsys, "fairness", run, *who, "--edits", file, "--json", "--resamples", 0)
        assert json.loads(out)["+ edits"]["target"] == {"label": 1, "sensitive": name}
        status, _, _ = call(capsys, "edit", run, *who, "--do", "ablate:1", "--out", file, "--resamples", 0)
        assert read_edit_file(file).provenance["metrics_after"]["target"]["sensitive"] == name
    status, _, error = call(capsys, "edit", run, "--target", "blond", "--sensitive", "old", "--value", "-1")
    assert (status, error.count("\n")) == (2, 1)
    assert "expected --value out of no, yes, got '-1'" in error


def test_edit_with_the_papers_lambda_and_on_top(run, capsys, tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert call(capsys, "edit", run, *WHO, "--lambda", "paper", "--out", first)[0] == 0
    assert read_edit_file(first).provenance["lambda"] == 8
    assert read_edit_file(first).provenance["choice"] is None
    status, out, _ = call(
        capsys, "edit", run, *WHO, "--label", 0, "--lambda", 2, "--base", first, "--out", second, "--resamples", 0
    )
    assert status == 0
    content = read_edit_file(second)
    assert list(content.edits) == ["rewrite-1", "rewrite-2"]
    assert content.edits["rewrite-2"].strength == -2
    assert "lambda -2" in out
    reported = content.provenance["metrics_after"]["metrics"]["accuracy"]["value"]
    opened = mumoe.load(run, progress=False).editing()
    rows = opened.data.indices("test")
    with load_edits(second, opened.layer):
        guess = opened.logits(rows, 0) > 0
    assert reported == pytest.approx(float((guess == opened.data.labels[rows, 0]).mean()))


def test_edit_with_lambda_zero_changes_nothing(run, capsys, tmp_path):
    file = tmp_path / "zero.json"
    assert call(capsys, "edit", run, *WHO, "--lambda", 0, "--out", file)[0] == 0
    about = read_edit_file(file).provenance
    assert about["metrics_after"]["metrics"]["rewriting_score"]["value"] == 0
    assert about["metrics_after"]["subgroups"] == about["metrics_before"]["subgroups"]


def by_hand(run, strength, split):
    """(rows, 0/1 labels, male, predictions without and with eq. 6) from the weights alone, without any stack."""
    opened = mumoe.load(run, progress=False).editing()
    data, rows = opened.data, opened.data.indices(split)
    train = data.indices("train")
    men = train[(data.labels[train, 0] == 1) & (data.labels[train, 1] == 1)]
    gate = opened.layer.gate
    with torch.no_grad():
        a = [level.to_dense().double().numpy() for level in gate(opened.inputs(rows))]
        inside = [level.to_dense().double().numpy() for level in gate(opened.inputs(men))]
        logits = opened.head(torch.from_numpy(opened.features[rows]))[:, 0].double().numpy()
    mean = np.einsum("zn,zm->nm", *inside) / len(men) if len(a) == 2 else inside[0].mean(0)
    moved = np.einsum("nm,zn,zm->z", mean, *a) if len(a) == 2 else a[0] @ mean
    return data.labels[rows, 0], data.labels[rows, 1], logits > 0, logits + strength * moved > 0


@pytest.mark.parametrize("head", ["CPMuMoE-r8-e8", "CPMuMoE-r8-e4x3"])
@pytest.mark.parametrize("wanted", ["auto", "paper", 1.5])
def test_edit_is_equation_6_chosen_on_validation_and_measured_on_test(tmp_path, capsys, head, wanted):
    run, file = trained(tmp_path, head), tmp_path / "edit.json"
    assert call(capsys, "edit", run, *WHO, "--lambda", wanted, "--max-loss", 0.05, "--out", file)[0] == 0
    about = read_edit_file(file).provenance
    if wanted == "auto":
        curve = {}
        for point in about["choice"]["curve"]:
            truth, male, _, guess = by_hand(run, point["strength"], "val")
            groups = [(truth == label) & (male == value) for label in (0, 1) for value in (0, 1)]
            worst = min((guess == truth)[group].mean() for group in groups)
            curve[point["strength"]] = ((guess == truth).mean(), worst)
            assert point["metrics"]["accuracy"] == pytest.approx(curve[point["strength"]][0])
        allowed = {s: worst for s, (overall, worst) in curve.items() if overall >= curve[0][0] - 0.05}
        assert len(curve) > 10
        assert about["lambda"] == min(allowed, key=lambda s: (-allowed[s], s))
    assert about["lambda"] == {"auto": about["lambda"], "paper": 8 if head.endswith("e8") else 12}.get(wanted, wanted)
    truth, male, old, new = by_hand(run, about["lambda"], "test")
    target = (truth == 1) & (male == 1)
    for key, guess in (("metrics_before", old), ("metrics_after", new)):
        found = about[key]["metrics"]
        assert found["accuracy"]["value"] == pytest.approx((guess == truth).mean())
        assert found["target_accuracy"]["value"] == pytest.approx(guess[target].mean())
    assert new[target].mean() > old[target].mean() + 0.05


def test_edit_reports_what_the_stack_that_it_saves_does(run, capsys, tmp_path, monkeypatch):
    """A stack that did something else than the formula was reported as the formula."""
    meant = Rewrite.operation
    monkeypatch.setattr(Rewrite, "operation", lambda self, part: meant(dataclasses.replace(self, strength=-9.0), part))
    file = tmp_path / "edit.json"
    assert call(capsys, "edit", run, *WHO, "--lambda", 2, "--out", file)[0] == 0
    reported = read_edit_file(file).provenance["metrics_after"]["metrics"]["accuracy"]["value"]
    opened = mumoe.load(run, progress=False).editing()
    rows = opened.data.indices("test")
    with load_edits(file, opened.layer):
        right = (opened.logits(rows, 0) > 0) == opened.data.labels[rows, 0]
    truth, _, _, meant_to = by_hand(run, 2, "test")
    assert right.mean() != (meant_to == truth).mean()
    assert reported == pytest.approx(right.mean())


def test_a_run_without_test_images_cannot_be_corrected(tmp_path, capsys):
    file = tmp_path / "features.safetensors"
    write_features(file)
    tensors = load_file(file)
    tensors["split"] = torch.where(tensors["split"] == 2, 0, tensors["split"])
    save_file({name: value.numpy() for name, value in tensors.items()}, file, metadata=METADATA)
    run = str(tmp_path / "run")
    train(TrainConfig(data=f"features:{file}", head="CPMuMoE-r4-e4", epochs=1, out=run), progress=False)
    status, out, err = call(capsys, "edit", run, *WHO, "--out", tmp_path / "edit.json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "expected test images whose male is known, got none" in err


def test_default_place_is_in_the_run(run, capsys):
    assert call(capsys, "edit", run, *WHO, "--lambda", 1)[0] == 0
    assert read_edit_file(f"{run}/edits/blond-male-1.json").edits["rewrite-1"].strength == 1


def test_audit_finds_the_planted_group(run, capsys, tmp_path):
    status, out, _ = call(capsys, "audit", run, "--target", "blond", "--split", "test", "--json")
    assert status == 0
    first = json.loads(out)["findings"][0]
    assert first["label"] == 1
    opened = mumoe.load(run, progress=False).editing()
    rows = opened.data.indices("test")
    a = opened.coefficients(rows, "test")[0].to_dense()
    inside = np.ones(len(rows), dtype=bool)
    for _, expert in first["experts"]:
        inside &= (a[:, expert] >= 0.1).numpy()
    blond = opened.data.labels[rows, 0] == 1
    assert opened.data.labels[rows, 1][inside & blond].mean() > 0.9  # nearly all of them men
    folder = tmp_path / "proposals"
    status, out, _ = call(capsys, "audit", run, "--target", "blond", "--propose", folder, "--top", 2)
    assert status == 0
    assert "groups are right less often than the rest" in out
    assert "    wrong: " in out
    assert load_edits(folder / "finding-1.json", opened.layer)["finding-1"].strength > 0


def test_single_label_runs(tmp_path, capsys):
    run = trained(tmp_path, single=True)
    status, out, _ = call(capsys, "audit", run, "--split", "test")
    assert status == 0
    assert " = male" in out or " = blond" in out
    status, _, err = call(capsys, "edit", run, *WHO)
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("mumoe edit: expected a run on 0/1 attributes, got single labels in features:")
    assert not (tmp_path / "run" / "edits").exists()


def test_a_run_without_experts(tmp_path, capsys):
    run = trained(tmp_path, head="linear")
    assert call(capsys, "fairness", run, "--target", "blond", "--sensitive", "male")[0] == 0
    for verb in ("edit", "audit"):
        status, _, err = call(capsys, verb, run, *(WHO if verb == "edit" else ("--target", "blond")))
        assert status == 2
        assert f"mumoe {verb}: expected a MuMoE layer that makes the logits, got the head 'linear'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "blonde", *WHO[2:]), "expected --target out of blond, male, smiling, got 'blonde'. Did you mean"),
        ((*WHO[:2], "--sensitive", "mal", "--value", "1"), "expected --sensitive out of"),
        ((*WHO[:4], "--value", "2"), "expected --value out of 0, 1, got '2'."),
        ((*WHO, "--label", "3"), "expected --label 0 or 1, got 3."),
        ((*WHO, "--lambda", "-1"), "expected --lambda from 0, got -1. Its sign follows from --label."),
        ((*WHO, "--lambda", "papr"), "got 'papr'. Did you mean 'paper'?"),
        ((*WHO, "--max-loss", "5"), "expected --max-loss in 0..1, got 5.0."),
    ],
)
def test_bad_calls_say_one_line_and_write_nothing(run, capsys, tmp_path, arguments, message):
    file = tmp_path / "edit.json"
    status, _, err = call(capsys, "edit", run, *arguments, "--out", file)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_edit_of_another_model(run, capsys, tmp_path):
    file = tmp_path / "edit.json"
    assert call(capsys, "edit", run, *WHO, "--lambda", 1, "--out", file)[0] == 0
    text = file.read_text()
    mark = read_edit_file(file).layer["fingerprint"]
    file.write_text(text.replace(mark, "0" * 64))
    status, _, err = call(capsys, "fairness", run, *WHO, "--edits", file)
    assert status == 2
    assert "got edits of another (CPMuMoE-r8-e8, 000000000000)" in err


def test_audit_of_many_classes_and_few_images_pools_them_and_says_so(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.arange(1800) % 72
    x = 1.2 * rng.normal(size=(72, 12))[labels] + rng.normal(size=(1800, 12))
    split = np.where(np.arange(1800) < 348, 1, np.where(np.arange(1800) < 500, 2, 0))
    tensors = {"features": x.astype(np.float32), "labels": labels, "split": split}
    save_file(tensors, tmp_path / "f.safetensors", metadata={"classes": json.dumps([f"c{n}" for n in range(72)])})
    run = tmp_path / "run"
    config = TrainConfig(data=f"features:{tmp_path / 'f.safetensors'}", head="CPMuMoE-r8-e8", epochs=4, out=str(run))
    train(config, progress=False)
    status, out, err = call(capsys, "audit", run)
    assert (status, err) == (0, "")
    assert "no group has 10 images of one class: all classes are pooled (each class is compared with itself)" in out
    assert "all labels: " in out
    found = json.loads(call(capsys, "audit", run, "--json", "--merge", 0)[1])
    assert found["pooled"]
    opened = mumoe.load(run, progress=False).editing()
    rows = opened.data.indices("val")
    a = opened.coefficients(rows, "test")[0].to_dense().numpy()
    right = opened.outputs(rows).argmax(1) == labels[rows]
    first = next(item for item in found["findings"] if len(item["experts"]) == 1)
    inside = a[:, first["experts"][0][1]] >= 0.1
    assert first["rows"] <= inside.sum()  # a class of which no image is outside cannot be compared
    assert first["accuracy"] == pytest.approx(right[inside].mean(), abs=0.1)
    status, out, _ = call(capsys, "audit", run, "--min-rows", 300)
    assert status == 0
    assert "all classes are pooled, and --min-rows lowered to " in out


def test_audit_without_images_says_so(run, capsys, tmp_path):
    arguments = ("audit", run, "--target", "blond", "--split", "test", "--out", tmp_path / "pictures")
    status, out, _ = call(capsys, *arguments)
    assert status == 0
    assert out.count("No pictures: features:") == 1
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == ["audit.json"]
    assert json.loads(call(capsys, *arguments, "--json")[1])["pictures"] is None


def test_audit_shows_the_images_of_its_findings(run, capsys, tmp_path, monkeypatch):
    def opened_with_images(stored):
        found = editing_run(stored)
        return dataclasses.replace(found, data=dataclasses.replace(found.data, open_image=made_up_image))

    monkeypatch.setattr("mumoe.editing.auditing.editing_run", opened_with_images)
    status, out, _ = call(capsys, "audit", run, "--target", "blond", "--split", "test", "--top", 2, "--images", 3)
    assert status == 0
    folder = Path(run) / "audit" / "blond-test"
    assert out.endswith(f"Written: {folder / 'sheet.png'}\n")
    opened = mumoe.load(run, progress=False).editing()
    content = json.loads((folder / "findings.json").read_text())
    assert [bool(found["finding"]["attributes"]) for found in content["findings"]] == [False, False, True, True]
    assert RunAudit.load(folder / "audit.json").by_attributes.findings
    for found in content["findings"]:
        label = found["finding"]["label"]
        assert found["label"] == ("not blond", "blond")[label]
        assert found["wrong_total"] + found["right_total"] == found["finding"]["rows"]
        assert found["right_total"] == round(found["finding"]["accuracy"] * found["finding"]["rows"])
        for kind in ("wrong", "right"):
            assert len(found[kind]) == min(3, found[f"{kind}_total"])
            images = np.array([item["image"] for item in found[kind]], dtype=np.int64)
            assert (opened.data.labels[images, 0] == label).all()
            assert (opened.data.split[images] == 2).all()
            guess = opened.logits(images, 0) > 0 if len(images) else np.zeros(0, dtype=bool)
            assert ((guess == label) == (kind == "right")).all()
            assert [item["said"] for item in found[kind]] == [("not blond", "blond")[int(said)] for said in guess]
        for item in found["wrong"]:
            assert item["id"] in out
    assert call(capsys, "audit", run, "--target", "blond", "--images", 0)[1].count("Written") == 0


@pytest.mark.parametrize("verb", ["edit", "hand", "base", "fairness"])
def test_edits_that_do_not_exist_are_answered_before_anything_is_loaded(run, capsys, tmp_path, monkeypatch, verb):
    file = tmp_path / "edits.json"
    assert call(capsys, "edit", run, "--do", "ablate:1", "--out", file)[0] == 0
    content = json.loads(file.read_text())
    content["edits"][0]["expert"] = 999
    file.write_text(json.dumps(content))
    for name in ("network", "data"):
        monkeypatch.setattr(StoredRun, name, property(lambda _: pytest.fail("weights or data were loaded")))
    arguments = {
        "edit": ("edit", run, *WHO, "--base", file),
        "hand": ("edit", run, "--do", "ablate:1", "ablate:999"),
        "base": ("edit", run, "--do", "ablate:1", "--base", file),
        "fairness": ("fairness", run, *WHO[:4], "--edits", file),
    }[verb]
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err == "Ablate: expected an expert in 0..7, got 999. There are 8 experts.\n"


OPTIONS = {
    "audit": {
        "split": "test", "threshold": 0.3, "no-pairs": None, "min-rows": 40, "alpha": 0.9, "correction": "holm",
        "top": 2, "images": 0, "target": "smiling", "merge": 0,
    },
    "fairness": {
        "target": "smiling", "sensitive": "sex", "label": 0, "value": "0", "split": "val", "resamples": 50, "seed": 1,
        "edits": "{edits}",
    },
    "edit": {
        "target": "smiling", "sensitive": "sex", "value": "0", "label": 0, "lambda": 0.5,
        "objective": "rewriting_score",
        "max-loss": 0.3, "base": "{edits}", "resamples": 50, "seed": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb in OPTIONS for option in OPTIONS[verb]])
def test_every_option_changes_what_comes_out(run, capsys, tmp_path, verb, option):
    """Compared is everything but the time and the option's own name in the heading."""
    edits = tmp_path / "edits.json"
    assert call(capsys, "edit", run, "--do", "scale:1=-2", "scale:2=3", "--out", edits)[0] == 0
    own = {"target": "blond", "sensitive": "male", "value": "1", "max-loss": 0.0}
    first = {name: own[name] for name in own if name in OPTIONS[verb]}
    if verb == "audit":
        first = {"target": "blond"}
    if option == "max-loss":  # for blond men every gain of the worst group is one of overall accuracy too
        first |= {"target": "male", "sensitive": "blond"}
    changed = {**first, option: OPTIONS[verb][option]}
    if option == "sensitive" and "value" in first:
        changed["value"] = "woman"

    def outcome(options):
        texts = [
            str(part).format(edits=edits)
            for name, value in options.items()
            for part in (f"--{name}", value)
            if part is not None
        ]
        file = tmp_path / "found.json"
        status, out, err = call(capsys, verb, run, *texts, *(("--out", file) if verb == "edit" else ()))
        assert status == 0, err
        if verb == "edit":
            found = read_edit_file(file)
            return [found.edits, found.provenance["metrics_before"], found.provenance["metrics_after"]]
        return out.partition("\n")[2] if verb == "fairness" else re.sub(r"\(\w+, alpha .*?\)", "", out)

    assert outcome(changed) != outcome(first)
    assert outcome(first) == outcome(first)


# Edits by hand --------------------------------------------------------------------------------------------


def test_edits_by_hand_in_the_order_given_and_measured_on_validation(run, capsys, tmp_path):
    file, on_top, exported = tmp_path / "hand.json", tmp_path / "top.json", tmp_path / "head.safetensors"
    texts = ("swap:4=5", "ablate:4", "set-output:2:smiling=3")
    status, out, _ = call(capsys, "edit", run, "--do", *texts, "--out", file, "--export", exported)
    assert status == 0
    opened = mumoe.load(run, progress=False).editing()
    stack = load_edits(file, opened.layer)
    assert list(stack.edits.values()) == [Swap(4, 5), Ablate(4), SetOutput((2,), 2, 3.0)]
    assert "swap-1: swap experts 4 and 5 of level 0\nablate-1: ablate expert 4 of level 0\n" in out
    about = read_edit_file(file).provenance
    rows = opened.data.indices("val")
    truth = opened.data.labels[rows]
    before = (opened.outputs(rows) > 0) == truth
    with stack:
        after = (opened.outputs(rows) > 0) == truth
    assert about["split"] == "val"
    assert about["metrics_before"]["accuracy"] == pytest.approx(before.mean())
    assert about["metrics_after"]["accuracy"] == pytest.approx(after.mean())
    assert about["metrics_after"]["classes"]["smiling"] == pytest.approx(after[:, 2].mean())
    assert after.mean() < before.mean() - 0.01
    assert f"{(after & ~before).sum()} answers corrected, {(before & ~after).sum()} newly wrong" in out
    assert f"  smiling: {before[:, 2].mean():.3f} -> {after[:, 2].mean():.3f}\n" in out
    plain = build_head("CPMuMoE-r9-e8", 8, 3)
    plain.load_state_dict(load_file(exported))
    with torch.no_grad(), stack:
        x = torch.from_numpy(opened.features[:50].copy())
        torch.testing.assert_close(plain.eval()(x), opened.head(x), atol=1e-5, rtol=1e-5)
    assert call(capsys, "edit", run, "--do", "scale:3=0.5", "--base", file, "--out", on_top)[0] == 0
    assert list(read_edit_file(on_top).edits) == ["swap-1", "ablate-1", "set-output-1", "scale-1"]


def test_edits_by_hand_with_a_subgroup_and_the_default_place(run, capsys, monkeypatch):
    asked = []
    real = type(mumoe.load(run, progress=False).editing().data).indices
    monkeypatch.setattr(
        "mumoe.data.base.ImageData.indices", lambda self, split: asked.append(split) or real(self, split)
    )
    status, out, _ = call(capsys, "edit", run, *WHO, "--do", "correct:1:blond=2.5", "--resamples", 0)
    assert status == 0
    assert "val" in asked
    assert "test" not in asked
    about = read_edit_file(f"{run}/edits/correct_1_blond=2_5.json").provenance
    assert about["metrics_before"]["target"] == {"label": 1, "sensitive": "1"}
    assert about["metrics_after"]["metrics"]["rewriting_score"]["value"] is not None
    assert "Equality of opp. (↓)" in out
    assert call(capsys, "edit", run, "--do", "ablate:1", "--split", "test")[0] == 0
    assert asked[-1] == "test"


def test_an_edit_by_hand_of_a_single_label_run(tmp_path, capsys):
    run = trained(tmp_path, single=True)
    file = tmp_path / "hand.json"
    status, out, _ = call(capsys, "edit", run, "--do", *(f"ablate:{n}" for n in range(8)), "--out", file)
    assert status == 0
    about = read_edit_file(file).provenance
    assert about["metrics_before"]["accuracy"] > 0.8
    assert about["metrics_after"]["classes"] == {"blond": 1.0, "male": 0.0}  # nothing is left but ties
    assert " images corrected, " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a subgroup (--target, --sensitive, --value) or edits by hand (--do ablate:17), got no --tar"),
        (WHO[:4], "got no --value. Name one of the two."),
        (("--do", "ablat:1"), "got 'ablat'. Did you mean 'ablate'?"),
        (("--do", "ablate:8"), "Ablate: expected an expert in 0..7, got 8."),
        (("--do", "scale:8=2"), "Scale: expected an expert in 0..7, got 8."),
        (("--do", "swap:1=99"), "Swap: expected an expert in 0..7, got 99."),
        (("--do", "set-output:8:blond=2"), "SetOutput: expected an expert in 0..7, got 8."),
        (("--do", "correct:1,2:blond=2"), "Correct: expected an expert's index, got (1, 2)."),
        (("--do", "ablate:1/0"), "expected level in 0..0, got 1."),
        (("--do", "ablate:0", "set-output:1:blnd=2"), "got 'blnd'. Did you mean 'blond'?"),
        (("--do", "ablate:0", "--lambda", "2"), "expected no --lambda with --do, got 2."),
        (("--do", "ablate:0", "--split", "vall"), "got 'vall'. Did you mean 'val'?"),
        (
            ("--do", "ablate:0", "--target", "blond"),
            "to measure a subgroup, got --target alone. Give all three or none.",
        ),
    ],
)
def test_bad_edits_by_hand_say_one_line_and_write_nothing(run, capsys, tmp_path, arguments, message):
    status, out, err = call(capsys, "edit", run, *arguments, "--out", tmp_path / "edit.json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not list(tmp_path.iterdir())
