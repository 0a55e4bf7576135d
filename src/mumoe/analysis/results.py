"""What the analysis returns: plain numbers in frozen dataclasses, ready for JSON, tables and figures.

`None` stands for a number that does not exist (the mean over no experts, say); JSON has no NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Combination", "Effect", "Interval", "Specialization", "Usage"]

Interval = tuple[float, float]
"""Lower and upper end of a bootstrap confidence interval."""


@dataclass(frozen=True)
class Effect:
    """What ablating one unit (an expert, a neuron) does to the classes.

    Attributes:
        unit: Its position; in a hierarchy the flat position of the combination.
        polysemanticity: p of eq. 5, in [0, inf); 0 loses all of one class and nothing else.
        interval: Bootstrap interval of `polysemanticity`; None without a bootstrap.
        top_class: Position of the class that loses most.
        top_loss: Its d, the share of its right answers that are lost (1 all, 0 none, negative: it gains).
        strong: Whether some class loses at least half of its right answers, and at least `least_lost` of them.
        losses: (class, d) of the classes that change, the largest loss first.
        loss_intervals: 95% interval of each of these d, in the same order.
        images: Distinct images whose right answers make the unit strong; 0 if it is not.
    """

    unit: int
    polysemanticity: float
    interval: Interval | None
    top_class: int
    top_loss: float
    strong: bool
    losses: tuple[tuple[int, float], ...]
    loss_intervals: tuple[Interval, ...] = ()
    images: int = 0


@dataclass(frozen=True)
class Specialization:
    """How specialized the units of one layer are, by intervention (eq. 5, Figures 3, 5, 6 and 9).

    The mean of p alone misleads: a unit that hardly does anything has p near 1. Read it beside `strong`.

    Attributes:
        units: Number of units ablated, each in isolation.
        classes: Number of classes (or 0/1 targets) of the data.
        images: Number of images.
        accuracy: Right answers before any intervention, as a share.
        classes_without_images: Classes left out because nothing is known of them.
        classes_never_right: Classes left out because their accuracy was 0 before (eq. 5 divides by it).
        with_effect: Units whose ablation changes the accuracy of some class.
        mean_polysemanticity: Mean p over the units with effect, as in Figure 3.
        mean_interval: Bootstrap interval of that mean.
        strong: Units whose ablation costs some class at least half of its right answers, and at least `least_lost`.
        strong_interval: Bootstrap interval of that count.
        mean_polysemanticity_strong: Mean p over the strong units.
        effects: One entry per unit with effect, in order of position.
        least_lost: Right answers that a class must lose for a unit to be strong; 1 (any) in older files.
        strong_images: Distinct images behind the strong units: those of the right answers that their classes lose.
    """

    units: int
    classes: int
    images: int
    accuracy: float
    classes_without_images: int
    classes_never_right: int
    with_effect: int
    mean_polysemanticity: float | None
    mean_interval: Interval | None
    strong: int
    strong_interval: Interval | None
    mean_polysemanticity_strong: float | None
    effects: tuple[Effect, ...]
    least_lost: int = 1
    strong_images: int = 0


@dataclass(frozen=True)
class Usage:
    """How the rows of a data set use the experts of one level (Figure 12).

    Attributes:
        experts: Number of experts of the level.
        rows: Number of rows (images, or tokens of images) counted.
        load: Per expert, rows with coefficient at least `threshold`.
        touched: Per expert, rows with a coefficient above 0.
        mean_coefficient: Per expert, mean coefficient over all rows.
        threshold: The coefficient from which a row counts as processed by an expert (the paper: 0.5).
        dead: Experts that no row uses.
        experts_above_threshold: Experts with at least one row at or above `threshold`.
        support_mean: Experts used per row, on average.
        support_quantiles: Minimum, quartiles and maximum of the experts used per row.
        entropy_mean: Mean entropy of a row's coefficients in nats, 0 (one expert) to log(experts).
        largest_mean: Mean of the largest coefficient of a row.
    """

    experts: int
    rows: int
    load: tuple[int, ...]
    touched: tuple[int, ...]
    mean_coefficient: tuple[float, ...]
    threshold: float
    dead: int
    experts_above_threshold: int
    support_mean: float
    support_quantiles: tuple[int, int, int, int, int]
    entropy_mean: float
    largest_mean: float


@dataclass(frozen=True)
class Combination:
    """The "and" of a hierarchy: what each level's expert loses alone and what their combination loses.

    Attributes:
        experts: One expert per level.
        classes_by_level: Per level, the classes that lose at least half of their right answers, and at least
            `least_lost`, when that expert goes with all of its combinations.
        classes_of_all: Classes that every level's expert answers for: the intersection of the above.
        classes_of_combination: Classes that lose as much when this combination alone goes.
        agreement: Jaccard index of the last two in [0, 1]; 1 is the same set, None that both are empty.
    """

    experts: tuple[int, ...]
    classes_by_level: tuple[tuple[int, ...], ...]
    classes_of_all: tuple[int, ...]
    classes_of_combination: tuple[int, ...]
    agreement: float | None
