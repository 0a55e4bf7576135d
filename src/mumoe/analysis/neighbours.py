"""Which experts are alike: by their weights, and by the images that they process.

Two experts are close by weight when the matrices W_n and W_m point the same way, measured by the cosine of their
angle after the mean expert of the level is subtracted: all experts start from the same matrix, so what they share says
nothing about any of them. The weight tensor is never formed; the inner products of all experts of a level follow from
those of the factors. In a hierarchy the weight of a level's expert is its whole slice.

Two experts are close by coefficient when they process the same images in the same proportion: the cosine of their
columns of coefficients, 0 where no image uses both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mumoe.analysis.coefficient_store import CoefficientLevel, CoefficientStore
from mumoe.baselines import SparseMoE
from mumoe.devices import host
from mumoe.errors import UserError, require
from mumoe.factorizations import CP, Factorization, TensorRing, Tucker
from mumoe.layers import MuMoE

__all__ = ["Near", "coefficient_gram", "nearest_experts", "neighbours", "weight_gram"]

Floats = npt.NDArray[np.float64]
Listed = tuple[tuple[tuple[int, float], ...], ...]
"""Per expert: (expert, cosine in [-1, 1]) of its nearest experts, the nearest first."""

DENSE = 64
"""Pairs per row from which coefficients are multiplied as a dense block."""


@dataclass(frozen=True)
class Near:
    """The nearest experts of every expert of one level, by weight and by coefficient."""

    by_weight: Listed
    by_coefficient: Listed


def neighbours(layer: nn.Module, store: CoefficientStore, *, most: int = 5) -> tuple[Near, ...]:
    """The nearest experts of every expert, one entry per level.

    Args:
        layer: A MuMoE or SparseMoE layer.
        store: Its captured coefficients.
        most: Neighbours of each expert.

    Raises:
        UserError: If the layer has no experts.
    """
    if not isinstance(layer, MuMoE | SparseMoE):
        raise UserError(f"neighbours: expected a MuMoE or SparseMoE layer, got {type(layer).__name__}.")
    found = []
    for level in range(len(layer.num_experts)):
        weights = nearest_experts(_centred(weight_gram(layer, level)), most)
        found.append(Near(weights, nearest_experts(coefficient_gram(store.level(level=level)), most, least=0.0)))
    return tuple(found)


def nearest_experts(gram: Floats, most: int, *, least: float = -1.0) -> Listed:
    """Those with the largest cosines above `least`, from inner products (experts, experts); never the expert itself."""
    size = np.sqrt(np.clip(np.diagonal(gram), 0.0, None))
    known = size > 1e-12 * max(float(size.max(initial=0.0)), 1e-300)
    scale = np.where(known, size, 1.0)
    cosine = np.clip(gram / scale[:, None] / scale[None], -1.0, 1.0)
    cosine[~known], cosine[:, ~known] = -np.inf, -np.inf
    np.fill_diagonal(cosine, -np.inf)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :most]
    return tuple(
        tuple((int(m), float(cosine[n, m])) for m in row if cosine[n, m] > least) for n, row in enumerate(order)
    )


def _centred(gram: Floats) -> Floats:
    """Inner products after the mean vector is subtracted."""
    rows = gram.mean(1)
    return np.asarray(gram - rows[:, None] - rows[None] + rows.mean())


# Weights -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def weight_gram(layer: MuMoE | SparseMoE, level: int = 0) -> Floats:
    """Inner products (experts, experts) of the experts' weights at one level, biases included."""
    part = layer.factorization if isinstance(layer, MuMoE) else None
    if isinstance(part, CP):
        gram = _cp_gram([host(factor) for factor in part.factors], level)
    elif isinstance(part, Tucker):
        gram = _tucker_gram(host(part.core), [host(factor) for factor in part.factors], level)
    elif isinstance(part, TensorRing):
        gram = _ring_gram([host(core) for core in part.cores], level)
    else:
        rows = host(_rows(layer, part, level))
        gram = rows @ rows.mT
    return np.asarray(gram.cpu().numpy())


def _cp_gram(factors: Sequence[Tensor], level: int) -> Tensor:
    position = 2 + level
    inner = torch.ones_like(factors[0].mT @ factors[0])
    for other, factor in enumerate(factors):
        if other != position:
            inner = inner * (factor.mT @ factor)
    return factors[position] @ inner @ factors[position].mT


def _tucker_gram(core: Tensor, factors: Sequence[Tensor], level: int) -> Tensor:
    position = 2 + level
    other = core
    for mode, factor in enumerate(factors):
        if mode != position:
            other = torch.tensordot(other, factor.mT @ factor, dims=([mode], [0])).movedim(-1, mode)
    inner = core.movedim(position, 0).flatten(1) @ other.movedim(position, 0).flatten(1).mT
    return factors[position] @ inner @ factors[position].mT


def _ring_gram(cores: Sequence[Tensor], level: int) -> Tensor:
    """Cores are (before, mode, after) around a ring: the rest of the ring, squared, closes every pair of slices."""
    position = 2 + level
    around = [*cores[position + 1 :], *cores[:position]]
    rest: Tensor | None = None
    for core in around:
        squared = torch.einsum("anb,cnd->acbd", core, core)
        step = squared.flatten(2).flatten(0, 1)
        rest = step if rest is None else rest @ step
    assert rest is not None
    own = cores[position]
    before, _, after = own.shape
    rest = rest.view(after, after, before, before)
    half = torch.einsum("anb,bdac->ncd", own, rest)
    return half.flatten(1) @ own.movedim(1, 0).flatten(1).mT


def _rows(layer: MuMoE | SparseMoE, part: Factorization | None, level: int) -> Tensor:
    """(experts, numbers) every weight of each expert of a level, written out."""
    if part is not None:
        return part.to_dense().movedim(2 + level, 0).flatten(1)
    assert isinstance(layer, SparseMoE)
    parts = [layer.weight.flatten(1)] if layer.bias is None else [layer.weight.flatten(1), layer.bias.flatten(1)]
    return torch.cat(parts, dim=1)


# Coefficients --------------------------------------------------------------------------------------------------


def coefficient_gram(level: CoefficientLevel) -> Floats:
    """Inner products (experts, experts) of the columns of coefficients, in one pass of bounded memory."""
    sparse = require("scipy.sparse", "vision", "neighbours")
    gram = np.zeros((level.num_experts, level.num_experts))
    many = len(level.experts) > DENSE * max(level.rows, 1)
    for block in level.blocks():
        row, value = block.row - (block.row[0] if len(block.row) else 0), block.value.astype(np.float64)
        table = sparse.csr_array((value, (row, block.expert)), shape=(row.max(initial=0) + 1, level.num_experts))
        table = table.toarray() if many else table
        gram += table.T @ table
    return gram
