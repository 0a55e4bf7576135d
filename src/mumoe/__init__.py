"""Multilinear mixture-of-experts layers (arXiv 2402.12550): thousands of experts, inspectable, editable.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mumoe.lazy import attach

if TYPE_CHECKING:
    from mumoe import costs, functional
    from mumoe.api import Job, Run, load
    from mumoe.baselines import HighRankLinear, SparseMoE
    from mumoe.deploy.model import ImageClassifier
    from mumoe.errors import JobError, UserError
    from mumoe.factorizations import register_factorization
    from mumoe.gating import register_gate
    from mumoe.layers import MuMoE, MuMoEBlock

__version__ = "0.1.0.dev0"

__all__ = [
    "HighRankLinear",
    "ImageClassifier",
    "Job",
    "JobError",
    "MuMoE",
    "MuMoEBlock",
    "Run",
    "SparseMoE",
    "UserError",
    "costs",
    "functional",
    "load",
    "register_factorization",
    "register_gate",
]

__getattr__, __dir__ = attach(
    "mumoe",
    {
        "HighRankLinear": "baselines",
        "ImageClassifier": "deploy.model",
        "Job": "api",
        "JobError": "errors",
        "MuMoE": "layers",
        "MuMoEBlock": "layers",
        "Run": "api",
        "SparseMoE": "baselines",
        "UserError": "errors",
        "load": "api",
        "register_factorization": "factorizations",
        "register_gate": "gating",
        "costs": "",
        "functional": "",
    },
)
