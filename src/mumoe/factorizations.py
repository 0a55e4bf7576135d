"""Modules that own the factors of a weight tensor with modes (out, in [+ 1 for the bias], level 1 .. E).

They share a file because people compare them. `Dense` holds the tensor in full: it is the definition of the
layer (a soft mixture of experts) and the oracle of the others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mumoe import functional
from mumoe.errors import UserError, nearest, unknown_name

__all__ = [
    "CP",
    "FACTORIZATIONS",
    "INITS",
    "Dense",
    "Factorization",
    "Rank",
    "TensorRing",
    "TensorTrain",
    "Tucker",
    "get_factorization",
    "register_factorization",
]

Rank = int | Mapping[str, int | Sequence[int]]
"""A rank as the paper means it (int), or ranks of single modes (Tucker) or bonds (TT, TR) by name."""

INITS = ("paper", "uniform")
"""``paper``: appendix B.1 of version 1. ``uniform``: U(+-1/sqrt(fan_in)), the later version."""

FACTORIZATIONS: dict[str, type[Factorization]] = {}


def register_factorization(name: str) -> Callable[[type[Factorization]], type[Factorization]]:
    """Class decorator that makes a factorization available by name; a taken name is refused."""

    def register(cls: type[Factorization]) -> type[Factorization]:
        if name in FACTORIZATIONS:
            raise UserError(f"register_factorization: expected a new name, got {name!r}. Choose another.")
        FACTORIZATIONS[name] = cls
        return cls

    return register


def get_factorization(name: str, who: str = "MuMoE") -> type[Factorization]:
    """The class behind a name.

    Raises:
        UserError: If there is none; the nearest name is offered.
    """
    if name not in FACTORIZATIONS:
        raise unknown_name(who, "factorization", name, FACTORIZATIONS)
    return FACTORIZATIONS[name]


class Factorization(nn.Module, ABC):
    """A weight tensor in factorized form.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_experts: Number of experts per level.
        rank: See the class; None where it has none.
        bias: Whether every expert has a bias, as one more input column.

    Attributes:
        ranks: The resolved ranks by name.
    """

    title: ClassVar[str]
    """The name that a specification such as ``CPMuMoE-r512-e128`` begins with."""

    takes_sparse: ClassVar[bool] = False
    """Whether `forward` also takes `sparse.SparseCoefficients`: it uses each level only as ``a @ factor``."""

    ranks: dict[str, int | tuple[int, ...]]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_experts: Sequence[int],
        rank: Rank | None = None,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = in_features, out_features, bias
        self.num_experts = tuple(num_experts)
        self.ranks = self.resolve_ranks(rank, self.num_experts)
        for name, shape in self.shapes(in_features + bias, out_features, self.num_experts, self.ranks).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))

    @classmethod
    @abstractmethod
    def resolve_ranks(
        cls, rank: Rank | None, num_experts: Sequence[int], who: str = "MuMoE"
    ) -> dict[str, int | tuple[int, ...]]:
        """All ranks by name, from an int or names; `UserError` for one below 1 or a wrong name."""

    @classmethod
    @abstractmethod
    def shapes(
        cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter; `inputs` counts the bias column."""

    @abstractmethod
    def forward(self, x: Tensor, coefficients: Sequence[Any]) -> Tensor:
        """(rows, in), one (rows, N_e) per level -> (rows, out)."""

    @abstractmethod
    def expert(self, index: Sequence[int]) -> Tensor:
        """One expert, (out, in [+ 1]), without forming the rest."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The weight tensor in full, (out, in [+ 1], N_1, .., N_E)."""

    @abstractmethod
    def reset_parameters(self, init: str = "paper", sigma: Sequence[float] | None = None) -> None:
        """Draw new factors. `sigma` is the noise between the experts of each level."""

    @abstractmethod
    def copy_linear(self, weight: Tensor, sigma: Sequence[float]) -> None:
        """Make every expert the matrix (out, in [+ 1]), or its best approximation of the rank there is."""

    @classmethod
    @abstractmethod
    def exact_rank(cls, outputs: int, inputs: int, num_experts: Sequence[int]) -> Rank | None:
        """The smallest rank with which `copy_linear` is exact for every matrix of that size."""

    def _per_level(self, name: str) -> list[Tensor]:
        """The parameters NAME_0 .. NAME_{E-1}."""
        return [getattr(self, f"{name}_{level}") for level in range(len(self.num_experts))]

    def extra_repr(self) -> str:
        ranks = ", ".join(f"{name}={value}" for name, value in self.ranks.items())
        return f"in={self.in_features}, out={self.out_features}, experts={self.num_experts}, rank({ranks})"


