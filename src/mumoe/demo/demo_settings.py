"""What the demo trains, and the names of the subgroup that it corrects."""

from __future__ import annotations

from dataclasses import dataclass

from mumoe.devices import AUTO

__all__ = ["GROUP", "STUDIO", "DemoSettings"]

GROUP, STUDIO = "Animals & Nature", "OpenMoji"
"""The class and the studio whose images are nearly absent from training."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo trains.

    Attributes:
        few, many: Numbers of experts that are compared.
        rank: CP rank.
        seeds: Seeds of every head.
        epochs: Passes over the training split, as in the presets.
        bias_epochs: The same of the bias experiment (the studies in docs/results use 20).
        size: Side of the images in pixels.
        least_lost: Right answers that a class must lose, besides half of its own, for an expert to be strong.
        device: Where features are extracted and heads are trained.
    """

    few: int = 8
    many: int = 128
    rank: int = 256
    seeds: int = 3
    epochs: int = 30
    bias_epochs: int = 14
    size: int = 96
    least_lost: int = 5
    device: str = AUTO

    def spec(self, experts: int) -> str:
        """Specification of the head with so many experts."""
        return f"CPMuMoE-r{self.rank}-e{experts}"
