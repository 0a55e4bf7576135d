"""Table 2 of the paper on one's own data: correct a bias by every method, measure all on the same test rows.

    emoji = partial(load_emoji, label="group", min_per_class=1, fractions=(0.6, 0.2, 0.2))
    results = run_bias(lambda seed: planted_style(emoji(split_seed=seed), features), seeds=(0, 1, 2))

Per seed (which changes split, cut, initialization and order) heads are trained, strengths are chosen on validation
rows, and only then are the test rows opened, once, for all methods. Every strength is reported twice or thrice: as
the paper fixes it (experts: lambda = N, blind: 2.5, retraining: fully balanced), *matched* (the smallest at which
the target subgroup is as accurate as the others with its label were), so that methods are compared at equal
benefit, and *best worst group* (the best worst-subgroup accuracy that costs at most one point of accuracy).
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mumoe.editing.baselines import BiasTask, Settings, fit
from mumoe.editing.choose import Choice, LogitShift, choose_strength
from mumoe.editing.fairness import METRICS, Bootstrap, FairnessReport, fairness_report
from mumoe.editing.rewriting import mean_coefficients, rewrite
from mumoe.editing.splits import Rows
from mumoe.errors import UserError
from mumoe.layers import MuMoE
from mumoe.models.heads import build_head, matched_spec
from mumoe.recipes.bias_sets import BiasSet

__all__ = [
    "BLIND_STRENGTH",
    "Bench",
    "BiasResults",
    "FeatureBench",
    "Retraining",
    "SeedResult",
    "coefficient_direction",
    "feature_task",
    "run_bias",
    "run_seed",
]

BLIND_STRENGTH = 2.5
"""Lambda of blind thresholding in the paper, with a-bar = ones."""

CRITERIA = {"fixed": "", "match": " matched", "worst_group": " best worst group"}

Predictions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Retraining:
    """A method that trains again, with the strengths to choose from; the first is the one reported as fixed."""

    strategy: str
    strengths: tuple[float, ...]


RETRAINING = (
    Retraining("oversample", (1.0, 0.5)),
    Retraining("adversarial", (1.0, 0.1)),
    Retraining("group-dro", (0.01, 0.1)),
    Retraining("dfr", (1.0, 0.01, 0.0001)),
)


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave.

    Attributes:
        seed: The seed.
        reports: Method to its report on the test rows.
        strengths: Method to the strength that it used, where it has one.
        choices: Edit to its choice, whose curve is the trade-off on validation rows.
        parameters: Learnable parameters by method.
        support: Training rows of the target subgroup.
        opened: When the test rows were opened: after how many strengths had been chosen.
    """

    seed: int
    reports: Mapping[str, FairnessReport]
    strengths: Mapping[str, float]
    choices: Mapping[str, Choice]
    parameters: Mapping[str, int]
    support: int
    opened: int


