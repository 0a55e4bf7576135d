"""Time and peak memory of a training step and of inference against the number of experts or combinations.

Variants are timed in turn within one process, so that other work on the machine slows all of them alike, and the least
of many rounds is reported beside the median. Peak memory is that of a fresh process for each variant. Gates are at
their initial weights, with the scale of the preset `accurate`: an image uses about as many experts as with a gate that
was never trained, more than after training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measuring
from benchmarks.measuring import Work
from mumoe.models.heads import build_head
from reproduction.million_heads import FORMS, PEERHead, parameters_of

__all__ = ["Step", "measure_costs", "names"]

ROWS, IN_FEATURES, CLASSES, RANK = 256, 1280, 70, 256
LEVELS = ((32, 32), (128, 128), (512, 512), (1024, 1024), (2048, 2048), (32, 32, 1024))
FLAT = (1024, 4096, 16384, 65536)
PEER = (1024, 16384, 65536, 1 << 20)
PEER_WIDTH = 16
WARM = "CPMuMoE-r4-e1024"
"""A small head with so many experts that the compiled kernels are loaded, which would count as its memory."""
PRELOAD = ["benchmarks.measuring", "reproduction.million_heads", "torch._dynamo"]


def names(*, quick: bool, peer: bool) -> list[str]:
    """Heads whose costs are measured, levels first; a quick look leaves the largest out."""
    shapes = [*LEVELS, *((n,) for n in FLAT)]
    kept = [shape for shape in shapes if not quick or sum(shape) <= 4096]
    found = [f"CPMuMoE-r{RANK}-e{'x'.join(map(str, shape))}" for shape in kept]
    return found + [f"PEER-e{n}-w{PEER_WIDTH}" for n in PEER if peer and not (quick and n > 1 << 16)]


@dataclass(frozen=True)
class Step:
    """A head with an optimizer, and one batch of random features."""

    head: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    labels: Tensor

    def train(self) -> None:
        """Forward, backward and AdamW."""
        F.cross_entropy(self.head(self.x), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def infer(self) -> None:
        """One forward in evaluation."""
        self.head(self.x)


def make_step(name: str, kind: str) -> Step:
    """The step of a head, in the mode that its work of one kind, ``train`` or ``infer``, needs."""
    torch.manual_seed(0)
    head: nn.Module
    if match := FORMS["peer"].fullmatch(name):
        head = PEERHead(IN_FEATURES, CLASSES, int(match[1]), int(match[2]))
    else:
        head = build_head(name, IN_FEATURES, CLASSES, gate_options={"scale": 0.5})
    head.train(kind == "train")
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4, fused=True)
    return Step(head, optimizer, torch.randn(ROWS, IN_FEATURES), torch.arange(ROWS) % CLASSES)


def times(wanted: list[str], kind: str, seconds: float) -> dict[str, dict[str, Any]]:
    """Seconds of the work of one kind, in turn; in a fresh process."""
    torch.set_num_threads(1)
    works: dict[str, Work] = {}
    for name in wanted:
        step = make_step(name, kind)
        works[name] = Work(step.train if kind == "train" else step.infer)
    return measuring.in_turn(works, seconds, least=4)


def peak(name: str, kind: str) -> int:
    """Peak bytes of a step with all that it holds: weights, in training gradients and moments; in a fresh process."""
    torch.set_num_threads(1)
    measuring.return_memory()
    for small in ("CPMuMoE-r4-e8x8", WARM):
        warm = make_step(small, kind)
        (warm.train if kind == "train" else warm.infer)()
    del warm
    before = measuring.resident()
    step = make_step(name, kind)
    work: Callable[[], None] = step.train if kind == "train" else step.infer
    work()
    measuring.mark()
    work()
    return measuring.resident("VmHWM") - before


def measure_costs(*, quick: bool = False, peer: bool = True) -> dict[str, Any]:
    """All variants: parameters, experts or combinations, seconds and peak bytes, as a JSON-able dict."""
    wanted = names(quick=quick, peer=peer)
    seconds = {"train": 5.0, "infer": 2.0} if quick else {"train": 75.0, "infer": 25.0}
    calls = [(wanted, kind, seconds[kind]) for kind in seconds]
    taken = dict(zip(seconds, measuring.fresh(times, calls, preload=PRELOAD), strict=True))
    pairs = [(name, kind) for name in wanted for kind in seconds]
    memory = dict(zip(pairs, measuring.fresh(peak, pairs, preload=PRELOAD), strict=True))
    rows = [
        {
            "head": name,
            "experts": _experts(name),
            "parameters": parameters_of(make_step(name, "infer").head),
            **{kind: {**taken[kind][name], "bytes": memory[name, kind]} for kind in seconds},
        }
        for name in wanted
    ]
    return {"machine": measuring.machine(), "rows": ROWS, "in_features": IN_FEATURES, "heads": rows}


def _experts(name: str) -> int:
    """Combinations of experts, or experts of one level."""
    match = FORMS["peer"].fullmatch(name)
    shape = match[1] if match else name.rpartition("-e")[2]
    return math.prod(map(int, shape.split("x")))
