"""What is shown of a run, as plain frozen dataclasses: the same for the report and the dashboard, and ready for JSON.

`gather` fills them. `None` stands for a number that does not exist; a part that the run lacks is a `Missing` with
the command that would make it. All shares and accuracies lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mumoe.analysis.findings import Interval
from mumoe.results import EvalResult, Spread

__all__ = [
    "ClassLoss",
    "CombinationView",
    "CostRow",
    "Curve",
    "EditView",
    "Estimated",
    "ExpertView",
    "FairnessView",
    "HeadFacts",
    "ImageView",
    "LevelView",
    "MetricRow",
    "Missing",
    "Neighbour",
    "PlainChange",
    "RunFacts",
    "RunView",
    "SeedView",
    "Specialized",
    "SubgroupRow",
    "UsageView",
]


@dataclass(frozen=True)
class Missing:
    """A part that a run does not have.

    Attributes:
        part: Name of the part: ``analysis``, ``neighbours``, ``loss intervals``, ``images``, ``edits``,
            ``fairness``, ``experts``, ``costs``, ``evaluation`` or ``seeds``.
        reason: Why it is not there, in a sentence.
        command: The command that would make it; empty where none can.
    """

    part: str
    reason: str
    command: str = ""


@dataclass(frozen=True)
class Curve:
    """One line of the training log.

    Attributes:
        name: ``loss``, ``lr``, ``val_loss`` or ``val_accuracy``.
        label: What it is, with its unit.
        points: (step, epoch, value), in order.
    """

    name: str
    label: str
    points: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True)
class Specialized:
    """Specialization of one kind of unit under one intervention, without the single units.

    Attributes:
        units: Number of units ablated, each in isolation.
        with_effect: Units whose ablation changes anything.
        mean_polysemanticity: Mean p over these; p lies in [0, inf), 0 is one class alone.
        mean_interval: Its bootstrap interval.
        strong: Units that cost some class at least half of its right answers, and at least `least_lost`.
        strong_interval: Its bootstrap interval.
        mean_polysemanticity_strong: Mean p over the strong units.
        accuracy: Right answers before any intervention.
        images: Number of images.
        classes: Number of classes.
        classes_without_images, classes_never_right: Classes left out, and why.
        least_lost: Right answers that a class must lose for a unit to be strong; 1 (any) in older files.
        strong_images: Distinct images behind the strong units.
    """

    units: int
    with_effect: int
    mean_polysemanticity: float | None
    mean_interval: Interval | None
    strong: int
    strong_interval: Interval | None
    mean_polysemanticity_strong: float | None
    accuracy: float
    images: int
    classes: int
    classes_without_images: int
    classes_never_right: int
    least_lost: int = 1
    strong_images: int = 0


@dataclass(frozen=True)
class SeedView:
    """One training of the head.

    Attributes:
        path: Its folder.
        seed: Its seed.
        state: ``finished``, ``running``, ``interrupted`` or ``failed``.
        started: UTC time in ISO 8601.
        seconds: Time spent training; None while it is not finished.
        step: Optimizer step of the checkpoint that is the result.
        parameters: Number of trained parameters.
        evaluations: By split.
        curves: The training log.
        specialized: Specialization in mode ``zero`` of the first kind of unit; None without an analysis.
        control: The same for units of the same load made up of random contributions.
        analysis_split: Split that was analyzed.
    """

    path: str
    seed: int
    state: str
    started: str
    seconds: float | None
    step: int | None
    parameters: int | None
    evaluations: Mapping[str, EvalResult]
    curves: tuple[Curve, ...]
    specialized: Specialized | None
    control: Specialized | None
    analysis_split: str | None


@dataclass(frozen=True)
class HeadFacts:
    """The head.

    Attributes:
        spec: Its specification, such as ``CPMuMoE-r256-e128``.
        kind: A factorization, ``sparse-moe``, ``highrank-linear`` or ``linear``.
        experts: Experts of each level; empty without experts.
        gate, norm: Of the gate; empty without a gate.
        position: ``final`` or ``penultimate``.
        in_features, out_features: Of the layer.
    """

    spec: str
    kind: str
    experts: tuple[int, ...]
    gate: str
    norm: str
    position: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class RunFacts:
    """What it was trained on and how.

    Attributes:
        data: Name of the image set.
        fingerprint: Of its content.
        images: Number of images, all splits.
        classes: Names of the classes, or of the 0/1 targets.
        multi_label: Whether they are 0/1 targets.
        num_features: Width of the backbone's features.
        backbone: Its name.
        mode: ``features`` (frozen backbone) or ``finetune``.
        image_size: Side of the images in pixels, 0 for the backbone's own.
        credits: Attribution lines that must be shown with the images.
        settings: All settings, by table of config.toml.
        versions: Versions of what computed the numbers.
        commit: Of mumoe's sources; empty where unknown.
    """

    data: str
    fingerprint: str
    images: int
    classes: tuple[str, ...]
    multi_label: bool
    num_features: int
    backbone: str
    mode: str
    image_size: int
    credits: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    commit: str


@dataclass(frozen=True)
class ClassLoss:
    """What one class loses without an expert.

    Attributes:
        position, name: The class.
        loss: d of eq. 5, the share of its right answers that are lost; negative: it gains.
        interval: Bootstrap interval of `loss`; None where it was not measured.
        right: Right answers of the class before; None where they are not known.
    """

    position: int
    name: str
    loss: float
    interval: Interval | None
    right: int | None


@dataclass(frozen=True)
class Neighbour:
    """An expert that is like another: cosine similarity in [-1, 1], 1 is the same direction."""

    expert: int
    similarity: float


@dataclass(frozen=True)
class ImageView:
    """One image of an expert.

    Attributes:
        image: Its position in the data set.
        label: Its class, or its targets.
        coefficient: The expert's coefficient, in [0, 1].
        file: A thumbnail that exists already, or empty: it is drawn from the data set.
    """

    image: int
    label: str
    coefficient: float
    file: str = ""


@dataclass(frozen=True)
class ExpertView:
    """One expert (or neuron) of one level.

    Attributes:
        level, expert: Its place, both from 0.
        load: Rows that it processes with at least the threshold; None without coefficients.
        touched: Rows with a coefficient above 0.
        mean_coefficient: Over all rows, in [0, 1].
        with_effect: Whether ablating it changes the accuracy of any class.
        polysemanticity: p of eq. 5, in [0, inf); None without effect.
        interval: Its bootstrap interval.
        strong: Whether some class loses at least half of its right answers, and as many as the analysis asks for.
        losses: Classes that change, the largest loss first.
        by_weight: Experts with the most similar weights, most similar first.
        by_coefficient: Experts that process the same images.
        random: Images it processes, drawn at random.
        top: Images with the largest coefficients.
        images: Distinct images whose right answers make it strong; 0 if it is not, or in older files.
    """

    level: int
    expert: int
    load: int | None
    touched: int | None
    mean_coefficient: float | None
    with_effect: bool
    polysemanticity: float | None
    interval: Interval | None
    strong: bool
    losses: tuple[ClassLoss, ...]
    by_weight: tuple[Neighbour, ...] = ()
    by_coefficient: tuple[Neighbour, ...] = ()
    random: tuple[ImageView, ...] = ()
    top: tuple[ImageView, ...] = ()
    images: int = 0

    @property
    def worst(self) -> ClassLoss | None:
        """The class that loses most without it; None if no class loses."""
        return self.losses[0] if self.losses and self.losses[0].loss > 0 else None


@dataclass(frozen=True)
class UsageView:
    """How a data set uses the experts of one level; see `mumoe.analysis.findings.Usage`."""

    experts: int
    rows: int
    threshold: float
    dead: int
    experts_above_threshold: int
    support_mean: float
    support_quantiles: tuple[int, int, int, int, int]
    entropy_mean: float
    largest_mean: float


@dataclass(frozen=True)
class LevelView:
    """The experts of one level, or the neurons of a linear layer.

    Attributes:
        level: From 0.
        name: ``experts``, ``level 0`` .. or ``neurons``.
        usage: How they are used; None for neurons.
        modes: Specialization by what takes an ablated unit's place; ``zero`` is the paper's.
        control: The same for units of the same load made up of random contributions.
        experts: Every one of them, in order.
    """

    level: int
    name: str
    usage: UsageView | None
    modes: Mapping[str, Specialized]
    control: Specialized
    experts: tuple[ExpertView, ...]


@dataclass(frozen=True)
class CombinationView:
    """The "and" of a hierarchy, with names; see `mumoe.analysis.findings.Combination`.

    Attributes:
        experts: One expert per level.
        classes_by_level: Per level, classes that lose at least half when that expert goes everywhere.
        classes_of_all: Classes in all of these.
        classes_of_combination: Classes that lose at least half when this combination alone goes.
        agreement: Jaccard index of the last two, in [0, 1]; None if both are empty.
        polysemanticity: p of the combination.
        losses: Classes that change when it goes.
    """

    experts: tuple[int, ...]
    classes_by_level: tuple[tuple[str, ...], ...]
    classes_of_all: tuple[str, ...]
    classes_of_combination: tuple[str, ...]
    agreement: float | None
    polysemanticity: float | None
    losses: tuple[ClassLoss, ...]


@dataclass(frozen=True)
class Estimated:
    """A number and its bootstrap interval (None without one)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class SubgroupRow:
    """Accuracy of one subgroup.

    Attributes:
        label: True label.
        sensitive: Sensitive value.
        count: Number of images.
        before: Accuracy before the edits; None where nothing was edited.
        after: Accuracy, after the edits if there are any.
        difference: after - before; None where nothing was edited.
        target: Whether it is the subgroup that a correction is meant for.
    """

    label: str
    sensitive: str
    count: int
    before: Estimated | None
    after: Estimated
    difference: float | None
    target: bool


