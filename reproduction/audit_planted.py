"""How often does an audit that knows no subgroup rank a planted one first?

    python -m reproduction.audit_planted --out docs/results/bias

Trains the head of the planted emoji experiment per seed and audits its validation and test rows together (nothing is
chosen on them). A finding is taken to be the planted subgroup if most of its rows are in it. The same is done for heads
trained with the subgroup's full support, where there is nothing planted to find.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mumoe import MuMoE
from mumoe.demo.bias_heads import BiasTask, Settings, train_plain
from mumoe.demo.planted_bias import BiasSet
from mumoe.editing.expert_audit import audit, handled
from mumoe.editing.group_audit import Audit, Finding
from mumoe.files import write_json
from mumoe.models.heads import build_head
from mumoe.parsing import parse
from mumoe.records import render_table
from reproduction import bias_report
from reproduction.bias_sets import without_cut

__all__ = ["Options", "audit_seed", "first_rank", "page"]


@dataclass(frozen=True)
class Options:
    """Audit heads with a planted bias, and the same heads without."""

    out: str = "runs/bias"
    """folder to write to"""
    seeds: int = 4
    """number of seeds"""
    head: str = "CPMuMoE-r256-e128"
    """the head to audit"""
    threshold: float = 0.1
    """coefficient from which an expert handles a row"""
    weight_decay: float = 1.0
    """of AdamW"""
    cache_dir: str = ""
    """where drawings and features are kept (empty: the user cache)"""


def audit_seed(bias: BiasSet, *, seed: int, head: str, settings: Settings, threshold: float) -> dict[str, Any]:
    """Train one head, audit it, and say where the target subgroup came out."""
    rows = bias.training_rows(seed)
    mean, deviation = bias.features[rows].mean(0), np.maximum(bias.features[rows].std(0), 1e-6)

    def features(chosen: Any) -> torch.Tensor:
        return torch.from_numpy((bias.features[chosen] - mean) / deviation)

    values = sorted(set(bias.sensitive.tolist()))
    codes = torch.from_numpy(np.searchsorted(np.array(values), bias.sensitive[rows]))
    target = (bias.target[0], values.index(bias.target[1]))
    task = BiasTask(features(rows), torch.from_numpy(bias.labels[rows]), codes, head=bias.head, target=target)
    sizes = (bias.features.shape[1], bias.labels.shape[1])
    layer = train_plain(task, lambda: build_head(head, *sizes, init="paper").layer, seed=seed, settings=settings)
    assert isinstance(layer, MuMoE)
    held_out = np.concatenate([bias.splits.val, bias.splits.test])
    x, labels = features(held_out), torch.from_numpy(bias.labels[held_out, bias.head])
    with torch.no_grad():
        logits, a = layer(x, return_coefficients=True)
    right = (logits[:, bias.head] > 0) == labels.bool()
    group = (labels == target[0]) & torch.from_numpy(bias.sensitive[held_out] == bias.target[1])
    found = audit(a, right, labels, threshold=threshold, most=10_000)
    others = (labels == target[0]) & ~group
    result: dict[str, Any] = {
        "seed": seed,
        "rows": int(group.sum()),
        "accuracy": float(right[group].double().mean()),
        "accuracy_others": float(right[others].double().mean()),
        "comparisons": found.comparisons,
        "significant": len(found.significant),
        "first": str(found.findings[0]),
    }
    for name, label in (("rank", None), ("rank_among_label", target[0])):
        place = first_rank(found, a, labels, group, label=label)
        result[name] = None if place is None else place[0]
        result["finding"] = None if place is None else str(place[1])
        result["finding_significant"] = place is not None and place[1].p_corrected <= found.alpha
    return result


def first_rank(
    found: Audit, coefficients: Sequence[Tensor], labels: Tensor, group: Tensor, *, label: int | None = None
) -> tuple[int, Finding] | None:
    """Place (from 1) of the first finding most of whose rows are in a known group, to judge audits by.

    Args:
        found: An audit of these rows.
        coefficients: As in `audit`.
        labels: As in `audit`.
        group: (rows,) whether a row is in the group, such as a planted subgroup.
        label: Count findings with this label only.

    Returns:
        The place and the finding, or None if there is none among the findings kept.
    """
    place = 0
    for finding in found.findings:
        if label is not None and finding.label != label:
            continue
        place += 1
        inside = handled(coefficients, finding.experts, found.threshold) & (labels == finding.label)
        if bool(group[inside].double().mean() > 0.5):
            return place, finding
    return None


def page(planted: Sequence[dict[str, Any]], control: Sequence[dict[str, Any]]) -> str:
    """The results in words and a table."""
    rows = [
        [
            f"{kind}, seed {item['seed']}",
            str(item["rows"]),
            f"{item['accuracy']:.3f}",
            f"{item['accuracy_others']:.3f}",
            str(item["significant"]),
            str(item["rank"] or "-"),
            str(item["rank_among_label"] or "-"),
            "yes" if item["finding_significant"] else "no",
        ]
        for kind, items in (("planted", planted), ("full support", control))
        for item in items
    ]
    header = ["", "rows", "accuracy", "others of its label", "significant findings"]
    header += ["its rank", "its rank within its label", "significant"]
    first = sum(item["rank"] == 1 for item in planted)
    within = sum(item["rank_among_label"] == 1 for item in planted)
    gap = statistics.fmean(item["accuracy_others"] - item["accuracy"] for item in planted)
    lines = [
        "# Audit of a planted bias",
        "",
        f"Ranked first: {first} of {len(planted)} runs among all findings, {within} of {len(planted)} among findings "
        f"with its label. The planted gap in accuracy is {gap:.3f} on average. A finding counts as the planted "
        "subgroup if most of its rows are in it; the subgroup need not be handled by one expert or pair.",
        "",
        render_table(header, rows, "markdown"),
        "The first finding of each planted run:",
        "",
        *(f"- seed {item['seed']}: {item['first']}" for item in planted),
    ]
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Run seed by seed; what is finished is on disk."""
    make = bias_report.emoji_sets(bias_report.Options(cache_dir=options.cache_dir))
    settings = Settings(weight_decay=options.weight_decay, progress=True)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    planted, control = [], []
    for seed in range(options.seeds):
        bias = make(seed)
        common: dict[str, Any] = {"seed": seed, "head": options.head, "settings": settings}
        planted.append(audit_seed(bias, threshold=options.threshold, **common))
        control.append(audit_seed(without_cut(bias), threshold=options.threshold, **common))
        content = {"head": options.head, "threshold": options.threshold, "planted": planted, "control": control}
        write_json(folder / "emoji-audit.json", content)
        (folder / "emoji-audit.md").write_text(page(planted, control), encoding="utf-8")
        sys.stderr.write(f"Seed {seed} is in {folder}\n")


if __name__ == "__main__":
    options = parse(Options, sys.argv[1:], "python -m reproduction.audit_planted")
    if options is not None:
        main(options)
