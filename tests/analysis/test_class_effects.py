"""Every measure on examples small enough to be worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest

from mumoe.analysis import class_effects
from mumoe.analysis.class_effects import (
    Answers,
    Changes,
    bootstrap,
    counts_after,
    differences,
    lost_by_unit,
    polysemanticity,
    shuffle_units,
    specialization,
    strong_losses,
)
from mumoe.errors import UserError

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3])
RIGHT = np.array([True, True, True, True, True, True, False, False, True])
# Class 0: 4 of 4 right, class 1: 2 of 2, class 2: 0 of 2, class 3: 1 of 1, class 4 has no image.
ANSWERS = Answers(LABELS, RIGHT, 5)


def changes(*rows, units=5):
    """Changes from (image, unit, sign); the class is the image's."""
    image, unit, sign = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    return Changes(image, unit, LABELS[image], sign, units)


CHANGES = changes(
    (0, 0, -1), (1, 0, -1), (2, 0, -1), (3, 0, -1),  # unit 0: all of class 0, nothing else
    (0, 1, -1), (1, 1, -1), (4, 1, -1),              # unit 1: half of class 0, half of class 1
    (6, 2, +1),                                      # unit 2: only class 2, which was never right
    (0, 3, -1), (4, 3, -1), (5, 3, -1), (8, 3, -1),  # unit 3: a quarter of 0, all of 1, all of 3
)  # unit 4: nothing  # fmt: skip


def test_counts_before_and_after():
    assert ANSWERS.total.tolist() == [4, 2, 2, 1, 0]
    assert ANSWERS.before.tolist() == [4, 2, 0, 1, 0]
    assert counts_after(ANSWERS, CHANGES).tolist() == [
        [0, 2, 0, 1, 0],
        [2, 1, 0, 1, 0],
        [4, 2, 1, 1, 0],
        [3, 0, 0, 0, 0],
        [4, 2, 0, 1, 0],
    ]


def test_differences_leave_out_classes_that_were_never_right():
    d = differences([4, 2, 0], [[1, 2, 1], [4, 3, 0]])
    assert np.array_equal(d, [[0.75, 0.0, np.nan], [0.0, -0.5, np.nan]], equal_nan=True)


def test_differences_of_accuracies_are_those_of_counts():
    assert np.allclose(differences([0.5, 1.0], [[0.25, 1.0]]), differences([2, 7], [[1, 7]]))


@pytest.mark.parametrize(
    ("d", "p"),
    [
        ([1, 0, 0], 0.0),  # one class loses everything: monosemantic
        ([0, 0, 0], 1.0),  # no effect
        ([1, 1, 0], 1.0),  # two classes lose everything
        ([1, 1, 1, 1], math.sqrt(3)),
        ([0.5, 0.5, 0], math.sqrt(0.25 + 0.25)),
        ([0.25, 1, 1], math.sqrt(0.0625 + 1)),
        ([-0.5, 0, 0], math.sqrt(0.25 + 1)),  # it hurt class 0; the top class is one that keeps its answers
        ([-1, -0.5], math.sqrt(1 + 1.5**2)),  # every class gains: the top one gains least
        ([np.nan, 1, 0], 0.0),
    ],
)
def test_polysemanticity_by_hand(d, p):
    assert polysemanticity(np.array([d]))[0] == pytest.approx(p, abs=1e-12)


def test_polysemanticity_is_the_distance_of_equation_5():
    d = np.random.default_rng(0).uniform(-1, 1, size=(50, 7))
    onehot = np.eye(7)[d.argmax(1)]
    assert np.allclose(polysemanticity(d), np.linalg.norm(d - onehot, axis=1))


def test_polysemanticity_without_any_class_is_undefined():
    assert np.isnan(polysemanticity(np.full((1, 3), np.nan)))[0]