@dataclass(frozen=True)
class MetricRow:
    """One metric of Table 2: its name, its heading (the arrow points to where better is), before and after."""

    name: str
    heading: str
    before: Estimated | None
    after: Estimated | None


@dataclass(frozen=True)
class FairnessView:
    """Table 2 and Figure 16 of one model, or of one before and after edits.

    Attributes:
        title: Whose they are.
        file: The file they were read from, relative to the run.
        subgroups: In the order of the report.
        metrics: In the paper's order.
        rows: Number of images.
        resamples, confidence: Of the bootstrap.
        edited: Whether `before` and `after` are two models.
        head: The attribute that is predicted; empty where the file does not name it.
        sensitive: The sensitive attribute, likewise.
    """

    title: str
    file: str
    subgroups: tuple[SubgroupRow, ...]
    metrics: tuple[MetricRow, ...]
    rows: int
    resamples: int
    confidence: float
    edited: bool
    head: str = ""
    sensitive: str = ""


@dataclass(frozen=True)
class PlainChange:
    """What edits by hand did, where no subgroup was measured.

    Attributes:
        images: Number of images.
        before, after: Accuracy.
        classes: (class, before, after) of those that moved, the largest move first.
    """

    images: int
    before: float
    after: float
    classes: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class EditView:
    """One file of edits.

    Attributes:
        name: Its file name without ending.
        file: Its path relative to the run.
        created: UTC time in ISO 8601.
        edits: (name, what it does), in order.
        strength: Lambda of a rewriting, with its sign; None for edits by hand.
        subgroup: head, label, sensitive, value and training_images of the subgroup helped; empty by hand.
        split: Split of the images measured.
        choice: How lambda was chosen: objective, strength, curve of strength and metrics; None if it was given.
        fairness: Subgroups before and after.
        change: Accuracy before and after where no subgroup was named.
    """

    name: str
    file: str
    created: str
    edits: tuple[tuple[str, str], ...]
    strength: float | None
    subgroup: Mapping[str, Any]
    split: str
    choice: Mapping[str, Any] | None
    fairness: FairnessView | None
    change: PlainChange | None


