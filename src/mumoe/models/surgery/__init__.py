"""MuMoE inside whole networks: replace modules by name or architecture, undo it, distil their outputs."""

from mumoe.models.surgery.architectures import PRESETS, Preset, is_causal
from mumoe.models.surgery.distil import FitReport, fit
from mumoe.models.surgery.planning import Plan, Surgery
from mumoe.models.surgery.replace import named_targets, plan, replace_head, replace_modules
from mumoe.models.surgery.targets import LayerOptions, Target

__all__ = [
    "PRESETS",
    "FitReport",
    "LayerOptions",
    "Plan",
    "Preset",
    "Surgery",
    "Target",
    "fit",
    "is_causal",
    "named_targets",
    "plan",
    "replace_head",
    "replace_modules",
]