def test_specialization_by_hand():
    found = specialization(ANSWERS, CHANGES, least_lost=1)
    assert (found.units, found.classes, found.images) == (5, 5, 9)
    assert found.accuracy == pytest.approx(7 / 9)
    assert (found.classes_without_images, found.classes_never_right) == (1, 1)
    assert found.with_effect == 3
    p0, p1, p3 = 0.0, math.sqrt(0.5), math.sqrt(1 + 1 / 16)
    assert found.mean_polysemanticity == pytest.approx((p0 + p1 + p3) / 3)
    assert found.strong == 3
    assert [effect.unit for effect in found.effects] == [0, 1, 3]
    assert [effect.polysemanticity for effect in found.effects] == pytest.approx([p0, p1, p3])
    assert found.effects[2].losses == ((1, 1.0), (3, 1.0), (0, 0.25))
    assert (found.effects[2].top_class, found.effects[2].top_loss) == (1, 1.0)
    assert found.mean_interval is None
    assert found.effects[0].interval is None


@pytest.mark.parametrize(
    ("least", "strong", "images"),
    [(1, (True, True, True), (4, 3, 3)), (2, (True, True, True), (4, 2, 2)), (3, (True, False, False), (4, 0, 0)),
     (5, (False, False, False), (0, 0, 0))],
)  # fmt: skip
def test_a_strong_unit_costs_a_class_half_of_its_right_answers_and_enough_of_them(least, strong, images):
    found = specialization(ANSWERS, CHANGES, least_lost=least, resamples=5)
    assert tuple(effect.strong for effect in found.effects) == strong
    assert tuple(effect.images for effect in found.effects) == images
    assert (found.strong, found.least_lost) == (sum(strong), least)
    assert found.with_effect == 3  # p and effect do not depend on it
    distinct = {1: {0, 1, 2, 3, 4, 5, 8}, 2: {0, 1, 2, 3, 4, 5}, 3: {0, 1, 2, 3}, 5: set()}
    assert found.strong_images == len(distinct[least])


def test_by_default_five_answers_make_an_expert_strong():
    """Five experts were strong by one and the same image, with p = 0."""
    labels = np.repeat([0, 1, 2], [1, 5, 20])
    answers = Answers(labels, np.ones(26, dtype=bool), 3)
    one = [(0, unit, -1) for unit in range(5)]
    image, unit, sign = (np.array(column) for column in zip(*one, *((i, 5, -1) for i in range(1, 6)), strict=True))
    found = specialization(answers, Changes(image, unit, labels[image], sign, 6))
    assert [effect.polysemanticity for effect in found.effects] == [0.0] * 6
    assert [effect.strong for effect in found.effects] == [False] * 5 + [True]
    assert (found.strong, found.strong_images) == (1, 5)
    before = specialization(answers, Changes(image, unit, labels[image], sign, 6), least_lost=1)
    assert (before.strong, before.strong_images) == (6, 6)
    with pytest.raises(UserError, match="expected least_lost >= 1, got 0"):
        specialization(ANSWERS, CHANGES, least_lost=0)


def test_a_gained_answer_counts_against_the_minimum():
    labels, right = np.zeros(8, dtype=np.int64), np.array([True] * 6 + [False] * 2)
    lost = Changes(np.arange(7), np.zeros(7, int), labels[:7], np.array([-1] * 6 + [1]), 1)
    assert specialization(Answers(labels, right, 1), lost, least_lost=5).strong == 1
    assert specialization(Answers(labels, right, 1), lost, least_lost=6).strong == 0


def test_a_unit_below_half_is_not_strong_and_the_mean_over_none_is_none():
    found = specialization(ANSWERS, changes((0, 0, -1), units=1))
    assert (found.strong, found.mean_polysemanticity_strong) == (0, None)
    assert found.mean_polysemanticity == pytest.approx(0.75)
    none = specialization(ANSWERS, Changes(*(np.zeros(0, dtype=np.int64),) * 4, num_units=3), resamples=10)
    assert (none.with_effect, none.mean_polysemanticity, none.mean_interval) == (0, None, None)


