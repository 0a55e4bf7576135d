"""Train a head on a backbone from one config: seeds, partners, checkpoints that survive, evaluation.

result = train(TrainConfig(data="emoji", head="CPMuMoE-r256-e128", seeds=3, out="runs/cp"))
result.accuracy["CPMuMoE-r256-e128"]["test"].mean
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mumoe.lazy import attach

if TYPE_CHECKING:
    from mumoe.training.checkpoint import CheckpointError
    from mumoe.training.config import PRESETS, TrainConfig, read_config, to_toml
    from mumoe.training.jobs import evaluate, load_head, load_run, load_run_inputs, resume, train
    from mumoe.training.signals import Interrupted

__all__ = [
    "PRESETS",
    "CheckpointError",
    "Interrupted",
    "TrainConfig",
    "evaluate",
    "load_head",
    "load_run",
    "load_run_inputs",
    "read_config",
    "resume",
    "to_toml",
    "train",
]

__getattr__, __dir__ = attach(
    "mumoe.training",
    {
        "CheckpointError": "checkpoint",
        "Interrupted": "signals",
        "PRESETS": "config",
        "TrainConfig": "config",
        "evaluate": "jobs",
        "load_head": "jobs",
        "load_run": "jobs",
        "load_run_inputs": "jobs",
        "read_config": "config",
        "resume": "jobs",
        "to_toml": "config",
        "train": "jobs",
    },
)
