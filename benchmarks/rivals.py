"""Baselines of the layer: the plain implementation, other layers, and the floor of its matrix products."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from mumoe.baselines import HighRankLinear, SparseMoE
from mumoe.costs import rank_for_budget
from mumoe.layers import MuMoE

PACKAGES = {
    "mixture-of-experts": "mixture_of_experts",
    "soft-moe-pytorch": "soft_moe_pytorch",
    "peer-pytorch": "PEER_pytorch",
}
"""Layers from PyPI (extra ``bench``): distribution and module."""


def parameters(module: nn.Module) -> int:
    """Learnable numbers."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


class Plain(nn.Module):
    """The layer as appendix B of the paper writes it, with BatchNorm1d and the `entmax` package.

    One einsum over all operands, dense coefficients, one expert level; the same numbers as `layer`. For CP the
    operands come in the order that needs the fewest operations; `literal` uses the appendix's own, which PyTorch
    follows from left to right unless opt_einsum is installed.
    """

    def __init__(self, layer: MuMoE, literal: bool = False) -> None:
        super().__init__()
        from entmax import entmax15

        (experts,) = layer.num_experts
        self.entmax = entmax15
        self.gate = nn.Linear(layer.in_features, experts, bias=False)
        self.norm = nn.BatchNorm1d(experts, affine=False)
        self.gate.weight.data.copy_(layer.gate.weights[0].detach())
        self.kind = "literal" if literal else type(layer.factorization).__name__
        self.parts = nn.ParameterList(nn.Parameter(part.clone()) for part in _as_in_the_paper(layer))

    def forward(self, x: Tensor) -> Tensor:
        a = self.entmax(self.norm(self.gate(x)), dim=-1)
        z = torch.cat([x, x.new_ones(len(x), 1)], dim=-1)
        return _PLAIN[self.kind](z, a, *self.parts)


def _as_in_the_paper(layer: MuMoE) -> list[Tensor]:
    """Factors and cores in the paper's layout."""
    part: Any = layer.factorization
    if type(part).__name__ == "CP":
        return [factor.detach().mT.contiguous() for factor in part.factors]
    if type(part).__name__ == "Tucker":
        return [part.core.detach(), *(factor.detach() for factor in part.factors)]
    return [core.detach().contiguous() for core in part.cores]


def _plain_cp(z: Tensor, a: Tensor, g1: Tensor, g2: Tensor, g3: Tensor) -> Tensor:
    return torch.einsum("br,br,ro->bo", z @ g2.T, a @ g3.T, g1)


def _literal_cp(z: Tensor, a: Tensor, g1: Tensor, g2: Tensor, g3: Tensor) -> Tensor:
    return torch.einsum("ro,br,br->bo", g1, z @ g2.T, a @ g3.T)


def _plain_tucker(z: Tensor, a: Tensor, core: Tensor, g1: Tensor, g2: Tensor, g3: Tensor) -> Tensor:
    return torch.einsum("xyt,ox,by,bt->bo", core, g1, z @ g2, a @ g3)


def _plain_ring(z: Tensor, a: Tensor, g1: Tensor, g2: Tensor, g3: Tensor) -> Tensor:
    f1 = torch.einsum("bi,sit->bst", z, g2)
    f2 = torch.einsum("bn,tnr->btr", a, g3)
    return torch.einsum("ros,bst,btr->bo", g1, f1, f2)


_PLAIN: dict[str, Callable[..., Tensor]] = {
    "CP": _plain_cp,
    "literal": _literal_cp,
    "Tucker": _plain_tucker,
    "TensorTrain": _plain_ring,
    "TensorRing": _plain_ring,
}


class Reconstructed(nn.Module):
    """CP by `tensorly`: form the weight tensor, then mix its slices."""

    def __init__(self, layer: MuMoE) -> None:
        super().__init__()
        import tensorly

        self.tensorly = tensorly
        self.gate = layer.gate
        part: Any = layer.factorization
        self.factors = nn.ParameterList(factor.detach().clone() for factor in part.factors)

    def forward(self, x: Tensor) -> Tensor:
        with self.tensorly.backend_context("pytorch"):
            weight = self.tensorly.cp_to_tensor((None, list(self.factors)))
        z = torch.cat([x, x.new_ones(len(x), 1)], dim=-1)
        return torch.einsum("oin,bi,bn->bo", weight, z, self.gate(x)[0].to_dense())


class Floor:
    """The matrix products that no implementation can do without, and nothing else.

    Gate, input and output factor, and for Tucker and the ring what is between them; not the mixing of the expert
    factor, which sparse coefficients make cheap, nor bias, normalization or activation. Results go to preallocated
    buffers. The backward multiplies each result's gradient by both operands.
    """

    def __init__(self, layer: MuMoE, x: Tensor) -> None:
        self.products = [(left, right, left @ right) for left, right in _products(layer, x)]
        self.grads = [
            (torch.randn_like(result), torch.empty(left.shape), torch.empty(right.shape))
            for left, right, result in self.products
        ]

    def forward(self) -> None:
        """Every product once."""
        for left, right, result in self.products:
            torch.matmul(left, right, out=result)

    def both(self) -> None:
        """Every product, and the two of its backward."""
        self.forward()
        for (left, right, _), (grad, grad_left, grad_right) in zip(self.products, self.grads, strict=True):
            torch.matmul(grad, right.mT, out=grad_left)
            torch.matmul(left.mT, grad, out=grad_right)


