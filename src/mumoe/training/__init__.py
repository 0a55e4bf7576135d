"""Train a head on a backbone from one config: several seeds, heads to compare with, checkpoints, evaluation.

result = train(TrainConfig(data="emoji", head="CPMuMoE-r256-e128", seeds=3, out="runs/cp"))
result.accuracy["CPMuMoE-r256-e128"]["test"].mean
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
