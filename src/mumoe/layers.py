"""MuMoE = gate + factorization; MuMoEBlock = two layers under one gate. Baselines: `mumoe.baselines`."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar, Literal, Self, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe.ablation import Ablation, ablated, ablations, active, contract_ablated
from mumoe.coefficients import Coefficients, DenseCoefficients, as_coefficients
from mumoe.errors import UserError, unknown_name
from mumoe.factorizations import FACTORIZATIONS, INITS, Factorization, Rank, get_factorization
from mumoe.gating import Gate

__all__ = ["MuMoE", "MuMoEBlock", "allow_non_finite", "parse_spec"]


def _positive(value: Any, name: str, who: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{who}: expected {name} as an int >= 1, got {value!r}. Give a positive whole number.")
    return value


def _levels(num_experts: int | Sequence[int], who: str) -> tuple[int, ...]:
    if not isinstance(num_experts, int | Sequence) or isinstance(num_experts, str):
        raise UserError(
            f"{who}: expected num_experts as an int, or one int per level, got {num_experts!r}. Give 128 or (128, 4)."
        )
    sizes = (num_experts,) if isinstance(num_experts, int) else tuple(num_experts)
    if not sizes:
        raise UserError(f"{who}: expected num_experts of at least one level, got (). Give an int or a tuple.")
    return tuple(_positive(size, "num_experts", who) for size in sizes)


_non_finite_allowed: ContextVar[bool] = ContextVar("mumoe_non_finite_allowed", default=False)


@contextlib.contextmanager
def allow_non_finite() -> Iterator[None]:
    """Within the context, layers load weights that are NaN or infinite, to examine a checkpoint that diverged."""
    token = _non_finite_allowed.set(True)
    try:
        yield
    finally:
        _non_finite_allowed.reset(token)


def _refuse_non_finite(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    for name, value in {} if _non_finite_allowed.get() else state.items():
        tensor = isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta
        if name.startswith(prefix) and tensor and not bool(value.isfinite().all()):
            bad = int((~value.isfinite()).sum())
            raise UserError(
                f"{type(module).__name__}: expected finite weights, got {bad} NaN or infinite values in {name!r}. "
                "Load another checkpoint, or examine this one: with mumoe.layers.allow_non_finite()."
            )


Asked = bool | Literal["sparse"]
"""What `return_coefficients` may be."""


class _Gated(nn.Module):
    """What MuMoE and MuMoEBlock share: one gate, an input of known width, experts that can be ablated."""

    in_features: int
    num_experts: tuple[int, ...]
    gate: Gate
    _first: ClassVar[str]
    """Name of the factorization that the input meets first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_refuse_non_finite)  # type: ignore[no-untyped-call]

    def _rows(self, x: Tensor) -> Tensor:
        """x as (rows, in_features)."""
        who = type(self).__name__
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            got = x.shape[-1] if x.ndim else "a number"
            raise UserError(
                f"{who}: expected x.shape[-1] == in_features == {self.in_features}, got {got} "
                f"(x.shape={tuple(x.shape)}). Set in_features={got} or project x first."
            )
        dtype = next(self._modules[self._first].parameters()).dtype  # type: ignore[union-attr]
        if not x.is_floating_point() or (x.dtype != dtype and not _autocast(x)):
            raise UserError(
                f"{who}: expected x.dtype == {dtype} as the weights have, got {x.dtype}. "
                f"Use x.to({dtype}), layer.to({x.dtype}) or torch.autocast."
            )
        return x.reshape(-1, self.in_features)

    def coefficients(self, x: Tensor) -> tuple[Tensor, ...]:
        """Expert coefficients of every level.

        Shape:
            x (..., in_features); returns one (..., num_experts[e]) per level.
        """
        return _unflatten(self.gate(self._rows(x)), x)

    @contextlib.contextmanager
    def ablate(self, experts: Any, *, level: int | None = None) -> Iterator[Self]:
        """Within the context, the weight of these experts is zero: W_n := 0, and nothing else changes.

        Coefficients stay as they are and are not normalized again. Contexts nest, and each removes its own experts when
        it ends, also after an exception. Other threads and asyncio tasks, copies of the layer and its saved state are
        not ablated.

        Args:
            experts: Indices, or a boolean mask over the experts of the level; in a hierarchy index tuples (one number
                per level), unless `level` is given.
            level: Ablate every combination that has one of these experts at this level.

        Raises:
            UserError: If an index does not exist, or a mask has another length than the level.
        """
        with ablated(self, Ablation.parse(experts, level, self.num_experts, type(self).__name__)):
            yield self

    def _gate_rows(self, x: Tensor, gate_input: Tensor) -> Tensor:
        """What the gate reads instead of x, as (rows, features)."""
        if gate_input.ndim < 1 or gate_input.shape[:-1] != x.shape[:-1]:
            raise UserError(
                f"{type(self).__name__}: expected gate_input of shape {tuple(x.shape[:-1])} but for its last "
                f"dimension, as x has, got {tuple(gate_input.shape)}. Give one row for each row of x."
            )
        return gate_input.reshape(-1, gate_input.shape[-1])

    def _contract(self, part: Factorization, x: Tensor, coefficients: Sequence[Tensor | Coefficients]) -> Tensor:
        dtype, levels = x.dtype, []
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        for a in coefficients:
            level = a if isinstance(a, Coefficients) else DenseCoefficients(a)
            levels.append(level if level.dtype == dtype else level.to(dtype))
        contract = _contract_tensors(part) if torch.compiler.is_compiling() else part
        if active.get() and (left_out := ablations(self)):
            return contract_ablated(contract, x, levels, left_out)
        y: Tensor = contract(x, levels)
        return y

    def _answer(self, y: Tensor, x: Tensor, a: Sequence[Tensor | Coefficients], asked: Asked) -> Any:
        """y in the leading shape of x, and the coefficients as they were asked for."""
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        if asked is False:
            return y
        return y, tuple(map(as_coefficients, a)) if asked == "sparse" else _unflatten(a, x)


