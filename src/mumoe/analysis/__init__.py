"""What each expert does: coefficients, interventions, specialization, images.

study = run.analyze()                        # all of it for a trained run, written to RUN/analysis
study = analyze(model, loader)               # the same for any model with MuMoE layers
found = intervene(layer, batches)            # all experts ablated in one pass, (x, labels) batches
found.specialization(resamples=1000)         # d and p of eq. 5, counts beside the mean, intervals
capture(model, images, "coefficients")       # sparse on disk, memory bounded
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mumoe.lazy import attach

if TYPE_CHECKING:
    from mumoe.analysis.analyzing import analyze, analyze_run
    from mumoe.analysis.capturing import capture, expert_layers
    from mumoe.analysis.chosen_images import choose_images
    from mumoe.analysis.class_effects import differences, polysemanticity, specialization
    from mumoe.analysis.coefficient_store import CoefficientStore, CoefficientWriter
    from mumoe.analysis.findings import (
        Combination,
        Effect,
        LayerStudy,
        Specialization,
        TextStudy,
        UnitStudy,
        Usage,
    )
    from mumoe.analysis.interventions import intervene
    from mumoe.analysis.layer_study import and_reading, study_layer, write_coefficients
    from mumoe.analysis.outcomes import Interventions
    from mumoe.analysis.settings import MODES
    from mumoe.analysis.study import ExpertFacts, Study
    from mumoe.analysis.text_study import steer, study_text

_HOMES = {
    "analyzing": ["analyze", "analyze_run"],
    "capturing": ["capture", "expert_layers"],
    "class_effects": ["differences", "polysemanticity", "specialization"],
    "coefficient_store": ["CoefficientStore", "CoefficientWriter"],
    "findings": ["Combination", "Effect", "LayerStudy", "Specialization", "TextStudy", "UnitStudy", "Usage"],
    "chosen_images": ["choose_images"],
    "interventions": ["intervene"],
    "outcomes": ["Interventions"],
    "layer_study": ["and_reading", "study_layer", "write_coefficients"],
    "settings": ["MODES"],
    "study": ["ExpertFacts", "Study"],
    "text_study": ["steer", "study_text"],
}

__all__ = [
    "MODES",
    "CoefficientStore",
    "CoefficientWriter",
    "Combination",
    "Effect",
    "ExpertFacts",
    "Interventions",
    "LayerStudy",
    "Specialization",
    "Study",
    "TextStudy",
    "UnitStudy",
    "Usage",
    "analyze",
    "analyze_run",
    "and_reading",
    "capture",
    "choose_images",
    "differences",
    "expert_layers",
    "intervene",
    "polysemanticity",
    "specialization",
    "steer",
    "study_layer",
    "study_text",
    "write_coefficients",
]

__getattr__, __dir__ = attach("mumoe.analysis", {name: home for home, names in _HOMES.items() for name in names})
