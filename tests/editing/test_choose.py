"""The strength is chosen on validation rows, for the stated objective, and never by a test label."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mumoe.editing import choose
from mumoe.editing import subgroup_fairness as fairness
from mumoe.editing.choose import LabelledRows, LogitShift, choose_blind, choose_strength, trade_off_curve
from mumoe.editing.subgroup_fairness import Bootstrap
from mumoe.errors import UserError
from mumoe.records import to_plain

# Head of one attribute; the men with label 1 are missed, and the direction touches them most.
TRUTH = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
SEX = np.array((["f"] * 4 + ["m"] * 4) * 2)
LOGITS = np.array([-4, -4, -4, -4, -4, -4, -4, -1.5, 3, 3, 3, -1, -1, -2, -3, -9.0])
DIRECTION = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1.0])
ROWS = LabelledRows(TRUTH, SEX)
SHIFT = LogitShift(LOGITS, DIRECTION)
TARGET = (1, "m")


def random_problem(seed, rows=600):
    rng = np.random.default_rng(seed)
    truth, sex = rng.integers(0, 2, rows), np.where(rng.random(rows) < 0.5, "m", "f")
    hit = (truth == 1) & (sex == "m")
    logits = (2.0 * truth - 1) * 1.5 + rng.normal(size=rows) - 3 * hit
    direction = np.clip(0.7 * hit + 0.3 * rng.random(rows), 0, 1)
    return truth, sex, logits, direction


def test_candidates_reach_every_distinct_prediction():
    strengths = SHIFT.candidates()
    # crossings of the rows that move: 1, 1.5, 2, 3, 4 (three rows), 9
    assert strengths[0] == 0
    assert strengths[1:-1].tolist() == [1.25, 1.75, 2.5, 3.5, 6.5]
    assert strengths[-1] > 9
    assert len({tuple(SHIFT(value)) for value in strengths}) == 7
    fine = {tuple(SHIFT(value)) for value in np.linspace(0, 10, 2001)}
    assert fine == {tuple(SHIFT(value)) for value in strengths}


def test_candidates_downwards_and_thinned():
    flipped = LogitShift(-LOGITS, DIRECTION)
    assert np.allclose(flipped.candidates(sign=-1), -SHIFT.candidates())
    _, _, logits, direction = random_problem(0)
    many = LogitShift(logits, direction).candidates(most=20)
    assert len(many) == 20
    assert (np.diff(many) > 0).all()
    assert LogitShift(LOGITS, np.zeros(16)).candidates().tolist() == [0]


def test_strength_zero_is_the_model_itself():
    broken = LogitShift(LOGITS, np.full(16, np.nan))
    assert broken(0.0).tolist() == (LOGITS > 0).astype(int).tolist()


def test_curve_by_hand():
    curve = trade_off_curve(ROWS, SHIFT, [2.5, 1.25], target=TARGET)
    assert [point.strength for point in curve] == [0, 1.25, 2.5]
    assert [point.metrics["target_accuracy"] for point in curve] == [0, 0.25, 0.5]
    assert [point.metrics["accuracy"] for point in curve] == [11 / 16, 12 / 16, 12 / 16]
    # at 2.5 one man with label 0 (logit -1.5) is lost: a quarter of his subgroup
    assert [point.metrics["rewriting_score"] for point in curve] == [0, 0.25, 0.25]


def test_curve_equals_the_metrics():
    truth, sex, logits, direction = random_problem(1)
    shift = LogitShift(logits, direction)
    for point in trade_off_curve(LabelledRows(truth, sex), shift, [1.0, 3.0], target=TARGET):
        score = fairness.rewriting_score(
            truth, shift(point.strength), sensitive_features=sex, y_pred_before=shift(0), target=TARGET
        )
        assert point.metrics["rewriting_score"] == pytest.approx(score)


def test_objectives_by_hand():
    strengths = SHIFT.candidates()
    score = choose_strength(ROWS, SHIFT, strengths, target=TARGET, objective="rewriting_score")
    assert score.strength == 3.5  # two more men right than lost: 3/4 - 1/4
    match = choose_strength(ROWS, SHIFT, strengths, target=TARGET, objective="match")
    assert (match.strength, match.reached) == (3.5, True)  # women with label 1 were right at 3/4
    worst = choose_strength(ROWS, SHIFT, strengths, target=TARGET, objective="worst_group", max_loss=0)
    assert worst.strength == 3.5  # min is 3/4 from there on; beyond, three men with label 0 are lost
    assert worst.curve == score.curve


def test_loss_allowed_binds():
    """A rare subgroup, helped by raising every row's logit: its gain costs all others."""
    rng = np.random.default_rng(2)
    truth = (rng.random(1000) < 0.2).astype(int)
    sex = np.where(rng.random(1000) < 0.15, "m", "f")
    logits = (2.0 * truth - 1) * 2 + rng.normal(size=1000) - 2.5 * ((truth == 1) & (sex == "m"))
    rows, shift = LabelledRows(truth, sex), LogitShift(logits, np.ones(1000))
    before = fairness.accuracy(truth, shift(0), sensitive_features=sex)
    found = {}
    for loss in (0.0, 0.02, 1.0):
        choice = choose_strength(rows, shift, shift.candidates(), target=TARGET, max_loss=loss)
        chosen = next(point for point in choice.curve if point.strength == choice.strength)
        assert chosen.metrics["accuracy"] >= before - loss - 1e-12
        allowed = [point for point in choice.curve if point.metrics["accuracy"] >= before - loss - 1e-12]
        assert chosen.metrics["min_accuracy"] == max(point.metrics["min_accuracy"] for point in allowed)
        found[loss] = chosen.metrics["min_accuracy"]
    assert found[0.0] < found[0.02] < found[1.0]


