"""The learning rate as a pure function of the step, so that a resumed job needs no state for it."""

from __future__ import annotations

import math

from mumoe.training.config import TrainConfig

__all__ = ["learning_rate"]

_START, _END = 1 / 25, 1 / 250_000
"""First and last share of the peak in the one-cycle schedule."""


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Learning rate of step `step` (from 0) out of `total`.

    cosine: linear warm-up from 0, then half a cosine to `lr_end`. linear: the same along a line. constant: linear
    warm-up, then the peak.
    one-cycle: half a cosine up from a 25th of the peak, then half a cosine down to a 250,000th.
    """
    warmup = config.warmup_steps if config.warmup_steps >= 0 else math.ceil(total / 10)
    if config.schedule == "one-cycle":
        return config.lr * _one_cycle(step, warmup, total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    if config.schedule == "linear":
        return config.lr + (config.lr_end - config.lr) * done
    return config.lr * _cosine(1.0, config.lr_end / config.lr if config.lr else 0.0, done)


def _one_cycle(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return _cosine(_START, 1.0, step / warmup)
    return _cosine(1.0, _END, (step - warmup) / max(total - 1 - warmup, 1))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
