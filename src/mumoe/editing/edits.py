"""Edits of a MuMoE layer as objects: make, name, stack, scale, preview, apply, undo, fold.

The paper's correction (eq. 6) takes the mean coefficients a-bar with which the gate sends a subpopulation to the
experts, and adds lambda a-bar' a to one output's logit: whoever is sent to the same experts gets the same
correction, whoever is not gets little. With lambda = N, the number of experts, an input treated uniformly (each
coefficient 1/N) moves by about 1 and one treated like the subpopulation by more. In a hierarchy the coefficients
are those of *combinations* of experts, the products over the levels, so a-bar is the mean product (``joint``), and
N is the number of combinations; with ``levels`` it is the product of each level's mean, which folds into a single
component but also reaches combinations that the subpopulation never uses.

Every edit has a strength: 0 changes no bit, 1 is the edit as it is meant (for a rewriting it is lambda itself).
Edits are made in order, each on the result of those before it. Nothing is written into the factors: applying
puts a wrapper around them and undoing takes it off, so undoing is exact.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from mumoe.ablation import Ablation
from mumoe.editing.fold import fold_layer
from mumoe.editing.operations import AddedTerm, CoefficientMap, EditedFactorization, Operation, original, separate
from mumoe.errors import UserError, unknown_name
from mumoe.layers import MuMoE

__all__ = [
    "EDITS",
    "Ablate",
    "Correct",
    "Edit",
    "EditStack",
    "Rewrite",
    "Scale",
    "SetOutput",
    "Swap",
    "find_layer",
    "fingerprint",
    "mean_coefficients",
    "rewriting",
]


class Edit(Protocol):
    """One change of a layer. A frozen dataclass whose fields are plain JSON values or tuples of them."""

    kind: ClassVar[str]

    @property
    def strength(self) -> float:
        """0 is no change, 1 the edit as meant."""
        ...

    def operation(self, part: nn.Module) -> Operation:
        """What it does to this factorization, which may be edited already.

        Raises:
            UserError: If an expert, level or output does not exist there.
        """
        ...

    def describe(self) -> str:
        """One line for a list."""
        ...


EDITS: dict[str, type[Any]] = {}
"""Kind -> class, for files."""


def _register(cls: type[Any]) -> type[Any]:
    EDITS[cls.kind] = cls
    return cls


@_register
@dataclass(frozen=True)
class Rewrite:
    """Add strength * a-bar . a to one output (eq. 6).

    Attributes:
        head: The output.
        factors: Per level (N_e, K) as nested tuples: a-bar = sum_k prod_e factors[e][:, k].
        strength: Lambda, with its sign.
    """

    kind: ClassVar[str] = "rewrite"
    head: int
    factors: tuple[tuple[tuple[float, ...], ...], ...]
    strength: float = 1.0

    @staticmethod
    def of(head: int, mean: Tensor, strength: float) -> Rewrite:
        """From mean coefficients (N_1, .., N_E), whose exact components are taken."""
        return Rewrite(head, tuple(_tuples(factor) for factor in separate(mean)), strength)

    @property
    def mean(self) -> Tensor:
        """a-bar, (N_1, .., N_E) in float64."""
        return AddedTerm(self.head, _tensors(self.factors)).joint()

    def operation(self, part: nn.Module) -> Operation:
        _require_head(self.head, part)
        vectors = _tensors(self.factors)
        sizes = tuple(len(vector) for vector in vectors)
        if sizes != tuple(original(part).num_experts):
            raise UserError(
                f"Rewrite: expected mean coefficients of experts {original(part).num_experts}, got {sizes}. "
                "Take them from this layer: mean_coefficients(layer, features)."
            )
        return AddedTerm(self.head, (vectors[0] * self.strength, *vectors[1:]))

    def describe(self) -> str:
        return f"rewrite output {self.head} by {self.strength:+.4g} x mean coefficients"


@_register
@dataclass(frozen=True)
class Correct:
    """Add a number of one's own choice to one output for single experts, in proportion to their coefficient.

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

    def operation(self, part: nn.Module) -> Operation:
        _require_head(self.head, part)
        sizes = original(part).num_experts
        index = [_combination(n, part, "Correct") for n, _ in self.terms]
        if not index:
            raise UserError("Correct: expected a number for at least one expert, got none. Name one: {3: 0.5}.")
        values = torch.tensor([value for _, value in self.terms], dtype=torch.float64) * self.strength
        places = torch.tensor(index)
        units = [nn.functional.one_hot(places[:, e], size).double().mT for e, size in enumerate(sizes)]
        return AddedTerm(self.head, (units[0] * values, *units[1:]))

    def describe(self) -> str:
        shown = ", ".join(f"{_expert_text(n)}: {value * self.strength:+.4g}" for n, value in self.terms[:4])
        more = f" and {len(self.terms) - 4} more" if len(self.terms) > 4 else ""
        return f"correct output {self.head} by expert {shown}{more}"


