"""The place of a known group among the findings of an audit, and what audits are compared with."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from editing.test_expert_audit import planted
from made_up_emoji import emoji
from mumoe.demo.bias_heads import Settings
from mumoe.demo.planted_bias import planted_style
from mumoe.editing.expert_audit import audit, handled
from mumoe.models.heads import build_head
from reproduction.audit_controls import by_gap, clusters, known_studio, shuffled, significant_first, untrained
from reproduction.audit_page import KINDS, page
from reproduction.audit_planted import audit_seed, first_rank


def test_place_of_a_known_group():
    a, right, labels = planted(0)
    found = audit([a], right, labels, pairs=False)

    def inside(finding):
        return handled([a], finding.experts, 0.1) & (labels == finding.label)

    target = (labels == 1) & (a[:, 7] >= 0.1)
    assert first_rank(found, inside, target) == (1, found.findings[0])
    other = (labels == 0) & (a[:, 3] >= 0.1)
    place, finding = first_rank(found, inside, other)
    assert (finding.experts, finding.label) == (((0, 3),), 0)
    assert found.findings[place - 1] is finding
    assert first_rank(found, inside, torch.zeros(3000, dtype=torch.bool)) is None


def test_shuffled_coefficients_stay_with_their_label_and_mean_nothing():
    a, right, labels = planted(0)
    (other,) = shuffled((a,), labels, 0)
    for label in (0, 1):
        assert torch.equal(other[labels == label].sort(0).values, a[labels == label].sort(0).values)
    assert audit([a], right, labels).significant
    assert not audit([other], right, labels, correction="holm").significant


def test_the_order_of_earlier_versions():
    a, right, labels = planted(1)
    found = by_gap(audit([a], right, labels, merge=0))
    alarms = [finding.p_corrected <= 0.05 for finding in found.findings]
    assert alarms == sorted(alarms, reverse=True)
    gaps = [finding.gap.value for finding in found.significant]
    assert gaps == sorted(gaps, reverse=True)
    found = significant_first(audit([a], right, labels, merge=0))
    alarms = [finding.p_corrected <= 0.05 for finding in found.findings]
    assert alarms == sorted(alarms, reverse=True)
    scores = [finding.score for finding in found.significant]
    assert scores == sorted(scores, reverse=True)


def test_clusters_and_a_gate_that_was_not_trained_give_every_row_a_group():
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    (found,) = clusters(x[:400], x[400:], 6, 0)
    assert found.shape == (200, 6)
    assert torch.equal(found.sum(1), torch.ones(200))
    (gate,) = untrained(lambda: build_head("CPMuMoE-r4-e6", 8, 2).layer, x[:400], x[400:], 0)
    torch.testing.assert_close(gate.sum(1), torch.ones(200))
    assert (gate > 0).any(0).sum() > 1


def test_a_probe_knows_what_is_in_the_columns_and_nothing_else():
    rng = np.random.default_rng(0)
    x, target = torch.from_numpy(rng.normal(size=(2000, 4))), rng.random(2000) < 0.5
    assert known_studio(x[:1000], target[:1000], x[1000:], target[1000:]) == pytest.approx(0.5, abs=0.06)
    x[:, 2] += torch.from_numpy(4.0 * target)
    assert known_studio(x[:1000], target[:1000], x[1000:], target[1000:]) > 0.99


def test_audits_of_a_planted_bias_find_it():
    data, features = emoji(0, 3000)
    bias = planted_style(data, features, support=0.003)
    settings = Settings(epochs=6, batch_size=64, learning_rate=0.02)
    found = audit_seed(bias, data.attributes, seed=0, head="CPMuMoE-r16-e16", settings=settings)
    assert found["accuracy"] < found["accuracy_others"] - 0.2
    for split in ("held_out", "test"):
        assert set(found[split]) == set(KINDS)
        assert found[split]["attributes"]["rank"] == 1
        assert found[split]["experts"]["rank"] is not None
        assert found[split]["shuffled"]["significant"] < found[split]["experts"]["significant"]
    for kind in ("experts", "attributes"):
        assert set(found["validation"][kind]) == {"significant first", "0", "0.33", "0.5", "0.67"}
    assert found["known"]["features"] > found["known"]["coefficients"] - 0.05
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = page({"head": "CPMuMoE-r16-e16", "score_prior": 20, "merge": 0.5}, [found], [found])
    assert re.search(r"\| seeds 0 to 8 \| +named attributes \| +1 \| +1 \| +1 of 1 \|", text)
