"""Edits of a MuMoE layer as objects, one class per kind.

Every edit has a strength: 0 changes no bit, 1 is the full edit (for a rewriting the strength is lambda itself).
An edit says what it does as an `Operation` on the weight tensor; `stack` applies several of them in order, each on
the result of those before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mumoe.ablation import Ablation
from mumoe.analysis.contributions import combine
from mumoe.calling import checked_values, tensor_methods
from mumoe.devices import host
from mumoe.editing.operations import AddedTerm, CoefficientMap, Mean, Operation, listed, original, separate
from mumoe.errors import UserError

__all__ = [
    "EDITS",
    "Ablate",
    "Correct",
    "ExpertEdit",
    "Rewrite",
    "Scale",
    "SetOutput",
    "Swap",
    "with_strength",
]


@runtime_checkable
class ExpertEdit(Protocol):
    """One change of a layer. A frozen dataclass whose fields are plain JSON values or tuples of them.

    `check` refuses sizes of a layer in which an expert, level or output that it names does not exist; `operation` is
    what it does to a factorization, which may be edited already; `describe` is one line for a list.
    """

    kind: ClassVar[str]

    @property
    def strength(self) -> float: ...
    def check(self, num_experts: Sequence[int], out_features: int) -> None: ...
    def operation(self, part: nn.Module) -> Operation: ...
    def describe(self) -> str: ...


@tensor_methods
@dataclass(frozen=True)
class Rewrite:
    """Add strength * a-bar . a to one output (eq. 6).

    Attributes:
        head: The output.
        factors: Per level (N_e, K) as nested tuples: a-bar = sum_k prod_e factors[e][:, k]. Empty where combinations
            are listed.
        strength: Lambda, with its sign.
        num_experts: Experts of each level, where combinations are listed.
        combinations: Flat positions of the combinations of experts that occur, of a hierarchy with many.
        shares: a-bar of each of these.
    """

    kind: ClassVar[str] = "rewrite"
    head: int
    factors: tuple[tuple[tuple[float, ...], ...], ...] = ()
    strength: float = 1.0
    num_experts: tuple[int, ...] = ()
    combinations: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    @staticmethod
    def of(head: int, mean: Mean, strength: float) -> Rewrite:
        """From mean coefficients (N_1, .., N_E), whose exact components are taken; sparse ones are listed."""
        if isinstance(mean, Tensor) and mean.is_sparse:
            index, shares, sizes = mean.coalesce().indices(), mean.coalesce().values(), tuple(mean.shape)
            unit = combine(list(index), sizes)
            return Rewrite(head, (), strength, sizes, tuple(unit.tolist()), tuple(shares.double().tolist()))
        return Rewrite(head, tuple(_tuples(factor) for factor in separate(mean)), strength)

    @property
    def mean(self) -> Tensor:
        """a-bar, (N_1, .., N_E) in float64; sparse where combinations are listed."""
        return self._listed() if self.num_experts else AddedTerm(self.head, _tensors(self.factors)).joint()

    def _listed(self) -> Tensor:
        units, shares = torch.tensor(self.combinations), torch.tensor(self.shares, dtype=torch.float64)
        return listed(units.long(), shares, self.num_experts)

    def __post_init__(self) -> None:
        checked_values(self)

    def check(self, num_experts: Sequence[int], out_features: int) -> None:
        _require_head(self.head, out_features, "Rewrite")
        self._check_listed()
        sizes = self.num_experts or tuple(len(vector) for vector in _tensors(self.factors))
        if sizes != tuple(num_experts):
            raise UserError(
                f"Rewrite: expected mean coefficients of experts {tuple(num_experts)}, got {sizes}. "
                "Compute them from this layer: mean_coefficients(layer, features)."
            )

    def _check_listed(self) -> None:
        count, total = len(self.combinations), math.prod(self.num_experts)
        sound = all(0 <= unit < total for unit in self.combinations) and len(set(self.combinations)) == count
        if len(self.shares) != count or not sound or bool(self.factors) == bool(self.num_experts):
            raise UserError(
                f"Rewrite: expected factors, or one share for each of several combinations in 0..{total - 1}, got "
                f"{count:,} combinations and {len(self.shares):,} shares. Use Rewrite.of."
            )

    def operation(self, part: nn.Module) -> Operation:
        self.check(*_sizes(part))
        vectors = separate(self._listed()) if self.num_experts else _tensors(self.factors)
        return AddedTerm(self.head, (vectors[0] * self.strength, *vectors[1:]))

    def describe(self) -> str:
        return f"rewrite output {self.head} by {self.strength:+.4g} x mean coefficients"


@tensor_methods
@dataclass(frozen=True)
class Correct:
    """Add a chosen number to one output for single experts, in proportion to their coefficient.

    Attributes:
        head: The output.
        terms: (expert, number) pairs; an expert is its index, or its index tuple in a hierarchy.
        strength: Multiplies the numbers.
    """

    kind: ClassVar[str] = "correct"
    head: int
    terms: tuple[tuple[tuple[int, ...], float], ...]
    strength: float = 1.0

    @staticmethod
    def of(head: int, terms: Mapping[int | tuple[int, ...], float], strength: float = 1.0) -> Correct:
        """From {expert: number}."""
        pairs = ((n if isinstance(n, tuple) else (n,), float(value)) for n, value in terms.items())
        return Correct(head, tuple(pairs), strength)

    def __post_init__(self) -> None:
        checked_values(self)

    def check(self, num_experts: Sequence[int], out_features: int) -> None:
        _require_head(self.head, out_features, "Correct")
        for term in self.terms:
            if len(term) != 2 or not isinstance(term[0], tuple) or not isinstance(term[1], int | float):
                raise UserError(f"Correct: expected (expert, number) pairs, got {term!r}. Use Correct.of.")
            _combination(term[0], num_experts, "Correct")
        if not self.terms:
            raise UserError("Correct: expected a number for at least one expert, got none. Name one: {3: 0.5}.")

    def operation(self, part: nn.Module) -> Operation:
        sizes, outputs = _sizes(part)
        self.check(sizes, outputs)
        values = torch.tensor([value for _, value in self.terms], dtype=torch.float64) * self.strength
        first, *others = _units([_combination(n, sizes, "Correct") for n, _ in self.terms], sizes)
        return AddedTerm(self.head, (first * values, *others))

    def describe(self) -> str:
        shown = ", ".join(f"{_expert_text(n)}: {value * self.strength:+.4g}" for n, value in self.terms[:4])
        more = f" and {len(self.terms) - 4} more" if len(self.terms) > 4 else ""
        return f"correct output {self.head} by expert {shown}{more}"


@tensor_methods
@dataclass(frozen=True)
class SetOutput:
    """Make one expert contribute a constant to one output, for every input, in place of its own logit.

    Attributes:
        expert: Its index: in a hierarchy a tuple of one number per level.
        head: The output.
        value: The constant.
        strength: 1 replaces, values between mix.
    """

    kind: ClassVar[str] = "set-output"
    expert: tuple[int, ...]
    head: int
    value: float
    strength: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.expert, int):
            object.__setattr__(self, "expert", (self.expert,))
        checked_values(self)

    def check(self, num_experts: Sequence[int], out_features: int) -> None:
        _require_head(self.head, out_features, "SetOutput")
        _combination(self.expert, num_experts, "SetOutput")

    def operation(self, part: nn.Module) -> Operation:
        sizes, outputs = _sizes(part)
        self.check(sizes, outputs)
        index = _combination(self.expert, sizes, "SetOutput")
        own: Tensor = host(part.expert(index)[self.head])  # type: ignore[operator]
        if not part.bias:
            own = nn.functional.pad(own, (0, 1))
        wanted = torch.zeros_like(own)
        wanted[-1] = self.value
        return AddedTerm(self.head, _units([index], sizes), (wanted - own) * self.strength)

    def describe(self) -> str:
        return f"set expert {_expert_text(self.expert)}'s output {self.head} to {self.value:.4g}"


@tensor_methods
@dataclass(frozen=True)
class Scale:
    """Multiply the weights of one expert (in a hierarchy: all combinations that have it at its level).

    Attributes:
        expert: Its index at the level.
        factor: 2 doubles its contribution, -1 reverses it.
        level: The level.
        strength: 0 leaves it, 1 applies the factor, values between interpolate.
    """

    kind: ClassVar[str] = "scale"
    expert: int
    factor: float
    level: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        checked_values(self)

    def check(self, num_experts: Sequence[int], out_features: int) -> None:
        Ablation.parse([self.expert], self.level, num_experts, "Scale")

    def operation(self, part: nn.Module) -> Operation:
        self.check(*_sizes(part))
        factor = torch.tensor([[1 + self.strength * (self.factor - 1)]], dtype=torch.float64)
        return CoefficientMap(self.level, factor, (self.expert,))

    def describe(self) -> str:
        return f"scale expert {self.expert} of level {self.level} by {1 + self.strength * (self.factor - 1):.4g}"


@tensor_methods
@dataclass(frozen=True)
class Ablate:
    """Leave one expert out, W_n := 0 (in a hierarchy: all combinations that have it at its level).

    Attributes:
        expert: Its index at the level.
        level: The level.
        strength: 1 leaves it out, 0.5 halves it.
    """

    kind: ClassVar[str] = "ablate"
    expert: int
    level: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        checked_values(self)

    def check(self, num_experts: Sequence[int], out_features: int) -> None:
        Ablation.parse([self.expert], self.level, num_experts, "Ablate")

    def operation(self, part: nn.Module) -> Operation:
        self.check(*_sizes(part))
        return Scale(self.expert, 0.0, self.level, self.strength).operation(part)

    def describe(self) -> str:
        return f"ablate expert {self.expert} of level {self.level}"


@tensor_methods
@dataclass(frozen=True)
class Swap:
    """Exchange the weights of two experts of a level: inputs sent to one are processed by the other.

    Attributes:
        first: One expert's index at the level.
        second: The other's.
        level: The level.
        strength: 1 exchanges, values between mix the two.
    """

    kind: ClassVar[str] = "swap"
    first: int
    second: int
    level: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        checked_values(self)

    def check(self, num_experts: Sequence[int], out_features: int) -> None:
        Ablation.parse([self.first, self.second], self.level, num_experts, "Swap")

    def operation(self, part: nn.Module) -> Operation:
        self.check(*_sizes(part))
        stays = torch.eye(2, dtype=torch.float64)
        mixed = (1 - self.strength) * stays + self.strength * stays.flip(0)
        return CoefficientMap(self.level, mixed, (self.first, self.second))

    def describe(self) -> str:
        return f"swap experts {self.first} and {self.second} of level {self.level}"


EDITS: dict[str, type[Any]] = {kind.kind: kind for kind in (Rewrite, Correct, SetOutput, Scale, Ablate, Swap)}
"""Kind -> class, for files."""


def with_strength(edit: Any, strength: float) -> Any:
    """The same edit at another strength.

    Raises:
        UserError: If the strength is not finite.
    """
    if not abs(strength) < float("inf"):
        raise UserError(f"Edit: expected a finite strength, got {strength}. Give a number.")
    return replace(edit, strength=float(strength))


def _sizes(part: nn.Module) -> tuple[tuple[int, ...], int]:
    """Experts of each level, and outputs."""
    base = original(part)
    return tuple(base.num_experts), int(base.out_features)


def _combination(index: Sequence[int], num_experts: Sequence[int], who: str) -> tuple[int, ...]:
    return Ablation.parse([tuple(index)], None, num_experts, who).combinations[0]


def _units(places: Sequence[Sequence[int]], sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Per level (N_e, K): column k is 1 at the expert of that level in place k, else 0."""
    index = torch.tensor(places)
    return tuple(nn.functional.one_hot(index[:, e], size).double().mT for e, size in enumerate(sizes))


def _require_head(head: int, outputs: int, who: str) -> None:
    if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < outputs:
        raise UserError(f"{who}: expected an output in 0..{outputs - 1}, got {head!r}. The layer has {outputs}.")


def _tensors(factors: Sequence[Sequence[Sequence[float]]]) -> tuple[Tensor, ...]:
    try:
        return tuple(torch.tensor(factor, dtype=torch.float64) for factor in factors)
    except (TypeError, ValueError) as error:
        raise UserError(f"Rewrite: expected factors as matrices of numbers, got {error}. Use Rewrite.of.") from error


def _tuples(factor: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in factor.double().tolist())


def _expert_text(index: Sequence[int]) -> str:
    return str(index[0]) if len(index) == 1 else str(tuple(index))
