"""Multilinear mixture-of-experts layers (arXiv 2402.12550): thousands of experts, inspectable, editable."""

from mumoe import costs, functional
from mumoe.baselines import HighRankLinear, SparseMoE
from mumoe.errors import JobError, UserError
from mumoe.factorizations import register_factorization
from mumoe.gating import register_gate
from mumoe.layers import MuMoE, MuMoEBlock

__version__ = "0.1.0.dev0"

__all__ = [
    "HighRankLinear",
    "JobError",
    "MuMoE",
    "MuMoEBlock",
    "SparseMoE",
    "UserError",
    "costs",
    "functional",
    "register_factorization",
    "register_gate",
]
