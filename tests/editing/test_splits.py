"""Splits are disjoint or do not exist; sealed labels come out by one door only."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from mumoe.editing.splits import Rows, SealedRows, Splits, split_rows
from mumoe.errors import UserError

ROWS = Rows.of([0, 1, 1], ["f", "m", "f"])


def test_random_splits_cover_every_row_once():
    splits = split_rows(101, seed=3)
    together = np.concatenate([splits.train, splits.val, splits.test])
    assert sorted(together) == list(range(101))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (61, 20, 20)
    again = split_rows(101, seed=3)
    assert np.array_equal(splits.test, again.test)
    assert not np.array_equal(splits.test, split_rows(101, seed=4).test)


def test_units_stay_together():
    people = np.repeat(np.arange(30), 5)
    splits = split_rows(150, seed=1, units=people)
    parts = [set(people[rows]) for rows in (splits.train, splits.val, splits.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert sum(map(len, parts)) == 30


def test_overlap_is_refused():
    with pytest.raises(UserError) as error:
        Splits(np.array([0, 1]), np.array([2, 3]), np.array([3, 1, 4]))
    assert str(error.value) == (
        "Splits: expected disjoint splits, got 1 rows in both train and test (the first is 1). Take them out of one."
    )
    with pytest.raises(UserError, match=r"got 1 rows in both val and test \(the first is 3\)"):
        Splits(np.array([0, 1]), np.array([2, 3]), np.array([3, 4]))
    with pytest.raises(UserError, match="expected each row once in val, got some twice"):
        Splits(np.array([0]), np.array([2, 2]), np.array([3]))


def test_bad_shares():
    with pytest.raises(UserError, match="expected positive shares of train, val and test that sum to 1"):
        split_rows(10, shares={"train": 0.9, "val": 0.2, "test": 0.1})
    with pytest.raises(UserError, match="expected rows for three splits, got 2 units"):
        split_rows(2)
    with pytest.raises(UserError, match="expected columns of equal length, got rows 3, units 2"):
        split_rows(3, units=[0, 1])


def test_sealed_rows_open_by_one_door():
    sealed = SealedRows(ROWS)
    assert len(sealed) == 3
    refused = [
        lambda: sealed.y_true,
        lambda: sealed.sensitive_features,
        lambda: sealed[0],
        lambda: list(sealed),
        lambda: np.asarray(sealed),
        lambda: pickle.dumps(sealed),
        lambda: copy.deepcopy(sealed),
    ]
    for look in refused:
        with pytest.raises(UserError, match="expected nobody to look at test labels before the final report"):
            look()
    assert not hasattr(sealed, "rows")
    assert "'f'" not in repr(sealed)
    assert sealed.opened == ()
    assert sealed.open("final report") is ROWS
    assert sealed.opened == ("final report",)


def test_seal_gives_each_split_its_own_rows():
    splits = Splits(np.array([0, 3]), np.array([1]), np.array([2]))
    train, val, test = splits.seal([0, 1, 1, 0], ["a", "b", "a", "b"])
    assert train.y_true.tolist() == [0, 0]
    assert train.sensitive_features.tolist() == ["a", "b"]
    assert val.y_true.tolist() == [1]
    assert test.open("test").sensitive_features.tolist() == ["a"]