@_register
@dataclass(frozen=True)
class SetOutput:
    """Make one expert contribute a constant to one output, whatever the input, in place of its own logit.

    Attributes:
        expert: Its index, as a tuple of one number per level.
        head: The output.
        value: The constant.
        strength: 1 replaces, values between mix.
    """

    kind: ClassVar[str] = "set-output"
    expert: tuple[int, ...]
    head: int
    value: float
    strength: float = 1.0

    def operation(self, part: nn.Module) -> Operation:
        _require_head(self.head, part)
        index = _combination(self.expert, part, "SetOutput")
        own: Tensor = part.expert(index)[self.head].detach().double()  # type: ignore[operator]
        if not part.bias:
            own = nn.functional.pad(own, (0, 1))
        wanted = torch.zeros_like(own)
        wanted[-1] = self.value
        sizes = original(part).num_experts
        units = tuple(
            torch.eye(size, dtype=own.dtype, device=own.device)[:, [n]] for size, n in zip(sizes, index, strict=True)
        )
        return AddedTerm(self.head, units, (wanted - own) * self.strength)

    def describe(self) -> str:
        return f"set expert {_expert_text(self.expert)}'s output {self.head} to {self.value:.4g}"


@_register
@dataclass(frozen=True)
class Scale:
    """Multiply the weights of one expert (in a hierarchy: all combinations that have it at its level).

    Attributes:
        expert: Its index at the level.
        factor: 2 doubles what it says, -1 turns it round.
        level: The level.
        strength: 0 leaves it, 1 applies the factor, values between go there linearly.
    """

    kind: ClassVar[str] = "scale"
    expert: int
    factor: float
    level: int = 0
    strength: float = 1.0

    def operation(self, part: nn.Module) -> Operation:
        matrix = _identity(part, self.level, [self.expert], "Scale")
        matrix[self.expert, self.expert] = 1 + self.strength * (self.factor - 1)
        return CoefficientMap(self.level, matrix)

    def describe(self) -> str:
        return f"scale expert {self.expert} of level {self.level} by {1 + self.strength * (self.factor - 1):.4g}"


@_register
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

    def operation(self, part: nn.Module) -> Operation:
        return Scale(self.expert, 0.0, self.level, self.strength).operation(part)

    def describe(self) -> str:
        return f"ablate expert {self.expert} of level {self.level}"