@torch.no_grad()
def _products(layer: MuMoE, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Operands of each product, with random intermediate results."""
    part: Any = layer.factorization
    width, rows = layer.in_features, len(x)
    gate = [(x, weight.detach().mT) for weight in layer.gate.weights]
    kind = type(part).__name__
    if kind == "CP":
        out, into = part.factors[0].detach(), part.factors[1].detach()
        return [*gate, (x, into[:width]), (torch.randn(rows, into.shape[1]), out.mT)]
    if kind == "Tucker":
        out, into, core = part.factors[0].detach(), part.factors[1].detach(), part.core.detach()
        mixed = torch.randn(rows, math.prod(core.shape[2:]))
        inner = [(mixed, core.reshape(-1, mixed.shape[1]).mT)]
        inner.append((torch.randn(rows, *core.shape[:2]), torch.randn(rows, core.shape[1], 1)))
        return [*gate, (x, into[:width]), *inner, (torch.randn(rows, core.shape[0]), out.mT)]
    out, into, expert = (core.detach().movedim(1, 0) for core in part.cores)  # mode first
    chain, hidden = torch.randn(rows, *expert.shape[1:]), torch.randn(rows, *into.shape[1:])
    closing = (hidden, chain)
    return [*gate, (x, into.flatten(1)[:width]), closing, (torch.randn(rows, out[0].numel()), out.flatten(1).mT)]


class MLP(nn.Sequential):
    """The dense MLP that a block replaces."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def matched_ranks(width: int, hidden: int, experts: int, factorization: str = "cp") -> list[int]:
    """Ranks of both layers of a block with as many parameters as the dense MLP it replaces, the gate included."""
    budget = 2 * width * hidden + width + hidden - width * experts
    sizes = ((width, hidden), (hidden, width))
    return [
        rank_for_budget(
            parameters=max(1, budget // 2),
            in_features=into,
            out_features=out,
            num_experts=experts,
            factorization=factorization,
            gate=False,
        )
        for into, out in sizes
    ]


def matched_linear(layer: MuMoE) -> HighRankLinear:
    """The paper's linear baseline with as many parameters as the layer."""
    sizes: dict[str, Any] = {"in_features": layer.in_features, "out_features": layer.out_features}
    rank = rank_for_budget(parameters=parameters(layer), factorization="highrank-linear", gate=False, **sizes)
    return HighRankLinear(layer.in_features, layer.out_features, rank)


def sparse_moe(layer: MuMoE) -> SparseMoE:
    """A top-2 mixture of full linear layers with as many experts as parameters allow, at least 2."""
    each = layer.out_features * (layer.in_features + 1) + 2 * layer.in_features
    return SparseMoE(layer.in_features, layer.out_features, max(2, round(parameters(layer) / each)))


# Layers from PyPI -----------------------------------------------------------------------------------------


def installed(package: str) -> str | None:
    """Version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class FromPackage(nn.Module):
    """A layer for tokens (1, rows, width) -> the same, as one for rows; a loss beside its output is left out."""

    def __init__(self, layer: nn.Module, about: str) -> None:
        super().__init__()
        self.layer, self.about = layer, about

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x[None])
        return (y[0] if isinstance(y, tuple) else y)[0]


def from_package(package: str, width: int, rows: int, budget: int) -> FromPackage:
    """A layer of a package, width -> width, with about `budget` parameters."""
    module = importlib.import_module(PACKAGES[package])
    return _MAKERS[package](module, width, rows, budget)


def _top_two(module: Any, width: int, rows: int, budget: int) -> FromPackage:
    experts = 16
    hidden = max(1, round((budget - width * experts) / (2 * width * experts)))
    layer = module.MoE(width, num_experts=experts, hidden_dim=hidden)
    return FromPackage(layer, f"MoE, top 2 of {experts} MLPs of width {hidden}")


def _soft(module: Any, width: int, rows: int, budget: int) -> FromPackage:
    experts = 16
    left = budget / experts - width * (rows // experts) - width  # slots and second bias
    mult = max(1, int(left / (2 * width + 1))) / width
    layer = module.SoftMoE(width, num_experts=experts, seq_len=rows, expert_mult=mult)
    hidden = layer.experts.experts[0][0].out_features
    slots = rows // experts
    return FromPackage(layer, f"SoftMoE, {experts} MLPs of width {hidden}, {slots} slots each")


def _retrieved(module: Any, width: int, rows: int, budget: int) -> FromPackage:
    heads, key = 2, width // 4
    side = max(2, round(math.sqrt(max(0, budget - width * key * heads * 2) / (2 * width))))
    layer = module.PEER(width, heads=heads, num_experts=side**2, num_experts_per_head=min(16, side), dim_key=key)
    return FromPackage(layer, f"PEER, {side**2} experts of one neuron, {heads} heads")


_MAKERS: dict[str, Callable[[Any, int, int, int], FromPackage]] = {
    "mixture-of-experts": _top_two,
    "soft-moe-pytorch": _soft,
    "peer-pytorch": _retrieved,
}