def test_ties_go_to_the_weakest():
    still = LogitShift(LOGITS, np.zeros(16))
    assert choose_strength(ROWS, still, [5.0, 1.0], target=TARGET).strength == 0


def test_match_out_of_reach_says_so():
    choice = choose_strength(ROWS, SHIFT, [1.25, 1.75], target=TARGET, objective="match")
    assert (choice.strength, choice.reached) == (1.25, False)


def test_choice_is_json():
    choice = choose_strength(ROWS, SHIFT, [1.25], target=TARGET)
    plain = json.loads(json.dumps(to_plain(choice), allow_nan=False))
    assert plain["strength"] == choice.strength
    assert [point["strength"] for point in plain["curve"]] == [0, 1.25]


def pipeline(truth, sex, logits, direction):
    """Choose on rows 200 to 400, report on the rest."""
    val, test = slice(200, 400), slice(400, None)
    shift = LogitShift(logits[val], direction[val])
    rows = LabelledRows(truth[val], sex[val])
    choice = choose_strength(rows, shift, shift.candidates(), target=TARGET, max_loss=0.02)
    blind = choose_blind(rows, logits[val], target=TARGET, max_loss=0.02)
    moved = LogitShift(logits[test], direction[test])(choice.strength)
    common = {"sensitive_features": sex[test], "target": TARGET, "bootstrap": Bootstrap(50)}
    return (
        choice,
        blind,
        fairness.fairness_report(truth[test], moved, y_pred_before=logits[test] > 0, **common),
    )


def test_test_labels_choose_nothing():
    truth, sex, logits, direction = random_problem(3)
    choice, blind, report = pipeline(truth, sex, logits, direction)
    shuffled = truth.copy()
    shuffled[400:] = np.random.default_rng(0).permutation(1 - truth[400:])
    again = pipeline(shuffled, sex, logits, direction)
    assert again[:2] == (choice, blind)
    assert again[2].metrics != report.metrics


def test_a_blind_shift_is_the_best_one_threshold():
    """All shifts are tried by hand: the threshold that serves the objective best, for any rows of the subgroup."""
    truth, sex, logits, _ = random_problem(5)
    rows = LabelledRows(truth, sex)
    found = choose_blind(rows, logits, target=TARGET, objective="rewriting_score")
    assert found.strength > 0
    before = (logits > 0).astype(int)
    scores = {
        shift: fairness.rewriting_score(
            truth, logits + shift > 0, sensitive_features=sex, y_pred_before=before, target=TARGET
        )
        for shift in np.linspace(0, 6, 601)
    }
    assert found.curve[0].strength == 0
    best = max(point.metrics["rewriting_score"] for point in found.curve)
    assert best == pytest.approx(max(scores.values()), abs=0.02)
    chosen = next(point for point in found.curve if point.strength == found.strength)
    assert chosen.metrics["rewriting_score"] == best
    lowered = choose_blind(rows, logits, target=(0, "m"), objective="rewriting_score")
    assert all(point.strength <= 0 for point in lowered.curve)


def test_no_blind_shift_where_a_subgroup_has_no_row():
    kept = (TRUTH == 0) | (SEX == "f")
    rows = LabelledRows(TRUTH[kept], SEX[kept])
    assert choose_blind(rows, LOGITS[kept], target=TARGET) is None
    assert choose_blind(rows, LOGITS[kept], target=(1, "f")) is None


def test_bad_input():
    with pytest.raises(UserError, match=r"got 'wrost_group'\. Did you mean 'worst_group'"):
        choose_strength(ROWS, SHIFT, [1.0], target=TARGET, objective="wrost_group")
    with pytest.raises(UserError, match=r"expected `max_loss` in 0..1, got 2\. One point is 0.01"):
        choose_strength(ROWS, SHIFT, [1.0], target=TARGET, max_loss=2)
    with pytest.raises(UserError, match="expected finite strengths, got NaN or infinity"):
        choose_strength(ROWS, SHIFT, [float("nan")], target=TARGET)
    with pytest.raises(UserError, match=r"expected a sensitive value out of f, m, got 'men'"):
        choose_strength(ROWS, SHIFT, [1.0], target=(1, "men"))
    short = replace(SHIFT, logits=LOGITS[:-1], direction=DIRECTION[:-1])
    with pytest.raises(UserError, match="expected columns of equal length, got y_true 16, y_pred 15"):
        choose_strength(ROWS, short, [1.0], target=TARGET)
    assert set(choose.OBJECTIVES) == {"worst_group", "match", "rewriting_score"}
