"""Fold edits into a layer's own factors: an edited layer becomes an ordinary layer, exactly.

A coefficient map multiplies the factor (or core) of its level. An added term is one more rank-one component of the
weight tensor per column of its vectors, and every factorization can hold it: CP, Tucker, TT and TR with ranks that
are larger by that number, a dense layer as it is, and a Hadamard layer, which has no rank, as a CP layer
(`Factorization.add_term`).

A rewriting of a layer with one level of experts adds one. In a hierarchy it adds one for every non-zero line of the
joint mean coefficients along the longest level (at most the product of the other levels' sizes). The result does not
depend on this package's editing code: it saves, exports and trains like any other layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from mumoe.editing.operations import AddedTerm, CoefficientMap, EditedFactorization, Operation
from mumoe.factorizations import Factorization
from mumoe.layers import MuMoE

__all__ = ["fold_factorization", "fold_layer"]


def fold_layer(layer: MuMoE) -> MuMoE:
    """An ordinary layer, independent of the given one, that computes what an edited layer computes.

    Ranks grow as documented by the factorization; gate, dtype, device and training mode are those of the layer.

    Args:
        layer: A layer with or without applied edits; left as it is.
    """
    new = copy.deepcopy(layer)
    part = new.factorization
    if isinstance(part, EditedFactorization):
        new.factorization = _fold_edited(part).train(layer.training)
    return new


def _fold_edited(part: EditedFactorization) -> Factorization:
    base = part.base
    below = _fold_edited(base) if isinstance(base, EditedFactorization) else base
    assert isinstance(below, Factorization)
    return fold_factorization(below, part.operations)


@torch.no_grad()
def fold_factorization(part: Factorization, operations: Sequence[Operation]) -> Factorization:
    """A new factorization whose weight tensor is the edited one."""
    new = copy.deepcopy(part)
    for operation in operations:
        if isinstance(operation, CoefficientMap):
            new = new.map_level(operation.level, operation.weights)
        else:
            new = _with_term(new.add_bias(), operation)
    return new


def _with_term(part: Factorization, term: AddedTerm) -> Factorization:
    term = term.to(next(part.parameters()))
    like = term.vectors[0]
    out, inputs = like.new_zeros(part.out_features), term.weight
    out[term.head] = 1
    if inputs is None:
        inputs = like.new_zeros(part.in_features + 1)
        inputs[-1] = 1
    return part.add_term(out, inputs, term.vectors)