def _contract_tensors(part: Factorization) -> Callable[[Tensor, Sequence[Coefficients]], Tensor]:
    """The factorization on matrices: torch.compile does not trace ``a @ factor`` for an object a."""
    return lambda x, coefficients: part(x, [a.to_dense() for a in coefficients])


def _unflatten(levels: Sequence[Tensor | Coefficients], x: Tensor) -> tuple[Tensor, ...]:
    levels = [as_coefficients(a) for a in levels]
    return tuple([a.to_dense().reshape(*x.shape[:-1], a.shape[-1]) for a in levels])


def _autocast(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


class MuMoE(_Gated):
    """A linear layer that mixes experts by sparse coefficients, computed on the factors of their weights.

    y = W x_2 z x_3 a_1 .. x_{E+2} a_E with a_e = gate_e(z), where W has modes (out, in + 1, N_1, .., N_E).

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_experts: Number of experts; a tuple for a hierarchy, one number per level.
        factorization: ``cp``, ``tucker``, ``tt``, ``tr`` or ``dense``.
        rank: An int as the paper means it, or named modes or bonds: see the factorization's class.
        bias: One bias per expert, folded into W.
        gate: Activation of the gate by name, or a module: see `gating.GATES`.
        norm: Normalization of the gate's logits: ``batch``, ``layer`` or ``none``.
        init: ``paper`` (appendix B.1) or ``uniform``.
        sigma: Noise between the experts of each level at init; the default 1, 0, 0.. makes every expert of
            a later level a copy.
        gate_init: ``normal`` or ``zeros``.
        gate_options: Options of the activation, such as ``{"alpha": 1.3}``.

    Shape:
        (..., in_features) -> (..., out_features), any number of leading dimensions.

    Raises:
        UserError: For an unknown name, a size or rank below 1, an input of another width or dtype, or one
            row alone in training with ``norm="batch"``.

    Source: Oldfield et al. 2024, eq. 1 to 4 and appendix A.

    >>> layer = MuMoE(8, 3, num_experts=4, factorization="cp", rank=2)
    >>> layer.eval()(torch.randn(5, 7, 8)).shape
    torch.Size([5, 7, 3])
    """

    _first = "factorization"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_experts: int | Sequence[int],
        factorization: str = "cp",
        rank: Rank | None = None,
        *,
        bias: bool = True,
        gate: str | nn.Module = "entmax15",
        norm: str = "batch",
        init: str = "paper",
        sigma: Sequence[float] | None = None,
        gate_init: str = "normal",
        gate_options: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = _positive(in_features, "in_features", "MuMoE")
        self.out_features = _positive(out_features, "out_features", "MuMoE")
        self.num_experts = _levels(num_experts, "MuMoE")
        _check_init(init, sigma, self.num_experts)
        self.init, self.sigma = init, sigma
        kind = get_factorization(factorization)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.gate = Gate(in_features, self.num_experts, gate, norm, options=gate_options, init=gate_init, **where)
        self.factorization = kind(in_features, out_features, self.num_experts, rank, bias=bias, **where)
        self.factorization.reset_parameters(init, sigma)

    def reset_parameters(self) -> None:
        """Draw gate and factors anew."""
        self.gate.reset_parameters()
        self.factorization.reset_parameters(self.init, self.sigma)

    @overload
    def forward(
        self, x: Tensor, return_coefficients: Literal[False] = False, *, gate_input: Tensor | None = None
    ) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, return_coefficients: Literal[True], *, gate_input: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]: ...
    @overload
    def forward(
        self, x: Tensor, return_coefficients: Literal["sparse"], *, gate_input: Tensor | None = None
    ) -> tuple[Tensor, tuple[Coefficients, ...]]: ...

    def forward(self, x: Tensor, return_coefficients: Asked = False, *, gate_input: Tensor | None = None) -> Any:
        """y, or (y, coefficients).

        Args:
            x: (..., in_features).
            return_coefficients: True for one (..., num_experts[e]) tensor per level; ``"sparse"`` for what the gate
                returned, one (rows, num_experts[e]) `Coefficients` per level, with the leading dimensions as rows.
            gate_input: What the gate reads instead of x, with as many rows.
        """
        rows = self._rows(x)
        a = self.gate(rows if gate_input is None else self._gate_rows(x, gate_input))
        y = self._contract(self.factorization, rows, a)
        if return_coefficients is False:
            return y.reshape(*x.shape[:-1], self.out_features)
        return self._answer(y, x, a, return_coefficients)

    def contract(self, x: Tensor, coefficients: Sequence[Tensor | Coefficients]) -> Tensor:
        """The layer with coefficients given instead of the gate's; they need not sum to 1.

        Shape:
            x (..., in_features); coefficients[e] (..., num_experts[e]), or `Coefficients` over all rows; returns
            (..., out_features).

        Raises:
            UserError: If there is not one for each level, or one has another shape.
        """
        rows = self._rows(x)
        if isinstance(coefficients, Tensor) or len(coefficients) != len(self.num_experts):
            raise UserError(
                f"MuMoE.contract: expected coefficients as a list of {len(self.num_experts)} tensors, one per level, "
                f"got {'a tensor' if isinstance(coefficients, Tensor) else len(coefficients)}. Wrap them in a list."
            )
        levels = []
        for level, (a, size) in enumerate(zip(coefficients, self.num_experts, strict=True)):
            expected = (*x.shape[:-1], size) if isinstance(a, Tensor) else (len(rows), size)
            if tuple(a.shape) != expected:
                raise UserError(
                    f"MuMoE.contract: expected coefficients[{level}] of shape {expected}, got {tuple(a.shape)}. "
                    "Their rows are those of x, and the experts come last."
                )
            levels.append(DenseCoefficients(a.reshape(-1, size)) if isinstance(a, Tensor) else a)
        return self._contract(self.factorization, rows, levels).reshape(*x.shape[:-1], self.out_features)

    def to_dense(self) -> Tensor:
        """The weight tensor in full, (out, in + 1, N_1, .., N_E); the last input column is the bias."""
        return self.factorization.to_dense()

    def expert_weight(self, index: int | Sequence[int]) -> Tensor:
        """Weight (out, in) of one expert, without forming the others; an index tuple in a hierarchy."""
        return self._expert(index)[:, : self.in_features]

    def expert_bias(self, index: int | Sequence[int]) -> Tensor | None:
        """Bias (out,) of one expert, or None for a layer without."""
        return self._expert(index)[:, self.in_features] if self.factorization.bias else None

    def _expert(self, index: int | Sequence[int]) -> Tensor:
        ablation = Ablation.parse([index], None, self.num_experts, "MuMoE")
        return self.factorization.expert(ablation.combinations[0])

    @property
    def spec(self) -> str:
        """The layer as the paper writes it, e.g. ``CPMuMoE-r512-e128``; `from_spec` reads it."""
        part = self.factorization
        experts = "x".join(map(str, self.num_experts))
        if not part.ranks:
            return f"{part.title}-e{experts}"
        return f"{part.title}-r{_rank_text(part, self.num_experts)}-e{experts}"

    @classmethod
    def from_spec(cls, spec: str, in_features: int, out_features: int, **options: Any) -> MuMoE:
        """A layer from its specification; other options as in the constructor.

        Raises:
            UserError: If the text is not a specification; the forms are shown.
        """
        return cls(in_features, out_features, **parse_spec(spec), **options)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        num_experts: int | Sequence[int],
        factorization: str = "cp",
        rank: Rank | None = None,
        *,
        sigma: float = 0.0,
        **options: Any,
    ) -> MuMoE:
        """Upcycle a trained linear layer: every expert starts as a copy of it.

        With enough rank (the default) the new layer computes the same function whatever the coefficients; with
        less it is the best approximation of that rank, and a warning states the relative error.

        Args:
            linear: The layer to copy, left as it is.
            num_experts: As in the constructor.
            factorization: As in the constructor.
            rank: As in the constructor; None takes the smallest one that is exact.
            sigma: Noise between the experts of the first level, relative to their weights; 0 is exact.
        """
        matrix = linear.weight.detach()
        if linear.bias is not None:
            matrix = torch.cat([matrix, linear.bias.detach()[:, None]], dim=1)
        levels = _levels(num_experts, "MuMoE.from_linear")
        if rank is None:
            rank = get_factorization(factorization, "MuMoE.from_linear").exact_rank(
                matrix.shape[0], matrix.shape[1], levels
            )
        where: dict[str, Any] = {"device": matrix.device, "dtype": matrix.dtype, "bias": linear.bias is not None}
        layer = cls(linear.in_features, linear.out_features, levels, factorization, rank, **(where | options))
        if layer.factorization.bias and linear.bias is None:
            matrix = F.pad(matrix, (0, 1))
        elif linear.bias is not None and not layer.factorization.bias:
            raise UserError("MuMoE.from_linear: expected bias=True for a linear layer with one. Leave bias out.")
        layer.factorization.copy_linear(matrix, (0.0,) * len(levels))
        error = _relative_error(layer, matrix, levels)
        if error > 1e-5:
            warnings.warn(
                f"MuMoE.from_linear: {layer.spec} approximates the linear layer with relative error {error:.3g} "
                "(Frobenius norm). A larger rank, or rank=None, lowers it.",
                stacklevel=2,
            )
        if sigma:
            layer.factorization.copy_linear(matrix, (sigma, *[0.0] * (len(levels) - 1)))
        return layer

    def extra_repr(self) -> str:
        return self.spec