@dataclass(frozen=True)
class BiasResults:
    """All seeds of one experiment; `mean` sums them up, `to_dict` is what is written to disk."""

    name: str
    head: str
    seeds: tuple[SeedResult, ...]
    facts: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reports(self) -> dict[str, list[FairnessReport]]:
        """Method to its reports, one per seed."""
        return {method: [seed.reports[method] for seed in self.seeds] for method in self.seeds[0].reports}

    def mean(self, method: str, metric: str) -> tuple[float, float]:
        """Mean and standard deviation over the seeds (0 for a single one)."""
        values = [report.metrics[metric].value for report in self.reports[method]]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: means first, then every seed in full."""
        summary = {
            method: {
                metric: dict(zip(("mean", "std"), self.mean(method, metric), strict=True))
                for metric in METRICS
                if metric in reports[0].metrics
            }
            for method, reports in self.reports.items()
        }
        seeds = [
            {
                "seed": seed.seed,
                "support": seed.support,
                "strengths": dict(seed.strengths),
                "choices": {name: _short(choice) for name, choice in seed.choices.items()},
                "reports": {method: report.to_dict() for method, report in seed.reports.items()},
            }
            for seed in self.seeds
        ]
        about = {"name": self.name, "head": self.head, "settings": dict(self.settings), "facts": list(self.facts)}
        return {**about, "parameters": dict(self.seeds[0].parameters), "summary": summary, "seeds": seeds}


def run_bias(
    make_set: Callable[[int], BiasSet],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    head: str = "CPMuMoE-r256-e128",
    settings: Settings | None = None,
    retraining: Sequence[Retraining] = RETRAINING,
    max_loss: float = 0.01,
    bootstrap: Bootstrap | None = None,
) -> BiasResults:
    """The whole table of one experiment.

    Args:
        make_set: Seed to the data, split by that seed.
        seeds: At least one.
        head: Specification of the head to correct.
        settings: Of training, for every head alike.
        retraining: Methods that train again.
        max_loss: Overall accuracy that "best worst group" may cost on validation rows.
        bootstrap: Of the intervals.
    """
    if not seeds:
        raise UserError("run_bias: expected at least one seed, got none. Take (0, 1, 2).")
    settings = settings or Settings()
    found: list[SeedResult] = []
    for seed in seeds:
        bias = make_set(seed)
        found.append(
            run_seed(
                bias,
                seed=seed,
                head=head,
                settings=settings,
                retraining=retraining,
                max_loss=max_loss,
                bootstrap=bootstrap,
            )
        )
    shown = {"epochs": settings.epochs, "batch_size": settings.batch_size, "learning_rate": settings.learning_rate}
    shown |= {"weight_decay": settings.weight_decay, "max_loss": max_loss}
    return BiasResults(bias.name, head, tuple(found), bias.facts, shown)


def run_seed(
    bias: BiasSet,
    *,
    seed: int,
    head: str,
    settings: Settings,
    retraining: Sequence[Retraining] = RETRAINING,
    linear: bool = True,
    max_loss: float = 0.01,
    bootstrap: Bootstrap | None = None,
    bench: Bench | None = None,
) -> SeedResult:
    """Train, choose, and then report, for one seed.

    Arguments are those of `run_bias`; `linear` leaves the linear heads out, and `bench` takes other models than heads
    on cached features.
    """
    bench = bench or FeatureBench(bias, seed, settings, max_loss)
    matched = matched_spec("highrank-linear", head, *bench.sizes)
    for name, spec in (("Linear", "linear"), ("HighRankLinear", matched)) if linear else ():
        bench.add(name, bench.train("plain", spec))
    base = bench.train("plain", head)
    bench.add(head, base, base=True)
    for method in retraining:
        bench.retrain(method, head)
    bench.shift_blindly()
    bench.rewrite()
    return bench.report(bootstrap or Bootstrap(seed=seed))


def _short(choice: Choice, most: int = 40) -> dict[str, Any]:
    """A choice with its curve thinned to what a figure needs, the chosen point among it."""
    plain = choice.to_dict()
    step = max(1, len(choice.curve) // most)
    kept = [p for i, p in enumerate(plain["curve"]) if i % step == 0 or p["strength"] == choice.strength]
    return {**plain, "curve": kept}


@torch.no_grad()
def coefficient_direction(layer: MuMoE, features: Tensor, mean: Tensor) -> Tensor:
    """a-bar . a of every row: what a rewriting of strength 1 adds to the logit."""
    total, parts = mean.to(features.dtype), []
    for batch in features.split(4096):
        value = total.expand(len(batch), *total.shape)
        for a in layer.coefficients(batch):
            value = torch.einsum("zn...,zn->z...", value, a.to(features.dtype))
        parts.append(value)
    return torch.cat(parts)


class Bench(ABC):
    """Choosing and reporting on one split, for models of any kind; the test labels are sealed until `report`.

    Attributes:
        sizes: Width of the features and number of heads.
        base_logits: Part (val, test) -> logits of the model that edits start from.
    """

    sizes: tuple[int, int]
    base_logits: dict[str, Tensor]

    def __init__(self, bias: BiasSet, seed: int, settings: Settings, max_loss: float = 0.01) -> None:
        self.bias, self.seed, self.settings, self.max_loss = bias, seed, settings, max_loss
        self.rows = bias.training_rows(seed)
        truth = bias.labels[:, bias.head]
        _, self.val, self.sealed = bias.splits.seal(truth, bias.sensitive)
        self.predicted: dict[str, dict[str, Predictions]] = {}
        self.strengths: dict[str, float] = {}
        self.choices: dict[str, Choice] = {}
        self.parameters: dict[str, int] = {}

    @abstractmethod
    def train(self, strategy: str, spec: str, **options: Any) -> Any:
        """A model trained by a strategy of `mumoe.editing.baselines`."""

    @abstractmethod
    def logits(self, model: Any, part: str) -> Tensor:
        """(rows,) logits of the biased head on val or test."""

    @abstractmethod
    def count(self, model: Any) -> int:
        """Learnable parameters of its head."""

    @abstractmethod
    def mean_coefficients(self, model: Any) -> Tensor:
        """a-bar of eq. 6: over the training rows of the target subgroup."""

    @abstractmethod
    def direction(self, model: Any, part: str, mean: Tensor) -> Tensor:
        """(rows,) a-bar . a: what a rewriting of strength 1 adds to the logit."""

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """Which of the training rows are of the target subgroup."""
        bias = self.bias
        right = bias.labels[self.rows, bias.head] == bias.target[0]
        return np.asarray(right & (bias.sensitive[self.rows] == bias.target[1]))

    def add(self, name: str, model: Any, *, base: bool = False) -> None:
        """Take a trained model into the table; the base is the one that edits start from."""
        logits = {part: self.logits(model, part) for part in ("val", "test")}
        self.predicted[name] = {part: (value > 0).long().numpy() for part, value in logits.items()}
        self.parameters[name] = self.count(model)
        if base:
            self.base, self.base_model, self.base_logits = name, model, logits

    def retrain(self, method: Retraining, spec: str) -> None:
        """Train at every strength, and pick by each criterion on validation rows."""
        tried: dict[float, str] = {}
        shared = {"base": self.base_model} if method.strategy == "dfr" else {}
        for strength in method.strengths:
            tried[strength] = f"{method.strategy} {strength:g}"
            self.add(tried[strength], self.train(method.strategy, spec, strength=strength, **shared))
        heads = {strength: self.predicted.pop(name) for strength, name in tried.items()}
        counts = [self.parameters.pop(name) for name in tried.values()]
        before = self.predicted[self.base]

        def take(part: str) -> Callable[[float], Predictions]:
            return lambda strength: before[part] if strength == 0 else heads[strength][part]

        self._pick(f"+ {method.strategy}", take, method.strengths[0], list(heads), counts[0])

    def shift_blindly(self) -> None:
        """Every image's logit shifted alike, at every strength."""
        shifts = self.shifts(lambda part: torch.ones(len(self.base_logits[part])))
        sign = 1 if self.bias.target[0] == 1 else -1
        candidates = shifts["val"].candidates(sign=sign).tolist()
        self._pick("+ blind", shifts.__getitem__, sign * BLIND_STRENGTH, candidates, self.parameters[self.base])

    def rewrite(self) -> None:
        """The rewriting of the base's experts, by every criterion (`mumoe.editing.rewriting`)."""
        model = _BaseRows(self)
        for criterion, suffix in CRITERIA.items():
            if criterion == "fixed":
                how: dict[str, Any] = {"strength": "paper"}
            else:
                how = {"objective": criterion, "max_loss": self.max_loss}
            found = rewrite(model, self.bias.head, target=self.bias.target, **how)
            if found.choice is not None:
                self.choices[f"+ experts{suffix}"] = found.choice
            self._take(f"+ experts{suffix}", model.shifts.__getitem__, found.edit.strength, self.parameters[self.base])

    def shifts(self, direction: Callable[[str], Tensor]) -> dict[str, LogitShift]:
        """The base's logit along a direction, by part."""
        return {
            part: LogitShift(logits.double().numpy(), direction(part).double().numpy())
            for part, logits in self.base_logits.items()
        }

    def _pick(
        self,
        name: str,
        predict: Callable[[str], Callable[[float], Predictions]],
        fixed: float,
        candidates: Sequence[float],
        parameters: int,
    ) -> None:
        for criterion, suffix in CRITERIA.items():
            strength = fixed
            if criterion != "fixed":
                choice = choose_strength(
                    self.val,
                    predict("val"),
                    candidates,
                    target=self.bias.target,
                    objective=criterion,  # type: ignore[arg-type]
                    max_loss=self.max_loss,
                )
                self.choices[name + suffix], strength = choice, choice.strength
            self._take(name + suffix, predict, strength, parameters)

    def _take(
        self, name: str, predict: Callable[[str], Callable[[float], Predictions]], strength: float, parameters: int
    ) -> None:
        self.predicted[name] = {part: predict(part)(strength) for part in self.base_logits}
        self.strengths[name], self.parameters[name] = strength, parameters

    def report(self, bootstrap: Bootstrap) -> SeedResult:
        """Open the test rows, once, and measure everything that was decided before."""
        chosen = len(self.choices)
        rows: Rows = self.sealed.open(f"final report of seed {self.seed}")
        before = self.predicted[self.base]["test"]
        reports = {
            method: fairness_report(
                rows.y_true,
                predicted["test"],
                sensitive_features=rows.sensitive_features,
                target=self.bias.target,
                y_pred_before=before if method.startswith("+") else None,
                bootstrap=bootstrap,
            )
            for method, predicted in self.predicted.items()
        }
        support = int(self.inside.sum())
        return SeedResult(self.seed, reports, self.strengths, self.choices, self.parameters, support, opened=chosen)


