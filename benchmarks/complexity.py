"""How a training step of a MuMoE block grows with experts, width, depth and tokens, beside what it replaces.

    python -m benchmarks.complexity [--full]

One of the four is varied at a time. A step is forward, backward and AdamW on a stack of blocks; its peak memory is
everything the process holds for it: weights, gradients, moments, activations. Ranks are those at which one block of
the base setting has as many parameters as the dense MLP it replaces (separately for each width); they do not change
with the number of experts. The mixture of sparse experts is two top-2 layers with as many experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import measuring, rivals
from benchmarks.measuring import Options, Work
from mumoe.baselines import SparseMoE
from mumoe.costs import count_flops, count_parameters
from mumoe.layers import MuMoEBlock

KINDS = ("cp", "tr", "tucker", "mlp", "sparse-moe")
AXES = ("experts", "width", "depth", "tokens")
PRELOAD = [*measuring.PRELOAD, "torch._dynamo"]  # which an optimizer imports when it is made
WARM = {"experts": 1024, "tokens": 64, "depth": 1}
"""First step of a process: enough for the sparse gate, whose code (130 MB, loaded once) is not memory of a step."""


@dataclass(frozen=True)
class Point:
    """One setting; the MLP's hidden layer is four times as wide."""

    experts: int
    width: int
    depth: int
    tokens: int


@dataclass(frozen=True)
class Study:
    """The sweeps around a base setting.

    Attributes:
        base: Where all but one is held.
        values: What each is varied over.
        seconds: About as long for the times of a point.
        most_bytes: Steps whose weights, gradients and moments alone need more are left out.
    """

    base: Point
    values: Mapping[str, Sequence[int]]
    seconds: float
    most_bytes: int


FULL = Study(
    Point(experts=128, width=128, depth=2, tokens=1024),
    {
        "experts": (8, 32, 128, 512, 2048, 8192, 32768),
        "width": (32, 64, 128, 256, 512, 1024),
        "depth": (1, 2, 4, 8, 16),
        "tokens": (64, 256, 1024, 4096, 16384),
    },
    seconds=8.0,
    most_bytes=3 * 2**30,
)
QUICK = Study(
    Point(experts=64, width=128, depth=2, tokens=512),
    {"experts": (16, 64, 512, 4096), "width": (64, 128, 256), "depth": (1, 2, 4), "tokens": (128, 512, 2048)},
    seconds=0.4,
    most_bytes=300 * 2**20,
)


def points(study: Study) -> list[Point]:
    """Every setting of the sweeps, the base once."""
    varied = (replace(study.base, **{axis: value}) for axis, chosen in study.values.items() for value in chosen)
    return list(dict.fromkeys(varied))


# What is measured -----------------------------------------------------------------------------------------


def ranks(kind: str, width: int, base: Point) -> list[int]:
    """Ranks of both layers of a block: those that match the MLP's parameters at the base's number of experts."""
    return rivals.matched_ranks(width, 4 * width, base.experts, kind)


class Residual(nn.Module):
    """x + block(x), so that a deep stack keeps its scale."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.block(x)
        return y


def build(kind: str, point: Point, base: Point) -> nn.Sequential:
    """A stack of `depth` blocks."""
    width = point.width

    def block() -> nn.Module:
        if kind == "mlp":
            return rivals.MLP(width, 4 * width)
        if kind == "sparse-moe":
            sizes = ((width, 4 * width), (4 * width, width))
            first, second = (SparseMoE(into, out, point.experts) for into, out in sizes)
            return nn.Sequential(first, nn.GELU(), second)
        return MuMoEBlock(
            width,
            4 * width,
            width,
            num_experts=point.experts,
            factorization=kind,
            rank=list(ranks(kind, width, base)),
        )

    return nn.Sequential(*(Residual(block()) for _ in range(point.depth)))


def count(kind: str, point: Point, base: Point) -> tuple[int, int]:
    """Parameters of the stack and multiply-adds of its forward, by formula."""
    width, n = point.width, point.experts
    shapes = ((width, 4 * width), (4 * width, width))
    name = "linear" if kind == "mlp" else kind
    both = ranks(kind, width, base) if name not in ("linear", "sparse-moe") else [None, None]
    gate = kind == "sparse-moe"
    held = sum(count_parameters(name, i, o, n, r, gate=gate) for (i, o), r in zip(shapes, both, strict=True))
    work = sum(count_flops(name, i, o, n, r, gate=gate) for (i, o), r in zip(shapes, both, strict=True))
    if name not in ("linear", "sparse-moe"):  # one gate for both layers
        held, work = held + width * n, work + width * n
    return point.depth * held, point.depth * point.tokens * work


def formula_bytes(kind: str, point: Point, base: Point) -> int:
    """Leading terms of a step's memory: weight, gradient and two moments; input and both sides of the GELU kept."""
    return 16 * count(kind, point, base)[0] + 4 * point.tokens * point.depth * 9 * point.width


