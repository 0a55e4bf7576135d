"""Every metric by hand, against fairlearn on random data, and the bootstrap against plain row resampling."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fairlearn import metrics as fairlearn_metrics

from mumoe.editing import subgroup_fairness as fairness
from mumoe.editing.subgroup_fairness import Bootstrap, FairnessReport, fairness_report
from mumoe.editing.subgroups import Subgroup
from mumoe.errors import UserError

# Four rows of each subgroup, so that every answer below can be counted on fingers:
# y=0 f, y=0 m, y=1 f, y=1 m.
TRUE = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
SEX = ["f"] * 4 + ["m"] * 4 + ["f"] * 4 + ["m"] * 4
BEFORE = [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0]  # accuracies 1, 3/4, 3/4, 1/4
AFTER = [0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]  # accuracies 3/4, 1, 3/4, 1
QUICK = Bootstrap(resamples=50)


def random_rows(rows=500, seed=0, classes=2):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, classes, rows),
        rng.integers(0, classes, rows),
        np.array(["a", "b", "c"])[rng.integers(0, 3, rows)],
    )


def test_subgroup_accuracies_by_hand():
    found = fairness.subgroup_accuracy(TRUE, BEFORE, sensitive_features=SEX)
    assert found == {
        Subgroup(0, "f"): 1.0,
        Subgroup(0, "m"): 0.75,
        Subgroup(1, "f"): 0.75,
        Subgroup(1, "m"): 0.25,
    }


def test_metrics_by_hand():
    given = {"sensitive_features": SEX}
    assert fairness.target_accuracy(TRUE, BEFORE, **given, target=(1, "m")) == 0.25
    assert fairness.equal_opportunity_difference(TRUE, BEFORE, **given) == 0.5
    assert fairness.equal_opportunity_difference(TRUE, BEFORE, **given, pos_label=0) == 0.25
    assert fairness.min_accuracy(TRUE, BEFORE, **given) == 0.25
    assert fairness.accuracy(TRUE, BEFORE, **given) == 11 / 16
    # mean 11/16; deviations 5, 1, 1, -7 sixteenths; variance 76 / (4 * 256)
    assert fairness.std_bias(TRUE, BEFORE, **given) == pytest.approx((76 / 1024) ** 0.5)


def test_rewriting_score_by_hand():
    # target 1/m: 1/4 -> 1 is +3/4; 0/f: 1 -> 3/4 costs 1/4; 0/m: 3/4 -> 1, though better, costs 1/4; 1/f: 0
    score = fairness.rewriting_score(TRUE, AFTER, sensitive_features=SEX, y_pred_before=BEFORE, target=(1, "m"))
    assert score == pytest.approx(0.25)
    other = fairness.rewriting_score(TRUE, AFTER, sensitive_features=SEX, y_pred_before=BEFORE, target=(0, "f"))
    assert other == pytest.approx(-0.25 - (0.25 + 0 + 0.75))


def test_rewriting_score_limits():
    given = {"sensitive_features": SEX, "y_pred_before": BEFORE, "target": (1, "m")}
    assert fairness.rewriting_score(TRUE, BEFORE, **given) == 0
    perfect = [*BEFORE[:12], 1, 1, 1, 1]
    assert fairness.rewriting_score(TRUE, perfect, **given) == 1 - 0.25


def test_std_bias_is_the_papers():
    """Table 2 (b): with CelebA's counts, the print leaves one accuracy free; only 1/n gives its STD."""
    counts = np.array([180, 2480, 9767, 7535])  # blond men, blond women, other women, other men
    printed = [  # target accuracy, equality of opportunity, STD bias, test accuracy
        (0.346, 0.534, 0.263, 0.95833),
        (0.353, 0.529, 0.260, 0.95831),
        (0.409, 0.476, 0.236, 0.95893),
        (0.655, 0.226, 0.131, 0.95750),
        (0.193, 0.630, 0.325, 0.95031),
    ]
    for target, gap, deviation, overall in printed:
        errors = {0: [], 1: []}
        for men in np.linspace(0.95, 1, 51):
            known = overall * counts.sum() - counts[0] * target - counts[1] * (target + gap)
            accuracies = [target, target + gap, (known - counts[3] * men) / counts[2], men]
            for ddof in errors:
                errors[ddof].append(abs(np.std(accuracies, ddof=ddof) - deviation))
        assert min(errors[0]) < 0.001
        assert min(errors[1]) > 0.015


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_fairlearn(seed):
    truth, guess, sensitive = random_rows(seed=seed)
    ours = fairness.equal_opportunity_difference(truth, guess, sensitive_features=sensitive)
    theirs = fairlearn_metrics.equal_opportunity_difference(truth, guess, sensitive_features=sensitive)
    assert ours == pytest.approx(theirs, abs=1e-12)
    rates = fairlearn_metrics.MetricFrame(
        metrics=fairlearn_metrics.true_positive_rate,
        y_true=truth,
        y_pred=guess,
        sensitive_features=sensitive,
    )
    assert ours == pytest.approx(rates.difference("between_groups"), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_subgroups_equal_to_fairlearn(classes):
    truth, guess, sensitive = random_rows(classes=classes)
    frame = fairlearn_metrics.MetricFrame(
        metrics=lambda y_true, y_pred: float((y_true == y_pred).mean()),
        y_true=truth,
        y_pred=guess,
        sensitive_features={"label": truth, "sensitive": sensitive},
    )
    ours = fairness.subgroup_accuracy(truth, guess, sensitive_features=sensitive)
    assert {(group.label, group.sensitive): value for group, value in ours.items()} == pytest.approx(
        frame.by_group.to_dict()
    )
    assert fairness.min_accuracy(truth, guess, sensitive_features=sensitive) == pytest.approx(frame.group_min())
    assert fairness.accuracy(truth, guess, sensitive_features=sensitive) == pytest.approx(frame.overall)


def test_several_attributes_are_combined():
    truth, guess, first = random_rows(2000)
    second = np.random.default_rng(9).integers(0, 2, 2000)
    both = {"studio": first, "skin": second}
    joined = [f"{a}, {b}" for a, b in zip(first, second, strict=True)]
    assert fairness.subgroup_accuracy(truth, guess, sensitive_features=both) == fairness.subgroup_accuracy(
        truth, guess, sensitive_features=joined
    )
    by_tuple = fairness.target_accuracy(truth, guess, sensitive_features=both, target=(1, ("a", 0)))
    assert by_tuple == fairness.target_accuracy(truth, guess, sensitive_features=joined, target=(1, "a, 0"))
    ours = fairness.equal_opportunity_difference(truth, guess, sensitive_features=both)
    theirs = fairlearn_metrics.equal_opportunity_difference(truth, guess, sensitive_features=both)
    assert ours == pytest.approx(theirs)


def test_inputs_of_any_kind_agree():
    expected = fairness.std_bias(TRUE, AFTER, sensitive_features=SEX)
    codes = [int(sex == "m") for sex in SEX]
    for kind in (np.array, torch.tensor):
        assert fairness.std_bias(kind(TRUE), kind(AFTER), sensitive_features=kind(codes)) == expected
        as_bool = kind([bool(value) for value in AFTER])
        assert fairness.std_bias(kind(TRUE), as_bool, sensitive_features=SEX) == expected
    graph = torch.tensor(AFTER, dtype=torch.float32, requires_grad=True)
    assert fairness.std_bias(TRUE, graph, sensitive_features=SEX) == expected


def test_report_agrees_with_the_single_metrics():
    given = {"sensitive_features": SEX}
    report = fairness_report(TRUE, AFTER, **given, target=(1, "m"), y_pred_before=BEFORE, bootstrap=QUICK)
    values = {name: estimate.value for name, estimate in report.metrics.items()}
    assert list(values) == list(fairness.METRICS)
    assert values == pytest.approx(
        {
            "rewriting_score": 0.25,
            "target_accuracy": 1.0,
            "equal_opportunity_difference": fairness.equal_opportunity_difference(TRUE, AFTER, **given),
            "std_bias": fairness.std_bias(TRUE, AFTER, **given),
            "min_accuracy": 0.75,
            "accuracy": 14 / 16,
        }
    )
    assert [(str(group.subgroup), group.count) for group in report.subgroups] == [
        ("0 / f", 4),
        ("0 / m", 4),
        ("1 / f", 4),
        ("1 / m", 4),
    ]
    assert [group.before.value for group in report.subgroups] == [1, 0.75, 0.75, 0.25]


def test_opportunity_is_about_the_targets_label():
    report = fairness_report(TRUE, BEFORE, sensitive_features=SEX, target=(0, "m"), bootstrap=QUICK)
    assert report.metrics["equal_opportunity_difference"].value == 0.25
    assert "rewriting_score" not in report.metrics


def test_report_survives_json():
    report = fairness_report(
        TRUE, AFTER, sensitive_features=SEX, target=(1, "m"), y_pred_before=BEFORE, bootstrap=QUICK
    )
    assert FairnessReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report
    bare = fairness_report(TRUE, AFTER, sensitive_features=SEX, target=(1, "m"), bootstrap=Bootstrap(resamples=0))
    plain = json.loads(json.dumps(bare.to_dict(), allow_nan=False))
    assert plain["metrics"]["accuracy"] == {"value": 14 / 16, "low": None, "high": None}
    assert FairnessReport.from_dict(plain).to_dict() == bare.to_dict()


def row_resampling(truth, before, after, sensitive, *, stratified, resamples, seed):
    """The plain method: draw rows, then compute the metrics again from each drawn test set."""
    rng, found = np.random.default_rng(seed), {name: [] for name in fairness.METRICS}
    group = truth * 10 + sensitive
    for _ in range(resamples):
        if stratified:
            parts = [np.flatnonzero(group == code) for code in np.unique(group)]
            rows = np.concatenate([rng.choice(part, len(part)) for part in parts])
        else:
            rows = rng.integers(0, len(truth), len(truth))
        given = {"sensitive_features": sensitive[rows]}
        y, guess, old = truth[rows], after[rows], before[rows]
        score = fairness.rewriting_score(y, guess, **given, y_pred_before=old, target=(1, 1))
        found["rewriting_score"].append(score)
        found["target_accuracy"].append(fairness.target_accuracy(y, guess, **given, target=(1, 1)))
        for name in ("equal_opportunity_difference", "std_bias", "min_accuracy", "accuracy"):
            found[name].append(getattr(fairness, name)(y, guess, **given))
    return {name: np.quantile(values, [0.025, 0.975]) for name, values in found.items()}


@pytest.mark.parametrize("stratified", [True, False])
def test_bootstrap_equals_row_resampling(stratified):
    rng = np.random.default_rng(3)
    truth, sensitive = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
    before = np.where(rng.random(400) < 0.7, truth, 1 - truth)
    after = np.where(rng.random(400) < 0.2, 1 - before, before)
    expected = row_resampling(truth, before, after, sensitive, stratified=stratified, resamples=400, seed=4)
    report = fairness_report(
        truth,
        after,
        sensitive_features=sensitive,
        target=(1, 1),
        y_pred_before=before,
        bootstrap=Bootstrap(resamples=20_000, stratified=stratified),
    )
    for name, (low, high) in expected.items():
        estimate = report.metrics[name]
        tolerance = 0.2 * (high - low)
        assert estimate.low == pytest.approx(low, abs=tolerance), name
        assert estimate.high == pytest.approx(high, abs=tolerance), name


def test_interval_of_overall_accuracy_knows_whether_sizes_are_drawn():
    """With one subgroup always right and one always wrong, only the sizes can vary."""
    truth = np.repeat([0, 1], 200)
    sensitive = np.tile([0, 1], 200)
    guess = np.zeros(400, dtype=int)
    given = {"sensitive_features": sensitive, "target": (1, 1)}
    fixed = fairness_report(truth, guess, **given, bootstrap=Bootstrap(stratified=True))
    drawn = fairness_report(truth, guess, **given, bootstrap=Bootstrap(stratified=False))
    assert (fixed.metrics["accuracy"].low, fixed.metrics["accuracy"].high) == (0.5, 0.5)
    assert drawn.metrics["accuracy"].high - drawn.metrics["accuracy"].low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng, covered, p = np.random.default_rng(0), 0, 0.7
    for trial in range(200):
        truth, sensitive = np.tile([0, 1], 200), np.repeat([0, 1], 200)
        guess = np.where(rng.random(400) < p, truth, 1 - truth)
        report = fairness_report(
            truth,
            guess,
            sensitive_features=sensitive,
            target=(1, 1),
            bootstrap=Bootstrap(resamples=300, confidence=0.8, seed=trial),
        )
        covered += report.metrics["accuracy"].low <= p <= report.metrics["accuracy"].high
    assert 0.72 <= covered / 200 <= 0.88


def test_same_seed_same_interval():
    def run(seed):
        return fairness_report(
            TRUE, AFTER, sensitive_features=SEX, target=(1, "m"), bootstrap=Bootstrap(100, seed=seed)
        )

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_tiny_subgroups_are_never_lost_in_a_resample():
    truth, sensitive = [0] * 20 + [1] * 20, ["f"] * 20 + ["f"] * 19 + ["m"]
    truth, sensitive = [*truth, 0], [*sensitive, "m"]
    for stratified in (True, False):
        report = fairness_report(
            truth,
            truth,
            sensitive_features=sensitive,
            target=(1, "m"),
            bootstrap=Bootstrap(200, stratified=stratified),
        )
        assert report.metrics["min_accuracy"] == fairness.Estimate(1, 1, 1)


def test_twenty_thousand_rows_are_quick():
    rng = np.random.default_rng(0)
    truth, before, after, sensitive = rng.integers(0, 2, (4, 20_000))
    start = time.perf_counter()
    fairness_report(truth, after, sensitive_features=sensitive, target=(1, 1), y_pred_before=before)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"y_pred": AFTER[:-1]},
            "expected columns of equal length, got y_true 16, y_pred 15. Pass columns of the same rows.",
        ),
        (
            {"sensitive_features": SEX[:-1]},
            "expected columns of equal length, got y_true 16, sensitive_features 15.",
        ),
        (
            {"y_true": [1] * 16},
            "expected at least two classes in y_true, got only 1. Subgroups differ in their error only where",
        ),
        (
            {"sensitive_features": ["f"] * 16},
            "expected at least two values in sensitive_features, got only 'f'.",
        ),
        (
            {"sensitive_features": ["f"] * 12 + ["m"] * 4},
            "got none with label 0 and sensitive value 'm'; 'm' has one class only. Merge or leave out",
        ),
        (
            {"y_true": [2, *TRUE[1:]]},
            "expected rows in every subgroup, got none with label 2 and sensitive value 'm'. Merge or leave",
        ),
        (
            {"y_pred": [0.3] * 16},
            "expected labels in y_pred, got the fraction 0.3. Turn scores into labels first",
        ),
        (
            {"y_true": [float("nan")] * 16},
            "expected a value of y_true in every row, got none in 16 of 16 rows (16 'nan'). Leave these rows out",
        ),
        (
            {"y_true": [float("inf"), *TRUE[1:]]},
            "expected a value of y_true in every row, got none in 1 of 16 rows (1 'inf').",
        ),
        (
            {"y_pred": [-1, *AFTER[1:]]},
            "expected a value of y_pred in every row, got none in 1 of 16 rows (1 '-1').",
        ),
        ({"y_pred": [AFTER]}, "expected y_pred of shape (rows,), got (1, 16)."),
        (
            {"y_true": [], "y_pred": [], "sensitive_features": []},
            "expected at least one row in y_true, got none.",
        ),
        ({"sensitive_features": {}}, "expected at least one sensitive attribute, got none."),
        (
            {"y_pred": ["no", "yes"] * 8},
            "expected y_true and y_pred in the same words, got 0 and 'no'. Translate both",
        ),
        ({"target": (1, "mm")}, "expected a sensitive value out of f, m, got 'mm'. Did you mean 'm'?"),
        ({"target": (7, "m")}, "expected a label out of 0, 1, got '7'."),
    ],
)
def test_bad_input(changes, message):
    given = {"y_true": TRUE, "y_pred": AFTER, "sensitive_features": SEX, "target": (1, "m")} | changes
    with pytest.raises(UserError) as error:
        fairness_report(given.pop("y_true"), given.pop("y_pred"), **given)
    assert str(error.value).startswith("fairness_report: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_bootstrap():
    with pytest.raises(UserError, match=r"expected resamples >= 0 and 0 < confidence < 1, got -1 and 0.95"):
        Bootstrap(resamples=-1)
    with pytest.raises(UserError, match=r"got 10 and 1.0\. Use for example"):
        Bootstrap(10, confidence=1.0)


def test_metrics_never_import_layers():
    """Numbers that judge an edit must not depend on the code that makes it."""
    allowed = {"mumoe.errors", "mumoe.data.columns", "mumoe.records"}
    allowed |= {"mumoe.editing.subgroups", "mumoe.editing.subgroup_fairness", "mumoe.statistics"}
    for name in ("subgroup_fairness", "subgroups", "fairness_tables"):
        source = (Path(fairness.__file__).parent / f"{name}.py").read_text()
        found = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
        assert {module for module in found if module.startswith("mumoe")} <= allowed


@pytest.mark.parametrize(
    "missing",
    [None, float("nan"), "", pd.NA, pd.NaT, np.datetime64("NaT"), np.float32("nan"), np.ma.masked],
    ids=["None", "nan", "empty", "NA", "NaT", "NaT64", "nan32", "masked"],
)
@pytest.mark.parametrize("several", [False, True])
def test_a_missing_sensitive_value_is_an_error_and_no_subgroup(missing, several):
    sex = [missing, missing, *SEX[2:]]
    given = {"age": ["old", "young"] * 8, "sex": sex} if several else sex
    with pytest.raises(UserError) as error:
        fairness.subgroup_accuracy(TRUE, AFTER, sensitive_features=given)
    name = "sex" if several else "sensitive_features"
    assert f"expected a value of {name} in every row, got none in 2 of 16 rows" in str(error.value)
    assert "\n" not in str(error.value)


def test_masked_arrays_and_pandas_columns_lose_no_mask():
    for column in (np.ma.array(SEX, mask=[1] + [0] * 15), pd.Series([None, *SEX[1:]], dtype="category")):
        with pytest.raises(UserError, match="got none in 1 of 16 rows"):
            fairness.subgroup_accuracy(TRUE, AFTER, sensitive_features=column)


def test_uncertain_beside_zero_and_one_is_no_subgroup():
    old = [-1, 0, 1, 0] * 4
    with pytest.raises(UserError, match=r"expected a value of old in every row, got none in 4 of 16 rows \(4 '-1'\)"):
        fairness.subgroup_accuracy(TRUE, AFTER, sensitive_features={"old": old})
    found = fairness.subgroup_accuracy(TRUE, AFTER, sensitive_features={"old": [-1, 1] * 8})
    assert {group.sensitive for group in found} == {"-1", "1"}


def test_combinations_whose_texts_collide_are_different_subgroups():
    first, second = ["A, B", "A"] * 8, ["c", "B, c"] * 8
    found = fairness.subgroup_accuracy(TRUE, BEFORE, sensitive_features={"x": first, "y": second})
    assert len(found) == 4
    assert {str(group) for group in found} == {f"{label} / {s}" for label in (0, 1) for s in ('"A, B", c', 'A, "B, c"')}
    given = {"sensitive_features": {"x": first, "y": second}}
    each = [fairness.target_accuracy(TRUE, BEFORE, **given, target=(1, key)) for key in (("A, B", "c"), ("A", "B, c"))]
    by_hand = [np.mean([BEFORE[k] == 1 for k in range(8 + odd, 16, 2)]) for odd in (0, 1)]
    assert each == by_hand
    assert each[0] != each[1]


def test_a_value_may_be_written_in_several_ways():
    yes = ["yes" if sex == "m" else "no" for sex in SEX]
    for asked in (1, "1", True, "yes", "YES", "true", 1.0):
        for column in (yes, [int(value == "yes") for value in yes], [value == "yes" for value in yes]):
            assert fairness.target_accuracy(TRUE, BEFORE, sensitive_features=column, target=(1, asked)) == 0.25
    both = {"male": yes, "age": [0, 1] * 8}
    assert fairness.target_accuracy(TRUE, BEFORE, sensitive_features=both, target=(1, (1, "no"))) == 0.5


def test_numbers_are_one_value_and_in_their_order():
    numbers = ["1.0", "10", "2", "1"] * 4
    truth = [0, 0, 0, 0, 1, 1, 1, 1] * 2
    found = fairness.subgroup_accuracy(truth, truth, sensitive_features=numbers)
    assert [group.sensitive for group in found] == ["1", "2", "10"] * 2
    words = ["10", "9"] * 8
    found = fairness.subgroup_accuracy(words, words, sensitive_features=SEX)
    assert [group.label for group in found] == ["9", "9", "10", "10"]
