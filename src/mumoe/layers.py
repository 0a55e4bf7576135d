"""MuMoE = gate + factorization; MuMoEBlock, MuMoEGatedBlock = MLPs of such layers under one gate."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar, Literal, Self, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe.ablation import Ablation, ablated, ablations, active, contract_ablated
from mumoe.calling import checked_methods
from mumoe.coefficients import Coefficients, DenseCoefficients, as_coefficients
from mumoe.costs import rank_for_block
from mumoe.errors import UserError, check_levels, check_size
from mumoe.factorization_base import check_init
from mumoe.factorizations import Factorization, Rank, get_factorization
from mumoe.gating import Gate, make_gate
from mumoe.specs import check_rows, join_spec, parse_spec

__all__ = ["MuMoE", "MuMoEBlock", "MuMoEGatedBlock", "allow_non_finite"]

Drop = float | nn.Module
"""Probability of dropout, or a module in its place."""


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


@checked_methods
class _Gated(nn.Module):
    """What MuMoE and MuMoEBlock share: one gate, an input of known width, experts that can be ablated."""

    LAYERS: ClassVar[tuple[str, ...]]
    """Attributes that hold the factorizations, in the order of a list of ranks."""

    in_features: int
    num_experts: tuple[int, ...]
    gate: Gate

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_refuse_non_finite)  # type: ignore[no-untyped-call]

    def _add_layers(
        self,
        factorization: str,
        widths: Sequence[tuple[int, int]],
        ranks: Sequence[Rank | None],
        init: str,
        sigma: Sequence[float] | None,
        **options: Any,
    ) -> None:
        """Make the factorizations named in `LAYERS`, of these widths and ranks."""
        kind = get_factorization(factorization, type(self).__name__)
        self.init, self.sigma = check_init(init), sigma
        for name, width, rank in zip(self.LAYERS, widths, ranks, strict=True):
            setattr(self, name, kind(*width, self.num_experts, rank, **options))
        self._draw_layers()

    def _draw_layers(self) -> None:
        """Draw the factors; ``zero`` zeroes the last layer alone, since a block of zero layers learns nothing."""
        for part in self.parts:
            last = part is self.parts[-1]
            part.reset_parameters("scaled" if self.init == "zero" and not last else self.init, self.sigma)

    @property
    def parts(self) -> tuple[Factorization, ...]:
        """The factorizations, in the order of `LAYERS`."""
        return tuple(getattr(self, name) for name in self.LAYERS)

    def reset_parameters(self) -> None:
        """Draw new values of gate and factors."""
        self.gate.reset_parameters()
        self._draw_layers()

    def _rows(self, x: Tensor) -> Tensor:
        """x as (rows, in_features)."""
        dtype = next(self._modules[self.LAYERS[0]].parameters()).dtype  # type: ignore[union-attr]
        if x.ndim and x.shape[-1] == self.in_features and x.dtype == dtype:  # check_rows without a call
            return x.reshape(-1, self.in_features)
        return check_rows(x, self.in_features, dtype, type(self).__name__)

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
            UserError: If an index does not exist, or the length of a mask is not the level's.
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
        rows = gate_input.reshape(-1, gate_input.shape[-1])
        if rows.shape[-1] != self.gate.in_features:
            raise UserError(
                f"{type(self).__name__}: expected the gate's input of width {self.gate.in_features}, got "
                f"{rows.shape[-1]}. Give gate_input=, or a gate of that width."
            )
        return rows

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

    def _given(self, x: Tensor, coefficients: Sequence[Tensor | Coefficients]) -> list[Coefficients]:
        """Coefficients given instead of the gate's, one for each level, the leading dimensions of x as rows."""
        who = f"{type(self).__name__}.contract"
        if isinstance(coefficients, Tensor) or len(coefficients) != len(self.num_experts):
            raise UserError(
                f"{who}: expected coefficients as a list of {len(self.num_experts)} tensors, one per level, "
                f"got {'a tensor' if isinstance(coefficients, Tensor) else len(coefficients)}. Wrap them in a list."
            )
        levels: list[Coefficients] = []
        rows = x.numel() // x.shape[-1]
        for level, (a, size) in enumerate(zip(coefficients, self.num_experts, strict=True)):
            expected = (*x.shape[:-1], size) if isinstance(a, Tensor) else (rows, size)
            if tuple(a.shape) != expected:
                raise UserError(
                    f"{who}: expected coefficients[{level}] of shape {expected}, got {tuple(a.shape)}. "
                    "Their rows are those of x, and the experts come last."
                )
            levels.append(DenseCoefficients(a.reshape(-1, size)) if isinstance(a, Tensor) else a)
        return levels

    def _answer(self, y: Tensor, x: Tensor, a: Sequence[Tensor | Coefficients], asked: Asked) -> Any:
        """y in the leading shape of x, and the coefficients in the requested form."""
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


