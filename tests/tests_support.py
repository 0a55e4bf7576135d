"""Slow, plain computations that share no code with the package, for every registered factorization."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from mumoe.factorizations import FACTORIZATIONS

KINDS = tuple(FACTORIZATIONS)
LEVELS = {1: (5,), 2: (4, 3), 3: (4, 2, 3), 4: (3, 2, 2, 2)}
GATES = {
    "entmax15": {},
    "entmax": {"alpha": 1.3},
    "sparsemax": {},
    "softmax": {},
    "topk": {"k": 2},
    "relu_topk": {"k": 2},
    "softrank": {"regularization": 0.5},
}


def rank_of(kind: str, rank: int = 3) -> int | None:
    return rank if FACTORIZATIONS[kind].has_rank() else None


def randomize(module: nn.Module) -> nn.Module:
    """Random weights, also where the initialization is constant, so that every factor matters."""
    for parameter in module.parameters():
        if parameter.ndim:
            nn.init.normal_(parameter, std=0.7)
    return module


def weight_by_formula(layer: nn.Module) -> Tensor:
    """The weight tensor in float64 by one einsum over all factors at once, as eq. 2 to 4 are written."""
    part = layer.factorization
    kind = type(part).__name__
    modes = "oinmkl"[: 2 + len(part.num_experts)]
    if kind == "Dense":
        return torch.einsum(f"{modes[2:]}oi->{modes}", part.weight.detach().double()).clone()
    if kind == "Hadamard":
        factors = [part.in_factor, *(getattr(part, f"expert_factor_{level}") for level in range(len(modes) - 2))]
        operands, terms = factors, [f"{mode}o" for mode in modes[1:]]
    elif kind == "CP":
        operands, terms = part.factors, [f"{mode}z" for mode in modes]
    elif kind == "Tucker":
        ranks = modes.upper()
        operands = [part.core, *part.factors]
        terms = [ranks, *(mode + rank for mode, rank in zip(modes, ranks, strict=True))]
    else:
        bonds = "uvwxyz"[: len(modes)]
        operands = part.cores
        terms = [bonds[e] + mode + bonds[(e + 1) % len(modes)] for e, mode in enumerate(modes)]
    return torch.einsum(f"{','.join(terms)}->{modes}", *(operand.detach().double() for operand in operands))


def mix(dense: Tensor, x: Tensor, coefficients: list[Tensor]) -> Tensor:
    """Equation 1 on rows: sum over experts of coefficient products times (W_n [x, 1])."""
    x, coefficients = x.double(), [a if isinstance(a, Tensor) else a.to_dense() for a in coefficients]
    if dense.shape[1] == x.shape[1] + 1:
        x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    y = torch.zeros(len(x), dense.shape[0], dtype=torch.float64)
    for index in itertools.product(*(range(size) for size in dense.shape[2:])):
        weight = torch.ones(len(x), dtype=torch.float64)
        for a, n in zip(coefficients, index, strict=True):
            weight = weight * a[:, n].double()
        y = y + weight[:, None] * (x @ dense[(slice(None), slice(None), *index)].T)
    return y
