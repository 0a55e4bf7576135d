"""Controls of an audit by experts: other groups under the same tests, and a linear probe of the subgroup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe import MuMoE
from mumoe.editing.group_audit import Audit, Finding
from mumoe.errors import require

__all__ = ["by_gap", "clusters", "known_studio", "shuffled", "significant_first", "untrained"]


def shuffled(coefficients: tuple[Tensor, ...], labels: Tensor, seed: int) -> tuple[Tensor, ...]:
    """The coefficients of other rows with the same label: groups of the same sizes without meaning."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(len(labels))
    for label in labels.unique():
        places = (labels == label).nonzero()[:, 0]
        order[places] = places[torch.randperm(len(places), generator=generator)]
    return tuple(a[order] for a in coefficients)


@torch.no_grad()
def untrained(fresh: Callable[[], MuMoE], train: Tensor, x: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Coefficients of a gate that was not trained; its norm sees the training rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10_000 + seed)
        layer = fresh().train()
        for batch in train[torch.randperm(len(train))].split(256):
            if len(batch) == 256:
                layer.coefficients(batch)
    return tuple(layer.eval().coefficients(x))


def clusters(train: Tensor, x: Tensor, count: int, seed: int) -> tuple[Tensor, ...]:
    """Clusters of the features in place of experts: each row belongs to one of as many, found on training rows."""
    cluster: Any = require("sklearn.cluster", "test", "audit_controls.clusters")
    found = cluster.KMeans(count, n_init=1, random_state=seed).fit(train.numpy())
    return (torch.nn.functional.one_hot(torch.from_numpy(found.predict(x.numpy())).long(), count).float(),)


def by_gap(found: Audit) -> Audit:
    """An audit in the order of earlier versions: significant findings by falling gap, then the others by p-value."""

    def place(finding: Finding) -> tuple[bool, float]:
        chance = finding.p_corrected > found.alpha
        return chance, finding.p_value if chance else -finding.gap.value

    return replace(found, findings=tuple(sorted(found.findings, key=place)))


def significant_first(found: Audit) -> Audit:
    """An audit with its significant findings first, each part by falling score."""
    chance = [finding.p_corrected > found.alpha for finding in found.findings]
    order = sorted(range(len(chance)), key=lambda place: chance[place])
    return replace(found, findings=tuple(found.findings[place] for place in order))


def known_studio(
    train: Tensor, sensitive: npt.NDArray[np.bool_], test: Tensor, test_sensitive: npt.NDArray[np.bool_]
) -> float:
    """Area under the ROC curve, on test rows, of a linear probe of the sensitive value trained on training rows."""
    linear: Any = require("sklearn.linear_model", "test", "audit_controls.known_studio")
    metrics: Any = require("sklearn.metrics", "test", "audit_controls.known_studio")
    probe = linear.LogisticRegression(max_iter=2000).fit(train.numpy(), sensitive)
    return float(metrics.roc_auc_score(test_sensitive, probe.decision_function(test.numpy())))
