"""What the report shows of a run, as frozen dataclasses that turn into JSON; `gather` fills them.

They join what training, analysis and editing wrote, with names in place of positions. None stands for a number that
does not exist; a part that a run lacks is a `Missing`. Shares and accuracies lie in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mumoe.analysis.expert_notes import suggest_name
from mumoe.analysis.findings import Interval, Specialization, UnitStudy, Usage
from mumoe.analysis.highlights import Highlights, choose_highlights, interest_order
from mumoe.analysis.shifting import Shift
from mumoe.analysis.stability import Stability
from mumoe.editing.choose import Choice
from mumoe.editing.edit_reports import FairnessComparison
from mumoe.editing.group_audit import Finding
from mumoe.plots.sprites import ImageView
from mumoe.plots.training_curves import TrainingCurve
from mumoe.results import EvalResult, Spread

__all__ = [
    "AuditView",
    "ClassLoss",
    "CombinationView",
    "CostRow",
    "EditView",
    "ExpertView",
    "HeadFacts",
    "LevelView",
    "MeasuredFairness",
    "Missing",
    "Neighbour",
    "OccurrenceView",
    "OccurringView",
    "PlainChange",
    "RankingView",
    "RunFacts",
    "RunView",
    "SeedView",
]


@dataclass(frozen=True)
class Missing:
    """A part that a run does not have.

    Attributes:
        part: ``analysis``, ``neighbours``, ``loss intervals``, ``images``, ``edits``, ``fairness``, ``audit``,
            ``costs`` or ``evaluation``.
        reason: Why it is not there, in a sentence.
        command: The command that would make it; empty where none can.
    """

    part: str
    reason: str
    command: str = ""


# Training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedView:
    """One training of the head.

    Attributes:
        path: Its folder.
        state: ``finished``, ``running``, ``interrupted`` or ``failed``.
        started: UTC time in ISO 8601.
        seconds: Time spent training; None while it is not finished.
        step: Optimizer step of the checkpoint that is the result.
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
    curves: tuple[TrainingCurve, ...]
    specialized: Specialization | None
    control: Specialization | None
    analysis_split: str | None


@dataclass(frozen=True)
class HeadFacts:
    """The head; `experts` holds one number for each level, `gate` and `norm` are empty without a gate."""

    TITLES: ClassVar[Mapping[str, str]] = {"linear": "Linear layer", "highrank-linear": "Two linear layers"}

    spec: str
    kind: str
    experts: tuple[int, ...]
    gate: str
    norm: str
    position: str
    in_features: int
    out_features: int

    @property
    def title(self) -> str:
        """The head in words: ``128 experts (CP, rank 256)``."""
        rank = re.search(r"-r(\d+)", self.spec)
        kind = self.spec.partition("MuMoE")[0] if "MuMoE" in self.spec else self.kind
        if not self.experts:
            name = self.TITLES.get(self.kind, self.spec)
            return f"{name} (rank {rank[1]})" if rank else name
        about = ", ".join([kind, *([f"rank {rank[1]}"] if rank else [])])
        return f"{' × '.join(map(str, self.experts))} experts ({about})"