def _relative_error(layer: MuMoE, matrix: Tensor, levels: tuple[int, ...]) -> float:
    if matrix.is_meta:
        return 0.0
    with torch.no_grad():
        copy = layer.factorization.expert((0,) * len(levels)).double()
        norm = float(matrix.double().norm())
        return float((copy - matrix.double()).norm()) / norm if norm else 0.0


def _check_init(init: str, sigma: Sequence[float] | None, num_experts: Sequence[int]) -> None:
    if init not in INITS:
        raise unknown_name("MuMoE", "init", init, INITS)
    if sigma is not None and len(sigma) != len(num_experts):
        raise UserError(
            f"MuMoE: expected sigma with one value for each of {len(num_experts)} levels, got {tuple(sigma)}. "
            "Leave it out for the paper's 1, 0, 0.."
        )


def _rank_text(part: Factorization, num_experts: Sequence[int]) -> str:
    """``512`` where an int says it all, else every rank in order: ``512x4x4``."""
    first = next(iter(part.ranks.values()))
    assert isinstance(first, int)
    if type(part).resolve_ranks(first, num_experts) == part.ranks:
        return str(first)
    values = (value if isinstance(value, tuple) else (value,) for value in part.ranks.values())
    return "x".join(str(rank) for group in values for rank in group)


