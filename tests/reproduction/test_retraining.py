"""Each baseline does what its paper says, on a problem small enough to see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mumoe.demo import bias_heads
from mumoe.demo.bias_heads import BiasTask, Settings
from mumoe.editing import subgroup_fairness as fairness
from mumoe.errors import UserError
from reproduction import retraining
from reproduction.retraining import fit

SETTINGS = Settings(epochs=15, batch_size=64, learning_rate=0.02)
TARGET = (1, 1)


def biased_rows(rows, seed, *, rare):
    """The label in a noisy feature, the sensitive value in a clear one; among label 1 value 1 is rare."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    code = (rng.random(rows) < np.where(label == 1, rare, 0.5)).astype(int)
    x = rng.normal(size=(rows, 8))
    x[:, 0] += 1.2 * (2 * label - 1)
    x[:, 1] += 3.0 * (2 * code - 1)
    other = (x[:, 2] > 0).astype(int)
    return (
        torch.tensor(x, dtype=torch.float32),
        torch.tensor(np.stack([other, label], 1)),
        torch.tensor(code),
    )


def task(rows=1500, seed=0, rare=0.02):
    return BiasTask(*biased_rows(rows, seed, rare=rare), head=1, target=TARGET)


def linear():
    return nn.Linear(8, 2)


def measured(head, seed=1):
    x, y, code = biased_rows(4000, seed, rare=0.5)
    with torch.no_grad():
        guess = (head(x) > 0).long()
    given = {"sensitive_features": code}
    return {
        "target": fairness.target_accuracy(y[:, 1], guess[:, 1], **given, target=(1, 1)),
        "min": fairness.min_accuracy(y[:, 1], guess[:, 1], **given),
        "other": float((guess[:, 0] == y[:, 0]).float().mean()),
        "accuracy": fairness.accuracy(y[:, 1], guess[:, 1], **given),
    }


@pytest.fixture(scope="module")
def plain():
    return measured(fit("plain", task(), linear, settings=SETTINGS))


def test_plain_learns_and_is_biased(plain):
    assert plain["other"] > 0.9
    assert plain["accuracy"] > 0.7
    assert plain["target"] < plain["accuracy"] - 0.15


@pytest.mark.parametrize(
    ("strategy", "options"),
    [("oversample", {}), ("group-dro", {"strength": 0.05}), ("dfr", {"strength": 0.1})],
)
def test_methods_that_know_the_groups_help_the_worst(plain, strategy, options):
    found = measured(fit(strategy, task(), linear, settings=SETTINGS, **options))
    assert found["target"] > plain["target"] + 0.1
    assert found["min"] > plain["min"] + 0.05
    assert found["other"] > 0.9


def test_adversary_hides_the_attribute():
    rows = task(800, rare=0.5)

    def gap_between_the_groups(strength):
        head = fit("adversarial", rows, linear, settings=SETTINGS, strength=strength)
        with torch.no_grad():
            hidden = head[0](rows.features)
        inside = rows.sensitive.bool()
        assert measured(head)["accuracy"] > 0.85
        return float((hidden[inside].mean(0) - hidden[~inside].mean(0)).norm())

    assert gap_between_the_groups(2.0) < 0.3 * gap_between_the_groups(0.0)


def test_gradient_is_reversed():
    x = torch.tensor([2.0, -1.0], requires_grad=True)
    y = retraining.reverse_gradient(x, 0.5)
    assert torch.equal(y, x)
    (y**2).sum().backward()
    assert torch.equal(x.grad, -0.5 * 2 * x.detach())


def test_oversampling_by_hand():
    labels = torch.tensor([[0], [1], [1], [1], [1], [1]])
    codes = torch.tensor([1, 0, 0, 0, 0, 1])
    small = BiasTask(torch.zeros(6, 3), labels, codes, head=0, target=(1, 1))
    assert small.groups.tolist() == [1, 2, 2, 2, 2, 3]
    assert retraining.oversampling_weights(small, 1.0).tolist() == [1, 1, 1, 1, 1, 4]
    assert retraining.oversampling_weights(small, 0.5).tolist() == [1, 1, 1, 1, 1, 2]
    assert retraining.oversampling_weights(small, 0.0).tolist() == [1] * 6