class _BaseRows:
    """The bench's base model as `mumoe.editing.rewriting` takes it."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self._mean = bench, bench.mean_coefficients(bench.base_model)
        self.shifts = bench.shifts(lambda part: bench.direction(bench.base_model, part, self._mean))

    def mean(self) -> tuple[Tensor, int]:
        return self._mean, int(self.bench.inside.sum())

    def validation(self, mean: Tensor) -> tuple[Rows, LogitShift]:
        return self.bench.val, self.shifts["val"]


class FeatureBench(Bench):
    """Heads on cached features of a frozen backbone, by `mumoe.editing.baselines`."""

    def __init__(self, bias: BiasSet, seed: int, settings: Settings, max_loss: float = 0.01) -> None:
        super().__init__(bias, seed, settings, max_loss)
        rows = self.rows
        mean = bias.features[rows].mean(0, dtype=np.float64)
        deviation = np.maximum(bias.features[rows].std(0, dtype=np.float64), 1e-6)
        self._standard = (mean.astype(np.float32), deviation.astype(np.float32))
        self.task = feature_task(bias, rows, self._features(rows))
        self.x = {"val": self._features(bias.splits.val), "test": self._features(bias.splits.test)}
        self.sizes = (bias.features.shape[1], bias.labels.shape[1])

    def _features(self, rows: npt.NDArray[np.int64]) -> Tensor:
        mean, deviation = self._standard
        return torch.from_numpy((self.bias.features[rows] - mean) / deviation)

    def train(self, strategy: str, spec: str, **options: Any) -> nn.Module:
        """A head on the training rows, in evaluation mode."""

        def factory() -> nn.Module:
            return build_head(spec, *self.sizes).layer

        return fit(strategy, self.task, factory, seed=self.seed, settings=self.settings, **options)

    @torch.no_grad()
    def logits(self, model: nn.Module, part: str) -> Tensor:
        """(rows,) logits of the biased head on val or test."""
        return torch.cat([model(batch)[:, self.bias.head] for batch in self.x[part].split(4096)])

    def count(self, model: nn.Module) -> int:
        """Learnable parameters."""
        return sum(parameter.numel() for parameter in model.parameters())

    def mean_coefficients(self, model: nn.Module) -> Tensor:
        """a-bar of eq. 6."""
        layer = model.eval()
        assert isinstance(layer, MuMoE)
        return mean_coefficients(layer, self.task.features[torch.from_numpy(self.inside)])

    def direction(self, model: nn.Module, part: str, mean: Tensor) -> Tensor:
        """(rows,) a-bar . a."""
        assert isinstance(model, MuMoE)
        return coefficient_direction(model, self.x[part], mean)


def feature_task(bias: BiasSet, rows: npt.NDArray[np.int64], features: Tensor) -> BiasTask:
    """Training rows and the bias that is in them, as `mumoe.editing.baselines` takes them."""
    values = sorted(set(bias.sensitive[rows].tolist()))
    codes = np.searchsorted(np.array(values), bias.sensitive[rows])
    labels = torch.from_numpy(bias.labels[rows])
    target = (bias.target[0], values.index(bias.target[1]))
    return BiasTask(features, labels, torch.from_numpy(codes), head=bias.head, target=target)
