"""Named attributes and their pairs: what is tested, what is not, and that a planted subgroup is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mumoe.data.base import Attribute
from mumoe.editing.attribute_audit import audit_attributes, matching
from mumoe.errors import UserError


def column(values):
    names = tuple(sorted({value for value in values if value}))
    return Attribute(np.array([names.index(value) if value else -1 for value in values]), names)


def made_up(seed, rows=4000, bias=0.4):
    """Three columns; rows of one studio and one colour are wrong more often where the label is 1."""
    rng = np.random.default_rng(seed)
    studio, colour, size = rng.choice(["x", "y", "z"], rows), rng.choice(["red", "blue"], rows), rng.choice(4, rows)
    labels = rng.integers(0, 2, rows)
    planted = (studio == "y") & (colour == "blue") & (labels == 1)
    right = rng.random(rows) > np.where(planted, 0.1 + bias, 0.1)
    columns = {
        "studio": column(studio.tolist()),
        "colour": column(colour.tolist()),
        "size": column([f"{value} cm" if value else "" for value in size]),
    }
    return columns, torch.from_numpy(right), torch.from_numpy(labels), torch.from_numpy(planted)


def test_a_planted_pair_is_first():
    for seed in range(5):
        columns, right, labels, planted = made_up(seed)
        found = audit_attributes(columns, right, labels)
        first = found.findings[0]
        assert (first.attributes, first.label) == ((("studio", "y"), ("colour", "blue")), 1)
        assert torch.equal(matching(columns, first.attributes) & (labels == 1), planted)
        assert first.rows == int(planted.sum())
        assert first.accuracy == pytest.approx(float(right[planted].double().mean()))
        others = (labels == 1) & ~planted
        assert first.rest == pytest.approx(float(right[others].double().mean()))
        assert found.comparisons == 2 * (8 + 3 * 2 + 3 * 3 + 2 * 3)  # unknown sizes are no value
        assert str(first).startswith("studio = y, colour = blue, label 1: ")


def test_nothing_is_found_where_nothing_is():
    alarms = 0
    for seed in range(40):
        columns, right, labels, _ = made_up(seed, rows=1000, bias=0.0)
        alarms += bool(audit_attributes(columns, right, labels, correction="holm").significant)
    assert alarms <= 5  # 2 expected at alpha 0.05


def test_the_label_and_what_determines_it_are_not_tested():
    """kind is the label by name; detail is finer than the label: with the label 0 it has one value alone."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    detail = np.where(labels == 0, "none", rng.choice(["p", "q"], 400))
    columns = {"kind": column([("no", "yes")[label] for label in labels]), "detail": column(detail.tolist())}
    right = torch.from_numpy(rng.random(400) > 0.3)
    found = audit_attributes(columns, right, torch.from_numpy(labels), merge=0)
    tested = {(finding.attributes, finding.label) for finding in found.findings}
    assert tested == {((("detail", "p"),), 1), ((("detail", "q"),), 1)}
    assert found.comparisons == 2


def test_two_names_of_one_group_are_one_finding():
    columns, right, labels, _ = made_up(0)
    columns["maker"] = columns["studio"]
    first = audit_attributes(columns, right, labels).findings[0]
    assert first.attributes == (("studio", "y"), ("colour", "blue"))
    assert (("colour", "blue"), ("maker", "y")) in [other.attributes for other in first.merged]


def test_values_with_few_rows_and_pairs_are_left_out_where_asked():
    columns, right, labels, _ = made_up(0, rows=400)
    singles = audit_attributes(columns, right, labels, pairs=False, merge=0)
    assert {len(finding.attributes) for finding in singles.findings} == {1}
    large = audit_attributes(columns, right, labels, min_rows=60, merge=0)
    assert large.findings
    assert min(finding.rows for finding in large.findings) >= 60


def test_many_labels_are_pooled():
    columns, right, *_ = made_up(1, rows=600)
    labels = torch.arange(600) % 120
    found = audit_attributes(columns, right, labels)
    assert found.pooled
    assert found.findings[0].label is None


def test_without_columns_there_is_no_finding():
    found = audit_attributes({}, torch.ones(10), torch.ones(10))
    assert (found.findings, found.comparisons) == ((), 0)


def test_columns_of_other_rows():
    columns, right, labels, _ = made_up(0, rows=100)
    with pytest.raises(
        UserError, match=r"expected columns, right and labels of the same rows, got \[100, 100, 100, 99"
    ):
        audit_attributes(columns, right[1:], labels)