def test_a_lost_and_a_gained_answer_of_one_class_cancel():
    labels, right = np.array([0, 0, 1]), np.array([True, False, True])
    both = Changes(np.array([0, 1]), np.array([0, 0]), np.array([0, 0]), np.array([-1, 1]), 1)
    assert specialization(Answers(labels, right, 2), both).with_effect == 0


def test_multi_label_counts_every_target_of_every_image():
    right = np.array([[True, False], [True, True], [True, True], [True, False]])
    answers = Answers(None, right, 2)
    lost = Changes(np.array([0, 1, 1]), np.array([0, 0, 0]), np.array([0, 0, 1]), np.array([-1, -1, -1]), 1)
    found = specialization(answers, lost, resamples=20)
    assert answers.total.tolist() == [4, 4]
    assert answers.before.tolist() == [4, 2]
    assert counts_after(answers, lost).tolist() == [[2, 1]]
    assert found.accuracy == pytest.approx(6 / 8)
    assert found.effects[0].polysemanticity == pytest.approx(math.sqrt(0.25 + 0.25))


def test_no_images_is_one_clear_error():
    empty = Answers(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool), 3)
    with pytest.raises(UserError, match=r"specialization: expected at least one image, got none\."):
        specialization(empty, CHANGES)


def test_shapes_that_disagree_are_one_clear_error():
    with pytest.raises(UserError, match=r"expected before \(classes,\) and after \(units, classes\)"):
        differences([1, 2], [1, 2])


def plain_bootstrap(answers, changed, resamples, seed, least):
    """Every resample counted again from the resampled images, one by one."""
    rng = np.random.default_rng(seed)
    p, means, strong = [], [], []
    images = rng.integers(len(answers.right), size=(resamples, len(answers.right)))
    for drawn in images:
        times = np.bincount(drawn, minlength=len(answers.right))
        before = np.zeros(answers.num_classes)
        after = np.zeros((changed.num_units, answers.num_classes))
        for image, count in enumerate(times):
            if answers.right[image]:
                before[answers.labels[image]] += count
                after[:, answers.labels[image]] += count
        for i, n, c, s in zip(changed.image, changed.unit, changed.label, changed.sign, strict=True):
            after[n, c] += s * times[i]
        d = differences(before, after)
        known = np.where(np.isnan(d), 0, d)
        effect = (known != 0).any(1)
        p.append(polysemanticity(d))
        if effect.any():
            means.append(p[-1][effect].mean())
        strong.append(((known >= 0.5) & (before - after >= least)).any(1).sum())
    return np.array(p), np.array(means), np.array(strong)


def widened(draws, estimate):
    low, high = np.quantile(draws, [0.025, 0.975])
    return min(low, estimate), max(high, estimate)


@pytest.mark.parametrize("least", [1, 5])
def test_bootstrap_equals_counting_every_resample_anew(least):
    rng = np.random.default_rng(3)
    labels = rng.integers(4, size=60)
    answers = Answers(labels, rng.random(60) < 0.7, 4)
    image = rng.integers(60, size=80)
    pairs = np.unique(np.stack([image, rng.integers(6, size=80)]), axis=1)
    sign = np.where(answers.right[pairs[0]], -1, 1)
    changed = Changes(pairs[0], pairs[1], labels[pairs[0]], sign, 7)
    found = bootstrap(answers, changed, resamples=200, seed=5, least_lost=least)
    plain = specialization(answers, changed, least_lost=least)
    own = {effect.unit: effect for effect in plain.effects}
    p, means, strong = plain_bootstrap(answers, changed, 200, 5, least)
    assert len(set(strong.tolist())) > 1
    for unit, interval in found.units.items():
        assert interval == pytest.approx(widened(p[:, unit], own[unit].polysemanticity))
    assert set(found.units) == set(range(6))
    low, middle, high = np.quantile(means, [0.025, 0.5, 0.975]) - np.median(means) + plain.mean_polysemanticity
    assert middle == plain.mean_polysemanticity
    assert found.mean == pytest.approx((low, high))
    assert found.strong == pytest.approx(widened(strong, plain.strong))


