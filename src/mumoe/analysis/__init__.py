"""What each expert does: coefficients, interventions, specialization, images.

study = run.analyze()                        # all of it for a trained run, written to RUN/analysis
study = analyze(model, loader)               # the same for any model with MuMoE layers
found = intervene(layer, batches)            # all experts ablated in one pass, (x, labels) batches
found.specialization(resamples=1000)         # d and p of eq. 5, counts beside the mean, intervals
capture(model, images, "coefficients")       # sparse on disk, memory bounded
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
