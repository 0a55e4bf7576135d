"""How faithful a replacement is on held-out documents, always beside controls of its gate.

Cross-entropy of the whole model with the replacement in place, minus that of the unchanged model: means over tokens,
intervals over documents. Two controls keep the experts and remove the gate's choice: every row gets the mean
coefficients of training (*constant gate*), or the coefficients of another row (*shuffled*). If a replacement is as
good with a constant gate, its experts contribute nothing, however faithful it is. The *expert share* is the gate's
part of the loss regained over zero ablation. Of experts on several levels, one level at a time is also held constant
while the others stay as they are: what is lost then is what that level adds to the "and". The Gaussian twin consists
of rows with the mean and covariance of the MLP's inputs: a replacement that matches the MLP everywhere has the same
error there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mumoe.coefficients import Coefficients, DenseCoefficients
from mumoe.decomposition.bench import Bench
from mumoe.decomposition.findings import CombinationUse, Evaluation, LevelUse, Measure, interval, ratio
from mumoe.decomposition.fitting import Twin, column_sums
from mumoe.decomposition.levels import occurring, split
from mumoe.decomposition.looking import coefficient_entries
from mumoe.decomposition.replacements import Replacement
from mumoe.devices import host
from mumoe.modes import evaluating
from mumoe.progress import Progress

__all__ = ["CONSTANT", "SHUFFLED", "evaluate_replacement", "jacobian_cosine"]

CONSTANT, SHUFFLED = "constant gate", "shuffled coefficients"
ONE_CONSTANT = "level {} constant"
"""Control of one of several levels."""
ZERO, MEAN = "zero ablation", "mean ablation"
RESAMPLES = 2000
ROWS = 4096
"""Rows that go through a replacement at a time."""
JACOBIAN_ROWS = 64
TWIN_ROWS = 8192
TWIN_STEP = 2**32 - 1
"""Step whose Gaussian rows are used for measuring: no training has that many steps."""

Apply = Callable[[Tensor], Tensor]


def evaluate_replacement(
    replacement: Replacement,
    bench: Bench,
    *,
    twin: Twin | None = None,
    jacobians: int = JACOBIAN_ROWS,
    progress: bool = True,
) -> Evaluation:
    """Measure a replacement and its controls.

    Args:
        replacement: With its mean coefficients.
        bench: Held-out contexts.
        twin: Gaussian rows; None leaves their error out.
        jacobians: Rows on which Jacobians are compared; 0 for none.
        progress: Whether to show progress.
    """
    controls = _controls(replacement)
    with evaluating(replacement), Progress("Evaluating", len(controls) + 1, enabled=progress) as bar:
        outputs = bench.outputs()
        documents = _Documents.of(bench)
        measures = []
        for name, apply in controls.items():
            losses = bench.run(lambda x, _, apply=apply: apply(x))  # type: ignore[misc]
            error = _error(apply, bench.x, outputs, bench.language.device)
            measures.append(documents.measure(name, losses - bench.losses["base"], error))
            bar.advance(note=name)
        zero = documents.measure(ZERO, bench.losses["zero"] - bench.losses["base"], None)
        mean = documents.measure(MEAN, bench.losses["mean"] - bench.losses["base"], None)
        share, share_interval = _expert_share(measures, zero, documents)
        counts, active = _usage(replacement, bench.x)
        levels, combinations = _levels(replacement, bench.x, counts, [*measures, zero])
        twin_error = None if twin is None else _twin_error(replacement, twin)
        bar.advance()
    cosine = (
        jacobian_cosine(replacement, bench.mlp.module, _some_rows(bench.x, jacobians).to(bench.language.device))
        if jacobians
        else None
    )
    return Evaluation(
        kind=replacement.shape.kind,
        model=bench.language.name,
        layer=bench.mlp.layer,
        contexts=len(bench.tokens),
        tokens=int(documents.tokens.sum()),
        documents=len(documents.tokens),
        base=float(bench.losses["base"].double().mean()),
        measures=(*measures, zero, mean),
        expert_share=share,
        expert_share_interval=share_interval,
        jacobian_cosine=cosine,
        twin_error=twin_error,
        active=active,
        live=None if counts is None else int((counts > 0).sum()),
        experts=replacement.shape.total,
        most=None if counts is None else float(counts.max()) / len(bench.x),
        document_tokens=tuple(documents.tokens.tolist()),
        levels=levels,
        combinations=combinations,
    )


def _controls(replacement: Replacement) -> dict[str, Apply]:
    """The replacement first, then the controls without its gate's choice."""
    found: dict[str, Apply] = {replacement.shape.kind: replacement}
    if replacement.mixture is None:
        return found
    mean = replacement.mean_coefficients

    def constant(x: Tensor) -> Tensor:
        return replacement.contract(x, DenseCoefficients(mean.expand(len(x), -1)))

    def shuffled(x: Tensor) -> Tensor:
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
        return replacement.contract(x, _gate(replacement, x[order.to(x.device)]))

    found |= {CONSTANT: constant, SHUFFLED: shuffled}
    sizes = replacement.shape.levels
    return found | {ONE_CONSTANT.format(level): _with_constant(replacement, level) for level in _several(sizes)}