class Step:
    """One training step on random tokens."""

    def __init__(self, kind: str, point: Point, base: Point) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(point.tokens, point.width)
        self.model = build(kind, point, base).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def __call__(self) -> Tensor:
        loss: Tensor = self.model(self.x).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def fits(kind: str, point: Point, study: Study) -> bool:
    """Whether weights, gradients and moments stay below the study's limit."""
    return 16 * count(kind, point, study.base)[0] <= study.most_bytes


def time_point(point: Point, study: Study) -> dict[str, float]:
    """Seconds of a step by kind, taken in turn; run it in a fresh process."""
    torch.set_num_threads(1)
    steps = {kind: Work(Step(kind, point, study.base)) for kind in KINDS if fits(kind, point, study)}
    return {kind: found["median"] for kind, found in measuring.in_turn(steps, study.seconds).items()}


def memory_point(kind: str, point: Point, base: Point) -> int:
    """Peak bytes of a step with all it holds; run it in a fresh process."""
    torch.set_num_threads(1)
    measuring.return_memory()
    warm = {**WARM, "experts": 16} if kind == "sparse-moe" else WARM  # as large as all its experts
    small = Step(kind, replace(point, **warm), base)
    small()  # libraries load their code
    del small
    before = measuring.resident()
    step = Step(kind, point, base)
    step()  # makes the moments
    measuring.mark()
    step()
    return measuring.resident("VmHWM") - before


def measure(study: Study, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """All points with times, memory and formulas; a line for each."""
    found = []
    wanted = points(study)
    times = measuring.fresh(time_point, [(point, study) for point in wanted], preload=PRELOAD)
    for point, taken in zip(wanted, times, strict=True):
        counts = {kind: count(kind, point, study.base) for kind in KINDS}
        parameters = {kind: counts[kind][0] for kind in KINDS}
        work = {kind: counts[kind][1] for kind in KINDS}
        found.append({**asdict(point), "seconds": taken, "bytes": {}, "parameters": parameters, "multiply_adds": work})
        said = ", ".join(f"{kind} {value * 1e3:.3g}" for kind, value in taken.items())
        tell(f"{', '.join(f'{name} {value}' for name, value in asdict(point).items())}; ms: {said}")
    if measuring.measures_memory():
        calls = [(kind, point, study.base) for point in wanted for kind in KINDS if fits(kind, point, study)]
        peaks = measuring.fresh(memory_point, calls, at_once=min(2, len(measuring.cores())), preload=PRELOAD)
        for (kind, point, _), peak in zip(calls, peaks, strict=True):
            found[wanted.index(point)]["bytes"][kind] = peak
    return found


# Exponents ------------------------------------------------------------------------------------------------


def series(rows: Sequence[Mapping[str, Any]], base: Point, axis: str) -> list[Mapping[str, Any]]:
    """The rows of one sweep, in order."""
    others = [name for name in AXES if name != axis]
    chosen = [row for row in rows if all(row[name] == getattr(base, name) for name in others)]
    return sorted(chosen, key=lambda row: row[axis])


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Slope of log y against log x by least squares; None for fewer than two points."""
    if len(x) < 2:
        return None
    slope, _ = np.polyfit(np.log(x), np.log(y), 1)
    return round(float(slope), 2)


def exponents(rows: Sequence[Mapping[str, Any]], base: Point) -> list[dict[str, Any]]:
    """Fitted exponents of measured time and memory and of the formulas at the same points, for each sweep and kind."""
    found = []
    for axis in AXES:
        for kind in KINDS:
            sweep = [row for row in series(rows, base, axis) if kind in row["seconds"]]
            x = [row[axis] for row in sweep]
            formula = [Point(*(row[name] for name in AXES)) for row in sweep]
            kept = [row for row in sweep if kind in row["bytes"]]
            last = (x[-2:], [row["seconds"][kind] for row in sweep[-2:]])
            found.append(
                {
                    "axis": axis,
                    "kind": kind,
                    "time": exponent(x, [row["seconds"][kind] for row in sweep]),
                    "time_last": exponent(*last),
                    "time_formula": exponent(x, [row["multiply_adds"][kind] for row in sweep]),
                    "memory": exponent([row[axis] for row in kept], [row["bytes"][kind] for row in kept]),
                    "memory_formula": exponent(x, [formula_bytes(kind, point, base) for point in formula]),
                }
            )
    return found


def main(asked: Options) -> None:
    """Measure and write the record."""
    write(FULL if asked.full else QUICK, asked)


def write(study: Study, asked: Options) -> None:
    """Measure a study and write its record."""
    base = study.base
    rows = measure(study, lambda line: print(line, flush=True))
    chosen = {kind: ranks(kind, base.width, base) for kind in ("cp", "tr", "tucker")}
    limit = {"most_bytes": study.most_bytes}
    record = {"base": asdict(base), "ranks": chosen, **limit, "rows": rows, "exponents": exponents(rows, base)}
    measuring.write("complexity", asked, record)


if __name__ == "__main__":
    main(measuring.options(__doc__ or ""))
