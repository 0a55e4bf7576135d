"""The two-layer MLPs of a network: ordinary ones, or mixtures of experts with as many parameters.

A block is written like a layer: ``mlp`` (the ordinary one), ``CPMuMoE-e64`` (64 experts, the rank whose
parameters come closest to those of the MLP) or ``CPMuMoE-r384-e64`` (this rank in both layers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import nn

from mumoe.costs import Widths, count_block, count_mlp, rank_for_block
from mumoe.errors import UserError, unknown_name
from mumoe.factorizations import Rank
from mumoe.layers import MuMoE, MuMoEBlock
from mumoe.specs import BASELINES, read_spec

__all__ = ["MLP", "BlockSpec", "Wiring", "build_block", "check_sizes", "named_shape"]

MLP = "mlp"

Wiring = Literal["block", "layer"]
"""``block``: two mixtures under one gate with the nonlinearity between; ``layer``: one mixture in the MLP's place."""


Shape = TypeVar("Shape")


def named_shape(shape: Shape | str, known: Mapping[str, Shape], who: str) -> Shape:
    """Sizes of a network, given or by name.

    Raises:
        UserError: If there is no such name.
    """
    if not isinstance(shape, str):
        return shape
    if shape not in known:
        raise unknown_name(who, "shape", shape, known)
    return known[shape]


def check_sizes(sizes: Mapping[str, Any], who: str, optional: Sequence[str] = ()) -> None:
    """Raise `UserError` unless all sizes are whole numbers of at least 1, optional ones of at least 0."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < (name not in optional):
            raise UserError(f"{who}: expected {name} as a whole number >= 1, got {value!r}.")


@dataclass(frozen=True)
class BlockSpec:
    """What replaces the MLPs of a network.

    Attributes:
        factorization: Its name, or None for the ordinary MLP.
        num_experts: Experts of each level.
        rank: The rank, or None to match the MLP's parameters.
        wiring: See `Wiring`.
    """

    factorization: str | None
    num_experts: tuple[int, ...] = ()
    rank: Rank | None = None
    wiring: str = "block"

    @classmethod
    def parse(cls, text: str, wiring: str = "block") -> BlockSpec:
        """Read ``mlp`` or a layer's specification, whose rank may be left out.

        Raises:
            UserError: If it is neither, or the wiring is unknown.
        """
        if wiring not in ("block", "layer"):
            raise unknown_name("block", "wiring", wiring, ("block", "layer"))
        if text == MLP:
            return cls(None)
        try:
            found = read_spec(text, "block")
        except UserError as error:
            raise UserError(f"{str(error).removesuffix('.')}. Or use {MLP!r}.") from None
        if found.kind in BASELINES:
            raise UserError(f"block: expected a mixture such as CPMuMoE-e64, got {text!r}. Or use {MLP!r}.")
        return cls(found.kind, found.num_experts, found.rank, wiring)

    def matched(self, in_features: int, hidden_features: int, out_features: int, *, bias: bool = True) -> Rank | None:
        """The given rank, or else the one with which gate and mixtures have as many parameters as the MLP.

        Raises:
            UserError: If rank 1 needs more parameters than the MLP has.
        """
        assert self.factorization is not None
        if self.rank is not None:
            return self.rank
        mlp, widths = self._widths(in_features, hidden_features, out_features)
        budget = count_mlp(mlp, bias=bias)
        return rank_for_block(self.factorization, widths, self.num_experts, budget, bias=bias, who="block")

    def parameters(self, in_features: int, hidden_features: int, out_features: int, *, bias: bool = True) -> int:
        """Parameters by formula, equal to those of the module that `build_block` makes."""
        mlp, widths = self._widths(in_features, hidden_features, out_features)
        if self.factorization is None:
            return count_mlp(mlp, bias=bias)
        rank = self.matched(in_features, hidden_features, out_features, bias=bias)
        return count_block(self.factorization, widths, self.num_experts, rank, bias=bias)

    def _widths(self, in_features: int, hidden_features: int, out_features: int) -> tuple[Widths, Widths]:
        """Widths of the MLP's layers, and of the mixtures that replace them."""
        mlp = ((in_features, hidden_features), (hidden_features, out_features))
        return mlp, mlp if self.wiring == "block" else ((in_features, out_features),)


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
    """A mixture that replaces an MLP; see `BlockSpec` for its size.

    Args:
        spec: The block; not the ordinary MLP, which networks make themselves.
        in_features: Width of the input.
        hidden_features: Width between the layers.
        out_features: Width of the output.
        bias: One bias per expert and layer.
        gate: Activation of the gate.
        norm: Normalization of the gate's logits.
        act_layer: Makes the nonlinearity between the layers.
        dropout: Dropout after the block.
        device: Where its parameters are made.
        dtype: Their type.

    Shape:
        (..., in_features) -> (..., out_features).
    """
    assert spec.factorization is not None
    options: dict[str, Any] = {"num_experts": spec.num_experts, "factorization": spec.factorization, "bias": bias}
    options |= {"rank": spec.matched(in_features, hidden_features, out_features, bias=bias), "init": "uniform"}
    options |= {"gate": gate, "norm": norm, "device": device, "dtype": dtype}
    if spec.wiring == "layer":
        made = MuMoE(in_features, out_features, **options)
        return nn.Sequential(made, nn.Dropout(dropout)) if dropout else made
    sizes = (in_features, hidden_features, out_features)
    return MuMoEBlock(*sizes, act_layer=act_layer, drop=(0.0, dropout), **options)
