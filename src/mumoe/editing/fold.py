"""Fold edits into a layer's own factors: an edited layer becomes an ordinary layer, exactly.

A coefficient map multiplies the factor (or core) of its level. An added term is one more rank-one component of the
weight tensor per column of its vectors, and every factorization can take it up by growing its ranks by that number:

- CP: the rank;
- Tucker: the rank of every mode, with ones on the new diagonal of the core;
- TR: every bond, block-diagonally, since the trace of a block-diagonal product is the sum of the traces;
- TT: every bond but the closing one, which stays 1;
- dense: nothing grows.

A rewriting of a layer with one level of experts adds one. In a hierarchy it adds as many as the joint mean
coefficients have lines along the longest level that are not zero (at most the product of the other levels' sizes).
The result does not depend on this package's editing code: it saves, exports and trains like any other layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mumoe.editing.operations import AddedTerm, CoefficientMap, EditedFactorization, Operation
from mumoe.errors import UserError
from mumoe.factorizations import CP, Dense, Factorization, TensorRing, TensorTrain, Tucker
from mumoe.layers import MuMoE

__all__ = ["fold_factorization", "fold_layer"]


def fold_layer(layer: MuMoE) -> MuMoE:
    """An ordinary layer, on its own, that computes what an edited layer computes.

    Ranks grow as the module says; gate, dtype, device and training mode are those of the layer.

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
    """A new factorization of the same kind whose weight tensor is the edited one.

    Raises:
        UserError: If the kind of factorization is not one of this package's five.
    """
    kinds = {CP: _cp, Tucker: _tucker, TensorTrain: _train, TensorRing: _ring, Dense: _dense}
    if type(part) not in kinds:
        raise UserError(
            f"fold: expected a cp, tucker, tt, tr or dense layer, got {type(part).__name__}. "
            "Keep the edits applied, or train the layer in one of these forms."
        )
    state = {name: value.detach().clone() for name, value in part.named_parameters()}
    bias = part.bias
    for operation in operations:
        if isinstance(operation, CoefficientMap):
            _map(part, state, operation)
            continue
        if not bias:
            _add_bias(part, state)
            bias = True
        kinds[type(part)](state, operation.to(next(iter(state.values()))))
    return _rebuild(part, state, bias)


def _map(part: Factorization, state: dict[str, Tensor], operation: CoefficientMap) -> None:
    """Fold M into the level's factor: the new expert m is the sum of the old ones n, weighted by M[n, m]."""
    if isinstance(part, Dense):
        state["weight"] = operation.weights(state["weight"], operation.level)
        return
    name = f"expert_{'core' if isinstance(part, TensorRing) else 'factor'}_{operation.level}"
    state[name] = operation.weights(state[name], 0)


def _add_bias(part: Factorization, state: dict[str, Tensor]) -> None:
    """Give a layer without biases a bias column of zeros."""
    if isinstance(part, Dense):
        state["weight"] = torch.nn.functional.pad(state["weight"], (0, 1))
        return
    name = "in_core" if isinstance(part, TensorRing) else "in_factor"
    state[name] = torch.cat([state[name], torch.zeros_like(state[name][:1])])


