"""Table 2 of the paper on any data: correct a bias by every method, and measure all on the same test rows.

    emoji = partial(load_emoji, label="group", min_per_class=1, fractions=(0.6, 0.2, 0.2))
    results = run_bias(lambda seed: planted_style(emoji(split_seed=seed), features), seeds=(0, 1, 2))

Per seed (which changes split, cut, initialization and order) heads are trained, strengths are chosen on validation
rows, and then all methods are measured on the test rows. Every strength is reported in two or three ways: as the paper
fixes it (experts: lambda = N, blind: 2.5, retraining: fully balanced), *matched* (the smallest at which the target
subgroup is as accurate as the others with its label were), so that methods are compared at equal benefit, and *best
worst group* (the best worst-subgroup accuracy that costs at most one point of accuracy).
"""

from __future__ import annotations

import statistics
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mumoe import UserError
from mumoe.demo.bias_bench import Bench, FeatureBench, Predictions, SeedResult
from mumoe.demo.bias_heads import HeadFactory, Settings, head_factory
from mumoe.demo.planted_bias import BiasSet
from mumoe.editing.choose import Choice
from mumoe.editing.subgroup_fairness import METRICS, Bootstrap, FairnessReport
from mumoe.models.heads import matched_spec
from mumoe.records import to_plain
from reproduction.retraining import fit

__all__ = ["RETRAINING", "BiasResults", "Retraining", "RetrainingBench", "run_bias", "run_seed"]


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
class BiasResults:
    """All seeds of one experiment; `mean` summarizes them, `to_dict` is written to disk."""

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
        raise UserError("run_bias: expected at least one seed, got none. Use (0, 1, 2).")
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
    names = ("epochs", "batch_size", "learning_rate", "weight_decay", "preset")
    shown = {**{name: getattr(settings, name) for name in names}, "max_loss": max_loss}
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
    bench: RetrainingBench | None = None,
) -> SeedResult:
    """Train, choose, and then report, for one seed.

    Arguments are those of `run_bias`; `linear` leaves the linear heads out, and `bench` makes models other than heads
    on cached features.
    """
    bench = bench or FeatureRetrainingBench(bias, seed, settings, max_loss)
    matched = matched_spec("highrank-linear", head, *bench.sizes)
    for name, spec in (("Linear", "linear"), ("HighRankLinear", matched)) if linear else ():
        bench.add(name, bench.train(spec))
    bench.add(head, bench.train(head), base=True)
    for method in retraining:
        bench.retrain(method, head)
    return bench.correct(bootstrap)


def _short(choice: Choice, most: int = 40) -> dict[str, Any]:
    """A choice with its curve thinned to what a figure needs, the chosen point among it."""
    plain = to_plain(choice)
    step = max(1, len(choice.curve) // most)
    kept = [p for i, p in enumerate(plain["curve"]) if i % step == 0 or p["strength"] == choice.strength]
    return {**plain, "curve": kept}


class RetrainingBench(Bench):
    """A bench that also compares models trained again with the sensitive attribute."""

    @abstractmethod
    def train_again(self, strategy: str, spec: str, **options: Any) -> Any:
        """A model trained by a strategy of `reproduction.retraining`."""

    def head_factory(self, spec: str) -> HeadFactory:
        """Makes a fresh head as the settings say; those of the paper's recipes have its initial weights."""
        return head_factory(spec, self.sizes, self.settings)

    def retrain(self, method: Retraining, spec: str) -> None:
        """Train at every strength, and pick by each criterion on validation rows."""
        tried: dict[float, str] = {}
        shared = {"base": self.base_model} if method.strategy == "dfr" else {}
        for strength in method.strengths:
            tried[strength] = f"{method.strategy} {strength:g}"
            self.add(tried[strength], self.train_again(method.strategy, spec, strength=strength, **shared))
        heads = {strength: self.predicted.pop(name) for strength, name in tried.items()}
        counts = [self.parameters.pop(name) for name in tried.values()]
        before = self.predicted[self.base]

        def take(part: str) -> Callable[[float], Predictions]:
            return lambda strength: before[part] if strength == 0 else heads[strength][part]

        self.pick(f"+ {method.strategy}", take, method.strengths[0], list(heads), counts[0])


class FeatureRetrainingBench(RetrainingBench, FeatureBench):
    """Heads on cached features of a frozen backbone."""

    def train_again(self, strategy: str, spec: str, **options: Any) -> nn.Module:
        """A head trained by a strategy, in evaluation mode."""
        factory = self.head_factory(spec)
        return fit(strategy, self.task, factory, seed=self.seed, settings=self.settings, **options)
