"""Multilinear mixture-of-experts layers (arXiv 2402.12550): thousands of experts, inspectable, editable.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mumoe.lazy import attach

if TYPE_CHECKING:
    from mumoe import costs, functional
    from mumoe.analysis.analyzing import analyze
    from mumoe.analysis.sweeping import sweep
    from mumoe.api import Job, Run, load
    from mumoe.baselines import HighRankLinear, SparseMoE
    from mumoe.deploy.model import ImageClassifier
    from mumoe.errors import JobError, UserError
    from mumoe.factorizations import Factorization, register_factorization
    from mumoe.gating import Gate, register_gate
    from mumoe.layers import MuMoE, MuMoEBlock, MuMoEGatedBlock
    from mumoe.models.surgery import replace_head, replace_modules

__version__ = "0.1.0.dev0"

__all__ = [
    "Factorization",
    "Gate",
    "HighRankLinear",
    "ImageClassifier",
    "Job",
    "JobError",
    "MuMoE",
    "MuMoEBlock",
    "MuMoEGatedBlock",
    "Run",
    "SparseMoE",
    "UserError",
    "analyze",
    "costs",
    "functional",
    "load",
    "register_factorization",
    "register_gate",
    "replace_head",
    "replace_modules",
    "sweep",
]

__getattr__, __dir__ = attach(
    "mumoe",
    {
        "Factorization": "factorizations",
        "Gate": "gating",
        "HighRankLinear": "baselines",
        "ImageClassifier": "deploy.model",
        "Job": "api",
        "JobError": "errors",
        "MuMoE": "layers",
        "MuMoEBlock": "layers",
        "MuMoEGatedBlock": "layers",
        "Run": "api",
        "SparseMoE": "baselines",
        "UserError": "errors",
        "analyze": "analysis.analyzing",
        "load": "api",
        "register_factorization": "factorizations",
        "register_gate": "gating",
        "replace_head": "models.surgery",
        "replace_modules": "models.surgery",
        "sweep": "analysis.sweeping",
        "costs": "",
        "functional": "",
    },
)
