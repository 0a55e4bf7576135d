"""What jobs return and reports render: plain frozen dataclasses that turn into JSON as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Comparison", "EvalResult", "RunResult", "Spread", "TrainResult", "to_json"]


@dataclass(frozen=True)
class EvalResult:
    """How a model did on one split.

    Attributes:
        run: Folder of the run ("" for a model in memory).
        split: train, val or test.
        step: Optimizer step of the checkpoint that was evaluated.
        count: Number of images.
        loss: Mean cross-entropy (binary, over all attributes, when multi-label), without smoothing.
        accuracy: Share of right answers in [0, 1]; when multi-label, the mean over attributes.
        per_class: Accuracy of each class (single-label: of its images; multi-label: of that attribute over
            all images); None where the split has no image of the class.
        class_counts: Images of each class (multi-label: images that have the attribute).
        bits_per_byte: Of a text, its loss per byte of UTF-8; None for images. There `count` is the number of
            windows, `loss` the mean over tokens, `accuracy` the share of next tokens that were the likeliest, and
            the classes are kinds of tokens.
    """

    run: str
    split: str
    step: int
    count: int
    loss: float
    accuracy: float
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    class_counts: Mapping[str, int] = field(default_factory=dict)
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class RunResult:
    """One trained model: a head on one seed.

    Attributes:
        run: Folder of the run.
        head: Head specification, with its rank.
        seed: The seed.
        parameters: Number of trained parameters.
        step: Optimizer step of the checkpoint that is the result.
        seconds: Time spent training, over all sittings.
        evaluations: `EvalResult` by split (val and test, as far as they have images).
    """

    run: str
    head: str
    seed: int
    parameters: int
    step: int
    seconds: float
    evaluations: Mapping[str, EvalResult]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1; None for one value) of a number over seeds."""

    mean: float
    sd: float | None
    count: int


@dataclass(frozen=True)
class Comparison:
    """Head minus partner, paired by seed.

    Attributes:
        head: The head.
        partner: What it is compared with.
        split: Split of the accuracies.
        differences: Accuracy of the head minus the partner's, one per seed.
        mean: Their mean; 0 means as good as each other.
        sd: Their standard deviation (None for one seed).
        interval: 95% t-interval of the mean (None for one seed).
    """

    head: str
    partner: str
    split: str
    differences: tuple[float, ...]
    mean: float
    sd: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class TrainResult:
    """What `mumoe.training.train` gives back, and what summary.json holds.

    Attributes:
        out: Folder that holds everything.
        head: The head that was asked for.
        runs: One per head and seed.
        accuracy: Head -> split -> spread over the seeds.
        comparisons: The head against each partner.
    """

    out: str
    head: str
    runs: tuple[RunResult, ...]
    accuracy: Mapping[str, Mapping[str, Spread]]
    comparisons: tuple[Comparison, ...] = ()


def to_json(result: Any) -> Any:
    """A result as dicts, lists, strings and numbers, ready for `json.dumps`."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {item.name: to_json(getattr(result, item.name)) for item in dataclasses.fields(result)}
    if isinstance(result, Mapping):
        return {str(key): to_json(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [to_json(value) for value in result]
    return result
