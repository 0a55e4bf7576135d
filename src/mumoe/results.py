"""Results of training and evaluation: the records that jobs return, files hold and reports render."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mumoe.records import Record, record

__all__ = ["Comparison", "EvalResult", "RunResult", "Spread", "TrainResult"]


@record
class EvalResult(Record):
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

    def headline(self) -> str:
        """Accuracy, loss and number of images, or of windows of text."""
        what = "images" if self.bits_per_byte is None else f"windows, {self.bits_per_byte:.4f} bits per byte"
        name = f"{self.run}  {self.split}" if self.run else self.split
        numbers = f"accuracy {self.accuracy:.4f}, loss {self.loss:.4f}"
        return f"{name}: {numbers} on {self.count:,} {what} (step {self.step:,})"

    def rows(self) -> list[Mapping[str, Any]]:
        """One row for each class, attribute or kind of token: its name, accuracy and count."""
        return [
            {"class": name, "accuracy": accuracy, "count": self.class_counts.get(name)}
            for name, accuracy in self.per_class.items()
        ]


@record
class RunResult(Record):
    """One trained model: a head on one seed.

    Attributes:
        run: Folder of the run.
        head: Head specification, with its rank.
        seed: The seed.
        parameters: Number of trained parameters.
        step: Optimizer step of the checkpoint that is the result.
        seconds: Time spent training, interrupted sessions included.
        evaluations: `EvalResult` by split (val and test, as far as they have images).
    """

    run: str
    head: str
    seed: int
    parameters: int
    step: int
    seconds: float
    evaluations: Mapping[str, EvalResult]

    def rows(self) -> list[Mapping[str, Any]]:
        """One row: the run with accuracy, loss and, of a text, bits per byte on each split."""
        row: dict[str, Any] = {"head": self.head, "seed": self.seed}
        for split, found in self.evaluations.items():
            row |= {f"{split}_accuracy": found.accuracy, f"{split}_loss": found.loss}
            row |= {} if found.bits_per_byte is None else {f"{split}_bits_per_byte": found.bits_per_byte}
        names = ("parameters", "step", "seconds", "run")
        return [{**row, **{name: getattr(self, name) for name in names}}]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1; None for one value) of a number over seeds."""

    mean: float
    sd: float | None
    count: int

    def __str__(self) -> str:
        if self.sd is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} (sd {self.sd:.4f}, {self.count} seeds)"


@record
class Comparison(Record):
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

    def headline(self) -> str:
        """The mean difference in points, with its interval."""
        text = f"{self.head} minus {self.partner} on {self.split}: {100 * self.mean:+.2f} points"
        if self.interval is None:
            return f"{text} (one seed: no interval)"
        low, high = (f"{100 * end:+.2f}" for end in self.interval)
        return f"{text}, 95% interval {low} to {high}, paired over {len(self.differences)} seeds"


@record
class TrainResult(Record):
    """What `mumoe.training.train` returns, and what summary.json holds.

    Attributes:
        out: Folder that holds everything.
        head: The requested head.
        runs: One per head and seed.
        accuracy: Head -> split -> spread over the seeds.
        comparisons: The head against each partner.
    """

    out: str
    head: str
    runs: tuple[RunResult, ...]
    accuracy: Mapping[str, Mapping[str, Spread]]
    comparisons: tuple[Comparison, ...] = ()

    def headline(self) -> str:
        """The head's accuracy over seeds, and how it compares with each partner."""
        numbers = ", ".join(f"{split} {spread}" for split, spread in self.accuracy[self.head].items())
        return "; ".join([f"{self.head}: accuracy {numbers}", *(found.headline() for found in self.comparisons)])

    def rows(self) -> list[Mapping[str, Any]]:
        """One row for each run."""
        return [row for run in self.runs for row in run.rows()]