@dataclass(frozen=True)
class CostRow:
    """One layer of the cost table.

    Attributes:
        name: What it is, in words.
        spec: Its specification.
        parameters: Learnable parameters, gate included.
        flops: Multiply-adds for one row, gate left out as in the paper.
    """

    name: str
    spec: str
    parameters: int
    flops: int


@dataclass(frozen=True)
class RunView:
    """Everything that is known of one head, over its seeds.

    Attributes:
        name: Short name, unique among the runs gathered together.
        path: The folder that was asked for.
        facts: Data, backbone and settings.
        head: The head.
        seeds: Its trainings, by seed.
        shown: Position in `seeds` of the one whose experts are shown.
        accuracy: Spread over seeds by split.
        polysemanticity: Spread over analyzed seeds of the mean p; None without any.
        strong: Spread over analyzed seeds of the number of strong units.
        polysemanticity_strong: Spread of the mean p of strong units.
        split: Split that was analyzed in the seed shown; empty without an analysis.
        levels: Its experts; empty without an analysis.
        combinations: Strong combinations of a hierarchy.
        edits: Files of edits of the seed shown.
        fairness: Reports of `mumoe fairness` found beside it.
        costs: The head's layer first, then linear, then dense with the same experts.
        missing: Parts that are not there.
    """

    name: str
    path: str
    facts: RunFacts
    head: HeadFacts
    seeds: tuple[SeedView, ...]
    shown: int
    accuracy: Mapping[str, Spread]
    polysemanticity: Spread | None
    strong: Spread | None
    polysemanticity_strong: Spread | None
    split: str
    levels: tuple[LevelView, ...]
    combinations: tuple[CombinationView, ...]
    edits: tuple[EditView, ...]
    fairness: tuple[FairnessView, ...]
    costs: tuple[CostRow, ...]
    missing: tuple[Missing, ...]

    @property
    def seed(self) -> SeedView:
        """The training whose experts are shown."""
        return self.seeds[self.shown]

    def lacks(self, part: str) -> Missing | None:
        """Why a part is not there, or None if it is."""
        return next((found for found in self.missing if found.part == part), None)
