"""The base of all factorizations: registry, ranks, initialization, and folding of edits."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mumoe.calling import checked, checked_methods
from mumoe.errors import UserError, check_size, unknown_name

__all__ = [
    "DRAWS",
    "FACTORIZATIONS",
    "INITS",
    "NORM_RATIO",
    "SQUARED_COEFFICIENTS",
    "Factorization",
    "Rank",
    "Ranks",
    "check_init",
    "get_factorization",
    "noise_levels",
    "register_factorization",
    "shrink",
]

Rank = int | Mapping[str, int | Sequence[int]]
"""A rank as the paper means it (int), or ranks of single modes (Tucker) or bonds (TT, TR) by name."""

Ranks = Mapping[str, Any]
"""Resolved: every rank by name, an int or a tuple of them."""

FACTORIZATIONS: dict[str, type[Factorization]] = {}


@checked
def register_factorization(name: str) -> Callable[[type[Factorization]], type[Factorization]]:
    """Class decorator that makes a factorization available by name.

    Raises:
        UserError: If the name, or the title by which specifications know the class, is already registered.
    """

    def register(cls: type[Factorization]) -> type[Factorization]:
        if name in FACTORIZATIONS:
            raise UserError(f"register_factorization: expected a new name, got {name!r}. Choose another.")
        if any(cls.title == other.title for other in FACTORIZATIONS.values()):
            raise UserError(f"register_factorization: expected a new title, got {cls.title!r}. Choose another.")
        cls.name = name
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


# Initialization of input and output factors ---------------------------------------------------------------


def _unit_columns_(factor: Tensor, fan_in: int, dim: int) -> None:
    factor.normal_()
    factor.div_(factor.norm(dim=dim, keepdim=True).clamp_(min=1e-12))


def _uniform_(factor: Tensor, fan_in: int, dim: int) -> None:
    factor.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


INITS = ("scaled", "zero", "paper", "uniform")
"""``scaled``: every expert has the variance of an `nn.Linear`. ``zero``: the same with an output factor of zeros, so
that the layer starts at 0. ``paper``: unit columns, appendix B.1 of version 1. ``uniform``: U(+-1/sqrt(fan_in)), the
later version of the paper. The variance of the last two grows with rank, levels and experts."""

DRAWS: dict[str, Callable[[Tensor, int, int], None]] = {"paper": _unit_columns_, "uniform": _uniform_}
"""Each draws one factor in place, from its fan-in and the dimension that its columns run along."""

FIRST_NOISE, LATER_NOISE = 0.4, 0.1
"""Default noise of ``scaled`` between the experts of the first level and of later ones, relative to what they share.
Small enough for the mixture of any coefficients to have nearly the variance of one expert (within 5 %), large enough
for every level's gate to get a gradient."""

NORM_RATIO = 25.0
"""Squared ratio that ``scaled`` aims at between the gradient norms of the outer factors and of those of the experts."""

SQUARED_COEFFICIENTS = 0.15
"""Sum of the squares of a row's coefficients that ``scaled`` assumes: entmax15 of unit logits of 128 experts."""


def check_init(init: str) -> str:
    """The name of an initialization, or a `UserError`."""
    if init not in INITS:
        raise unknown_name("MuMoE", "init", init, INITS)
    return init


def shrink(noise: float) -> float:
    """Divisor of the entries 1 + noise * e, for a mean square of 1 halfway between one expert and a mixture of very
    many."""
    return math.sqrt(1 + noise**2 / 2)


# What all have in common ----------------------------------------------------------------------------------


