"""What each expert does: coefficients, interventions, specialization, images.

from mumoe.analysis import capture, intervene, intervene_inside

found = intervene(layer, batches)            # all experts ablated in one pass, (x, labels) batches
found.specialization(resamples=1000)         # d and p of eq. 5, counts beside the mean, intervals
found.load_control()                         # the same for random units of the same load
capture(model, images, "coefficients")       # sparse on disk, memory bounded
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mumoe.lazy import attach

if TYPE_CHECKING:
    from mumoe.analysis.capturing import capture, expert_layers
    from mumoe.analysis.coefficients import CoefficientStore, CoefficientWriter
    from mumoe.analysis.contributions import MODES
    from mumoe.analysis.grids import choose_images, write_grid
    from mumoe.analysis.hierarchy import and_reading
    from mumoe.analysis.inside import intervene_inside
    from mumoe.analysis.interventions import Interventions, intervene, intervene_plainly
    from mumoe.analysis.measures import differences, polysemanticity, specialization
    from mumoe.analysis.results import Combination, Effect, Specialization, Usage
    from mumoe.analysis.studies import LayerStudy, UnitStudy, study, write_coefficients
    from mumoe.analysis.text import TextStudy, steer, study_text

__all__ = [
    "MODES",
    "CoefficientStore",
    "CoefficientWriter",
    "Combination",
    "Effect",
    "Interventions",
    "LayerStudy",
    "Specialization",
    "TextStudy",
    "UnitStudy",
    "Usage",
    "and_reading",
    "capture",
    "choose_images",
    "differences",
    "expert_layers",
    "intervene",
    "intervene_inside",
    "intervene_plainly",
    "polysemanticity",
    "specialization",
    "steer",
    "study",
    "study_text",
    "write_coefficients",
    "write_grid",
]

__getattr__, __dir__ = attach(
    "mumoe.analysis",
    {
        "CoefficientStore": "coefficients",
        "CoefficientWriter": "coefficients",
        "Combination": "results",
        "Effect": "results",
        "Interventions": "interventions",
        "LayerStudy": "studies",
        "MODES": "contributions",
        "Specialization": "results",
        "TextStudy": "text",
        "UnitStudy": "studies",
        "Usage": "results",
        "and_reading": "hierarchy",
        "capture": "capturing",
        "choose_images": "grids",
        "differences": "measures",
        "expert_layers": "capturing",
        "intervene": "interventions",
        "intervene_inside": "inside",
        "intervene_plainly": "interventions",
        "polysemanticity": "measures",
        "specialization": "measures",
        "steer": "text",
        "study": "studies",
        "study_text": "text",
        "write_coefficients": "studies",
        "write_grid": "grids",
    },
)