@checked_methods
class MuMoE(_Gated):
    """A linear layer that mixes experts by sparse coefficients, computed on the factors of their weights.

    y = W x_2 z x_3 a_1 .. x_{E+2} a_E with a_e = gate_e(z), where W has modes (out, in + 1, N_1, .., N_E).

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_experts: Number of experts; a tuple for a hierarchy, one number per level.
        factorization: ``cp``, ``hadamard``, ``tucker``, ``tt``, ``tr``, ``dense`` or a registered one.
        rank: An int as the paper means it, or named modes or bonds: see the factorization's class.
        bias: One bias per expert, folded into W.
        gate: Activation of the gate by name, or a module: see `gating.GATES`. Or a whole `Gate`, with a router, a route
            or a width of its own (then forward needs ``gate_input``); it replaces norm, gate_init and gate_options.
        norm: Normalization of the gate's logits: ``batch``, ``layer`` or ``none``.
        init: ``scaled`` (every expert has the variance of an `nn.Linear`, for any factorization, rank and number
            of experts, and so has the output), ``zero`` (the same, but the output factor is 0, and so is the output),
            ``paper`` (appendix B.1) or ``uniform``, whose outputs grow with all of these.
        sigma: Noise between the experts of each level at init: 0.4, 0.1, 0.1, .. for ``scaled`` and ``zero``; for the
            others the paper's 1, 0, 0, .., which makes every expert of a later level a copy.
        gate_init: ``normal`` or ``zeros``.
        gate_options: Options of the activation, such as ``{"alpha": 1.3}``, and of the `Gate`: ``scale``, ``dropout``.
        drop: Probability of dropout on the experts' input in training; the gate has its own, ``gate_options``.

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

    LAYERS = ("factorization",)
    factorization: Factorization

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
        init: str = "scaled",
        sigma: Sequence[float] | None = None,
        gate_init: str = "normal",
        gate_options: Mapping[str, Any] | None = None,
        drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise UserError(f"MuMoE: expected 0 <= drop < 1, got {drop}. 0.5 helps where features are few.")
        self.drop = float(drop)
        self.in_features = check_size(in_features, "in_features", "MuMoE")
        self.out_features = check_size(out_features, "out_features", "MuMoE")
        self.num_experts = check_levels(num_experts, "MuMoE")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.gate = make_gate(in_features, self.num_experts, gate, norm, options=gate_options, init=gate_init, **where)
        self._add_layers(factorization, [(in_features, out_features)], [rank], init, sigma, bias=bias, **where)

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
        own = gate_input is None and self.gate.in_features == self.in_features
        a = self.gate(rows if own else self._gate_rows(x, x if gate_input is None else gate_input))
        rows = F.dropout(rows, self.drop) if self.drop and self.training else rows
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
        levels = self._given(x, coefficients)
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
        return join_spec(part.title, part.rank_text(part.ranks, self.num_experts), self.num_experts)

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

        With enough rank (the default) the new layer computes the same function for all coefficients; with
        less it is the best approximation of that rank, and a warning states the relative error.

        Args:
            linear: The layer to copy, left as it is.
            num_experts: As in the constructor.
            factorization: As in the constructor.
            rank: As in the constructor; None uses the smallest one that is exact.
            sigma: Noise between the experts of the first level, relative to their weights; 0 is exact.
        """
        matrix = linear.weight.detach()
        if linear.bias is not None:
            matrix = torch.cat([matrix, linear.bias.detach()[:, None]], dim=1)
        levels = check_levels(num_experts, "MuMoE.from_linear")
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