def _draw_(parameter: Tensor, init: str, fan_in: int, dim: int = 0) -> None:
    """A factor of an input or output mode: unit columns along `dim` (paper), or uniform by its fan-in."""
    with torch.no_grad():
        if init == "paper":
            parameter.normal_()
            parameter.div_(parameter.norm(dim=dim, keepdim=True).clamp_(min=1e-12))
        else:
            parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


def _near_one_(parameter: Tensor, sigma: float) -> None:
    """Factor of an expert mode: every expert the same, plus noise."""
    with torch.no_grad():
        parameter.normal_(1.0, sigma) if sigma else parameter.fill_(1.0)


def _svd(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k,), V (in, k), in float64."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    return u, s, vt.mT


def _int_rank(rank: Any, who: str, what: str) -> int:
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise UserError(f"{who}: expected {what} as an int, got {rank!r}. Give a whole number of at least 1.")
    if rank < 1:
        raise UserError(f"{who}: expected {what} >= 1, got {rank}. Give a whole number of at least 1.")
    return rank


def _no_rank(who: str, name: str) -> UserError:
    return UserError(
        f"{who}: expected a rank for factorization={name!r}, got none. "
        f"Give rank=..., or solve it with mumoe.costs.rank_for_budget."
    )


@register_factorization("cp")
class CP(Factorization):
    """CP: W = sum_r O[:, r] x I[:, r] x N_1[:, r] x .. (eq. 2). Rank: one int, or {"rank": int}.

    Parameters: `out_factor` (out, R), `in_factor` (in [+ 1], R), `expert_factor_<level>` (N_e, R).
    """

    title = "CPMuMoE"
    takes_sparse = True
    out_factor: Tensor
    in_factor: Tensor

    @classmethod
    def resolve_ranks(
        cls, rank: Rank | None, num_experts: Sequence[int], who: str = "MuMoE"
    ) -> dict[str, int | tuple[int, ...]]:
        if rank is None:
            raise _no_rank(who, "cp")
        if isinstance(rank, Mapping):
            _check_names(rank, ["rank"], who, "cp")
            rank = rank["rank"]  # type: ignore[assignment]
        return {"rank": _int_rank(rank, who, "rank")}

    @classmethod
    def shapes(
        cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        rank = ranks["rank"]
        experts = {f"expert_factor_{level}": (size, rank) for level, size in enumerate(num_experts)}
        return {"out_factor": (outputs, rank), "in_factor": (inputs, rank), **experts}

    @property
    def factors(self) -> list[Tensor]:
        """O, I, N_1 .. N_E, each (size of its mode, rank), as in tensorly."""
        names = map("expert_factor_{}".format, range(len(self.num_experts)))
        return [self.out_factor, self.in_factor, *map(self.get_parameter, names)]

    def forward(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        return functional.cp_contract(x, coefficients, self.factors)

    def expert(self, index: Sequence[int]) -> Tensor:
        out_factor, in_factor, *experts = self.factors
        for factor, n in zip(experts, index, strict=True):
            out_factor = out_factor * factor[n]
        return out_factor @ in_factor.mT

    def to_dense(self) -> Tensor:
        out_factor, in_factor, *experts = self.factors
        joint = experts[0]
        for factor in experts[1:]:
            joint = (joint[:, None] * factor[None]).flatten(0, 1)
        dense = torch.einsum("or,ir,nr->oin", out_factor, in_factor, joint)
        return dense.unflatten(-1, self.num_experts)

    def reset_parameters(self, init: str = "paper", sigma: Sequence[float] | None = None) -> None:
        out_factor, in_factor, *experts = self.factors
        _draw_(out_factor, init, out_factor.shape[1])
        _draw_(in_factor, init, in_factor.shape[0])
        for factor, noise in zip(experts, _sigmas(sigma, len(experts)), strict=True):
            _near_one_(factor, noise)

    @torch.no_grad()
    def copy_linear(self, weight: Tensor, sigma: Sequence[float]) -> None:
        self.reset_parameters("paper", sigma)
        u, s, v = _svd(weight)
        k = min(len(s), int(self.ranks["rank"]))  # type: ignore[arg-type]
        self.out_factor.zero_()  # components beyond the matrix's rank start silent, with a gradient
        self.out_factor[:, :k] = (u[:, :k] * s[:k].sqrt()).to(self.out_factor)
        self.in_factor[:, :k] = (v[:, :k] * s[:k].sqrt()).to(self.in_factor)

    @classmethod
    def exact_rank(cls, outputs: int, inputs: int, num_experts: Sequence[int]) -> Rank | None:
        return min(outputs, inputs)


@register_factorization("tucker")
class Tucker(Factorization):
    """Tucker: a core with one factor per mode (eq. 3).

    Rank: an int is the rank of the out, in and first expert mode, further levels having as many as they have
    experts (the paper's choice); or {"out": int, "in": int, "experts": int or one int per level}.

    Parameters: `core` (r_out, r_in, r_1, .., r_E), `out_factor`, `in_factor`, `expert_factor_<level>`, each
    (size of its mode, its rank).
    """

    title = "TuckerMuMoE"
    takes_sparse = True
    core: Tensor
    out_factor: Tensor
    in_factor: Tensor

    @classmethod
    def resolve_ranks(
        cls, rank: Rank | None, num_experts: Sequence[int], who: str = "MuMoE"
    ) -> dict[str, int | tuple[int, ...]]:
        if rank is None:
            raise _no_rank(who, "tucker")
        named = rank if isinstance(rank, Mapping) else {"out": rank, "in": rank, "experts": rank}
        _check_names(named, ["out", "in", "experts"], who, "tucker")
        experts = named["experts"]
        if not isinstance(experts, Sequence):
            experts = (experts, *num_experts[1:])
        if len(experts) != len(num_experts):
            raise UserError(
                f"{who}: expected rank['experts'] with one rank for each of {len(num_experts)} levels, "
                f"got {tuple(experts)}. Give an int or {len(num_experts)} of them."
            )
        levels = tuple(_int_rank(r, who, "rank['experts']") for r in experts)
        return {
            "out": _int_rank(named["out"], who, "rank['out']"),
            "in": _int_rank(named["in"], who, "rank['in']"),
            "experts": levels,
        }

    @classmethod
    def shapes(
        cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        experts = {
            f"expert_factor_{level}": (size, rank)
            for level, (size, rank) in enumerate(zip(num_experts, ranks["experts"], strict=True))
        }
        return {
            "core": (ranks["out"], ranks["in"], *ranks["experts"]),
            "out_factor": (outputs, ranks["out"]),
            "in_factor": (inputs, ranks["in"]),
            **experts,
        }

    @property
    def factors(self) -> list[Tensor]:
        """O, I, N_1 .. N_E, each (size of its mode, its rank), as in tensorly."""
        return [self.out_factor, self.in_factor, *self._per_level("expert_factor")]

    def forward(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        return functional.tucker_contract(x, coefficients, self.core, self.factors)

    def expert(self, index: Sequence[int]) -> Tensor:
        out_factor, in_factor, *experts = self.factors
        core = self.core
        for factor, n in zip(reversed(experts), reversed(list(index)), strict=True):
            core = core @ factor[n]
        return out_factor @ core @ in_factor.mT

    def to_dense(self) -> Tensor:
        dense = self.core
        for mode, factor in enumerate(self.factors):
            dense = torch.tensordot(dense, factor, dims=([mode], [1])).movedim(-1, mode)
        return dense

    def reset_parameters(self, init: str = "paper", sigma: Sequence[float] | None = None) -> None:
        out_factor, in_factor, *experts = self.factors
        _draw_(self.core, init, self.core.shape[1], dim=1)  # along the input's rank
        _draw_(out_factor, init, out_factor.shape[1])
        _draw_(in_factor, init, in_factor.shape[0])
        for factor, noise in zip(experts, _sigmas(sigma, len(experts)), strict=True):
            _near_one_(factor, noise)

    @torch.no_grad()
    def copy_linear(self, weight: Tensor, sigma: Sequence[float]) -> None:
        self.reset_parameters("paper", sigma)
        u, s, v = _svd(weight)
        k = min(len(s), self.core.shape[0], self.core.shape[1])
        share = math.prod(self.core.shape[2:])  # the expert factors are ones, so the slices add up
        self.core.zero_()
        diagonal = (s[:k] / share).to(self.core)
        index = torch.arange(k)
        self.core[index, index] = diagonal.reshape(k, *[1] * (self.core.ndim - 2))
        self.out_factor[:, :k] = u[:, :k].to(self.out_factor)
        self.in_factor[:, :k] = v[:, :k].to(self.in_factor)

    @classmethod
    def exact_rank(cls, outputs: int, inputs: int, num_experts: Sequence[int]) -> Rank | None:
        rank = min(outputs, inputs)
        return {"out": rank, "in": rank, "experts": tuple(min(4, size) for size in num_experts)}


@register_factorization("tr")
class TensorRing(Factorization):
    """Tensor ring: W[o, i, n..] = trace(G_out[o] G_in[i] G_1[n_1] ..) (eq. 4).

    Rank: an int is the bond between output and input, all others being 4 (the paper's choice); or bonds by
    name: "out-in", "in-expert", "expert-expert" (one int, or one for each pair of levels), "expert-out".
    Bonds left out are 4; "out-in" must be there.

    Parameters: `out_core`, `in_core`, `expert_core_<level>`, each (mode, rank before, rank after).
    """

    title = "TRMuMoE"
    takes_sparse = True
    closing: ClassVar[int | None] = None
    out_core: Tensor
    in_core: Tensor

    @classmethod
    def resolve_ranks(
        cls, rank: Rank | None, num_experts: Sequence[int], who: str = "MuMoE"
    ) -> dict[str, int | tuple[int, ...]]:
        kind = "tt" if cls.closing else "tr"
        if rank is None:
            raise _no_rank(who, kind)
        bonds: dict[str, Any] = {"in-expert": 4, "expert-expert": 4, "expert-out": cls.closing or 4}
        given: Mapping[str, Any] = rank if isinstance(rank, Mapping) else {"out-in": rank}
        _check_names(given, ["out-in"], who, kind, optional=list(bonds))
        bonds.update(given)
        between = bonds["expert-expert"]
        if not isinstance(between, Sequence):
            between = (between,) * (len(num_experts) - 1)
        if len(between) != len(num_experts) - 1:
            raise UserError(
                f"{who}: expected rank['expert-expert'] with {len(num_experts) - 1} bonds for "
                f"{len(num_experts)} levels, got {tuple(between)}. Give an int or one bond a pair of levels."
            )
        if cls.closing and bonds["expert-out"] != cls.closing:
            raise UserError(
                f"{who}: expected rank['expert-out'] == 1 for a tensor train, got {bonds['expert-out']}. "
                "Use factorization='tr' for a closed ring."
            )
        levels = tuple(_int_rank(r, who, "rank['expert-expert']") for r in between)
        ends = {name: _int_rank(bonds[name], who, f"rank[{name!r}]") for name in bonds if name != "expert-expert"}
        return {
            "out-in": ends["out-in"],
            "in-expert": ends["in-expert"],
            "expert-expert": levels,
            "expert-out": ends["expert-out"],
        }

    @classmethod
    def shapes(
        cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        bonds = [ranks["in-expert"], *ranks["expert-expert"], ranks["expert-out"]]
        experts = {
            f"expert_core_{level}": (size, bonds[level], bonds[level + 1]) for level, size in enumerate(num_experts)
        }
        return {
            "out_core": (outputs, ranks["expert-out"], ranks["out-in"]),
            "in_core": (inputs, ranks["out-in"], ranks["in-expert"]),
            **experts,
        }

    @property
    def _stored(self) -> list[Tensor]:
        return [self.out_core, self.in_core, *self._per_level("expert_core")]

    @property
    def cores(self) -> list[Tensor]:
        """Out, in, level 1 .. E, each (rank before, size of its mode, rank after): views, as in tensorly."""
        return [core.movedim(0, 1) for core in self._stored]

    def forward(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        return functional.ring_contract(x, coefficients, self._stored)

    def expert(self, index: Sequence[int]) -> Tensor:
        out_core, in_core, *experts = self._stored
        chain = experts[0][index[0]]
        for core, n in zip(experts[1:], index[1:], strict=True):
            chain = chain @ core[n]
        return out_core.flatten(1) @ (in_core @ chain).transpose(1, 2).flatten(1).mT

    def to_dense(self) -> Tensor:
        out_core, in_core, *experts = self._stored
        joint = experts[0]
        for core in experts[1:]:
            joint = torch.einsum("nrs,mst->nmrt", joint, core).flatten(0, 1)
        return torch.einsum("ors,ist,ntr->oin", out_core, in_core, joint).unflatten(-1, self.num_experts)

    def reset_parameters(self, init: str = "paper", sigma: Sequence[float] | None = None) -> None:
        out_core, in_core, *experts = self._stored
        _draw_(out_core, init, out_core.shape[1] * out_core.shape[2])
        _draw_(in_core, init, in_core.shape[0])
        for core, noise in zip(experts, _sigmas(sigma, len(experts)), strict=True):
            self._diagonal_(core, noise)

    @staticmethod
    @torch.no_grad()
    def _diagonal_(core: Tensor, sigma: float) -> None:
        """Every slice the identity plus noise on its diagonal, which wraps round in an oblong slice."""
        before, after = core.shape[1:]
        index = torch.arange(max(before, after))
        diagonal = torch.ones(core.shape[0], len(index), dtype=core.dtype, device=core.device)
        if sigma:
            diagonal.add_(torch.randn_like(diagonal), alpha=sigma)
        core.zero_()
        core[:, index % before, index % after] = diagonal

    @torch.no_grad()
    def copy_linear(self, weight: Tensor, sigma: Sequence[float]) -> None:
        self.reset_parameters("paper", sigma)
        u, s, v = _svd(weight)
        ends = min([self.in_core.shape[2], *(core.shape[2] for core in self._stored[2:])])
        bond = self.in_core.shape[1]
        k = min(len(s), ends * bond)
        self.out_core.zero_()
        self.in_core[:, :, ends:] = 0
        for core in self._stored[2:]:  # paths below `ends` stay where they are; those above start silent
            core[:, :ends] *= torch.eye(ends, core.shape[2]).to(core)
        for start in range(0, k, bond):  # one block of singular values for each closed path of the ring
            path, stop = start // bond, min(start + bond, k)
            root = s[start:stop].sqrt()
            self.out_core[:, path, : stop - start] = (u[:, start:stop] * root).to(self.out_core)
            self.in_core[:, : stop - start, path] = (v[:, start:stop] * root).to(self.in_core)

    @classmethod
    def exact_rank(cls, outputs: int, inputs: int, num_experts: Sequence[int]) -> Rank | None:
        return {"out-in": math.ceil(min(outputs, inputs) / (cls.closing or 4))}


@register_factorization("tt")
class TensorTrain(TensorRing):
    """Tensor train: the ring whose closing bond "expert-out" is 1."""

    title = "TTMuMoE"
    closing = 1


@register_factorization("dense")
class Dense(Factorization):
    """The weight tensor in full: a soft mixture of linear experts, the definition (eq. 1). It has no rank.

    Parameter: `weight` (N_1, .., N_E, out, in [+ 1]).
    """

    title = "DenseMuMoE"
    weight: Tensor

    @classmethod
    def resolve_ranks(
        cls, rank: Rank | None, num_experts: Sequence[int], who: str = "MuMoE"
    ) -> dict[str, int | tuple[int, ...]]:
        if rank is not None:
            raise UserError(f"{who}: expected no rank for factorization='dense', got {rank!r}. Leave it out.")
        return {}

    @classmethod
    def shapes(
        cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        return {"weight": (*num_experts, outputs, inputs)}

    def forward(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        return functional.dense_contract(x, coefficients, self.weight)

    def expert(self, index: Sequence[int]) -> Tensor:
        return self.weight[tuple(index)]

    def to_dense(self) -> Tensor:
        return self.weight.movedim((-2, -1), (0, 1))

    @torch.no_grad()
    def reset_parameters(self, init: str = "paper", sigma: Sequence[float] | None = None) -> None:
        outputs, inputs = self.weight.shape[-2:]
        matrix = torch.empty(outputs, inputs, dtype=self.weight.dtype, device=self.weight.device)
        bound = 1 / math.sqrt(inputs)
        matrix.normal_(std=bound) if init == "paper" else matrix.uniform_(-bound, bound)
        self.copy_linear(matrix, _sigmas(sigma, len(self.num_experts)))

    @torch.no_grad()
    def copy_linear(self, weight: Tensor, sigma: Sequence[float]) -> None:
        self.weight.copy_(weight.to(self.weight).expand_as(self.weight))
        scale = weight.double().square().mean().sqrt().to(self.weight)
        for level, noise in enumerate(sigma):
            if noise:
                shape = [1] * len(self.num_experts)
                shape[level] = self.num_experts[level]
                drawn = torch.randn(*shape, *self.weight.shape[-2:], dtype=scale.dtype, device=scale.device)
                self.weight.add_(drawn * scale, alpha=noise)

    @classmethod
    def exact_rank(cls, outputs: int, inputs: int, num_experts: Sequence[int]) -> Rank | None:
        return None


def _sigmas(sigma: Sequence[float] | None, levels: int) -> Sequence[float]:
    """Noise per level; the paper's is 1 on the first and 0 on further ones."""
    return (1.0, *[0.0] * (levels - 1)) if sigma is None else sigma


def _check_names(rank: Mapping[str, Any], names: list[str], who: str, kind: str, optional: Sequence[str] = ()) -> None:
    for name in rank:
        if name not in (*names, *optional):
            close = nearest(name, [*names, *optional])
            remedy = f"Did you mean {close!r}?" if close else "Use these names."
            raise UserError(
                f"{who}: expected rank names out of {', '.join([*names, *optional])} for "
                f"factorization={kind!r}, got {name!r}. {remedy}"
            )
    missing = [name for name in names if name not in rank]
    if missing:
        raise UserError(f"{who}: expected rank[{missing[0]!r}] for factorization={kind!r}, got {dict(rank)!r}. Add it.")
