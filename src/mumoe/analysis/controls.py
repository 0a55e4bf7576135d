"""Controls: what the measures show without any specialization.

`specialization` alone can mislead: with few experts a gate that learned nothing may reach a mean p near 1. Two controls
put it in perspective. A *gate frozen at random* keeps its initial projection while everything else is trained; the
specialization it shows is that of random regions of the features. And *units of the same load*
(`measures.shuffle_units`) deals the contributions of the experts to them again at random; what it shows comes from load
alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mumoe import functional
from mumoe.gating import GATES, register_gate

__all__ = ["FROZEN", "FrozenEntmax15", "FrozenSoftmax"]

FROZEN = "-frozen"
"""Ending of the names of gates whose projection is never trained."""


class FrozenEntmax15(nn.Module):
    """entmax15 that passes no gradient, so that the gate's projection keeps its initial values."""

    def forward(self, logits: Tensor) -> Tensor:
        return functional.entmax15(logits.detach())


class FrozenSoftmax(nn.Module):
    """Softmax that passes no gradient, so that the gate's projection keeps its initial values."""

    def forward(self, logits: Tensor) -> Tensor:
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return torch.softmax(logits.detach(), dim=-1, dtype=wide)


for _name, _module in (("entmax15", FrozenEntmax15), ("softmax", FrozenSoftmax)):
    if _name + FROZEN not in GATES:
        register_gate(_name + FROZEN)(_module)
