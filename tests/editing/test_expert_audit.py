"""A planted subgroup is found, and nothing is found where there is nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mumoe.coefficients import DenseCoefficients, SparseCoefficients
from mumoe.editing.expert_audit import _products, audit, handled, propose
from mumoe.errors import UserError


def generator(seed):
    return torch.Generator().manual_seed(seed)


def planted(seed, rows=3000, experts=20, *, bias=0.5):
    """Each row goes to two experts; rows of label 1 that expert 7 handles are wrong more often."""
    g = generator(seed)
    first, second = torch.randint(0, experts, (2, rows), generator=g)
    share = 0.5 + 0.4 * torch.rand(rows, generator=g)
    a = torch.zeros(rows, experts)
    a[torch.arange(rows), first] += share
    a[torch.arange(rows), second] += 1 - share
    labels = torch.randint(0, 2, (rows,), generator=g)
    wrong = torch.rand(rows, generator=g) < torch.where((labels == 1) & (a[:, 7] >= 0.1), 0.1 + bias, 0.1)
    return a, ~wrong, labels


@pytest.mark.parametrize("correction", ["holm", "fdr"])
def test_planted_expert_is_first(correction):
    for seed in range(5):
        a, right, labels = planted(seed)
        found = audit([a], right, labels, pairs=False, correction=correction)
        first = found.findings[0]
        assert (first.experts, first.label) == (((0, 7),), 1)
        assert first.p_corrected < 1e-6
        inside = (labels == 1) & (a[:, 7] >= 0.1)
        assert first.rows == int(inside.sum())
        assert first.accuracy == pytest.approx(float(right[inside].float().mean()))
        assert first.rest == pytest.approx(float(right[(labels == 1) & (a[:, 7] < 0.1)].float().mean()))
        assert first.gap.low < first.gap.value < first.gap.high
        assert found.comparisons == 40


def test_nothing_is_found_where_nothing_is():
    alarms = 0
    for seed in range(40):
        a, right, labels = planted(seed, rows=1000, bias=0.0)
        alarms += bool(audit([a], right, labels, correction="holm").significant)
    assert alarms <= 5  # 2 expected at alpha 0.05


def test_without_correction_there_would_be_alarms():
    a, right, labels = planted(3, rows=2000, bias=0.0)
    found = audit([a], right, labels)
    assert min(finding.p_value for finding in found.findings) < 0.05
    assert all(finding.p_corrected >= finding.p_value for finding in found.findings)


def test_a_pair_of_experts_is_found():
    """Rows are wrong only where experts 2 and 5 work together; each alone is diluted."""
    g = generator(4)
    rows = 6000
    first, second = torch.randint(0, 8, (2, rows), generator=g)
    a = torch.zeros(rows, 8)
    a[torch.arange(rows), first] += 0.5
    a[torch.arange(rows), second] += 0.5
    both = (a[:, 2] > 0) & (a[:, 5] > 0)
    right = torch.rand(rows, generator=g) > torch.where(both, 0.8, 0.1)
    found = audit([a], right, torch.ones(rows, dtype=torch.long))
    assert found.findings[0].experts == ((0, 2), (0, 5))
    assert found.findings[0].rows == int(both.sum())


def test_combinations_of_a_hierarchy():
    g = generator(5)
    a = torch.nn.functional.one_hot(torch.randint(0, 6, (4000,), generator=g), 6).float()
    b = torch.nn.functional.one_hot(torch.randint(0, 3, (4000,), generator=g), 3).float()
    inside = (a[:, 4] > 0) & (b[:, 1] > 0)
    right = torch.rand(4000, generator=g) > torch.where(inside, 0.9, 0.1)
    found = audit([a, b], right, torch.zeros(4000, dtype=torch.long))
    assert found.findings[0].experts == ((0, 4), (1, 1))
    assert found.findings[0].rows == int(inside.sum())
    assert torch.equal(handled([a, b], ((0, 4), (1, 1)), 0.1), inside)
    assert str(found.findings[0]).startswith("experts 4 + 1 (level 1), label 0: ")


@pytest.mark.parametrize("sizes", [(4, 5), (3, 4, 5)])
@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3])
def test_products_are_those_of_all_combinations(sizes, threshold):
    g = generator(6)
    levels = [torch.rand(200, size, generator=g).pow(3).softmax(1) for size in sizes]
    levels[0][0] = torch.nn.functional.one_hot(torch.tensor(2), sizes[0])
    found = _products(levels, threshold)
    joint = levels[0]
    for level in levels[1:]:
        joint = (joint[..., None] * level.view(200, *[1] * (joint.ndim - 1), -1)).float()
    expected = (joint >= threshold).flatten(1)
    used = expected.any(0).nonzero()[:, 0]
    names = [tuple(enumerate(int(n) for n in torch.unravel_index(unit, sizes))) for unit in used]
    assert found._names == names
    assert torch.equal(torch.from_numpy(found.inside.toarray()).bool(), expected[:, used])


def test_product_of_levels_must_reach_the_threshold():
    a, b = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.3, 0.7]])
    assert not bool(handled([a, b], ((0, 0), (1, 0)), 0.2))
    assert bool(handled([a, b], ((0, 0), (1, 1)), 0.2))
    assert bool(handled([a, b], ((0, 0), (0, 1)), 0.5))  # two of one level: each alone


def test_proposal_is_the_rewriting_of_its_rows():
    a, right, labels = planted(0)
    first = audit([a], right, labels, pairs=False).findings[0]
    edit = propose(first, [a], labels, head=3)
    inside = (labels == 1) & (a[:, 7] >= 0.1)
    torch.testing.assert_close(edit.mean, a[inside].double().mean(0))
    assert (edit.head, edit.strength) == (3, 20)
    flipped = propose(audit([a], right, 1 - labels, pairs=False).findings[0], [a], 1 - labels, head=3)
    assert flipped.strength == -20
    with pytest.raises(UserError, match=r"expected training rows handled by \(\(0, 7\),\), got none"):
        propose(first, [torch.zeros(4, 20)], torch.ones(4), head=0)


def many_classes(seed, *, bias, rows=348, classes=72):
    """Few rows of each of many classes, which are differently hard; expert 3 handles rows of all of them."""
    g = generator(seed)
    labels = torch.arange(rows) % classes
    a = torch.zeros(rows, 12)
    a[torch.arange(rows), torch.randint(0, 12, (rows,), generator=g)] = 1
    chance = 0.5 + 0.4 * (labels % 2) - bias * a[:, 3]
    return a, torch.rand(rows, generator=g) < chance, labels


def test_labels_are_pooled_where_no_group_has_enough_rows_of_one():
    a, right, labels = many_classes(0, bias=0.4)
    found = audit([a], right, labels)
    assert (found.pooled, found.min_rows, found.comparisons) == (True, 10, 12)
    first = found.significant[0]
    assert (first.experts, first.label) == (((0, 3),), None)
    inside = a[:, 3] > 0
    assert (first.rows, first.accuracy) == (int(inside.sum()), pytest.approx(float(right[inside].double().mean())))
    assert 0.2 < first.gap.value < 0.6
    assert first.gap.low > 0
    assert str(first).startswith("expert 3, all labels: ")
    named = replace(first, experts=(), attributes=(("studio", "noto"),))
    with pytest.raises(UserError, match="expected a finding by experts, got 'studio = noto'"):
        propose(named, [a], labels, head=0)
    with pytest.raises(UserError, match="expected a finding of one label"):
        propose(first, [a], labels, head=0)
    plenty = audit([a], right, labels % 2)
    assert not plenty.pooled


def test_pooled_labels_are_compared_with_themselves():
    """An expert that handles hard classes alone is as good as others are on these classes: no alarm."""
    g = generator(5)
    labels = torch.arange(400) % 80
    hard = labels < 40
    a = torch.zeros(400, 2)
    a[:, 0] = (torch.rand(400, generator=g) < torch.where(hard, 0.7, 0.05)).float()
    right = torch.rand(400, generator=g) < torch.where(hard, 0.3, 0.95)
    found = audit([a], right, labels)
    assert right[a[:, 0] > 0].double().mean() < right.double().mean() - 0.15
    assert found.pooled
    assert found.findings[0].p_value > 0.05


def test_pooling_finds_nothing_where_nothing_is():
    alarms = 0
    for seed in range(40):
        a, right, labels = many_classes(seed, bias=0.0)
        alarms += bool(audit([a], right, labels, correction="holm").significant)
    assert alarms <= 5


def test_the_floor_is_lowered_where_even_pooling_leaves_too_little():
    a, right, labels = many_classes(1, bias=0.3, rows=48, classes=12)
    found = audit([a], right, labels, min_rows=20)
    assert found.pooled
    assert 2 <= found.min_rows < 20
    assert max(finding.rows for finding in found.findings) >= found.min_rows


def test_result_is_json_and_bounded():
    a, right, labels = planted(0)
    found = audit([a], right, labels, most=5, merge=0)
    assert len(found.findings) == 5
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["findings"][0]["label"] == 1


def test_bad_input():
    a, right, labels = planted(0, rows=100)
    with pytest.raises(UserError, match=r"expected `threshold` above 0 and at most 1, got 0\. 0.1"):
        audit([a], right, labels, threshold=0)
    with pytest.raises(UserError, match=r"got \[100, 99, 100\] rows"):
        audit([a], right[:-1], labels)
    with pytest.raises(UserError, match=r"got 'homl'\. Did you mean 'holm'"):
        audit([a], right, labels, correction="homl")
    with pytest.raises(UserError, match="expected experts that handle some of 100 rows and not all, got none"):
        audit([torch.ones(100, 3)], right, labels)
    with pytest.raises(UserError, match="expected `min_rows` >= 2, got 1"):
        audit([a], right, labels, min_rows=1)
    with pytest.raises(UserError, match=r"expected `merge` in 0\.\.1, got 1\.5\. 0 merges no groups"):
        audit([a], right, labels, merge=1.5)


@pytest.mark.parametrize("min_rows", [2, 12])
def test_every_comparison_against_counts_of_the_definition(min_rows):
    """Sizes, accuracies and the number of comparisons, from masks of the rows."""
    g = generator(1)
    a = torch.rand(400, 6, generator=g).square()
    a[a < 0.2] = 0
    right, labels = torch.rand(400, generator=g) < 0.7, torch.randint(0, 3, (400,), generator=g)
    found = audit([a], right, labels, threshold=0.3, min_rows=min_rows, merge=0)
    inside = a >= 0.3
    groups = {((0, n),): inside[:, n] for n in range(6)}
    groups |= {((0, n), (0, m)): inside[:, n] & inside[:, m] for n in range(6) for m in range(n + 1, 6)}
    expected = {}
    for name, mask in groups.items():
        for label in range(3):
            mine, rest = mask & (labels == label), ~mask & (labels == label)
            alike = len(name) == 2 and any(
                int((inside[:, n] & (labels == label)).sum()) == int(mine.sum()) for _, n in name
            )
            if min(int(mine.sum()), int(rest.sum())) >= min_rows and not alike:
                share = [float(right[part].double().mean()) for part in (mine, rest)]
                expected[name, label] = (int(mine.sum()), *map(pytest.approx, share))
    assert found.comparisons == len(expected) == len(found.findings)
    for finding in found.findings:
        assert (finding.rows, finding.accuracy, finding.rest) == expected[finding.experts, finding.label]


def test_a_million_experts_take_no_more_than_their_support():
    """A matrix of the rows and experts would take 160 GB, one of all pairs of experts 8 TB."""
    experts, rows = 10**6, 40_000
    chosen = torch.arange(2 * rows).reshape(rows, 2) % 500 * 2000 + torch.tensor([0, 1])
    a = SparseCoefficients(
        torch.full((2 * rows,), 0.5), chosen.flatten(), torch.arange(rows + 1) * 2, experts, torch.float
    )
    labels = torch.arange(rows) // 4 % 2
    right = ~((chosen[:, 0] == 4000) & (labels == 1))
    found = audit([a], right, labels)
    assert found.findings[0].experts == ((0, 4000),)
    assert found.findings[0].accuracy == 0
    assert torch.equal(handled([a], ((0, 4000),), 0.1), chosen[:, 0] == 4000)


def test_coefficients_by_their_support_are_audited_like_a_matrix():
    a, right, labels = planted(2, rows=800)
    b = torch.softmax(torch.randn(800, 5, generator=generator(3)) * 3, 1)
    sparse = [DenseCoefficients(level).at_least() for level in (a, b)]
    assert audit(sparse, right, labels, min_rows=5) == audit([a, b], right, labels, min_rows=5)
    finding = audit([a], right, labels, pairs=False).findings[0]
    assert propose(finding, sparse[:1], labels, head=0) == propose(finding, [a], labels, head=0)