@_register
@dataclass(frozen=True)
class Swap:
    """Exchange the weights of two experts of a level: inputs sent to one are treated by the other.

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

    def operation(self, part: nn.Module) -> Operation:
        matrix = _identity(part, self.level, [self.first, self.second], "Swap")
        swapped = matrix.clone()
        swapped[[self.first, self.second]] = matrix[[self.second, self.first]]
        return CoefficientMap(self.level, (1 - self.strength) * matrix + self.strength * swapped)

    def describe(self) -> str:
        return f"swap experts {self.first} and {self.second} of level {self.level}"


@dataclass
class EditStack:
    """Edits of one layer, by name, in order; nothing happens to the layer until `apply`.

    >>> layer = MuMoE(4, 2, num_experts=3, factorization="cp", rank=2).eval()
    >>> stack = EditStack(layer)
    >>> stack.add(Ablate(1), "without 1")
    'without 1'
    >>> with stack:
    ...     edited = layer(torch.ones(1, 4))

    Attributes:
        layer: The layer.
        edits: Name to edit, in the order of making.
    """

    layer: MuMoE
    edits: dict[str, Edit] = field(default_factory=dict)
    _wrapper: EditedFactorization | None = field(default=None, init=False, repr=False)

    def add(self, edit: Edit, name: str | None = None) -> str:
        """Put an edit on top, under a name that is free (made from its kind by default); returns the name.

        Raises:
            UserError: If the name is taken, or the edit does not fit the layer. Nothing is changed then.
        """
        if name is None:
            numbers = (f"{edit.kind}-{i}" for i in range(1, len(self.edits) + 2))
            name = next(free for free in numbers if free not in self.edits)
        if name in self.edits:
            raise UserError(f"EditStack: expected a new name, got {name!r}, which is taken. Remove it first.")
        self._set({**self.edits, name: edit})
        return name

    def remove(self, name: str) -> Edit:
        """Take an edit out, wherever it is in the stack."""
        edit = self[name]
        self._set({key: value for key, value in self.edits.items() if key != name})
        return edit

    def scale(self, name: str, strength: float) -> None:
        """Give an edit another strength."""
        self._set({**self.edits, name: with_strength(self[name], strength)})

    def __getitem__(self, name: str) -> Edit:
        if name not in self.edits:
            raise unknown_name("EditStack", "edit", name, self.edits)
        return self.edits[name]

    def __len__(self) -> int:
        return len(self.edits)

    def describe(self) -> list[str]:
        """One line per edit, in order."""
        return [f"{name}: {edit.describe()}" for name, edit in self.edits.items()]

    @property
    def applied(self) -> bool:
        """Whether the layer computes with these edits now."""
        return self._wrapper is not None

    def apply(self) -> None:
        """Let the layer compute with the edits until `undo`. Applying twice changes nothing."""
        if self._wrapper is None:
            part: nn.Module = self.layer.factorization
            wrapper = EditedFactorization(part, self._operations(part, self.edits))
            self.layer.factorization = wrapper  # type: ignore[assignment]
            self._wrapper = wrapper.train(part.training)

    def undo(self) -> None:
        """Take the edits off: the layer has its own, untouched factors again. Undoing twice changes nothing.

        Raises:
            UserError: If another stack was applied on top and is still there.
        """
        if self._wrapper is None:
            return
        self._require_on_top()
        self.layer.factorization = self._wrapper.base  # type: ignore[assignment]
        self._wrapper = None

    def __enter__(self) -> EditStack:
        self.apply()
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    @torch.no_grad()
    def preview(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (..., out) without and with the edits, in evaluation mode; the layer stays as it is."""
        training = self.layer.training
        self.layer.eval()
        try:
            with self._without():
                before = self.layer(x)
            with self._with():
                return before, self.layer(x)
        finally:
            self.layer.train(training)

    def fold(self) -> MuMoE:
        """A new, ordinary layer that computes what the edited one computes; see `mumoe.editing.fold`."""
        with self._with():
            return fold_layer(self.layer)

    @contextlib.contextmanager
    def _with(self) -> Iterator[None]:
        was = self.applied
        self.apply()
        try:
            yield
        finally:
            if not was:
                self.undo()

    @contextlib.contextmanager
    def _without(self) -> Iterator[None]:
        was = self.applied
        self.undo()
        try:
            yield
        finally:
            if was:
                self.apply()

    def _set(self, edits: dict[str, Edit]) -> None:
        """Take other edits, if they all fit; an applied stack computes with them at once."""
        base = self.layer.factorization if self._wrapper is None else self._wrapper.base
        operations = self._operations(base, edits)
        if self._wrapper is not None:
            self._require_on_top()
            wrapper = EditedFactorization(base, operations).train(base.training)
            self.layer.factorization, self._wrapper = wrapper, wrapper  # type: ignore[assignment]
        self.edits = edits

    def _require_on_top(self) -> None:
        top: nn.Module = self.layer.factorization
        if top is not self._wrapper:
            raise UserError("EditStack: expected the edits applied last, got others on top. Undo those first.")

    @staticmethod
    def _operations(base: nn.Module, edits: Mapping[str, Edit]) -> list[Operation]:
        """Operations of the edits with a strength, each found on the result of those before it."""
        found: list[Operation] = []
        for edit in edits.values():
            operation = edit.operation(EditedFactorization(base, found) if found else base)
            if edit.strength != 0:
                found.append(operation)
        return found


def with_strength(edit: Any, strength: float) -> Any:
    """The same edit at another strength.

    Raises:
        UserError: If the strength is not finite.
    """
    if not abs(strength) < float("inf"):
        raise UserError(f"Edit: expected a finite strength, got {strength}. Give a number.")
    return replace(edit, strength=float(strength))


def rewriting(
    layer: MuMoE,
    head: int,
    mean: Tensor,
    *,
    direction: Literal["raise", "lower"] = "raise",
    strength: float | None = None,
) -> Rewrite:
    """The paper's rewriting of one output: lambda = N by default, its sign by the direction asked for.

    Args:
        layer: The layer.
        head: The output, a 0/1 attribute's logit.
        mean: Mean coefficients of the subpopulation, (N_1, .., N_E), from `mean_coefficients`.
        direction: Whether the subpopulation is missed (``raise``) or wrongly included (``lower``).
        strength: Size of lambda, at least 0; the number of (combinations of) experts by default.
    """
    if direction not in ("raise", "lower"):
        raise unknown_name("rewriting", "direction", direction, ("raise", "lower"))
    size = float(mean.numel()) if strength is None else float(strength)
    edit = Rewrite.of(head, mean, size if direction == "raise" else -size)
    edit.operation(layer.factorization)
    return edit


