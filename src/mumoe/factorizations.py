"""Modules that own the factors of a weight tensor with modes (out, in [+ 1 for the bias], level 1 .. E).

They share a file because people compare them. `Dense` holds the tensor in full: it is the definition of the
layer (a soft mixture of experts) and the oracle of the others. Each class holds everything specific to it (ranks,
costs, initialization, single experts, folding of edits), so adding one means writing one class.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mumoe import functional
from mumoe.errors import UserError
from mumoe.factorization_base import (
    DRAWS,
    FACTORIZATIONS,
    INITS,
    NORM_RATIO,
    SQUARED_COEFFICIENTS,
    Factorization,
    Rank,
    Ranks,
    get_factorization,
    noise_levels,
    register_factorization,
    shrink,
)

__all__ = [
    "CP",
    "FACTORIZATIONS",
    "INITS",
    "Dense",
    "Factorization",
    "Hadamard",
    "Rank",
    "TensorRing",
    "TensorTrain",
    "Tucker",
    "get_factorization",
    "register_factorization",
]

# What a layer calls checks its own input, so it skips the checks of wrong calls.
_cp_contract: Any = inspect.unwrap(functional.cp_contract)
_hadamard_contract: Any = inspect.unwrap(functional.hadamard_contract)
_tucker_contract: Any = inspect.unwrap(functional.tucker_contract)
_ring_contract: Any = inspect.unwrap(functional.ring_contract)
_dense_contract: Any = inspect.unwrap(functional.dense_contract)


class _Factored(Factorization):
    """Parameters out_<suffix>, in_<suffix> and expert_<suffix>_<level>."""

    @property
    def factors(self) -> list[Tensor]:
        """Factors (cores) of the output, the input and each level, with their mode first."""
        kind = self.suffix
        names = map(f"expert_{kind}_{{}}".format, range(len(self.num_experts)))
        return list(attrgetter(f"out_{kind}", f"in_{kind}", *names)(self))

    def _named(self, factors: Iterable[Tensor]) -> dict[str, Tensor]:
        """The same by name."""
        levels = range(len(self.num_experts))
        names = [f"out_{self.suffix}", f"in_{self.suffix}", *(f"expert_{self.suffix}_{level}" for level in levels)]
        return dict(zip(names, factors, strict=True))


@register_factorization("cp")
class CP(_Factored):
    """CP: W = sum_r O[:, r] x I[:, r] x N_1[:, r] x .. (eq. 2). Rank: one int, or {"rank": int}.

    Parameters: `out_factor` (out, R), `in_factor` (in [+ 1], R), `expert_factor_<level>` (N_e, R). An added term
    adds K to the rank.
    """

    title = "CPMuMoE"
    typical_rank: ClassVar[int | None] = 512
    out_factor: Tensor
    in_factor: Tensor

    @classmethod
    def shapes(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks) -> dict[str, tuple[int, ...]]:
        rank = ranks["rank"]
        experts = {f"expert_factor_{level}": (size, rank) for level, size in enumerate(num_experts)}
        return {"out_factor": (outputs, rank), "in_factor": (inputs, rank), **experts}

    @classmethod
    def count_flops(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks, bias: bool) -> int:
        rank: int = ranks["rank"]
        return rank * (inputs + outputs + sum(num_experts))

    @classmethod
    def exact_rank(cls, outputs: int, inputs: int, num_experts: Sequence[int]) -> Rank | None:
        return min(outputs, inputs)

    def forward(self, x: Tensor, coefficients: Sequence[Any]) -> Tensor:
        return _cp_contract(x, coefficients, self.factors)

    def expert(self, index: Sequence[int]) -> Tensor:
        out_factor, in_factor, *experts = self.factors
        for factor, n in zip(experts, index, strict=True):
            out_factor = out_factor * factor[n]
        return out_factor @ in_factor.mT

    def to_dense(self) -> Tensor:
        out_factor, in_factor, *experts = self.factors
        return torch.einsum("or,ir,nr->oin", out_factor, in_factor, _joint(experts)).unflatten(-1, self.num_experts)

    def drawn(self) -> Iterable[tuple[Tensor, int, int]]:
        return [(self.out_factor, self.out_factor.shape[1], 0), (self.in_factor, self.in_factor.shape[0], 0)]

    def draw_scaled(self, sigma: Sequence[float], *, balanced: bool = True) -> None:
        paths = self.out_factor.shape[1]
        size = _expert_size(paths * self.in_features, len(sigma)) if balanced else 1.0
        for level, noise in enumerate(sigma):
            self.draw_experts(level, noise)
            self.get_parameter(self.mode(level)[0]).mul_(size / shrink(noise))
        self.draw_outer(paths, size ** len(sigma))

    @torch.no_grad()
    def copy_linear(self, weight: Tensor, sigma: Sequence[float]) -> None:
        self.reset_parameters("paper", sigma)
        u, s, v = _svd(weight)
        k = min(len(s), self.in_factor.shape[1])
        self.out_factor.zero_()  # components beyond the matrix's rank start at zero, with a gradient
        self.out_factor[:, :k] = (u[:, :k] * s[:k].sqrt()).to(self.out_factor)
        self.in_factor[:, :k] = (v[:, :k] * s[:k].sqrt()).to(self.in_factor)

    def add_term(self, out: Tensor, inputs: Tensor, experts: Sequence[Tensor]) -> Factorization:
        count = experts[0].shape[1]
        added = [out[:, None].expand(-1, count), inputs[:, None].expand(-1, count), *experts]
        grown = [torch.cat([factor.detach(), more], 1) for factor, more in zip(self.factors, added, strict=True)]
        return self.rebuilt(self._named(grown), {"rank": grown[0].shape[1]}, kind=CP)


@register_factorization("hadamard")
class Hadamard(CP):
    """Elementwise: y = (C_1' a_1) * .. * (C_E' a_E) * (D' [x, 1]); no rank (Oldfield et al. 2025, arXiv 2505.21364).

    It is the CP whose output factor is the identity and whose rank is therefore `out`. Expert n is diag(C[n]) D',
    of full rank. Its bias is C[n] times the last row of D, folded into the input as in every other class, and not
    one shared vector behind the product as in the source: an ablated expert loses its bias, too.

    Parameters: `in_factor` D (in [+ 1], out), `expert_factor_<level>` C_e (N_e, out). An added term, which reads
    inputs of its own, makes it a CP of rank out + K.
    """

    title = "HadamardMuMoE"
    typical_rank = None

    @classmethod
    def rank_counts(cls, levels: int) -> dict[str, int | None]:
        return {}

    @classmethod
    def shapes(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks) -> dict[str, tuple[int, ...]]:
        experts = {f"expert_factor_{level}": (size, outputs) for level, size in enumerate(num_experts)}
        return {"in_factor": (inputs, outputs), **experts}

    @classmethod
    def count_flops(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks, bias: bool) -> int:
        return outputs * (inputs + sum(num_experts))

    @classmethod
    def exact_rank(cls, outputs: int, inputs: int, num_experts: Sequence[int]) -> Rank | None:
        return None

    @property
    def factors(self) -> list[Tensor]:
        """The factors of the equivalent CP; the identity comes first."""
        return [torch.eye(self.out_features).to(self.in_factor), self.in_factor, *self._experts]

    @property
    def _experts(self) -> list[Tensor]:
        return [getattr(self, f"expert_factor_{level}") for level in range(len(self.num_experts))]

    def forward(self, x: Tensor, coefficients: Sequence[Any]) -> Tensor:
        return _hadamard_contract(x, coefficients, self.in_factor, self._experts)

    def expert(self, index: Sequence[int]) -> Tensor:
        weight = self.in_factor.mT
        for factor, n in zip(self._experts, index, strict=True):
            weight = factor[n][:, None] * weight
        return weight

    def to_dense(self) -> Tensor:
        joint = _joint(self._experts)
        return torch.einsum("io,no->oin", self.in_factor, joint).unflatten(-1, self.num_experts)

    def drawn(self) -> Iterable[tuple[Tensor, int, int]]:
        return [(self.in_factor, self.in_factor.shape[0], 0)]

    def draw_scaled(self, sigma: Sequence[float], *, balanced: bool = True) -> None:
        levels = len(sigma)
        size = (NORM_RATIO * SQUARED_COEFFICIENTS / (3 * self.in_features)) ** (1 / (2 * levels + 2))
        size = min(1.0, size) if balanced else 1.0
        for level, noise in enumerate(sigma):
            self.draw_experts(level, noise)
            self.get_parameter(self.mode(level)[0]).mul_(size / shrink(noise))
        self.in_factor.normal_(std=(3 * self.in_features) ** -0.5 / size**levels)

    @torch.no_grad()
    def copy_linear(self, weight: Tensor, sigma: Sequence[float]) -> None:
        self.reset_parameters("paper", sigma)
        self.in_factor.copy_(weight.mT)


@register_factorization("tucker")
class Tucker(_Factored):
    """Tucker: a core with one factor per mode (eq. 3).

    Rank: an int is the rank of the out, in and first expert mode, further levels having as many as they have
    experts (the paper's choice); or {"out": int, "in": int, "experts": int or one int per level}.

    Parameters: `core` (r_out, r_in, r_1, .., r_E), `out_factor`, `in_factor`, `expert_factor_<level>`, each
    (size of its mode, its rank). An added term adds 1 to the ranks of out and in, and K to those of the levels.
    """

    title = "TuckerMuMoE"
    typical_rank = 128
    core: Tensor
    out_factor: Tensor
    in_factor: Tensor

    @classmethod
    def rank_counts(cls, levels: int) -> dict[str, int | None]:
        return {"out": None, "in": None, "experts": levels}

    @classmethod
    def _spread(cls, rank: int, num_experts: Sequence[int], count: int) -> Sequence[int]:
        return (rank, *num_experts[1:])

    @classmethod
    def shapes(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks) -> dict[str, tuple[int, ...]]:
        levels = zip(num_experts, ranks["experts"], strict=True)
        return {
            "core": (ranks["out"], ranks["in"], *ranks["experts"]),
            "out_factor": (outputs, ranks["out"]),
            "in_factor": (inputs, ranks["in"]),
            **{f"expert_factor_{level}": shape for level, shape in enumerate(levels)},
        }

    @classmethod
    def count_flops(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks, bias: bool) -> int:
        r_out, r_in, r_experts = ranks["out"], ranks["in"], ranks["experts"]
        project = r_in * inputs + sum(n * r for n, r in zip(num_experts, r_experts, strict=True))
        return int(project + r_out * r_in * math.prod(r_experts) + r_out * r_in + r_out * outputs)

    @classmethod
    def exact_rank(cls, outputs: int, inputs: int, num_experts: Sequence[int]) -> Rank | None:
        rank = min(outputs, inputs)
        return {"out": rank, "in": rank, "experts": tuple(min(4, size) for size in num_experts)}

    def forward(self, x: Tensor, coefficients: Sequence[Any]) -> Tensor:
        return _tucker_contract(x, coefficients, self.core, self.factors)

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

    def drawn(self) -> Iterable[tuple[Tensor, int, int]]:
        columns = (self.core, self.core.shape[1], 1)  # along the input's rank
        return [columns, (self.out_factor, self.out_factor.shape[1], 0), (self.in_factor, self.in_factor.shape[0], 0)]

    def draw_scaled(self, sigma: Sequence[float], *, balanced: bool = True) -> None:
        """The core is near a diagonal in its first two modes, the same for all components of the experts."""
        rank, components = min(self.core.shape[:2]), self.core.shape[2:]
        sizes, total = self._balance() if balanced else ([1.0] * len(sigma), 1.0)
        for level, noise in enumerate(sigma):
            self.draw_experts(level, noise)
            self.get_parameter(self.mode(level)[0]).mul_(sizes[level] / shrink(noise))
        diagonal = total / math.prod(map(operator.mul, sizes, components))
        self.core.normal_(std=diagonal * CORE_NOISE * math.sqrt(math.prod(components) / max(self.core.shape[:2])))
        index = torch.arange(rank, device=self.core.device)
        self.core[index, index] += diagonal
        shared = [(1 + noise**2 / count) / shrink(noise) ** 2 for noise, count in zip(sigma, components, strict=True)]
        self.draw_outer(rank * (math.prod(shared) + CORE_NOISE**2), total)

    def _balance(self) -> tuple[list[float], float]:
        """Size of every level's expert factor, and of what the core's diagonal comes to in an expert's matrix."""
        rank, components, levels = min(self.core.shape[:2]), self.core.shape[2:], len(self.num_experts)
        norm = math.sqrt(rank * self.in_features / 3)
        least = rank * norm**2 * (SQUARED_COEFFICIENTS / 3) ** levels / (3 * NORM_RATIO**2)
        least **= 1 / (3 + levels)  # squared norm of the gradients of core and expert factors
        pairs = zip(self.num_experts, components, strict=True)
        sizes = [math.sqrt(SQUARED_COEFFICIENTS / (3 * least) * (1 + FEW_EXPERTS / n) / r) for n, r in pairs]
        return sizes, min(1.0, NORM_RATIO * least / norm)

    def silence(self) -> None:
        self.out_factor.zero_()

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

    def add_term(self, out: Tensor, inputs: Tensor, experts: Sequence[Tensor]) -> Factorization:
        """Ones on the core's new diagonal pick one component of every level."""
        core, count = self.core.detach(), experts[0].shape[1]
        pairs = zip(self.factors, [out[:, None], inputs[:, None], *experts], strict=True)
        state = self._named([torch.cat([factor.detach(), added], dim=1) for factor, added in pairs])
        levels = tuple(size + count for size in core.shape[2:])
        grown = core.new_zeros(core.shape[0] + 1, core.shape[1] + 1, *levels)
        grown[tuple(slice(size) for size in core.shape)] = core
        k = torch.arange(count, device=core.device)
        corner: list[Any] = [-1, -1, *(size + k for size in core.shape[2:])]
        grown[tuple(corner)] = 1
        ranks = {"out": grown.shape[0], "in": grown.shape[1], "experts": levels}
        return self.rebuilt(state | {"core": grown}, ranks)


@register_factorization("tr")
class TensorRing(_Factored):
    """Tensor ring: W[o, i, n..] = trace(G_out[o] G_in[i] G_1[n_1] ..) (eq. 4).

    Rank: an int is the bond between output and input, all others being 4 (the paper's choice); or bonds by
    name: "out-in", "in-expert", "expert-expert" (one int, or one for each pair of levels), "expert-out".
    Bonds left out are 4; "out-in" must be there.

    Parameters: `out_core`, `in_core`, `expert_core_<level>`, each (mode, rank before, rank after). An added term
    adds K to every bond.
    """

    title = "TRMuMoE"
    suffix = "core"
    typical_rank = 512
    rank_defaults: ClassVar[Ranks] = {"in-expert": 4, "expert-expert": 4, "expert-out": 4}
    out_core: Tensor
    in_core: Tensor

    @classmethod
    def rank_counts(cls, levels: int) -> dict[str, int | None]:
        return {"out-in": None, "in-expert": None, "expert-expert": levels - 1, "expert-out": None}

    @classmethod
    def shapes(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks) -> dict[str, tuple[int, ...]]:
        bonds = [ranks["in-expert"], *ranks["expert-expert"], ranks["expert-out"]]
        return {
            "out_core": (outputs, ranks["expert-out"], ranks["out-in"]),
            "in_core": (inputs, ranks["out-in"], ranks["in-expert"]),
            **{f"expert_core_{level}": (size, *bonds[level : level + 2]) for level, size in enumerate(num_experts)},
        }

    @classmethod
    def count_flops(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks, bias: bool) -> int:
        bonds = [ranks["in-expert"], *ranks["expert-expert"], ranks["expert-out"]]
        experts = sum(n * bonds[e] * bonds[e + 1] for e, n in enumerate(num_experts))
        chain = sum(bonds[0] * bonds[e] * bonds[e + 1] for e in range(1, len(num_experts)))
        first, last, main = bonds[0], bonds[-1], ranks["out-in"]
        return int(main * inputs * first + experts + chain + last * first * main + last * main * outputs)

    @classmethod
    def exact_rank(cls, outputs: int, inputs: int, num_experts: Sequence[int]) -> Rank | None:
        return {"out-in": math.ceil(min(outputs, inputs) / cls.rank_defaults["expert-out"])}

    @property
    def cores(self) -> list[Tensor]:
        """Out, in, level 1 .. E, each (rank before, size of its mode, rank after): views, as in tensorly."""
        return [core.movedim(0, 1) for core in self.factors]

    def forward(self, x: Tensor, coefficients: Sequence[Any]) -> Tensor:
        return _ring_contract(x, coefficients, self.factors)

    def expert(self, index: Sequence[int]) -> Tensor:
        out_core, in_core, *experts = self.factors
        chain = experts[0][index[0]]
        for core, n in zip(experts[1:], index[1:], strict=True):
            chain = chain @ core[n]
        return out_core.flatten(1) @ (in_core @ chain).transpose(1, 2).flatten(1).mT

    def to_dense(self) -> Tensor:
        out_core, in_core, *experts = self.factors
        joint = experts[0]
        for core in experts[1:]:
            joint = torch.einsum("nrs,mst->nmrt", joint, core).flatten(0, 1)
        return torch.einsum("ors,ist,ntr->oin", out_core, in_core, joint).unflatten(-1, self.num_experts)

    def drawn(self) -> Iterable[tuple[Tensor, int, int]]:
        fan_in = self.out_core.shape[1] * self.out_core.shape[2]
        return [(self.out_core, fan_in, 0), (self.in_core, self.in_core.shape[0], 0)]

    def draw_scaled(self, sigma: Sequence[float], *, balanced: bool = True) -> None:
        chain = torch.eye(self.in_core.shape[2], device="cpu")  # a number, also for a layer on the meta device
        for core in self.factors[2:]:
            chain = chain @ _wrapped(chain.new_ones(max(core.shape[1:])), core.shape[1:])
        paths = self.in_core.shape[1] * float(chain.square().sum())
        size = _expert_size(paths * self.in_features, len(sigma)) if balanced else 1.0
        for level, noise in enumerate(sigma):
            self.draw_experts(level, noise)
            self.get_parameter(self.mode(level)[0]).mul_(size / shrink(noise))
        self.draw_outer(paths, size ** len(sigma))

    def draw_experts(self, level: int, sigma: float) -> None:
        """Every slice the identity plus noise on its diagonal, which wraps around in a slice that is not square."""
        core = self.get_parameter(self.mode(level)[0])
        diagonal = torch.ones(core.shape[0], max(core.shape[1:]), dtype=core.dtype, device=core.device)
        if sigma:
            diagonal.add_(torch.randn_like(diagonal), alpha=sigma)
        core.copy_(_wrapped(diagonal, core.shape[1:]))

    @torch.no_grad()
    def copy_linear(self, weight: Tensor, sigma: Sequence[float]) -> None:
        self.reset_parameters("paper", sigma)
        u, s, v = _svd(weight)
        ends = min([self.in_core.shape[2], *(core.shape[2] for core in self.factors[2:])])
        bond = self.in_core.shape[1]
        k = min(len(s), ends * bond)
        self.out_core.zero_()
        self.in_core[:, :, ends:] = 0
        for core in self.factors[2:]:  # paths below `ends` stay where they are; those above start at zero
            core[:, :ends] *= torch.eye(ends, core.shape[2]).to(core)
        for start in range(0, k, bond):  # one block of singular values for each closed path of the ring
            path, stop = start // bond, min(start + bond, k)
            root = s[start:stop].sqrt()
            self.out_core[:, path, : stop - start] = (u[:, start:stop] * root).to(self.out_core)
            self.in_core[:, : stop - start, path] = (v[:, start:stop] * root).to(self.in_core)

    def add_term(self, out: Tensor, inputs: Tensor, experts: Sequence[Tensor]) -> Factorization:
        """A diagonal block in every core: the trace of a block-diagonal product is the sum of the traces."""
        count = experts[0].shape[1]
        added = [out[:, None].expand(-1, count), inputs[:, None].expand(-1, count), *experts]
        pairs = zip(self.factors, added, strict=True)
        grown = [self._grown(position, core.detach(), more) for position, (core, more) in enumerate(pairs)]
        between = tuple(core.shape[2] for core in grown[2:-1])
        ends = {"out-in": grown[0].shape[2], "in-expert": grown[1].shape[2], "expert-out": grown[0].shape[1]}
        return self.rebuilt(self._named(grown), {**ends, "expert-expert": between})

    def _grown(self, position: int, core: Tensor, added: Tensor) -> Tensor:
        """(mode, r, s) and (mode, K) -> (mode, r + K, s + K)."""
        count = added.shape[1]
        grown = nn.functional.pad(core, (0, count, 0, count))
        grown[:, core.shape[1] :, core.shape[2] :] = torch.diag_embed(added)
        return grown


@register_factorization("tt")
class TensorTrain(TensorRing):
    """Tensor train: the ring whose closing bond "expert-out" is 1, also after a term was added."""

    title = "TTMuMoE"
    rank_defaults: ClassVar[Ranks] = {**TensorRing.rank_defaults, "expert-out": 1}

    @classmethod
    def resolve_ranks(
        cls, rank: Rank | None, num_experts: Sequence[int], who: str = "MuMoE"
    ) -> dict[str, int | tuple[int, ...]]:
        ranks = super().resolve_ranks(rank, num_experts, who)
        if ranks["expert-out"] != 1:
            raise UserError(
                f"{who}: expected rank['expert-out'] == 1 for a tensor train, got {ranks['expert-out']}. "
                "Use factorization='tr' for a closed ring."
            )
        return ranks

    def _grown(self, position: int, core: Tensor, added: Tensor) -> Tensor:
        """As in a ring; the outer bonds of the first and the last core stay 1."""
        if position == 0:
            return torch.cat([core, added[:, None, :]], dim=2)
        if position == len(self.num_experts) + 1:
            return torch.cat([core, added[:, :, None]], dim=1)
        return super()._grown(position, core, added)


@register_factorization("dense")
class Dense(Factorization):
    """The weight tensor in full: a soft mixture of linear experts, the definition (eq. 1). It has no rank.

    Parameter: `weight` (N_1, .., N_E, out, in [+ 1]).
    """

    title = "DenseMuMoE"
    weight: Tensor

    @classmethod
    def rank_counts(cls, levels: int) -> dict[str, int | None]:
        return {}

    @classmethod
    def shapes(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks) -> dict[str, tuple[int, ...]]:
        return {"weight": (*num_experts, outputs, inputs)}

    @classmethod
    def count_flops(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks, bias: bool) -> int:
        return outputs * (inputs + bias) * math.prod(num_experts)

    def mode(self, level: int | None) -> tuple[str, int]:
        return "weight", self.weight.ndim - 1 if level is None else level

    def forward(self, x: Tensor, coefficients: Sequence[Any]) -> Tensor:
        return _dense_contract(x, coefficients, self.weight)

    def expert(self, index: Sequence[int]) -> Tensor:
        return self.weight[tuple(index)]

    def to_dense(self) -> Tensor:
        return self.weight.movedim((-2, -1), (0, 1))

    def drawn(self) -> Iterable[tuple[Tensor, int, int]]:
        return []

    @torch.no_grad()
    def reset_parameters(self, init: str = "scaled", sigma: Sequence[float] | None = None) -> None:
        """All experts share one matrix, its rows of norm 1 for ``paper`` and else as in `nn.Linear`, plus noise."""
        if init not in DRAWS:
            super().reset_parameters(init, sigma)
            return
        matrix, inputs = self._matrix(), self.weight.shape[-1]
        matrix.normal_(std=inputs**-0.5) if init == "paper" else DRAWS[init](matrix, inputs, 1)
        self.copy_linear(matrix, noise_levels(sigma, len(self.num_experts)))

    def _matrix(self) -> Tensor:
        return torch.empty(self.weight.shape[-2:], dtype=self.weight.dtype, device=self.weight.device)

    def draw_scaled(self, sigma: Sequence[float], *, balanced: bool = True) -> None:
        matrix = self._matrix()
        DRAWS["uniform"](matrix, self.in_features, 1)
        self.copy_linear(matrix, sigma)
        self.weight.div_(math.prod(map(shrink, sigma)))

    def silence(self) -> None:
        self.weight.zero_()

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

    def add_term(self, out: Tensor, inputs: Tensor, experts: Sequence[Tensor]) -> Factorization:
        joint = _joint(experts).sum(-1).unflatten(0, self.num_experts)
        return self.rebuilt({"weight": self.weight.detach() + joint[..., None, None] * torch.outer(out, inputs)})


CORE_NOISE = 0.2
"""Noise of ``scaled`` on a Tucker core, relative to the root mean square of its diagonal in an expert's matrix."""


FEW_EXPERTS = 30
"""Number of experts of a level below which their gradients, each from many rows, add up instead of averaging out."""


def _expert_size(width: float, levels: int) -> float:
    """Root mean square of the expert factors with which their gradient is about as large as that of the outer factors.

    For a sum of P products of an input factor over `in` columns, width = P * in.
    """
    return float(min(1.0, (NORM_RATIO * SQUARED_COEFFICIENTS / math.sqrt(3 * width)) ** (1 / (levels + 2))))


def _wrapped(diagonal: Tensor, shape: Sequence[int]) -> Tensor:
    """(.., max(shape)) -> (.., *shape): matrices with that diagonal, which wraps around in one that is not square."""
    before, after = shape
    index = torch.arange(max(before, after), device=diagonal.device)
    matrix = diagonal.new_zeros(*diagonal.shape[:-1], before, after)
    matrix[..., index % before, index % after] = diagonal
    return matrix


def _joint(factors: Sequence[Tensor]) -> Tensor:
    """(N_1, R), .., (N_E, R) -> (N_1 * .. * N_E, R), the columnwise products of all combinations."""
    joint = factors[0]
    for factor in factors[1:]:
        joint = (joint[:, None] * factor[None]).flatten(0, 1)
    return joint


def _svd(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k,), V (in, k), in float64."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    return u, s, vt.mT