def parse_spec(spec: str) -> dict[str, Any]:
    """Constructor arguments of a specification such as ``TRMuMoE-r512-e128x4``.

    Several ranks joined by ``x`` name every mode or bond in the order out, in, levels.

    Raises:
        UserError: If the text is not one.
    """
    titles = {kind.title: name for name, kind in FACTORIZATIONS.items()}
    match = re.fullmatch(r"([A-Za-z]+)(?:-r(\d+(?:x\d+)*))?-e(\d+(?:x\d+)*)", spec)
    if match is None:
        raise UserError(
            f"from_spec: expected a text like CPMuMoE-r512-e128 or TRMuMoE-r512-e128x4, got {spec!r}. "
            "Write name, -r and the rank, -e and the experts of each level."
        )
    title, rank_text, expert_text = match.groups()
    if title not in titles:
        raise unknown_name("from_spec", "layer name", title, titles)
    num_experts = tuple(int(size) for size in expert_text.split("x"))
    ranks = [int(rank) for rank in (rank_text or "").split("x") if rank]
    rank = _named_ranks(titles[title], ranks, num_experts, spec) if len(ranks) > 1 else (ranks[0] if ranks else None)
    return {"num_experts": num_experts, "factorization": titles[title], "rank": rank}


def _named_ranks(name: str, ranks: list[int], num_experts: Sequence[int], spec: str) -> Rank:
    levels = len(num_experts)
    if name == "tucker" and len(ranks) == 2 + levels:
        return {"out": ranks[0], "in": ranks[1], "experts": tuple(ranks[2:])}
    if name in ("tt", "tr") and len(ranks) == 2 + levels:
        between = tuple(ranks[2:-1])
        return {"out-in": ranks[0], "in-expert": ranks[1], "expert-expert": between, "expert-out": ranks[-1]}
    raise UserError(
        f"from_spec: expected one rank or {2 + levels} of them for {levels} levels of {name!r}, got {spec!r}. "
        "Their order is out, in, levels (Tucker) or out-in, in-expert, between levels, expert-out (TT, TR)."
    )


