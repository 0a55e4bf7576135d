"""Ranking by excess errors, and merging of groups that overlap, with answers written out by hand."""

from __future__ import annotations

import pytest
import torch

from mumoe.editing.group_audit import Audit, Groups, rank_groups


def ranked(inside, right, labels=None, *, alpha=0.05, merge=0.5, crossed=False, min_rows=2, **settings):
    """An audit of groups given as columns, named by their letters."""
    inside = torch.tensor(inside, dtype=torch.float64).T
    names = [(("column", letter),) for letter in "abcdefgh"[: inside.shape[1]]]
    groups = [Groups(names, inside)]
    if crossed:
        groups.append(Groups(names, inside, crossed=True))
    right = torch.tensor(right, dtype=torch.bool)
    labels = torch.zeros(len(right), dtype=torch.long) if labels is None else torch.tensor(labels)
    return rank_groups(
        groups,
        right,
        labels,
        named=lambda name: {"attributes": name},
        min_rows=min_rows,
        alpha=alpha,
        correction="fdr",
        merge=merge,
        most=settings.pop("most", 100),
        **settings,
    )


def letters(found):
    return ["".join(value for _, value in finding.attributes) for finding in found.findings]


def ones(rows, *where):
    return [int(any(start <= n < stop for start, stop in where)) for n in range(rows)]


def wrong(rows, *where):
    return [1 - value for value in ones(rows, *where)]


def test_score_is_the_excess_over_rows_and_twenty():
    """a: 4 of 4 wrong; b: 30 of 40 wrong; others 0 of 56. The gap would put a first."""
    found = ranked([ones(100, (0, 4)), ones(100, (4, 44))], wrong(100, (0, 34)))
    assert letters(found) == ["b", "a"]
    b, a = found.findings
    assert b.gap.value == pytest.approx(30 / 40 - 4 / 60)
    assert b.score == pytest.approx((30 - 40 * 4 / 60) / 60)
    assert b.excess == pytest.approx(30 - 40 * 4 / 60)
    assert a.gap.value > b.gap.value
    assert a.score == pytest.approx(4 * (1 - 30 / 96) / 24)
    assert [row["score"] for row in found.rows()] == [b.score, a.score]


def test_the_score_alone_makes_the_order():
    """Label 0: 12 of 60 wrong, 0 of 300 others: significant. Label 1: 12 of 15 wrong, 40 of 100 others: less so."""
    labels = [0] * 360 + [1] * 115
    right = wrong(475, (0, 12), (360, 372), (375, 415))
    inside = [ones(475, (0, 60)), ones(475, (360, 375))]
    found = ranked(inside, right, labels, alpha=1e-4)
    assert letters(found) == ["b", "a"]
    assert [finding.p_corrected <= 1e-4 for finding in found.findings] == [False, True]
    assert [finding.attributes[0][1] for finding in found.significant] == ["a"]
    assert letters(ranked(inside, right, labels, alpha=1e-4, most=1)) == ["a"]  # what is significant is kept first


def test_groups_that_share_half_of_the_smaller_one_are_merged():
    """b (10 rows) shares 5 rows with a, c only 4: half counts, less does not."""
    inside = [ones(100, (0, 20)), ones(100, (15, 25)), ones(100, (30, 36), (10, 14)), ones(100, (50, 60))]
    found = ranked(inside, wrong(100, (0, 20), (50, 52)))
    assert letters(found)[0] == "a"
    assert [finding.attributes[0][1] for finding in found.findings[0].merged] == ["b"]
    assert sorted(letters(found)) == ["a", "c", "d"]
    assert found.comparisons == 4
    apart = ranked(inside, wrong(100, (0, 20), (50, 52)), merge=0)
    assert len(apart.findings) == 4
    assert apart.comparisons == 4
    first = {finding.attributes: finding.p_corrected for finding in apart.findings}
    assert {finding.attributes: finding.p_corrected for finding in found.findings}.items() <= first.items()
    assert sorted(letters(ranked(inside, wrong(100, (0, 20), (50, 52)), merge=0.4))) == ["a", "d"]


def test_merged_groups_are_counted_in_the_headline_and_kept_in_the_file():
    inside = [ones(100, (0, 20)), ones(100, (5, 20)), ones(100, (50, 70))]
    found = ranked(inside, wrong(100, (0, 20)))
    assert "2 of 3 groups are right less often than the rest (fdr, alpha 0.05); 1 after merging" in found.headline()
    assert Audit.from_json(found.to_json()) == found
    assert [row["merged"] for row in found.rows()] == [1, 0]


def test_a_significant_group_is_never_merged_into_one_that_is_not():
    """a: 4 of 4 wrong, which may be chance; b holds it: 570 of 1,000 wrong, surely more than 1,500 of 3,000."""
    inside = [ones(4000, (0, 4)), ones(4000, (0, 1000))]
    found = ranked(inside, wrong(4000, (0, 570), (1000, 2500)))
    assert letters(found) == ["a", "b"]
    assert [finding.p_corrected <= 0.05 for finding in found.findings] == [False, True]
    assert letters(ranked(inside, wrong(4000, (0, 570), (1000, 2500)), alpha=0.1)) == ["a"]


def test_labels_do_not_overlap():
    """One column, two labels: the same group, but no row in common."""
    labels = [0, 1] * 50
    found = ranked([ones(100, (0, 20))], wrong(100, (0, 20)), labels)
    assert [finding.label for finding in found.findings] == [0, 1]
    assert all(not finding.merged for finding in found.findings)


def test_a_pair_that_adds_nothing_is_not_tested():
    """b holds a: the pair a, b has the rows of a. The pair b, c has rows of its own."""
    inside = [ones(100, (0, 10)), ones(100, (0, 40)), ones(100, (30, 60))]
    found = ranked(inside, wrong(100, (0, 10)), crossed=True, merge=0)
    assert sorted(letters(found)) == ["a", "b", "bc", "c"]
    assert found.comparisons == 4


def test_nothing_to_test_is_said():
    found = ranked([[1] * 10], [1] * 10)
    assert (found.findings, found.comparisons) == ((), 0)
    assert found.headline() == "No group is large enough to be compared with the rest"
