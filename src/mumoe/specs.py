"""Layers by specification, ``CPMuMoE-r512-e128`` <-> arguments, and the rank that fits a number of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mumoe.errors import UserError, check_levels, unknown_name
from mumoe.factorizations import FACTORIZATIONS, Rank, get_factorization

__all__ = [
    "BASELINES",
    "Spec",
    "check_rows",
    "closest_rank",
    "format_spec",
    "parse_spec",
    "read_spec",
]

BASELINES = {"highrank-linear": r"-r(?P<rank>\d+)", "linear": "", "sparse-moe": r"-e(?P<experts>\d+)(-k(?P<k>\d+))?"}
"""Layers that a mixture is compared with: what follows the name in a specification."""


@dataclass(frozen=True)
class Spec:
    """A layer without its widths.

    Attributes:
        kind: A factorization, ``linear``, ``highrank-linear`` or ``sparse-moe``.
        num_experts: Experts of each level; empty for the linear layers.
        rank: As in `MuMoE`; that of ``highrank-linear``.
        k: Experts that ``sparse-moe`` computes for a row.
    """

    kind: str
    num_experts: tuple[int, ...] = ()
    rank: Rank | None = None
    k: int = 2


def read_spec(text: str, who: str = "from_spec") -> Spec:
    """Read ``CPMuMoE-r512-e128``, ``TRMuMoE-r9x4x2x4-e128x4``, ``linear``, ``highrank-linear-r64``, ``sparse-moe-e8``.

    Several ranks joined by ``x`` name every one in the factorization's order.

    Raises:
        UserError: If the text is not a specification.
    """
    for name, form in BASELINES.items():
        if match := re.fullmatch(name + form, text):
            found = {key: int(value) for key, value in match.groupdict().items() if value is not None}
            experts = (found["experts"],) if "experts" in found else ()
            return Spec(name, experts, found.get("rank"), found.get("k", 2))
    match = re.fullmatch(r"([A-Za-z]+)(?:-r(\d+(?:x\d+)*))?-e(\d+(?:x\d+)*)", text)
    if match is None:
        raise UserError(
            f"{who}: expected a text like CPMuMoE-r512-e128 or TRMuMoE-r512-e128x4, got {text!r}. "
            "Write name, -r and the rank, -e and the experts of each level."
        )
    kind = titles(who, match[1])
    num_experts = check_levels([int(size) for size in match[3].split("x")], who)
    ranks = [int(rank) for rank in (match[2] or "").split("x") if rank]
    return Spec(kind, num_experts, get_factorization(kind).read_ranks(ranks, num_experts, who))


def titles(who: str, title: str) -> str:
    """The factorization that a title such as ``CPMuMoE`` means.

    Raises:
        UserError: If there is none.
    """
    known = {kind.title: name for name, kind in FACTORIZATIONS.items()}
    if title not in known:
        raise unknown_name(who, "layer name", title, known)
    return known[title]


def parse_spec(spec: str, who: str = "from_spec") -> dict[str, Any]:
    """`num_experts`, `factorization` and `rank` of a `MuMoE` layer from a text such as ``TRMuMoE-r512-e128x4``.

    Raises:
        UserError: If the text is not the specification of one.
    """
    found = read_spec(spec, who)
    if found.kind in BASELINES:
        raise UserError(f"{who}: expected a mixture, got {spec!r}. Use a text like CPMuMoE-r512-e128.")
    return {"num_experts": found.num_experts, "factorization": found.kind, "rank": found.rank}


def format_spec(factorization: str, num_experts: Sequence[int], rank: Rank | None) -> str:
    """The specification of these arguments, with the rank in its shortest form."""
    kind = get_factorization(factorization)
    ranks = "" if rank is None else kind.rank_text(kind.resolve_ranks(rank, num_experts), num_experts)
    return join_spec(kind.title, ranks, num_experts)


def join_spec(title: str, ranks: str, num_experts: Sequence[int]) -> str:
    """A specification from its three texts."""
    return f"{title}{f'-r{ranks}' if ranks else ''}-e{'x'.join(map(str, num_experts))}"


# Sizes and ranks ------------------------------------------------------------------------------------------


def check_rows(x: Tensor, in_features: int, dtype: torch.dtype, who: str) -> Tensor:
    """A layer's input as (rows, in_features).

    Raises:
        UserError: If its width differs, or its dtype is not that of the weights outside autocast.
    """
    if x.ndim < 1 or x.shape[-1] != in_features:
        got = x.shape[-1] if x.ndim else "a number"
        raise UserError(
            f"{who}: expected x.shape[-1] == in_features == {in_features}, got {got} "
            f"(x.shape={tuple(x.shape)}). Set in_features={got} or project x first."
        )
    autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    if not x.is_floating_point() or (x.dtype != dtype and not autocast):
        raise UserError(
            f"{who}: expected x.dtype == {dtype} as the weights have, got {x.dtype}. "
            f"Use x.to({dtype}), layer.to({x.dtype}) or torch.autocast."
        )
    return x.reshape(-1, in_features)


def closest_rank(
    count: Callable[[int], int], parameters: int, who: str, remedy: str = "Raise it or lower num_experts."
) -> int:
    """The rank whose parameters come closest to a budget.

    Args:
        count: Parameters at a rank, growing with it.
        parameters: The budget.
        who: What an error begins with.
        remedy: What it ends with.

    Raises:
        UserError: If even rank 1 needs more.
    """
    if count(1) > parameters:
        raise UserError(
            f"{who}: expected a budget of at least {count(1):,} parameters (rank 1), got {parameters:,}. {remedy}"
        )
    low, high = 1, 2
    while count(high) <= parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    return high if count(high) - parameters < parameters - count(low) else low
