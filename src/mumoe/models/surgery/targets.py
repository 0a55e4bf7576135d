"""One module to replace: its parts, what replaces it, its parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mumoe.costs import count_flops, count_parameters, rank_for_budget
from mumoe.errors import UserError
from mumoe.factorizations import Rank, get_factorization
from mumoe.models.surgery.parts import Parts, sizes
from mumoe.specs import join_spec

__all__ = ["LayerOptions", "Target", "layer_widths", "resolve_ranks"]


@dataclass(frozen=True)
class LayerOptions:
    """How a module is replaced; every rank is resolved. See `replace_modules` for the meaning."""

    num_experts: tuple[int, ...]
    factorization: str
    ranks: tuple[Rank | None, ...]
    """One for each linear layer."""
    gate: str | nn.Module = "entmax15"
    norm: str = "batch"
    gate_options: Mapping[str, Any] = field(default_factory=dict)
    gate_init: str = "normal"
    bias: bool = True
    out_features: int | None = None
    """Another width of the output, for a new head."""


@dataclass(frozen=True)
class Target:
    """One module to replace.

    Attributes:
        names: Its names; several if the model uses it in several places.
        parts: Its layers.
        options: What replaces it.
        rows: Rows that pass through it in one forward of the example; 1 without an example.
        notes: Remarks for the table.
        tied: Parameters that it shares with the rest of the model, which stay there.
    """

    names: tuple[str, ...]
    module: nn.Module
    parts: Parts
    options: LayerOptions
    rows: int = 1
    notes: tuple[str, ...] = ()
    tied: int = 0

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def layer(self) -> str:
        """What replaces it, as the paper writes it: ``CPMuMoE-r77-e16``, with every rank that differs."""
        kind, levels = get_factorization(self.options.factorization), self.options.num_experts
        ranks = [kind.rank_text(kind.resolve_ranks(rank, levels), levels) for rank in self.options.ranks]
        return join_spec(kind.title, "/".join(dict.fromkeys(ranks)), levels)

    @property
    def parameters_before(self) -> int:
        """Parameters of the module, without those that it shares with others."""
        return sum(parameter.numel() for parameter in self.module.parameters()) - self.tied

    @property
    def parameters_after(self) -> int:
        """Parameters of its replacement, gate included."""
        kept = sum(parameter.numel() for module in self._kept() for parameter in module.parameters())
        return (
            kept + self._gate() + sum(count_parameters(*layer, gate=False, bias=self.bias) for layer in self._sizes())
        )

    @property
    def flops_before(self) -> int:
        """Multiply-adds of its linear layers."""
        return self.rows * sum(count_flops("linear", *sizes(linear)[:2]) for linear in self.parts.linears)

    @property
    def flops_after(self) -> int:
        """Multiply-adds of the replacement, the gate's projections included."""
        layers = sum(count_flops(*layer, bias=self.bias) for layer in self._sizes())
        return self.rows * (layers + self._gate())

    @property
    def bias(self) -> bool:
        return self.options.bias

    def _gate(self) -> int:
        return self.parts.widths[0] * sum(self.options.num_experts)

    def _kept(self) -> tuple[nn.Module, ...]:
        return (self.parts.act, *self.parts.inner, self.parts.drop)

    def _sizes(self) -> list[tuple[str, int, int, tuple[int, ...], Rank | None]]:
        options = self.options
        widths = layer_widths(self.parts, options.out_features)
        return [
            (options.factorization, *width, options.num_experts, rank)
            for width, rank in zip(widths, options.ranks, strict=True)
        ]


def layer_widths(parts: Parts, out_features: int | None = None) -> list[tuple[int, int]]:
    """Width of input and output of each layer, with `out_features` as the output of the last one."""
    widths = [sizes(linear)[:2] for linear in parts.linears]
    if out_features is not None:
        widths[-1] = (widths[-1][0], out_features)
    return widths


# Ranks ----------------------------------------------------------------------------------------------------


def resolve_ranks(
    parts: Parts,
    rank: Rank | list[Rank] | str | None,
    init: str,
    factorization: str,
    num_experts: tuple[int, ...],
    out_features: int | None = None,
) -> tuple[Rank | None, ...]:
    """One rank for each linear layer of a module.

    Args:
        parts: The parts of the module.
        rank: As in `replace_modules`.
        init: Sets the default rank: ``matched`` for ``random``, ``exact`` for ``upcycle``.
        factorization: As in `MuMoE`.
        num_experts: As in `MuMoE`.
        out_features: Another width of the output.

    Raises:
        UserError: If the module has too few parameters for rank 1, or the rank cannot be read.
    """
    widths = layer_widths(parts, out_features)
    kind = get_factorization(factorization, "replace_modules")
    if not kind.has_rank() and rank in (None, "matched", "exact"):
        return (None,) * len(widths)
    choice = rank if rank is not None else ("matched" if init == "random" else "exact")
    if choice == "exact":
        return tuple(kind.exact_rank(out, into + parts.bias, num_experts) for into, out in widths)
    if choice == "matched":
        return _matched(parts, factorization, num_experts, widths)
    if isinstance(choice, str):
        raise UserError(
            f"replace_modules: expected rank as a number, names, a list, 'matched' or 'exact', got {choice!r}. "
            "Leave it out to match the parameters."
        )
    ranks: list[Any] = choice if isinstance(choice, list) else [choice] * len(widths)
    if len(ranks) != len(widths):
        raise UserError(
            f"replace_modules: expected rank as one, or a list of {len(widths)} for a {parts.kind}, got {choice!r}. "
            "Give one for each linear layer."
        )
    for each in ranks:
        kind.resolve_ranks(each, num_experts, "replace_modules")
    return tuple(ranks)


def _matched(
    parts: Parts, factorization: str, num_experts: tuple[int, ...], widths: list[tuple[int, int]]
) -> tuple[Rank, ...]:
    """Ranks with which gate and layers together have the module's parameters, within half a step of the last rank."""
    budgets = [(into + sizes(linear)[2]) * out for linear, (into, out) in zip(parts.linears, widths, strict=True)]
    left = sum(budgets) - widths[0][0] * sum(num_experts)
    share = left / sum(budgets)
    ranks: list[Rank] = []
    for index, ((into, out), budget) in enumerate(zip(widths, budgets, strict=True)):
        last = index == len(widths) - 1
        sized: dict[str, Any] = {"in_features": into, "out_features": out, "num_experts": num_experts}
        sized |= {"factorization": factorization, "bias": parts.bias}
        rank = rank_for_budget(parameters=left if last else round(budget * share), gate=False, **sized)
        left -= count_parameters(factorization, into, out, num_experts, rank, bias=parts.bias, gate=False)
        ranks.append(rank)
    return tuple(ranks)