def test_bootstrap_interval_covers_the_truth_and_narrows_with_more_images():
    def interval(copies):
        """One unit that loses three of class 0's four answers and one of class 1's two, copied."""
        labels, lost = np.tile(LABELS, copies), np.array([0, 1, 2, 4])
        image = (lost + np.arange(copies)[:, None] * len(LABELS)).ravel()
        changed = Changes(image, np.zeros_like(image), labels[image], -np.ones_like(image), 1)
        return specialization(Answers(labels, np.tile(RIGHT, copies), 5), changed, resamples=300).effects[0]

    truth = math.sqrt(0.25**2 + 0.5**2)
    few, many = interval(10), interval(200)
    assert few.polysemanticity == pytest.approx(truth)
    assert few.interval[0] < truth < few.interval[1]
    assert many.interval[0] < truth < many.interval[1]
    assert many.interval[1] - many.interval[0] < (few.interval[1] - few.interval[0]) / 3


def drawn_study(rng, images=800, units=128, classes=40):
    """A test set of small classes; each unit costs its own class most, others a little."""
    labels = rng.integers(classes, size=images)
    answers = Answers(labels, rng.random(images) < 0.8, classes)
    chance = np.where(labels[:, None] == np.arange(units) % classes, 0.5, 0.03)
    image, unit = np.nonzero((rng.random((images, units)) < chance) & answers.right[:, None])
    return answers, Changes(image, unit, labels[image], -np.ones_like(image), units)


def test_intervals_hold_their_estimates_and_cover_what_test_sets_of_this_size_give():
    """Percentiles alone exclude the mean p of every one of these test sets, and never cover its mean."""
    rng = np.random.default_rng(0)
    found = [specialization(*drawn_study(rng), resamples=200, seed=n) for n in range(50)]
    for one in found:
        assert one.mean_interval[0] <= one.mean_polysemanticity <= one.mean_interval[1]
        assert one.strong_interval[0] <= one.strong <= one.strong_interval[1]
        assert all(e.interval[0] <= e.polysemanticity <= e.interval[1] for e in one.effects)
    for value, interval in (("mean_polysemanticity", "mean_interval"), ("strong", "strong_interval")):
        truth = np.mean([getattr(one, value) for one in found])
        ends = np.array([getattr(one, interval) for one in found])
        assert np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])) >= 0.8


def test_bootstrap_repeats_with_its_seed():
    first, second = (bootstrap(ANSWERS, CHANGES, resamples=50, seed=s) for s in (1, 1))
    assert first == second
    assert first != bootstrap(ANSWERS, CHANGES, resamples=50, seed=2)


def test_shuffled_units_keep_load_and_outcomes():
    dealt = shuffle_units(CHANGES, [4, 3, 1, 4, 8], seed=0)
    assert np.bincount(dealt.unit, minlength=5).tolist() <= [4, 3, 1, 4, 8]
    kept = set(zip(dealt.image.tolist(), dealt.sign.tolist(), strict=True))
    assert kept == set(zip(CHANGES.image.tolist(), CHANGES.sign.tolist(), strict=True))
    assert not np.array_equal(dealt.unit, CHANGES.unit)


def test_units_without_load_need_no_place():
    """The deal is the one over all units."""
    listed = np.array([3, 700_000, 700_001, 1_000_000, 1_048_575])
    load = [4, 3, 1, 4, 8]
    whole = shuffle_units(CHANGES, load, seed=0)
    apart = Changes(CHANGES.image, listed[CHANGES.unit], CHANGES.label, CHANGES.sign, 1 << 20)
    dealt = shuffle_units(apart, load, units=listed, seed=0)
    assert np.array_equal(dealt.unit, listed[whole.unit])
    assert np.array_equal(dealt.image, whole.image)
    for wrong in (listed[:4], listed + 1, np.array([3, 4, 5, 6, 7])):
        with pytest.raises(UserError, match="expected the load of each of 1048576 units"):
            shuffle_units(apart, load, units=wrong, seed=0)