def _several(sizes: tuple[int, ...]) -> range:
    """The levels, if there are several."""
    return range(len(sizes) if len(sizes) > 1 else 0)


def _with_constant(replacement: Replacement, level: int) -> Apply:
    """The replacement with one level at its mean coefficients of training."""
    sizes = replacement.shape.levels
    mean = replacement.mean_coefficients.split(list(sizes))[level]

    def apply(x: Tensor) -> Tensor:
        levels = split(_gate(replacement, x), sizes)
        levels[level] = DenseCoefficients(mean.expand(len(x), -1))
        return replacement.contract_levels(x, levels)

    return apply


def _gate(replacement: Replacement, x: Tensor) -> Coefficients:
    a = replacement.coefficients(x)
    assert a is not None
    return a


class _Documents:
    """Sums over the tokens of each document, and intervals over documents."""

    def __init__(self, which: npt.NDArray[np.int64], per_context: int) -> None:
        self.which = np.unique(which, return_inverse=True)[1]
        self.tokens = np.bincount(self.which).astype(np.float64) * per_context

    @classmethod
    def of(cls, bench: Bench) -> _Documents:
        return cls(bench.document, bench.losses["base"].shape[1])

    def sums(self, values: Tensor) -> npt.NDArray[np.float64]:
        """(contexts, tokens) -> (documents,)."""
        weights = values.double().sum(1).numpy()
        return np.bincount(self.which, weights, len(self.tokens)).astype(np.float64)

    def measure(self, name: str, increase: Tensor, error: float | None) -> Measure:
        sums = self.sums(increase)
        spread = interval(lambda w: w @ sums / (w @ self.tokens), len(sums), RESAMPLES)
        return Measure(name, ratio(sums, self.tokens), spread, error, tuple(sums.tolist()))


def _expert_share(
    measures: list[Measure], zero: Measure, documents: _Documents
) -> tuple[float | None, tuple[float, float] | None]:
    constant = next((one for one in measures if one.name == CONSTANT), None)
    if constant is None:
        return None, None
    kept, flat, none = (np.array(one.sums) for one in (measures[0], constant, zero))
    lost, regained = flat - kept, none - kept
    spread = interval(lambda w: w @ lost / (w @ regained), len(lost), RESAMPLES)
    return float(lost.sum() / regained.sum()), spread


def _error(apply: Apply, x: Tensor, y: Tensor, device: torch.device) -> float:
    """Squared error over the variance of y (ratio of sums)."""
    wrong = 0.0
    for a, b in zip(x.split(ROWS), y.split(ROWS), strict=True):
        wrong += float((host(apply(a.to(device))) - b).square().sum())
    return wrong / float((y.double() - y.double().mean(0)).square().sum())


