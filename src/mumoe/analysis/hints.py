"""A suggestion, in one sentence, if experts show no specialization beyond their control."""

from __future__ import annotations

from collections.abc import Iterable

from mumoe.analysis.findings import LayerStudy, Specialization

__all__ = ["REMEDY", "layer_hint", "no_effect", "specialization_hint"]

REMEDY = 'try the preset "specialized" or a larger weight of specialize'
"""The options that make experts specialize."""


def no_effect(p: float | None, control_p: float | None, strong: float, control_strong: float) -> bool:
    """Whether experts are no more specialized than their control.

    True if their mean p is not below the control's, or if they have no more strong experts than it.

    Args:
        p: Mean polysemanticity of the experts; None if no expert has an effect.
        control_p: That of the control.
        strong: Strong experts.
        control_strong: Strong units of the control.
    """
    purer = p is not None and (control_p is None or p < control_p)
    return not purer or strong <= control_strong


def specialization_hint(p: float | None, control_p: float | None, strong: float, control_strong: float) -> str:
    """The sentence for a run or for means over runs, arguments as for `no_effect`; empty where there is an effect."""
    if not no_effect(p, control_p, strong, control_strong):
        return ""
    found, control = ("none" if value is None else f"{value:.3f}" for value in (p, control_p))
    return (
        f"No clear specialization beyond the control (mean p {found} against {control}, strong experts {strong:g} "
        f"against {control_strong:g}): {REMEDY}."
    )


def layer_hint(study: LayerStudy) -> str:
    """The sentence for the first level of a layer; empty where any level shows an effect, or for neurons."""
    pairs = [(units.modes["zero"], units.load_control) for units in study.units if units.units != "neurons"]
    return _first_hint(pairs)


def _first_hint(pairs: Iterable[tuple[Specialization, Specialization]]) -> str:
    hints = [
        specialization_hint(part.mean_polysemanticity, control.mean_polysemanticity, part.strong, control.strong)
        for part, control in pairs
    ]
    return hints[0] if hints and all(hints) else ""