@dataclass(frozen=True)
class RunFacts:
    """What the head was trained on and how.

    Attributes:
        classes: Names of the classes, or of the 0/1 targets where `multi_label`.
        num_features: Width of the backbone's features.
        backbone: Its name; empty for features that were computed elsewhere.
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
class CostRow:
    """One layer of the cost table: parameters with the gate, multiply-adds of one row without it."""

    name: str
    spec: str
    parameters: int
    flops: int


# Experts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassLoss:
    """What one class loses without an expert.

    Attributes:
        loss: d of eq. 5, the share of its right answers that are lost; negative: it gains.
        interval: Bootstrap interval of `loss`; None where it was not measured.
        right: Right answers of the class before; None where they are not known.
    """

    position: int
    name: str
    loss: float
    interval: Interval | None
    right: int | None

    def in_words(self) -> str:
        """What is lost: ``heart: 21 of 24 right answers lost``."""
        if self.right is None:
            return f"{self.name}: {self.loss:.0%} of its right answers lost"
        return f"{self.name}: {round(self.loss * self.right):,} of {self.right:,} right answers lost"


@dataclass(frozen=True)
class Neighbour:
    """An expert that is like another: cosine similarity in [-1, 1], 1 is the same direction."""

    expert: int
    similarity: float


@dataclass(frozen=True)
class ControlView:
    """The control of one expert: polysemanticity and strength of as many random contributions as it has."""

    polysemanticity: float
    strong: bool


@dataclass(frozen=True)
class ExpertView:
    """One expert (or neuron) of one level; both are counted from 0.

    Attributes:
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
        control: p and strength of as many random contributions as it has; None if their ablation changes nothing.
        name, note: Given by people (`mumoe.analysis.expert_notes`); empty for none.
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
    control: ControlView | None = None
    name: str = ""
    note: str = ""

    @property
    def known_as(self) -> str:
        """Its name; if it has none and is strong, one made of the classes that it answers for."""
        if self.name or not self.strong:
            return self.name
        return suggest_name([(loss.name, loss.loss) for loss in self.losses])

    @property
    def find(self) -> str:
        """What a search looks through: number, name, note and the classes that change without it."""
        return " ".join([str(self.expert), self.name, self.note, *(loss.name for loss in self.losses)]).lower()

    @property
    def worst(self) -> ClassLoss | None:
        """The class that loses most without it; None if no class loses."""
        return self.losses[0] if self.losses and self.losses[0].loss > 0 else None

    def row(self) -> dict[str, Any]:
        """Its row of the table of experts."""
        top = self.worst
        return {
            "expert": self.expert,
            "name": self.name,
            "load": self.load,
            "touched": self.touched,
            "mean_coefficient": self.mean_coefficient,
            **self._purity(),
            "strong": self.strong,
            "images": self.images,
            "control_polysemanticity": self.control.polysemanticity if self.control else None,
            "control_strong": self.control is not None and self.control.strong,
            "top_class": top.name if top else None,
            "top_loss": top.loss if top else None,
        }

    def dot(self) -> dict[str, Any]:
        """Its dot in the figure of polysemanticity."""
        top = self.worst
        return {
            "expert": self.expert,
            **self._purity(),
            "largest_loss": top.loss if top else 0.0,
            "class": top.name if top else None,
            "strong": self.strong,
            "load": self.load,
        }

    def _purity(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        return {"polysemanticity": self.polysemanticity, "low": low, "high": high}


@dataclass(frozen=True)
class LevelView:
    """The experts of one level, or the neurons of a linear layer.

    Attributes:
        name: ``experts``, ``level 0`` .. or ``neurons``.
        usage: How they are used; None for neurons.
        modes: Specialization by what replaces an ablated unit; ``zero`` is the paper's.
        control: The same for units of the same load made up of random contributions.
        experts: Every one of them, in order.
        hint: What to try where no level is more specialized than its control; empty where one is.
    """

    level: int
    name: str
    usage: Usage | None
    modes: Mapping[str, Specialization]
    control: Specialization
    experts: tuple[ExpertView, ...]
    hint: str = ""

    @property
    def by_interest(self) -> tuple[ExpertView, ...]:
        """The strongest first, as `mumoe.analysis.highlights.interest_order` has it."""
        return tuple(self.experts[n] for n in interest_order(self.modes["zero"]))

    def highlights(self, most: int = 4) -> Highlights:
        """The experts to show first."""
        return choose_highlights(UnitStudy(self.name, dict(self.modes), self.control, ()), most)


@dataclass(frozen=True)
class CombinationView:
    """A `mumoe.analysis.findings.Combination` with names of classes, its p and the classes that change without it."""

    experts: tuple[int, ...]
    classes_by_level: tuple[tuple[str, ...], ...]
    classes_of_all: tuple[str, ...]
    classes_of_combination: tuple[str, ...]
    agreement: float | None
    polysemanticity: float | None
    losses: tuple[ClassLoss, ...]


@dataclass(frozen=True)
class OccurringView:
    """A combination of experts that contributes to images.

    Attributes:
        experts: One per level.
        load: Images to which it contributes.
        polysemanticity: Its p; None if its ablation changes no class.
        strong: Whether some class loses at least half of its right answers without it, and enough of them.
        images: Distinct images behind that.
        control: The same of as many random contributions; None if these change nothing.
        losses: Classes that change without it, the largest loss first.
        top: Images with the largest products of coefficients.
    """

    experts: tuple[int, ...]
    load: int
    polysemanticity: float | None
    strong: bool
    images: int
    control: ControlView | None
    losses: tuple[ClassLoss, ...]
    top: tuple[ImageView, ...]

    @property
    def worst(self) -> ClassLoss | None:
        """The class that loses most without it; None if no class loses."""
        return self.losses[0] if self.losses and self.losses[0].loss > 0 else None


@dataclass(frozen=True)
class OccurrenceView:
    """The combinations of a hierarchy that contribute to an image, and how many there are.

    Attributes:
        total: All combinations.
        occurring: Those that contribute to an image.
        least, median, most: Images to which these contribute: the smallest number, the median and the largest.
        modes: Specialization by what replaces an ablated combination, without single effects.
        control: The same for units of the same load made up of random contributions.
        shown: Those to show, as `mumoe.analysis.highlights.combinations_to_show` chooses them.
    """

    total: int
    occurring: int
    least: int
    median: int
    most: int
    modes: Mapping[str, Specialization]
    control: Specialization
    shown: tuple[OccurringView, ...]


# Edits ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasuredFairness:
    """What one call of `mumoe fairness` found; `file` is relative to the run."""

    title: str
    file: str
    found: FairnessComparison


@dataclass(frozen=True)
class PlainChange:
    """Accuracy before and after edits by hand; `classes` are those that moved, the largest move first."""

    images: int
    before: float
    after: float
    classes: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class EditView:
    """One file of edits.

    Attributes:
        file: Its path relative to the run.
        created: UTC time in ISO 8601.
        edits: (name, what it does), in order.
        strength: Lambda of a rewriting, with its sign; None for edits by hand.
        subgroup: head, label, sensitive, value and training_images of the subgroup helped; empty by hand.
        split: Split of the images measured.
        choice: How lambda was chosen; None if it was given.
        fairness: Subgroups before and after, and under a blind shift of the threshold where that was measured.
        change: Accuracy before and after where no subgroup was named.
    """

    name: str
    file: str
    created: str
    edits: tuple[tuple[str, str], ...]
    strength: float | None
    subgroup: Mapping[str, Any]
    split: str
    choice: Choice | None
    fairness: FairnessComparison | None
    change: PlainChange | None


# Audits --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankingView:
    """The first findings of an audit by experts or by named attributes.

    Attributes:
        kind: ``experts`` or ``named attributes``.
        headline: How many groups are right less often than the rest.
        alpha: Level of significance.
        total: Findings of the audit, of which these are the first.
    """

    kind: str
    headline: str
    alpha: float
    total: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class AuditView:
    """What `mumoe audit` wrote.

    Attributes:
        title: The attribute and the split that were audited.
        file: Its path relative to the run.
        images: Number of images.
        labels: Name of each label.
        pooled: Whether all labels were pooled.
        rankings: By experts, then by named attributes where the data have some.
    """

    title: str
    file: str
    split: str
    images: int
    labels: tuple[str, ...]
    pooled: bool
    rankings: tuple[RankingView, ...]

    def label_name(self, finding: Finding) -> str:
        """The true label of a finding's images."""
        return "any" if finding.label is None else self.labels[finding.label]


# All of it -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunView:
    """Everything that is known of one head, over its seeds.

    Attributes:
        name: Short name, unique among the runs gathered together.
        path: The folder that holds its runs.
        seeds: Its trainings, by seed.
        shown: Position in `seeds` of the one whose experts are shown.
        accuracy: Spread over seeds by split.
        polysemanticity: Spread over analyzed seeds of the mean p; None without any.
        strong: Spread over analyzed seeds of the number of strong units.
        polysemanticity_strong: Spread of the mean p of strong units.
        split: Split that was analyzed in the seed shown; empty without an analysis.
        levels: Its experts; empty without an analysis.
        combinations: Strong combinations of a hierarchy.
        occurrence: Combinations that occur; None without a hierarchy that makes the logits.
        edits: Files of edits of the seed shown.
        fairness: Reports of `mumoe fairness` found beside it.
        audits: Audits of the seed shown.
        costs: The head's layer first, then linear, then dense with the same experts.
        stability: Whether its experts reappear in other seeds, if that was measured.
        shifts: Its experts on shifted data, as far as that was measured.
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
    fairness: tuple[MeasuredFairness, ...]
    audits: tuple[AuditView, ...]
    costs: tuple[CostRow, ...]
    missing: tuple[Missing, ...]
    stability: Stability | None = None
    shifts: tuple[Shift, ...] = ()
    occurrence: OccurrenceView | None = None

    @property
    def seed(self) -> SeedView:
        """The training whose experts are shown."""
        return self.seeds[self.shown]

    def lacks(self, part: str) -> Missing | None:
        """Why a part is not there, or None if it is."""
        return next((found for found in self.missing if found.part == part), None)
