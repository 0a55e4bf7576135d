"""At which place does an audit rank a subgroup whose failure was planted?

    python -m reproduction.audit_planted --out docs/results/bias

Trains the head of the planted emoji experiment per seed, with the settings of the bias experiments written out here,
and audits its validation and test rows together, and its test rows alone. A finding counts as the planted subgroup if
most of its rows are in it. The two audits are compared with others that share their tests and differ in the groups (see
`audit_controls`), and with the same head trained with the subgroup's full support, where nothing is planted.

How groups are ordered and merged was chosen on validation rows, and the page shows it there with the alternatives; the
seeds from 9 were audited on validation and test rows together once that was done. About 45 seconds per seed on one
core, after the features are in the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe import MuMoE
from mumoe.data import Attribute, ImageData
from mumoe.demo.bias_heads import BiasTask, Settings, train_plain
from mumoe.demo.planted_bias import BiasSet, planted_style
from mumoe.editing.attribute_audit import audit_attributes, matching
from mumoe.editing.expert_audit import audit, handled
from mumoe.editing.group_audit import MERGE, PRIOR, Audit, Finding
from mumoe.files import write_json, write_text
from mumoe.models.heads import build_head
from mumoe.parsing import parse
from reproduction import bias_report
from reproduction.audit_controls import by_gap, clusters, known_studio, shuffled, significant_first, untrained
from reproduction.audit_page import page
from reproduction.bias_sets import without_cut

__all__ = ["Options", "Rows", "audit_seed", "first_rank"]

MERGES = (0.0, 0.33, 0.5, 0.67)
"""Overlaps that were compared on validation rows."""

FEW = 5
"""Rows that a group must have there: half as many as elsewhere, for half as many rows."""


Order = Callable[[Audit], Audit]
"""Puts the findings of an audit into another order."""


@dataclass(frozen=True)
class Options:
    """Audit heads with a planted bias, and the same heads without."""

    out: str = "runs/bias"
    """folder to write to"""
    seeds: int = 18
    """number of seeds"""
    head: str = "CPMuMoE-r256-e128"
    """the head to audit"""
    init: str = "paper"
    """of the experts: paper, scaled or zero"""
    threshold: float = 0.1
    """coefficient from which an expert handles a row"""
    epochs: int = 20
    """of training"""
    batch_size: int = 256
    """rows of a batch"""
    lr: float = 3e-3
    """peak of the one-cycle schedule"""
    weight_decay: float = 1.0
    """of AdamW, for all parameters"""
    cache_dir: str = ""
    """where drawings and features are kept (empty: the user cache)"""


@dataclass(frozen=True)
class Rows:
    """Rows to audit, and the subgroup that was planted among them.

    Attributes:
        x: (rows, features) standardized.
        coefficients: One (rows, N_e) tensor per level.
        right: (rows,) whether the head is right.
        labels: (rows,) 0 or 1.
        group: (rows,) whether a row is in the planted subgroup.
        columns: Named columns.
    """

    x: Tensor
    coefficients: tuple[Tensor, ...]
    right: Tensor
    labels: Tensor
    group: Tensor
    columns: Mapping[str, Attribute]

    def only(self, chosen: Tensor) -> Rows:
        """Some of the rows."""
        columns = {name: Attribute(c.codes[chosen.numpy()], c.values) for name, c in self.columns.items()}
        parts = (part[chosen] for part in (self.x, self.right, self.labels, self.group))
        x, right, labels, group = parts
        return Rows(x, tuple(a[chosen] for a in self.coefficients), right, labels, group, columns)


def audit_seed(
    bias: BiasSet,
    columns: Mapping[str, Attribute],
    *,
    seed: int,
    head: str,
    settings: Settings,
    threshold: float = 0.1,
    init: str = "paper",
) -> dict[str, Any]:
    """Train one head, audit it in every way, and return the places of the planted subgroup.

    Args:
        bias: The experiment.
        columns: Named columns of all its rows.
        seed: Of the cut, the weights and the controls.
        head: The head.
        settings: How it is trained.
        threshold: Coefficient from which an expert handles a row.
        init: Of the experts, one of `MuMoE`.
    """
    training = bias.training_rows(seed)
    features = _standardized(bias, training)
    sizes = (bias.features.shape[1], bias.labels.shape[1])

    def fresh() -> MuMoE:
        layer = build_head(head, *sizes, init=init).layer
        assert isinstance(layer, MuMoE)
        return layer

    layer = train_plain(_task(bias, training, features), fresh, seed=seed, settings=settings)
    assert isinstance(layer, MuMoE)
    held_out = np.concatenate([bias.splits.val, bias.splits.test])
    rows = _rows(bias, layer, features, held_out, columns)
    controls = {
        "untrained gate": untrained(fresh, features(training), rows.x, seed),
        "k-means": clusters(features(training), rows.x, layer.num_experts[0], seed),
        "shuffled": shuffled(rows.coefficients, rows.labels, seed),
    }
    is_test = torch.arange(len(held_out)) >= len(bias.splits.val)
    found: dict[str, Any] = {"seed": seed, "rows": int(rows.group.sum()), **_accuracies(rows)}
    for name, chosen in (("held_out", torch.ones_like(is_test)), ("test", is_test)):
        some = {kind: tuple(a[chosen] for a in part) for kind, part in controls.items()}
        found[name] = _places(rows.only(chosen), some, threshold)
    found["validation"] = _validated(rows.only(~is_test), threshold)
    x, sensitive = features(training), bias.sensitive == bias.target[1]
    probes = {"features": (x, rows.x), "coefficients": (_coefficients(layer, x), torch.cat(rows.coefficients, 1))}
    found["known"] = {
        name: known_studio(train, sensitive[training], test[is_test], sensitive[held_out][is_test.numpy()])
        for name, (train, test) in probes.items()
    }
    return found


def _standardized(bias: BiasSet, training: npt.NDArray[np.int64]) -> Callable[[Any], Tensor]:
    rows = bias.features[training]
    mean, deviation = rows.mean(0), np.maximum(rows.std(0), 1e-6)
    return lambda chosen: torch.from_numpy((bias.features[chosen] - mean) / deviation)


def _task(bias: BiasSet, training: npt.NDArray[np.int64], features: Callable[[Any], Tensor]) -> BiasTask:
    values = sorted(set(bias.sensitive.tolist()))
    codes = torch.from_numpy(np.searchsorted(np.array(values), bias.sensitive[training]))
    target = (bias.target[0], values.index(bias.target[1]))
    return BiasTask(features(training), torch.from_numpy(bias.labels[training]), codes, head=bias.head, target=target)


@torch.no_grad()
def _coefficients(layer: MuMoE, x: Tensor) -> Tensor:
    return torch.cat(tuple(layer.coefficients(x)), dim=1)


@torch.no_grad()
def _rows(
    bias: BiasSet,
    layer: MuMoE,
    features: Callable[[Any], Tensor],
    chosen: npt.NDArray[np.int64],
    columns: Mapping[str, Attribute],
) -> Rows:
    x, labels = features(chosen), torch.from_numpy(bias.labels[chosen, bias.head])
    logits, a = layer(x, return_coefficients=True)
    right = (logits[:, bias.head] > 0) == labels.bool()
    group = (labels == bias.target[0]) & torch.from_numpy(bias.sensitive[chosen] == bias.target[1])
    return Rows(
        x, tuple(a), right, labels, group, {name: Attribute(c.codes[chosen], c.values) for name, c in columns.items()}
    )


def _accuracies(rows: Rows) -> dict[str, float]:
    label = rows.labels[rows.group][0]
    others = (rows.labels == label) & ~rows.group
    shares = {"accuracy": rows.group, "accuracy_others": others}
    return {name: float(rows.right[mask].double().mean()) for name, mask in shares.items()}


def _places(rows: Rows, controls: Mapping[str, tuple[Tensor, ...]], threshold: float) -> dict[str, Any]:
    """The place of the planted subgroup in every audit of some rows."""
    return {
        "experts": _by_experts(rows, rows.coefficients, threshold),
        "attributes": _by_attributes(rows),
        "by gap": _by_experts(rows, rows.coefficients, threshold, by_gap, merge=0),
        "significant first": _by_attributes(rows, significant_first, merge=0),
        **{name: _by_experts(rows, a, threshold) for name, a in controls.items()},
    }


def _by_experts(
    rows: Rows, coefficients: tuple[Tensor, ...], threshold: float, order: Order = lambda found: found, **settings: Any
) -> dict[str, Any]:
    found = audit(coefficients, rows.right, rows.labels, threshold=threshold, most=10_000, **settings)
    return _place(order(found), lambda finding: handled(coefficients, finding.experts, threshold), rows)


def _by_attributes(rows: Rows, order: Order = lambda found: found, **settings: Any) -> dict[str, Any]:
    found = audit_attributes(rows.columns, rows.right, rows.labels, most=10_000, **settings)
    return _place(order(found), lambda finding: matching(rows.columns, finding.attributes), rows)


def _validated(rows: Rows, threshold: float) -> dict[str, dict[str, int | None]]:
    """Places on validation rows, on which order and overlap were chosen."""
    tried: dict[str, tuple[Order, float]] = {f"{merge:g}": (lambda found: found, merge) for merge in MERGES}
    tried = {"significant first": (significant_first, 0.0), **tried}
    found: dict[str, dict[str, int | None]] = {"experts": {}, "attributes": {}}
    for name, (order, merge) in tried.items():
        settings: dict[str, Any] = {"merge": merge, "min_rows": FEW}
        found["experts"][name] = _by_experts(rows, rows.coefficients, threshold, order, **settings)["rank"]
        found["attributes"][name] = _by_attributes(rows, order, **settings)["rank"]
    return found


def _place(found: Audit, inside: Callable[[Finding], Tensor], rows: Rows) -> dict[str, Any]:
    place = first_rank(found, lambda finding: inside(finding) & (rows.labels == finding.label), rows.group)
    return {
        "rank": None if place is None else place[0],
        "finding": None if place is None else str(place[1]),
        "finding_significant": place is not None and place[1].p_corrected <= found.alpha,
        "first": str(found.findings[0]),
        "comparisons": found.comparisons,
        "findings": len(found.findings),
        "significant": len(found.significant),
    }


def first_rank(found: Audit, inside: Callable[[Finding], Tensor], group: Tensor) -> tuple[int, Finding] | None:
    """Place (from 1) of the first finding most of whose rows are in a known group, to judge audits by.

    Args:
        found: An audit of these rows.
        inside: Finding to the (rows,) that are its.
        group: (rows,) whether a row is in the group, such as a planted subgroup.

    Returns:
        The place and the finding, or None if there is none among the findings kept.
    """
    for place, finding in enumerate(found.findings, 1):
        if bool(group[inside(finding)].double().mean() > 0.5):
            return place, finding
    return None


def main(options: Options) -> None:
    """Run seed by seed; finished seeds are on disk."""
    load, features = bias_report.emoji_source(bias_report.Options(cache_dir=options.cache_dir))
    settings = Settings(options.epochs, options.batch_size, options.lr, options.weight_decay)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    about = {name: getattr(options, name) for name in ("head", "init", "threshold", "epochs", "batch_size", "lr")}
    about |= {"weight_decay": options.weight_decay, "score_prior": PRIOR, "merge": MERGE}
    planted, full = [], []
    for seed in range(options.seeds):
        data: ImageData = load(seed)
        bias = planted_style(data, features)
        common: dict[str, Any] = {"seed": seed, "head": options.head, "settings": replace(settings, progress=False)}
        common |= {"threshold": options.threshold, "init": options.init}
        planted.append(audit_seed(bias, data.attributes, **common))
        full.append(audit_seed(without_cut(bias), data.attributes, **common))
        write_json(folder / "emoji-audit.json", {**about, "planted": planted, "full_support": full})
        write_text(folder / "emoji-audit.md", page(about, planted, full))
        sys.stderr.write(f"Seed {seed} is in {folder}\n")


if __name__ == "__main__":
    options = parse(Options, sys.argv[1:], "python -m reproduction.audit_planted")
    if options is not None:
        main(options)