@checked_methods
class Factorization(nn.Module, ABC):
    """A weight tensor in factorized form.

    A subclass says which ranks it has, the shapes of its parameters, and how to compute with them. Its expert
    factors are called ``expert_factor_<level>`` and its input factor ``in_factor``, with experts and inputs
    along the first dimension; a class that stores them otherwise overrides `mode`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_experts: Number of experts per level.
        rank: See the class; None where it has none.
        bias: Whether every expert has a bias, as one more input column.

    Attributes:
        ranks: The resolved ranks by name.
    """

    name: ClassVar[str] = ""
    """The name it is registered under."""

    title: ClassVar[str]
    """The name that a specification such as ``CPMuMoE-r512-e128`` begins with."""

    typical_rank: ClassVar[int | None] = None
    """The rank at which the command `cost` compares it."""

    suffix: ClassVar[str] = "factor"
    """Endings of the names of the parameters in `factors`."""

    rank_defaults: ClassVar[Ranks] = {}
    """Ranks that may be left out. An int given as the rank stands for all others."""

    ranks: dict[str, int | tuple[int, ...]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked_methods(cls)

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

    # Sizes

    @classmethod
    def rank_counts(cls, levels: int) -> dict[str, int | None]:
        """Names of the ranks in the order of a specification -> None for an int, n for a tuple of n; {}: no rank."""
        return {"rank": None}

    @classmethod
    def has_rank(cls) -> bool:
        """Whether there is a rank to choose."""
        return bool(cls.rank_counts(1))

    @classmethod
    def resolve_ranks(
        cls, rank: Rank | None, num_experts: Sequence[int], who: str = "MuMoE"
    ) -> dict[str, int | tuple[int, ...]]:
        """All ranks by name.

        Args:
            rank: An int, or ranks by name; those of `rank_defaults` may be left out.
            num_experts: Number of experts per level.
            who: What an error begins with.

        Raises:
            UserError: For a rank below 1, a wrong name, or a wrong number of them.
        """
        counts = cls.rank_counts(len(num_experts))
        if not counts and rank not in (None, {}):
            raise UserError(f"{who}: expected no rank for factorization={cls.name!r}, got {rank!r}. Leave it out.")
        if not counts:
            return {}
        if rank is None:
            raise UserError(
                f"{who}: expected a rank for factorization={cls.name!r}, got none. "
                "Give rank=..., or solve it with mumoe.costs.rank_for_budget."
            )
        required = [name for name in counts if name not in cls.rank_defaults]
        given: Ranks = rank if isinstance(rank, Mapping) else dict.fromkeys(required, rank)
        _check_names(given, required, [*cls.rank_defaults], who, cls.name)
        given = {**cls.rank_defaults, **given}
        return {name: cls._checked(name, given[name], count, num_experts, who) for name, count in counts.items()}

    @classmethod
    def _checked(
        cls, name: str, value: Any, count: int | None, num_experts: Sequence[int], who: str
    ) -> int | tuple[int, ...]:
        what = "rank" if name == "rank" else f"rank[{name!r}]"
        if count is None:
            return check_size(value, what, who)
        values = value if isinstance(value, Sequence) else cls._spread(value, num_experts, count)
        if len(values) != count:
            raise UserError(
                f"{who}: expected {what} as an int, or {count} of them for {len(num_experts)} levels, "
                f"got {tuple(values)}. Give an int or {count} of them."
            )
        return tuple(check_size(each, what, who) for each in values)

    @classmethod
    def _spread(cls, rank: int, num_experts: Sequence[int], count: int) -> Sequence[int]:
        """An int that stands for several ranks."""
        return (rank,) * count

    @classmethod
    def rank_text(cls, ranks: Ranks, num_experts: Sequence[int]) -> str:
        """``512`` where one int is enough, else every rank in order: ``512x4x4``; empty without ranks."""
        values = [each for value in ranks.values() for each in (value if isinstance(value, Sequence) else [value])]
        if values and cls.resolve_ranks(values[0], num_experts) == dict(ranks):
            return str(values[0])
        return "x".join(map(str, values))

    @classmethod
    def read_ranks(cls, values: Sequence[int], num_experts: Sequence[int], who: str = "from_spec") -> Rank | None:
        """The rank that `rank_text` wrote as these numbers.

        Raises:
            UserError: If their number is neither one nor that of the ranks.
        """
        if len(values) < 2:
            return values[0] if values else None
        counts = cls.rank_counts(len(num_experts))
        total = sum(1 if count is None else count for count in counts.values())
        if len(values) != total:
            title = getattr(cls, "title", cls.__name__)
            several = f" or {total} (in order: {', '.join(counts)})" if total > 1 else ""
            raise UserError(
                f"{who}: expected {'one rank' if counts else 'no rank'}{several} for {len(num_experts)} levels of "
                f"{cls.name!r}, got {'x'.join(map(str, values))}. Write {title}-e128 with such ranks."
            )
        left = iter(values)
        return {
            name: next(left) if count is None else tuple(next(left) for _ in range(count))
            for name, count in counts.items()
        }

    @classmethod
    @abstractmethod
    def shapes(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter; `inputs` counts the bias column."""

    @classmethod
    @abstractmethod
    def count_flops(cls, inputs: int, outputs: int, num_experts: Sequence[int], ranks: Ranks, bias: bool) -> int:
        """Multiply-adds of one row's forward; `inputs` does not count the bias column."""

    @classmethod
    def exact_rank(cls, outputs: int, inputs: int, num_experts: Sequence[int]) -> Rank | None:
        """The smallest rank with which `copy_linear` is exact for every matrix of that size."""
        return None

    # Computing

    @abstractmethod
    def forward(self, x: Tensor, coefficients: Sequence[Any]) -> Tensor:
        """(rows, in), one (rows, N_e) per level -> (rows, out)."""

    @abstractmethod
    def expert(self, index: Sequence[int]) -> Tensor:
        """One expert, (out, in [+ 1]), without forming the rest."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The weight tensor in full, (out, in [+ 1], N_1, .., N_E)."""

    # Values

    @torch.no_grad()
    def reset_parameters(self, init: str = "scaled", sigma: Sequence[float] | None = None) -> None:
        """Draw new factors.

        Args:
            init: One of `INITS`, for the factors of inputs and outputs.
            sigma: Noise between the experts of each level, which are the same otherwise; by default 0.4, 0.1, 0.1, ..
                for ``scaled`` and ``zero``, and the paper's 1, 0, 0, .. for the others.
        """
        levels = len(self.num_experts)
        if check_init(init) in DRAWS:
            for factor, fan_in, dim in self.drawn():
                DRAWS[init](factor, fan_in, dim)
            for level, noise in enumerate(noise_levels(sigma, levels)):
                self.draw_experts(level, noise)
            return
        sigma = (FIRST_NOISE, *[LATER_NOISE] * (levels - 1)) if sigma is None else sigma
        self.draw_scaled(noise_levels(sigma, levels), balanced=init != "zero")
        if init == "zero":
            self.silence()

    @abstractmethod
    def drawn(self) -> Iterable[tuple[Tensor, int, int]]:
        """What ``paper`` and ``uniform`` draw: factor, fan-in, and the dimension that its columns run along."""

    def draw_experts(self, level: int, sigma: float) -> None:
        """The expert factor of a level: every expert the same, plus noise."""
        factor = self.get_parameter(self.mode(level)[0])
        factor.normal_(1.0, sigma) if sigma else factor.fill_(1.0)

    def draw_scaled(self, sigma: Sequence[float], *, balanced: bool = True) -> None:
        """Draw factors so that an expert's entries have the variance of an `nn.Linear`, 1 / (3 in_features).

        Where it is balanced, expert factors are made smaller than the others until the gradients of all are about as
        large; else their entries are near 1, so that one step of AdamW changes them less. This one is for classes that
        have no formula of their own: as ``uniform``, then scaled by the mean square of a few experts.
        """
        self.reset_parameters("uniform", sigma)
        sizes = self.num_experts
        some = [[(sample * size) // 8 for size in sizes] for sample in range(8)]
        square = torch.stack([self.expert(index).float().square().mean() for index in some]).mean()
        for factor, _, _ in itertools.islice(self.drawn(), 1):
            factor.mul_(torch.rsqrt(3 * self.in_features * square))

    def silence(self) -> None:
        """Set the factor of the outputs to 0: the layer is 0, and yet every factor learns from the second step on."""
        for factor, _, _ in itertools.islice(self.drawn(), 1):
            factor.zero_()

    def draw_outer(self, paths: float, experts: float) -> None:
        """Draw output and input factors for a sum of so many products, whose expert factors have this root mean square.

        Both get the same deviation, with which their gradients have the same norm.
        """
        deviation = (3 * paths * self.in_features * experts**2) ** -0.25
        for name in ("out", "in"):
            self.get_parameter(f"{name}_{self.suffix}").normal_(std=deviation)

    @abstractmethod
    def copy_linear(self, weight: Tensor, sigma: Sequence[float]) -> None:
        """Make every expert the matrix (out, in [+ 1]), or its best approximation at the given rank."""

    # Folding edits: each returns a new factorization

    def mode(self, level: int | None) -> tuple[str, int]:
        """The parameter, and its dimension, along which a level's experts lie; None: the inputs."""
        return (f"in_{self.suffix}" if level is None else f"expert_{self.suffix}_{level}"), 0

    def map_level(self, level: int, change: Callable[[Tensor, int], Tensor]) -> Factorization:
        """With experts of a level replaced by linear combinations of them: ``change(parameter, dimension)``."""
        name, dim = self.mode(level)
        state = self.tensors()
        return self.rebuilt(state | {name: change(state[name], dim)})

    def add_bias(self) -> Factorization:
        """With a bias of 0 for every expert."""
        if self.bias:
            return self
        name, dim = self.mode(None)
        state = self.tensors()
        zeros = torch.zeros_like(state[name].narrow(dim, 0, 1))
        return self.rebuilt(state | {name: torch.cat([state[name], zeros], dim)}, bias=True)

    @abstractmethod
    def add_term(self, out: Tensor, inputs: Tensor, experts: Sequence[Tensor]) -> Factorization:
        """With sum_k out x inputs x v_1^k x .. x v_E^k added to the weight tensor, exactly.

        Ranks grow as the class says; the result may be of another class.

        Args:
            out: (out,).
            inputs: (in [+ 1],).
            experts: v_e as (N_e, K), one for each level.
        """

    def tensors(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.named_parameters()}

    def rebuilt(
        self,
        state: Mapping[str, Tensor],
        ranks: Ranks | None = None,
        *,
        bias: bool | None = None,
        kind: type[Factorization] | None = None,
    ) -> Factorization:
        """A factorization of the same sizes with these tensors, the same training mode and the same trainable
        parameters."""
        like = next(iter(state.values()))
        new = (kind or type(self))(
            self.in_features,
            self.out_features,
            self.num_experts,
            (self.ranks if ranks is None else ranks) or None,
            bias=self.bias if bias is None else bias,
            device=like.device,
            dtype=like.dtype,
        )
        new.load_state_dict(dict(state))
        trained = {name: value.requires_grad for name, value in self.named_parameters()}
        for name, value in new.named_parameters():
            value.requires_grad_(trained.get(name, any(trained.values())))
        return new.train(self.training)

    def extra_repr(self) -> str:
        ranks = ", ".join(f"{name}={value}" for name, value in self.ranks.items())
        rank = f", rank({ranks})" if ranks else ""
        return f"in={self.in_features}, out={self.out_features}, experts={self.num_experts}{rank}"


def _check_names(given: Ranks, required: Sequence[str], optional: Sequence[str], who: str, kind: str) -> None:
    known = [*required, *optional]
    for name in given:
        if name not in known:
            raise unknown_name(who, f"rank name of {kind!r}", name, known)
    for name in required:
        if name not in given:
            raise UserError(f"{who}: expected rank[{name!r}] for factorization={kind!r}, got {dict(given)!r}. Add it.")


def noise_levels(sigma: Sequence[float] | None, levels: int) -> Sequence[float]:
    """Noise per level; the paper's is 1 on the first and 0 on further ones."""
    sigma = (1.0, *[0.0] * (levels - 1)) if sigma is None else sigma
    if len(sigma) != levels:
        raise UserError(
            f"MuMoE: expected sigma with one value for each of {levels} levels, got {tuple(sigma)}. "
            "Leave it out for the paper's 1, 0, 0.."
        )
    return sigma