@torch.no_grad()
def mean_coefficients(
    layer: MuMoE, features: Tensor | Iterable[Tensor], *, reading: Literal["joint", "levels"] = "joint"
) -> Tensor:
    """Mean coefficients of a subpopulation, (N_1, .., N_E) in float64; in evaluation mode.

    Args:
        layer: The layer.
        features: Its inputs, (..., in_features), or batches of them.
        reading: ``joint`` means products of the levels' coefficients row by row, ``levels`` multiplies the means.

    Raises:
        UserError: If there is no row.
    """
    if reading not in ("joint", "levels"):
        raise unknown_name("mean_coefficients", "reading", reading, ("joint", "levels"))
    batches = [features] if isinstance(features, Tensor) else features
    training, count, sums = layer.training, 0, [torch.zeros(())]
    layer.eval()
    try:
        for batch in batches:
            levels = [a.reshape(-1, a.shape[-1]).double() for a in layer.coefficients(batch)]
            count += len(levels[0])
            parts = [_joint_sum(levels)] if reading == "joint" else [a.sum(0) for a in levels]
            sums = [
                part if total.ndim == 0 else total + part for total, part in zip(sums * len(parts), parts, strict=False)
            ]
    finally:
        layer.train(training)
    if not count:
        raise UserError("mean_coefficients: expected rows of the subpopulation, got none. Check the filter.")
    mean = sums[0] / count
    for part in sums[1:]:
        mean = mean[..., None] * (part / count)
    return mean


def find_layer(model: nn.Module, name: str | None = None) -> MuMoE:
    """The MuMoE layer of a model; its name among the modules is needed where there are several.

    Raises:
        UserError: If there is none, several, or none of that name.
    """
    layers = {key: module for key, module in model.named_modules() if isinstance(module, MuMoE)}
    if not layers:
        raise UserError(
            f"find_layer: expected a model with a MuMoE layer, got a {type(model).__name__} without. "
            "Only mixtures of experts can be edited."
        )
    if name is None:
        if len(layers) > 1:
            raise UserError(f"find_layer: expected one MuMoE layer, got {', '.join(layers)}. Name one of them.")
        return next(iter(layers.values()))
    if name not in layers:
        raise unknown_name("find_layer", "layer", name, layers)
    return layers[name]


def fingerprint(layer: MuMoE) -> str:
    """Hex digest of a layer's gate and own factors (not of edits applied to it)."""
    digest = hashlib.sha256(repr((layer.in_features, layer.out_features, layer.num_experts)).encode())
    for prefix, module in (("gate", layer.gate), ("factorization", original(layer.factorization))):
        for name, value in sorted(module.state_dict().items()):
            value = value.detach().cpu().contiguous()
            digest.update(f"{prefix}.{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _joint_sum(levels: Sequence[Tensor]) -> Tensor:
    letters = "abcdefghijk"[: len(levels)]
    inputs = ",".join(f"z{letter}" for letter in letters)
    joint: Tensor = torch.einsum(f"{inputs}->{letters}", *levels)
    return joint


def _identity(part: nn.Module, level: int, experts: Sequence[int], who: str) -> Tensor:
    """The unit matrix of a level, once level and experts are known to exist."""
    Ablation.parse(experts, level, original(part).num_experts, who)
    return torch.eye(original(part).num_experts[level], dtype=torch.float64)


def _combination(index: Sequence[int], part: nn.Module, who: str) -> tuple[int, ...]:
    return Ablation.parse([tuple(index)], None, original(part).num_experts, who).combinations[0]


def _require_head(head: int, part: nn.Module) -> None:
    outputs = original(part).out_features
    if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < outputs:
        raise UserError(f"Edit: expected an output in 0..{outputs - 1}, got {head!r}. The layer has {outputs}.")


def _tensors(factors: Sequence[Sequence[Sequence[float]]]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(factor, dtype=torch.float64) for factor in factors)


def _tuples(factor: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in factor.double().tolist())


def _expert_text(index: Sequence[int]) -> str:
    return str(index[0]) if len(index) == 1 else str(tuple(index))