@pytest.mark.parametrize("cells", [1, 7, 2_000_000])
def test_units_far_apart_and_in_blocks_have_the_numbers_of_the_plain_formulas(monkeypatch, cells):
    """d, p and strength of every unit, from (units, classes) tables, beside those of units among a million."""
    monkeypatch.setattr(class_effects, "CELLS", cells)
    rng = np.random.default_rng(0)
    labels, right = rng.integers(0, 6, 300), rng.random(300) < 0.7
    pairs = np.unique(np.stack([rng.integers(0, 60, 12_000), rng.integers(0, 300, 12_000)]), axis=1)
    pairs = pairs[:, (pairs[0] % 6 == labels[pairs[1]]) | (rng.random(pairs.shape[1]) < 0.1)]
    unit, image = pairs[:, rng.permutation(pairs.shape[1])]
    answers = Answers(labels, right, 6)
    changes = Changes(image, unit, labels[image], np.where(right[image], -1, 1), 60)
    d = differences(answers.before, counts_after(answers, changes))
    cells_strong = strong_losses(answers.before, counts_after(answers, changes), 4)
    found = specialization(answers, changes, least_lost=4, resamples=20)
    assert [effect.polysemanticity for effect in found.effects] == list(polysemanticity(d))
    assert [effect.top_loss for effect in found.effects] == list(d.max(1))
    assert [effect.strong for effect in found.effects] == list(cells_strong.any(1))
    assert found.mean_polysemanticity == polysemanticity(d).mean()
    assert 0 < found.strong < 60
    lost = lost_by_unit(answers, changes, 4)
    assert set(lost) == set(np.flatnonzero(cells_strong.any(1)))
    assert all(np.array_equal(lost[n], cells_strong[n]) for n in lost)
    apart = Changes(image, unit * 17_000, changes.label, changes.sign, 1 << 20)
    far = specialization(answers, apart, least_lost=4, resamples=20)
    assert far.units == 1 << 20
    moved = tuple(dataclasses.replace(effect, unit=effect.unit // 17_000) for effect in far.effects)
    assert dataclasses.replace(far, effects=moved, units=60) == found


def test_shuffling_destroys_specialization():
    """40 experts that each own one class, dealt out at random: none owns a class any more."""
    labels = np.repeat(np.arange(40), 25)
    answers = Answers(labels, np.ones(1000, dtype=bool), 40)
    own = Changes(np.arange(1000), labels, labels, -np.ones(1000, dtype=np.int64), 40)
    assert specialization(answers, own).mean_polysemanticity == 0
    control = specialization(answers, shuffle_units(own, np.full(40, 25)))
    assert control.strong == 0
    assert control.mean_polysemanticity > 0.8


def test_shuffling_refuses_a_load_smaller_than_the_changes():
    with pytest.raises(UserError, match=r"shuffle_units: expected the load of each of 5 units"):
        shuffle_units(CHANGES, [1, 1, 1, 1, 1])


def test_losses_have_wilson_intervals_shifted_by_what_is_gained():
    """Class 0: 10 of 10 right answers lost; class 1: 5 of 20 lost, 4 corrected."""
    labels = np.repeat([0, 1], [10, 30])
    right = np.r_[np.ones(30, dtype=bool), np.zeros(10, dtype=bool)]
    image = np.r_[np.arange(10), np.arange(10, 15), np.arange(30, 34)]
    sign = np.where(right[image], -1, 1)
    changed = Changes(image, np.full(len(image), 2), labels[image], sign, 3)
    (effect,) = specialization(Answers(labels, right, 2), changed).effects
    assert effect.losses == ((0, 1.0), (1, pytest.approx(0.05)))
    whole, part = effect.loss_intervals
    assert whole == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert part == pytest.approx((0.1119 - 0.2, 0.4687 - 0.2), abs=1e-4)