def _columns(term: AddedTerm, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Output (out, K) and input (in + 1, K) vectors of the term's components."""
    like = term.vectors[0]
    count = like.shape[1]
    out = like.new_zeros(outputs, count)
    out[term.head] = 1
    if term.weight is not None:
        return out, term.weight[:, None].expand(-1, count)
    bias = like.new_zeros(inputs, count)
    bias[-1] = 1
    return out, bias


def _cp(state: dict[str, Tensor], term: AddedTerm) -> None:
    out, inp = _columns(term, len(state["out_factor"]), len(state["in_factor"]))
    for name, added in _named(state, "factor", out, inp, term).items():
        state[name] = torch.cat([state[name], added], dim=1)


def _tucker(state: dict[str, Tensor], term: AddedTerm) -> None:
    """The out and in modes need one more rank; the levels one per component, with ones on the core's diagonal."""
    out, inp = _columns(term, len(state["out_factor"]), len(state["in_factor"]))
    for name, added in _named(state, "factor", out[:, :1], inp[:, :1], term).items():
        state[name] = torch.cat([state[name], added], dim=1)
    core, count, levels = state["core"], term.vectors[0].shape[1], len(term.vectors)
    grown = core.new_zeros([core.shape[0] + 1, core.shape[1] + 1, *(size + count for size in core.shape[2:])])
    grown[tuple(slice(size) for size in core.shape)] = core
    k = torch.arange(count, device=core.device)
    diagonal: list[Any] = [-1, -1, *(core.shape[2 + level] + k for level in range(levels))]
    grown[tuple(diagonal)] = 1
    state["core"] = grown


def _ring(state: dict[str, Tensor], term: AddedTerm) -> None:
    """Every core grows by a diagonal block per component."""
    out, inp = _columns(term, len(state["out_core"]), len(state["in_core"]))
    for name, added in _named(state, "core", out, inp, term).items():
        state[name] = _block_diagonal(state[name], torch.diag_embed(added))


def _train(state: dict[str, Tensor], term: AddedTerm) -> None:
    """As in a ring, but the first and the last core keep their outer bond of 1."""
    out, inp = _columns(term, len(state["out_core"]), len(state["in_core"]))
    last = f"expert_core_{len(term.vectors) - 1}"
    for name, added in _named(state, "core", out, inp, term).items():
        if name == "out_core":
            state[name] = torch.cat([state[name], added[:, None, :]], dim=2)
        elif name == last:
            state[name] = torch.cat([state[name], added[:, :, None]], dim=1)
        else:
            state[name] = _block_diagonal(state[name], torch.diag_embed(added))


def _dense(state: dict[str, Tensor], term: AddedTerm) -> None:
    weight = state["weight"]
    vector = torch.zeros_like(weight[(0,) * (weight.ndim - 1)])
    vector[-1] = 1
    chosen = vector if term.weight is None else term.weight
    weight[..., term.head, :] += term.joint()[..., None] * chosen


def _named(state: dict[str, Tensor], suffix: str, out: Tensor, inp: Tensor, term: AddedTerm) -> dict[str, Tensor]:
    experts = {f"expert_{suffix}_{level}": vectors for level, vectors in enumerate(term.vectors)}
    return {f"out_{suffix}": out, f"in_{suffix}": inp, **experts}


def _block_diagonal(core: Tensor, block: Tensor) -> Tensor:
    """(mode, r, s) and (mode, k, k) -> (mode, r + k, s + k)."""
    grown = core.new_zeros(core.shape[0], core.shape[1] + block.shape[1], core.shape[2] + block.shape[2])
    grown[:, : core.shape[1], : core.shape[2]] = core
    grown[:, core.shape[1] :, core.shape[2] :] = block
    return grown


def _rebuild(part: Factorization, state: dict[str, Tensor], bias: bool) -> Factorization:
    like = next(iter(state.values()))
    options: dict[str, Any] = {"bias": bias, "device": like.device, "dtype": like.dtype}
    ranks = _ranks(part, state)
    new = type(part)(part.in_features, part.out_features, part.num_experts, ranks, **options)
    new.load_state_dict(state)
    for name, parameter in part.named_parameters():
        new.get_parameter(name).requires_grad_(parameter.requires_grad)
    return new


def _ranks(part: Factorization, state: dict[str, Tensor]) -> Any:
    levels = range(len(part.num_experts))
    if isinstance(part, CP):
        return state["out_factor"].shape[1]
    if isinstance(part, Tucker):
        out, inp, *experts = state["core"].shape
        return {"out": out, "in": inp, "experts": tuple(experts)}
    if isinstance(part, TensorRing):
        between = tuple(state[f"expert_core_{level}"].shape[2] for level in levels[:-1])
        ends = {"out-in": state["out_core"].shape[2], "expert-out": state["out_core"].shape[1]}
        return {**ends, "in-expert": state["in_core"].shape[2], "expert-expert": between}
    return None
