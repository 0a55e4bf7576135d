"""Corrects a bias on one split of the data: strengths are chosen on validation rows and measured on test rows.

Every strength is reported up to three times: *fixed*, as in the paper (experts: lambda = N, blind: 2.5); *matched*, the
smallest at which the target subgroup is as accurate as the others with its label were, so that methods are compared at
equal benefit; and *best worst group*, the best accuracy of the worst subgroup that costs at most `max_loss` accuracy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mumoe.demo.bias_heads import BiasTask, HeadFactory, Settings, head_factory, train_plain
from mumoe.demo.planted_bias import BiasSet
from mumoe.editing.choose import Choice, LabelledRows, LogitShift, choose_strength
from mumoe.editing.rewriting import choose_rewriting, mean_coefficients, moved_by
from mumoe.editing.subgroup_fairness import Bootstrap, FairnessReport, fairness_report
from mumoe.layers import MuMoE

__all__ = [
    "BLIND_STRENGTH",
    "CRITERIA",
    "Bench",
    "FeatureBench",
    "Predictions",
    "SeedResult",
    "coefficient_direction",
    "feature_task",
]

BLIND_STRENGTH = 2.5
"""Lambda of blind thresholding in the paper, with a-bar = ones."""

CRITERIA = {"fixed": "", "match": " matched", "worst_group": " best worst group"}

Predictions = npt.NDArray[np.int64]


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
    """

    seed: int
    reports: Mapping[str, FairnessReport]
    strengths: Mapping[str, float]
    choices: Mapping[str, Choice]
    parameters: Mapping[str, int]
    support: int


@torch.no_grad()
def coefficient_direction(layer: MuMoE, features: Tensor, mean: Tensor) -> Tensor:
    """a-bar . a of every row: what a rewriting of strength 1 adds to the logit."""
    total, dtype = mean.to(features.dtype), features.dtype
    batches = features.split(4096)
    return torch.cat([moved_by(total, [a.to(dtype) for a in layer.coefficients(batch)]) for batch in batches])


class Bench(ABC):
    """Choosing on validation rows and reporting on test rows of one split, for models of any kind.

    Attributes:
        sizes: Width of the features and number of heads.
        base_logits: Part (val, test) -> logits of the model that edits start from.
    """

    sizes: tuple[int, int]
    base_logits: dict[str, Tensor]

    def __init__(self, bias: BiasSet, seed: int, settings: Settings, max_loss: float = 0.01) -> None:
        self.bias, self.seed, self.settings, self.max_loss = bias, seed, settings, max_loss
        self.rows = bias.training_rows(seed)
        self.val, self.test = (
            LabelledRows(bias.labels[rows, bias.head], bias.sensitive[rows])
            for rows in (bias.splits.val, bias.splits.test)
        )
        self.predicted: dict[str, dict[str, Predictions]] = {}
        self.strengths: dict[str, float] = {}
        self.choices: dict[str, Choice] = {}
        self.parameters: dict[str, int] = {}

    @abstractmethod
    def train(self, spec: str) -> Any:
        """A model trained on every training row alike."""

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
        """Add a trained model to the table; edits start from the base."""
        logits = {part: self.logits(model, part) for part in ("val", "test")}
        self.predicted[name] = {part: (value > 0).long().numpy() for part, value in logits.items()}
        self.parameters[name] = self.count(model)
        if base:
            self.base, self.base_model, self.base_logits = name, model, logits

    def shift_blindly(self) -> None:
        """Every image's logit shifted alike, at every strength."""
        shifts = self.shifts(lambda part: torch.ones(len(self.base_logits[part])))
        sign = 1 if self.bias.target[0] == 1 else -1
        candidates = shifts["val"].candidates(sign=sign).tolist()
        self.pick("+ blind", shifts.__getitem__, sign * BLIND_STRENGTH, candidates, self.parameters[self.base])

    def rewrite(self) -> None:
        """The rewriting of the base's experts, by every criterion (`mumoe.editing.rewriting`)."""
        mean = self.mean_coefficients(self.base_model)
        shifts = self.shifts(lambda part: self.direction(self.base_model, part, mean))
        for criterion, suffix in CRITERIA.items():
            how: dict[str, Any] = {"objective": criterion, "max_loss": self.max_loss}
            edit, choice = choose_rewriting(
                self.bias.head,
                mean,
                lambda: (self.val, shifts["val"]),
                target=self.bias.target,
                **({"strength": "paper"} if criterion == "fixed" else how),
            )
            if choice is not None:
                self.choices[f"+ experts{suffix}"] = choice
            self._take(f"+ experts{suffix}", shifts.__getitem__, edit.strength, self.parameters[self.base])

    def correct(self, bootstrap: Bootstrap | None = None) -> SeedResult:
        """Shift the base blindly, rewrite its experts, and report every model added so far on the test rows."""
        self.shift_blindly()
        self.rewrite()
        return self.report(bootstrap or Bootstrap(seed=self.seed))

    def shifts(self, direction: Callable[[str], Tensor]) -> dict[str, LogitShift]:
        """The base's logit along a direction, by part."""
        return {
            part: LogitShift(logits.double().numpy(), direction(part).double().numpy())
            for part, logits in self.base_logits.items()
        }

    def pick(
        self,
        name: str,
        predict: Callable[[str], Callable[[float], Predictions]],
        fixed: float,
        candidates: Sequence[float],
        parameters: int,
    ) -> None:
        """Choose a method's strength by every criterion on the validation rows, and keep its predictions."""
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
        """Measure on the test rows everything that was decided before."""
        rows = self.test
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
        return SeedResult(self.seed, reports, self.strengths, self.choices, self.parameters, support)


class FeatureBench(Bench):
    """Heads on cached features of a frozen backbone."""

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

    def head_factory(self, spec: str) -> HeadFactory:
        """Makes fresh heads of a specification, of the bench's sizes."""
        return head_factory(spec, self.sizes, self.settings)

    def train(self, spec: str) -> nn.Module:
        """A head trained on every training row alike, in evaluation mode."""
        return train_plain(self.task, self.head_factory(spec), seed=self.seed, settings=self.settings)

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
        found = mean_coefficients(layer, self.task.features[torch.from_numpy(self.inside)])
        assert isinstance(found, Tensor)
        return found

    def direction(self, model: nn.Module, part: str, mean: Tensor) -> Tensor:
        """(rows,) a-bar . a."""
        assert isinstance(model, MuMoE)
        return coefficient_direction(model, self.x[part], mean)


def feature_task(bias: BiasSet, rows: npt.NDArray[np.int64], features: Tensor) -> BiasTask:
    """Training rows and the bias that is in them, as a `BiasTask`."""
    values = sorted(set(bias.sensitive[rows].tolist()))
    codes = np.searchsorted(np.array(values), bias.sensitive[rows])
    labels = torch.from_numpy(bias.labels[rows])
    target = (bias.target[0], values.index(bias.target[1]))
    return BiasTask(features, labels, torch.from_numpy(codes), head=bias.head, target=target)
