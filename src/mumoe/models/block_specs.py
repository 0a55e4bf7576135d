"""The two-layer MLP of a network, as an ordinary one or as a mixture of experts of as many parameters.

A block is written like a layer: ``mlp`` (the ordinary one), ``CPMuMoE-e64`` (64 experts, the rank whose
parameters come closest to those of the MLP) or ``CPMuMoE-r384-e64`` (this rank in both layers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from mumoe.costs import closest_rank, count_parameters
from mumoe.errors import UserError, unknown_name
from mumoe.factorizations import Rank
from mumoe.layers import MuMoE, parse_spec
from mumoe.models.blocks import MLPBlock

__all__ = ["MLP", "BlockSpec", "Wiring", "block_parameters", "build_block", "matched_rank", "mlp_parameters"]

MLP = "mlp"

Wiring = Literal["block", "layer"]
"""``block``: two mixtures under one gate with the nonlinearity between; ``layer``: one mixture in the MLP's place."""


@dataclass(frozen=True)
class BlockSpec:
    """What stands in the place of a network's MLPs.

    Attributes:
        factorization: Its name, or None for the ordinary MLP.
        num_experts: Experts of each level.
        rank: The rank, or None to match the MLP's parameters.
        wiring: See `Wiring`.
    """

    factorization: str | None
    num_experts: tuple[int, ...] = ()
    rank: Rank | None = None
    wiring: Wiring = "block"

    @classmethod
    def parse(cls, text: str, wiring: str = "block") -> BlockSpec:
        """Read ``mlp`` or a layer's specification, the rank of which may be left out.

        Raises:
            UserError: If it is neither, or the wiring is unknown.
        """
        if wiring not in ("block", "layer"):
            raise unknown_name("block", "wiring", wiring, ("block", "layer"))
        if text == MLP:
            return cls(None)
        try:
            parts = parse_spec(text)
        except UserError as error:
            said = str(error).removeprefix("from_spec: ").removesuffix(".")
            raise UserError(f"block: {said}. Or take {MLP!r}.") from None
        return cls(parts["factorization"], parts["num_experts"], parts["rank"], wiring)  # type: ignore[arg-type]


def mlp_parameters(in_features: int, hidden_features: int, out_features: int, *, bias: bool = True) -> int:
    """Parameters of the ordinary two-layer MLP."""
    return hidden_features * (in_features + out_features) + bias * (hidden_features + out_features)


def block_parameters(
    spec: BlockSpec, in_features: int, hidden_features: int, out_features: int, *, bias: bool = True
) -> int:
    """Parameters of a block by formula, equal to those of the module that `build_block` makes."""
    if spec.factorization is None:
        return mlp_parameters(in_features, hidden_features, out_features, bias=bias)
    rank = spec.rank
    if rank is None and spec.factorization != "dense":
        rank = matched_rank(spec, in_features, hidden_features, out_features, bias=bias)
    return _count(spec, (in_features, hidden_features, out_features), rank, bias)


def _count(spec: BlockSpec, sizes: tuple[int, int, int], rank: Rank | None, bias: bool) -> int:
    assert spec.factorization is not None
    in_features, hidden, out_features = sizes
    if spec.wiring == "layer":
        return count_parameters(spec.factorization, in_features, out_features, spec.num_experts, rank, bias=bias)
    first = count_parameters(spec.factorization, in_features, hidden, spec.num_experts, rank, bias=bias)
    return first + count_parameters(
        spec.factorization, hidden, out_features, spec.num_experts, rank, bias=bias, gate=False
    )


def matched_rank(
    spec: BlockSpec,
    in_features: int,
    hidden_features: int,
    out_features: int,
    *,
    bias: bool = True,
    parameters: int | None = None,
) -> int:
    """The rank at which a block, gate included, comes closest to a number of parameters.

    Args:
        spec: The block; its own rank is not looked at.
        in_features: Width of the input.
        hidden_features: Width between the layers.
        out_features: Width of the output.
        bias: Whether the mixtures have biases.
        parameters: The budget; None takes that of the ordinary MLP, with the same bias.

    Raises:
        UserError: If rank 1 needs more than the budget.
    """
    sizes = (in_features, hidden_features, out_features)
    budget = mlp_parameters(*sizes, bias=bias) if parameters is None else parameters
    least = _count(spec, sizes, 1, bias)
    if least > budget:
        raise UserError(
            f"block: expected a budget of at least {least:,} parameters for {spec.num_experts} experts of widths "
            f"{sizes} (rank 1 and the gate), got {budget:,}. Take fewer experts, or give a rank."
        )
    return closest_rank(lambda rank: _count(spec, sizes, rank, bias), budget)


def build_block(
    spec: BlockSpec,
    in_features: int,
    hidden_features: int,
    out_features: int,
    *,
    bias: bool = True,
    gate: str = "entmax15",
    norm: str = "batch",
    act_layer: Callable[[], nn.Module] = nn.GELU,
    dropout: float = 0.0,
    device: Any = None,
    dtype: Any = None,
) -> nn.Module:
    """A mixture in the place of an MLP; see `BlockSpec` for its size.

    Args:
        spec: The block; not the ordinary MLP, which networks make themselves.
        in_features: Width of the input.
        hidden_features: Width between the layers.
        out_features: Width of the output.
        bias: One bias per expert and layer.
        gate: Activation of the gate.
        norm: Normalization of the gate's logits.
        act_layer: Makes the nonlinearity between the layers.
        dropout: Dropout behind the block.
        device: Where its parameters are made.
        dtype: Their type.

    Shape:
        (..., in_features) -> (..., out_features).
    """
    assert spec.factorization is not None
    rank = spec.rank
    if rank is None and spec.factorization != "dense":
        rank = matched_rank(spec, in_features, hidden_features, out_features, bias=bias)
    options: dict[str, Any] = {"bias": bias, "gate": gate, "norm": norm, "init": "uniform"}
    options |= {"device": device, "dtype": dtype}
    if spec.wiring == "layer":
        made = MuMoE(in_features, out_features, spec.num_experts, spec.factorization, rank, **options)
        return nn.Sequential(made, nn.Dropout(dropout)) if dropout else made
    drop = nn.Dropout(dropout) if dropout else None
    sizes = (in_features, hidden_features, out_features)
    return MLPBlock(*sizes, spec.num_experts, spec.factorization, rank, act_layer=act_layer, drop=drop, **options)