def test_weighted_batches_follow_the_weights():
    weights = torch.tensor([1.0] * 90 + [9.0] * 10)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([rows for _ in range(200) for rows in bias_heads._batches(weights, 32, generator)])
    assert float((drawn >= 90).float().mean()) == pytest.approx(0.5, abs=0.02)
    even = torch.cat(list(bias_heads._batches(torch.ones(100), 30, generator)))
    assert sorted(even.tolist()) == list(range(100))
    assert [len(rows) for rows in bias_heads._batches(torch.ones(65), 30, generator)] == [30, 30]


def test_balanced_rows():
    groups = torch.tensor([0] * 50 + [1] * 3 + [3] * 10)
    rows = retraining.balanced_rows(groups, torch.Generator().manual_seed(0))
    assert groups[rows].bincount().tolist() == [3, 3, 0, 3]
    assert len(rows.unique()) == 9


def test_logistic_regression_is_at_its_minimum():
    x, y, _ = biased_rows(300, 0, rare=0.5)
    weight, bias = retraining.logistic_regression(x, y[:, 1].float(), 0.5)
    error = torch.sigmoid(x.double() @ weight.double() + bias.double()) - y[:, 1]
    assert torch.allclose(x.double().T @ error + weight.double() / 0.5, torch.zeros(8).double(), atol=1e-3)
    assert abs(float(error.sum())) < 1e-3


def test_dfr_leaves_the_other_heads_alone():
    rows = task(400)
    base = fit("plain", rows, linear, settings=SETTINGS, seed=3)
    corrected = fit("dfr", rows, linear, settings=SETTINGS, seed=3)
    with torch.no_grad():
        before, after = base(rows.features), corrected(rows.features)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_group_dro_without_steps_weighs_groups_alike():
    """At strength 0 the loss is the mean over subgroups: the same as plain training on one row of each."""
    features = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    labels, codes = torch.tensor([[0], [0], [1], [1]]), torch.tensor([0, 1, 0, 1])
    small = BiasTask(features, labels, codes, head=0, target=(1, 1))
    short = Settings(epochs=5, batch_size=4)
    heads = [
        fit(name, small, lambda: nn.Linear(8, 1), settings=short, **options)
        for name, options in (("plain", {}), ("group-dro", {"strength": 0.0}))
    ]
    assert torch.allclose(heads[0].weight, heads[1].weight, atol=1e-6)


@pytest.mark.parametrize("strategy", sorted(retraining.STRATEGIES))
def test_same_seed_same_head(strategy):
    rows, quick = task(200), Settings(epochs=2, batch_size=64)
    torch.manual_seed(11)
    first = fit(strategy, rows, linear, seed=5, settings=quick)
    torch.manual_seed(12)
    second = fit(strategy, rows, linear, seed=5, settings=quick)
    third = fit(strategy, rows, linear, seed=6, settings=quick)
    with torch.no_grad():
        a, b, c = (head(rows.features) for head in (first, second, third))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not first.training


def test_linear_heads_start_at_the_log_odds():
    labels = torch.tensor([[0, 1], [0, 1], [0, 0], [1, 1]])
    head = bias_heads.start_at_log_odds(nn.Linear(8, 2), labels)
    assert torch.allclose(torch.sigmoid(head.bias), torch.tensor([0.25, 0.75]))
    bare = nn.Linear(8, 2, bias=False)
    assert bias_heads.start_at_log_odds(bare, labels) is bare


def test_bad_input():
    with pytest.raises(UserError, match=r"got 'oversampling'\. Did you mean 'oversample'"):
        fit("oversampling", task(), linear)
    with pytest.raises(UserError, match=r"Labels of a single head need a second dimension"):
        BiasTask(torch.zeros(3, 2), torch.zeros(3), torch.zeros(3), head=0, target=TARGET)
    with pytest.raises(UserError, match=r"expected a head in 0..1, got 2"):
        BiasTask(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3), head=2, target=TARGET)
    with pytest.raises(UserError, match=r"expected rows of the target subgroup \(1, 1\), got none"):
        BiasTask(torch.zeros(3, 2), torch.zeros(3, 2), torch.tensor([0, 1, 1]), head=0, target=TARGET)


def test_unknown_sensitive_codes_are_no_subgroup():
    features, labels, codes = biased_rows(200, 0, rare=0.3)
    codes[3:5] = -1
    with pytest.raises(UserError, match=r"a sensitive code from 0 in every row, got 2 of 200 rows below 0"):
        BiasTask(features, labels, codes, head=1, target=TARGET)
