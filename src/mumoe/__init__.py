"""Multilinear mixture-of-experts layers (arXiv 2402.12550): thousands of experts, inspectable, editable.

Names are imported when they are first used, so that ``mumoe --help`` need not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mumoe import costs, functional
    from mumoe.baselines import HighRankLinear, SparseMoE
    from mumoe.deploy.load import load
    from mumoe.deploy.model import ImageClassifier
    from mumoe.errors import JobError, UserError
    from mumoe.factorizations import register_factorization
    from mumoe.gating import register_gate
    from mumoe.layers import MuMoE, MuMoEBlock

__version__ = "0.1.0.dev0"

__all__ = [
    "HighRankLinear",
    "ImageClassifier",
    "JobError",
    "MuMoE",
    "MuMoEBlock",
    "SparseMoE",
    "UserError",
    "costs",
    "functional",
    "load",
    "register_factorization",
    "register_gate",
]

_HOMES = {
    "HighRankLinear": "baselines",
    "ImageClassifier": "deploy.model",
    "JobError": "errors",
    "MuMoE": "layers",
    "MuMoEBlock": "layers",
    "SparseMoE": "baselines",
    "UserError": "errors",
    "load": "deploy.load",
    "register_factorization": "factorizations",
    "register_gate": "gating",
}
_MODULES = ("costs", "functional")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mumoe.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'mumoe' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mumoe.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])