@checked_methods
class MuMoEBlock(_Gated):
    """A two-layer MLP of mixtures of experts under one gate; takes the arguments of timm's `Mlp`.

    a = gate(x);  h = act(W1 x a);  y = W2 h a

    Args:
        in_features: Width of the input.
        hidden_features: Width between the layers; by default that of the input.
        out_features: Width of the output; by default that of the input.
        act_layer: Makes the nonlinearity.
        norm_layer: Makes, from its width, a normalization of the hidden features; by default there is none.
        bias: One bias per expert and layer.
        drop: Probability of dropout, or a module in its place; a pair for the hidden features and the output.
        num_experts: As in `MuMoE`.
        factorization: As in `MuMoE`, for all layers.
        rank: As in `MuMoE`; a list gives each layer its own. By default the block has as many parameters, the gate
            included, as the MLP it replaces.
        channels_first: Accept and return (B, features, height, width), as the 1 x 1 convolutions of some ConvNeXts.
        gate: As in `MuMoE`, and so are the arguments after it.

    Shape:
        (..., in_features) -> (..., out_features), or (B, in_features, H, W) -> (B, out_features, H, W).

    Raises:
        UserError: As `MuMoE`, and where the MLP has too few parameters for the experts' gate and rank 1.

    Source: the later version of Oldfield et al. 2024 (see the paper page of the docs).

    >>> from functools import partial
    >>> import timm
    >>> mlp = partial(MuMoEBlock, num_experts=8)
    >>> model = timm.create_model("vit_tiny_patch16_224", mlp_layer=mlp, depth=1, num_classes=5)
    """

    LAYERS: ClassVar[tuple[str, ...]] = ("fc1", "fc2")
    fc1: Factorization
    fc2: Factorization

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] | None = None,
        bias: bool = True,
        drop: Drop | tuple[Drop, Drop] = 0.0,
        *,
        num_experts: int | Sequence[int],
        factorization: str = "cp",
        rank: Rank | list[Any] | None = None,
        channels_first: bool = False,
        gate: str | nn.Module = "entmax15",
        norm: str = "batch",
        init: str = "scaled",
        sigma: Sequence[float] | None = None,
        gate_init: str = "normal",
        gate_options: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        if not isinstance(bias, bool):
            raise UserError(f"{who}: expected bias as True or False for all layers, got {bias!r}. Give one of them.")
        self.in_features = check_size(in_features, "in_features", who)
        hidden_features = in_features if hidden_features is None else hidden_features
        out_features = in_features if out_features is None else out_features
        self.hidden_features = check_size(hidden_features, "hidden_features", who)
        self.out_features = check_size(out_features, "out_features", who)
        self.num_experts = check_levels(num_experts, who)
        widths = [(in_features, hidden_features)] * (len(self.LAYERS) - 1) + [(hidden_features, out_features)]
        if rank is None:
            rank = rank_for_block(factorization, widths, self.num_experts, bias=bias, who=who)
        ranks = rank if isinstance(rank, list) else [rank] * len(widths)
        if len(ranks) != len(widths):
            raise UserError(
                f"{who}: expected rank as one, or a list of {len(widths)}, got {rank!r}. Give one per layer."
            )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.gate = make_gate(in_features, self.num_experts, gate, norm, options=gate_options, init=gate_init, **where)
        self._add_layers(factorization, widths, ranks, init, sigma, bias=bias, **where)
        self.act = act_layer()
        self.norm = nn.Identity() if norm_layer is None else norm_layer(self.hidden_features, **where)
        self.drop1, self.drop2 = map(_dropout, drop if isinstance(drop, tuple) else (drop, drop))
        self.channels_first = channels_first

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
        """y, or (y, coefficients) as `MuMoE.forward`, the experts last. An ablated expert is zero in every layer."""
        if self.channels_first:
            x, gate_input = x.movedim(1, -1), None if gate_input is None else gate_input.movedim(1, -1)
        rows = self._rows(x)
        own = gate_input is None and self.gate.in_features == self.in_features
        a = self.gate(rows if own else self._gate_rows(x, x if gate_input is None else gate_input))
        hidden = self.norm(self.drop1(self._hidden(rows, a)))
        y = self.drop2(self._contract(self.fc2, hidden, a).reshape(*x.shape[:-1], self.out_features))
        y = y.movedim(-1, 1) if self.channels_first else y
        if return_coefficients is False:
            return y
        return y, a if return_coefficients == "sparse" else _unflatten(a, x)

    def contract(self, x: Tensor, coefficients: Sequence[Tensor | Coefficients]) -> Tensor:
        """The block, without dropout, with coefficients given instead of the gate's; as `MuMoE.contract`.

        Shape:
            x (..., in_features), features last; coefficients as in `MuMoE.contract`; returns (..., out_features).

        Raises:
            UserError: As `MuMoE.contract`.
        """
        rows, levels = self._rows(x), self._given(x, coefficients)
        y = self._contract(self.fc2, self.norm(self._hidden(rows, levels)), levels)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _hidden(self, x: Tensor, a: Sequence[Coefficients]) -> Tensor:
        h: Tensor = self.act(self._contract(self.fc1, x, a))
        return h


@checked_methods
class MuMoEGatedBlock(MuMoEBlock):
    """A gated MLP, as in Llama, whose three layers are mixtures of experts under one gate.

    a = gate(x);  h = act(Wg x a) * (W1 x a);  y = W2 h a

    There are two gates: `gate` chooses experts; `fc_gate` (Wg) is the gated MLP's own factor of the hidden features.
    The arguments are those of `MuMoEBlock`; a list of ranks is in the order Wg, W1, W2.

    Shape:
        (..., in_features) -> (..., out_features).
    """

    LAYERS = ("fc_gate", "fc1", "fc2")
    fc_gate: Factorization

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.SiLU,
        norm_layer: Callable[..., nn.Module] | None = None,
        bias: bool = False,
        drop: Drop | tuple[Drop, Drop] = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(in_features, hidden_features, out_features, act_layer, norm_layer, bias, drop, **options)

    def _hidden(self, x: Tensor, a: Sequence[Coefficients]) -> Tensor:
        h: Tensor = self.act(self._contract(self.fc_gate, x, a)) * self._contract(self.fc1, x, a)
        return h


def _dropout(drop: Drop) -> nn.Module:
    if isinstance(drop, nn.Module):
        return drop
    return nn.Dropout(drop) if drop else nn.Identity()
