"""The place of a known group among the findings of an audit."""

from __future__ import annotations

import torch

from editing.test_expert_audit import planted
from mumoe.editing.expert_audit import audit
from reproduction.audit_planted import first_rank


def test_place_of_a_known_group():
    a, right, labels = planted(0)
    found = audit([a], right, labels, pairs=False)
    target = (labels == 1) & (a[:, 7] >= 0.1)
    assert first_rank(found, [a], labels, target) == (1, found.findings[0])
    other = (labels == 0) & (a[:, 3] >= 0.1)
    place, finding = first_rank(found, [a], labels, other)
    assert (finding.experts, finding.label) == (((0, 3),), 0)
    assert found.findings[place - 1] is finding
    within = first_rank(found, [a], labels, other, label=0)
    assert within[0] < place
    assert first_rank(found, [a], labels, torch.zeros(3000, dtype=torch.bool)) is None
