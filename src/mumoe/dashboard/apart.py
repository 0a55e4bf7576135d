"""One image taken apart: what each expert adds to its logits, and what would be predicted without it.

Each logit is the sum over experts of a_n (W_n z)_c; what is shown of an expert is its term of that sum
(`mumoe.deploy.predictions`). Without an expert the layer is evaluated again with that expert's weight at zero. The
answer is therefore the layer's own, even if, with several levels or a linear layer after the experts, it is not a
difference of terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mumoe.baselines import SparseMoE
from mumoe.deploy.predictions import expert_terms, largest_experts
from mumoe.editing.operations import EditedFactorization, Operation
from mumoe.editing.runs import EditingRun
from mumoe.layers import MuMoE

__all__ = ["MOST_EXPERTS", "take_apart"]

MOST_EXPERTS = 40
"""Experts, or combinations of them, shown for one image."""

TOP = 3
"""Labels shown besides the requested ones."""


@torch.no_grad()
def take_apart(
    run: EditingRun,
    x: Tensor,
    *,
    labels: Sequence[int] = (),
    operations: Sequence[Operation] = (),
) -> dict[str, Any]:
    """The experts behind one image's logits.

    Args:
        run: The run.
        x: What the layer sees of the image, (1, in_features).
        labels: Labels that are always shown, such as the true one.
        operations: Edits; the prediction with them is given beside the one without.
    """
    layer: Any = run.head.layer
    levels = layer.coefficients(x)
    y = layer.contract(x, levels) if isinstance(layer, MuMoE) else layer(x)
    logits = run.head.finish(y)[0]
    chosen = list(dict.fromkeys([*logits.topk(min(TOP, len(logits))).indices.tolist(), *labels]))
    units = largest_experts([level[0] for level in levels], MOST_EXPERTS)
    found = _prediction(run, logits, chosen)
    found["classes"] = chosen
    found["experts_total"] = math.prod(int((level[0] > 0).sum()) for level in levels)
    found["additive"] = run.head.classifier is None
    found["experts"] = _experts(run, x, levels, units, chosen)
    if operations:
        part = EditedFactorization(layer.factorization, operations)
        found["edited"] = _prediction(run, run.head.finish(part(x, levels))[0], chosen)
    return found


def _prediction(run: EditingRun, logits: Tensor, chosen: Sequence[int]) -> dict[str, Any]:
    multi = run.data.multi_label
    probability = logits.sigmoid() if multi else logits.softmax(0)
    decided = (logits > 0).nonzero()[:, 0].tolist() if multi else [int(logits.argmax())]
    return {
        "decided": decided,
        "logits": [float(logits[c]) for c in chosen],
        "probabilities": [float(probability[c]) for c in chosen],
    }


def _experts(
    run: EditingRun,
    x: Tensor,
    levels: Sequence[Tensor],
    units: Sequence[tuple[tuple[int, ...], float]],
    chosen: Sequence[int],
) -> list[dict[str, Any]]:
    layer: Any = run.head.layer
    terms = None
    if units and run.head.classifier is None:
        terms = expert_terms(layer, x[0], [level[0] for level in levels], [index for index, _ in units])
    found = []
    for row, (index, coefficient) in enumerate(units):
        without = run.head.finish(_without(layer, x, levels, index))[0]
        terms_of = None if terms is None else [float(terms[row, c]) for c in chosen]
        found.append(
            {
                "index": list(index),
                "coefficient": coefficient,
                "terms": terms_of,
                "without": _prediction(run, without, chosen),
            }
        )
    return found


def _without(layer: Any, x: Tensor, levels: Sequence[Tensor], index: tuple[int, ...]) -> Tensor:
    """(1, out) of the layer with one expert, or one combination, at zero."""
    with layer.ablate([index if len(index) > 1 else index[0]]):
        if isinstance(layer, SparseMoE):
            return layer(x)
        y: Tensor = layer.contract(x, levels)
        return y