class MuMoEBlock(_Gated):
    """A two-layer MLP whose both layers are mixtures of experts under one gate.

    a = gate(x);  h = act(W1 x a);  y = W2 h a

    Args:
        in_features: Width of the input.
        hidden_features: Width between the layers.
        out_features: Width of the output.
        num_experts: As in `MuMoE`.
        factorization: As in `MuMoE`, for both layers.
        rank: As in `MuMoE`; a list of two gives each layer its own.
        act_layer: Makes the nonlinearity.

    Shape:
        (..., in_features) -> (..., out_features).

    Source: the later version of Oldfield et al. 2024 (see the paper page of the docs).
    """

    _first = "fc1"

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        num_experts: int | Sequence[int],
        factorization: str = "cp",
        rank: Rank | list[Rank] | None = None,
        *,
        bias: bool = True,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        gate: str | nn.Module = "entmax15",
        norm: str = "batch",
        init: str = "paper",
        sigma: Sequence[float] | None = None,
        gate_init: str = "normal",
        gate_options: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = _positive(in_features, "in_features", "MuMoEBlock")
        self.hidden_features = _positive(hidden_features, "hidden_features", "MuMoEBlock")
        self.out_features = _positive(out_features, "out_features", "MuMoEBlock")
        self.num_experts = _levels(num_experts, "MuMoEBlock")
        _check_init(init, sigma, self.num_experts)
        self.init, self.sigma = init, sigma
        kind = get_factorization(factorization, "MuMoEBlock")
        ranks = rank if isinstance(rank, list) else [rank, rank]
        if len(ranks) != 2:
            raise UserError(f"MuMoEBlock: expected rank as one, or a list of two, got {rank!r}. Give two.")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.gate = Gate(in_features, self.num_experts, gate, norm, options=gate_options, init=gate_init, **where)
        self.fc1 = kind(in_features, hidden_features, self.num_experts, ranks[0], bias=bias, **where)
        self.act = act_layer()
        self.fc2 = kind(hidden_features, out_features, self.num_experts, ranks[1], bias=bias, **where)
        for part in (self.fc1, self.fc2):
            part.reset_parameters(init, sigma)

    def reset_parameters(self) -> None:
        """Draw gate and factors anew."""
        self.gate.reset_parameters()
        for part in (self.fc1, self.fc2):
            part.reset_parameters(self.init, self.sigma)

    @overload
    def forward(
        self, x: Tensor, return_coefficients: Literal[False] = False, *, gate_input: Tensor | None = None
    ) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, return_coefficients: Literal[True], *, gate_input: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]: ...
    @overload
    def forward(
        self, x: Tensor, return_coefficients: Literal["sparse"], *, gate_input: Tensor | None = None
    ) -> tuple[Tensor, tuple[Coefficients, ...]]: ...

    def forward(self, x: Tensor, return_coefficients: Asked = False, *, gate_input: Tensor | None = None) -> Any:
        """y, or (y, coefficients), as `MuMoE.forward`. An ablated expert is zero in both layers."""
        rows = self._rows(x)
        a = self.gate(rows if gate_input is None else self._gate_rows(x, gate_input))
        hidden = self.act(self._contract(self.fc1, rows, a))
        return self._answer(self._contract(self.fc2, hidden, a), x, a, return_coefficients)