def _usage(replacement: Replacement, x: Tensor) -> tuple[Tensor | None, float | None]:
    """(experts,) rows that use each expert, and experts that a row uses."""
    if replacement.mixture is None:
        return None, None
    counts = torch.zeros(replacement.shape.total, dtype=torch.float64)
    for part in x.split(ROWS):
        counts += column_sums(_gate(replacement, part.to(replacement.bias.device)), used=True).cpu()
    return counts, float(counts.sum()) / len(x)


def _levels(
    replacement: Replacement, x: Tensor, counts: Tensor | None, measures: list[Measure]
) -> tuple[tuple[LevelUse, ...], CombinationUse | None]:
    """Use of the experts of several levels and of their combinations; nothing for one level."""
    sizes = replacement.shape.levels
    if counts is None or len(sizes) == 1:
        return (), None
    increase = {one.name: one.increase or 0.0 for one in measures}
    regained = increase[ZERO] - increase[measures[0].name]
    levels = []
    for level, used in enumerate(counts.split(list(sizes))):
        lost = increase[ONE_CONSTANT.format(level)] - increase[measures[0].name]
        usage = (float(used.sum()) / len(x), int((used > 0).sum()), float(used.max()) / len(x))
        levels.append(LevelUse(sizes[level], *usage, share=lost / regained))
    return tuple(levels), _combinations(replacement, x)


def _combinations(replacement: Replacement, x: Tensor) -> CombinationUse:
    entries, sizes = coefficient_entries(replacement, x), replacement.shape.levels
    level = np.searchsorted(np.cumsum(sizes), entries.expert.numpy(), side="right")
    each = np.stack([np.bincount(entries.row.numpy()[level == one], minlength=len(x)) for one in range(len(sizes))])
    found = occurring(*entries.arrays(), len(x), sizes)
    keys, counts = found.counted()
    most = float(counts.max(initial=0)) / max(found.rows, 1)
    return CombinationUse(math.prod(sizes), float(each.prod(0).mean()), found.rows, len(keys), most)


def _twin_error(replacement: Replacement, twin: Twin) -> float:
    x, y = twin.rows(TWIN_ROWS, 0, TWIN_STEP)
    return _error(replacement, x, y, replacement.bias.device)


# Jacobians --------------------------------------------------------------------------------------------------


def _some_rows(x: Tensor, count: int) -> Tensor:
    return x[torch.from_numpy(np.random.default_rng(1).permutation(len(x))[:count])]


def jacobian_cosine(replacement: Replacement, mlp: nn.Module, x: Tensor) -> float:
    """Mean over rows of the cosine between the Jacobians of a replacement and an MLP, each out x in."""
    was = replacement.training
    replacement.eval()
    try:
        found = torch.zeros(len(x), 3, dtype=torch.float64)
        for one, other in zip(_jacobian_rows(replacement, x), _jacobian_rows(mlp, x), strict=True):
            products = ((one * other).sum(1), one.square().sum(1), other.square().sum(1))
            found += torch.stack([host(part) for part in products], dim=1)
    finally:
        replacement.train(was)
    cosine = found[:, 0] / (found[:, 1] * found[:, 2]).sqrt().clamp(min=1e-30)
    return float(cosine.mean())


def _jacobian_rows(function: nn.Module, x: Tensor) -> list[Tensor]:
    """For each output its gradient by x, (rows, in): rows do not depend on each other."""
    with torch.enable_grad():
        inputs = x.detach().clone().requires_grad_()
        y = function(inputs)
        found = []
        for output in range(y.shape[1]):
            (grad,) = torch.autograd.grad(y[:, output].sum(), inputs, retain_graph=output + 1 < y.shape[1])
            found.append(grad)
        return found
