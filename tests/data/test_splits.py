import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mumoe.data.splits import TEST, TRAIN, VAL, carve, group_split, holdout_split, stratified_split
from mumoe.errors import UserError

labels_of = st.lists(st.integers(0, 6), min_size=0, max_size=200)
seeds = st.integers(0, 2**31 - 1)


@st.composite
def shares(draw):
    cuts = sorted(draw(st.tuples(st.integers(1, 20), st.integers(1, 20))))
    return (cuts[0] / 20, (cuts[1] - cuts[0]) / 20, (20 - cuts[1]) / 20)


@settings(max_examples=80, deadline=None)
@given(labels_of, shares(), seeds)
def test_every_class_is_shared_out_to_within_rounding(labels, fractions, seed):
    labels = np.array(labels, np.int64)
    split = stratified_split(labels, fractions=fractions, seed=seed)
    assert split.dtype == np.int8
    assert split.shape == labels.shape
    assert set(split.tolist()) <= {TRAIN, VAL, TEST}
    for label in set(labels.tolist()):
        mine = split[labels == label]
        outside = (fractions[1] + fractions[2]) * len(mine)
        assert (mine == TRAIN).any()
        assert abs((mine != TRAIN).sum() - outside) <= 1 + 1e-9
        for part, fraction in enumerate(fractions):
            assert abs((mine == part).sum() - fraction * len(mine)) < 2 + 1e-9


@settings(max_examples=30, deadline=None)
@given(labels_of, shares(), seeds)
def test_the_seed_decides(labels, fractions, seed):
    first = stratified_split(labels, fractions=fractions, seed=seed)
    assert np.array_equal(first, stratified_split(labels, fractions=fractions, seed=seed))


def test_another_seed_gives_another_split():
    labels = np.repeat(np.arange(10), 30)
    assert not np.array_equal(stratified_split(labels, seed=0), stratified_split(labels, seed=1))


def test_many_small_classes_still_fill_every_split():
    labels = np.repeat(np.arange(300), 3)
    split = stratified_split(labels, fractions=(0.7, 0.1, 0.2), seed=3)
    assert abs((split == VAL).sum() - 90) <= 1
    assert abs((split == TEST).sum() - 180) <= 1


def test_a_class_of_one_image_is_trained_on():
    split = stratified_split(["a"] * 50 + ["b"], fractions=(0.02, 0.49, 0.49), seed=0)
    assert split[-1] == TRAIN


def test_no_training_share_puts_nothing_into_train():
    assert not (stratified_split([0, 1, 1, 2], fractions=(0, 0.5, 0.5), seed=0) == TRAIN).any()


def test_which_images_are_taken_is_even():
    labels = np.repeat([0, 1], 10)
    counts = sum(stratified_split(labels, fractions=(0.7, 0.1, 0.2), seed=s) == TEST for s in range(2000))
    assert counts.min() > 320
    assert counts.max() < 480


def test_rows_are_stratified_by_their_rarest_target():
    rng = np.random.default_rng(0)
    rows = (rng.random((1000, 3)) < [0.5, 0.02, 0.3]).astype(np.uint8)
    rare = rows[:, 1] == 1
    for seed in range(20):
        split = stratified_split(rows, fractions=(0.5, 0.0, 0.5), seed=seed)
        assert abs((split[rare] == TEST).sum() - rare.sum() / 2) <= 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3)), max_size=200), shares(), seeds)
def test_a_group_is_never_torn(pairs, fractions, seed):
    groups = np.array([group for group, _ in pairs], np.int64)
    labels = groups % 4
    split = group_split(groups, fractions=fractions, seed=seed, labels=labels)
    assert np.array_equal(split, group_split(groups, fractions=fractions, seed=seed, labels=labels))
    for group in set(groups.tolist()):
        assert len(set(split[groups == group].tolist())) == 1
    for label in set(labels.tolist()):
        assert (split[labels == label] == TRAIN).any()
    for part, fraction in enumerate(fractions):
        assert fraction > 0 or not (split == part).any()


def test_group_shares_are_counted_in_images():
    rng = np.random.default_rng(1)
    groups = np.repeat([f"g{i}" for i in range(400)], rng.integers(1, 9, 400))
    labels = np.array([int(group[1:]) % 10 for group in groups])
    split = group_split(groups, fractions=(0.7, 0.1, 0.2), seed=0, labels=labels)
    for part, fraction in enumerate((0.7, 0.1, 0.2)):
        assert abs((split == part).mean() - fraction) < 0.02
        for label in range(10):
            assert abs((split[labels == label] == part).mean() - fraction) < 0.15


def test_group_labels_must_match():
    with pytest.raises(UserError, match="got 3 groups and 2 labels"):
        group_split([1, 2, 3], labels=[0, 1])


def test_holding_out_a_value():
    codes = np.array([0, 1, 2, -1] * 25)
    split = holdout_split(codes, 2, val_fraction=0.2, seed=0)
    assert np.array_equal(split == TEST, codes == 2)
    assert [(split[codes == code] == VAL).sum() for code in (-1, 0, 1)] == [5, 5, 5]
    assert np.array_equal(holdout_split(codes, [1, 2]) == TEST, codes > 0)


@pytest.mark.parametrize("held_out", [7, -1, [0, 1]])
def test_holding_out_nothing_or_everything_is_refused(held_out):
    with pytest.raises(UserError, match="some images have and others do not") as error:
        holdout_split(np.array([0, 1, 1] if held_out != -1 else [-1, 0, 1]), held_out)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.9, 0.2, -0.1), (0.3, 0.3, 0.3), (float("nan"), 0, 1)])
def test_wrong_fractions_are_one_line(fractions):
    with pytest.raises(UserError, match="three fractions"):
        stratified_split([0, 1], fractions=fractions)


def test_carving_leaves_the_other_splits_alone():
    split = np.array([TRAIN] * 40 + [TEST] * 20, np.int8)
    labels = np.array([0, 1] * 30)
    carved = carve(split, labels, VAL, fraction=0.25, seed=4)
    assert np.array_equal(carved == TEST, split == TEST)
    assert [(labels[carved == VAL] == label).sum() for label in (0, 1)] == [5, 5]
    assert (split == VAL).sum() == 0
    with pytest.raises(UserError, match="val_fraction"):
        carve(split, labels, VAL, fraction=1.0, seed=0)


def test_missing_groups_are_not_one_group_and_missing_labels_are_one_stratum():
    for groups, count in ((["a", None, "b", ""] * 5, 10), ([0, 1, -1, 2] * 5, 5), ([1.0, float("nan")] * 10, 10)):
        with pytest.raises(UserError, match=rf"expected a group for every image, got none in {count} of 20 rows"):
            group_split(groups)
    split = stratified_split(["a", "b", None, "a"] * 10, fractions=(0.5, 0.0, 0.5))
    missing = split[2::4]
    assert np.bincount(missing, minlength=3).tolist() == [5, 0, 5]
