"""What an analysis returns: plain numbers in frozen dataclasses, for JSON, tables and figures.

`None` stands for a number that does not exist, such as the mean over no experts; JSON has no NaN. The JSON of a
`TextStudy` is what token views read:

    {"schema": 1, "run": str, "split": str, "step": int, "tokenizer": str, "windows": int, "tokens": int,
     "loss": nats per token, "bits_per_byte": float, "classes": [names of the kinds of tokens],
     "by_class": {class: {"tokens": int, "loss": nats per token or null}},
     "layers": [{
        "layer": name, "num_experts": int, "ablated_windows": int,
        "experts": [{
           "expert": int, "mean": mean coefficient, "used": share of tokens where it is above 0,
           "half": share where it is at least 1/2, "by_class": {class: mean coefficient or null},
           "histogram": [tokens in each of 20 equal bins of the coefficients above 0; not in older files],
           "top": [{"row": window, "position": token in it, "coefficient": float, "center": index in pieces,
                    "pieces": [text of each token], "coefficients": [this expert's at each]}],
           "effect": {"all": nats per token, "by_class": {class: nats per token or null}} or null,
           "largest": what the darkest shade stands for, 1 unless coefficients have no upper bound,
           "estimate": the effect as estimated from gradients, nats per token, or null,
           "purity": [{"of": "tag", "label": str, "share": float, "base": float}],
           "raises": [tokens], "lowers": [tokens]}]}],
     "excerpts": [{"row": window, "pieces": [...], "losses": [nats of each token, null for the first],
                   "layers": {name: [[[expert, coefficient] above 0, ...] of each token]}}]}
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from mumoe.errors import UserError
from mumoe.files import read_json
from mumoe.records import Record, read_typed, record

__all__ = [
    "COMBINATIONS",
    "Combination",
    "Effect",
    "ExpertText",
    "Interval",
    "LayerStudy",
    "LayerText",
    "Purity",
    "Specialization",
    "TextEffect",
    "TextStudy",
    "TopToken",
    "UnitStudy",
    "Usage",
    "WindowText",
]

COMBINATIONS = "combinations"
"""Name of the units of a hierarchy that consist of one expert of every level."""

Interval = tuple[float, float]
"""Lower and upper end of a confidence interval."""


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

    The mean of p alone misleads: a unit with hardly any effect has p near 1. Read it together with `strong`.

    Attributes:
        units: Number of units ablated, each in isolation.
        classes: Number of classes (or 0/1 targets) of the data.
        images: Number of images.
        accuracy: Right answers before any intervention, as a share.
        classes_without_images: Classes left out because no image has them.
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


@dataclass(frozen=True)
class UnitStudy:
    """One kind of unit of a layer.

    Attributes:
        units: ``experts``, ``level 0``, .., ``combinations`` or ``neurons``.
        modes: Specialization by what replaces an ablated unit; ``zero`` is the paper's.
        load_control: The same for units of the same load made up of random contributions.
        load: Images to which each unit contributes; of combinations, to which each of `occurring` does.
        silent: Pairs of image and unit after whose ablation nothing is left of the layer's output.
        rechecked: Batches evaluated once more by the plain method because rounding could have decided.
        occurring: Positions of the combinations that contribute to an image, ascending; None where `load` lists
            every unit.
    """

    units: str
    modes: dict[str, Specialization]
    load_control: Specialization
    load: tuple[int, ...]
    silent: int = 0
    rechecked: int = 0
    occurring: tuple[int, ...] | None = None

    @property
    def total(self) -> int:
        """Number of units, those that no image uses included."""
        return self.modes["zero"].units

    def listed(self) -> Iterable[tuple[int, int]]:
        """(unit, load) of every unit, of combinations of those that occur."""
        return enumerate(self.load) if self.occurring is None else zip(self.occurring, self.load, strict=True)

    def load_of(self, unit: int) -> int:
        """Images to which a unit contributes."""
        if self.occurring is None:
            return self.load[unit]
        place = bisect.bisect_left(self.occurring, unit)
        return self.load[place] if self.occurring[place : place + 1] == (unit,) else 0


@dataclass(frozen=True)
class LayerStudy:
    """What the units of a layer do.

    Attributes:
        usage: Use of the experts, one per level; empty for neurons.
        units: Per level, and for the combinations of a hierarchy.
        combinations: The "and" reading of a hierarchy's strong combinations.
    """

    usage: tuple[Usage, ...]
    units: tuple[UnitStudy, ...]
    combinations: tuple[Combination, ...]

    def experts_of(self, units: UnitStudy, unit: int) -> tuple[int, ...]:
        """The experts of a unit: one of each level for a combination, else the unit alone."""
        if units.units != COMBINATIONS:
            return (unit,)
        experts: tuple[int, ...] = ()
        for level in reversed([level for level in self.units if level.units != COMBINATIONS]):
            unit, expert = divmod(unit, level.total)
            experts = (expert, *experts)
        return experts


@dataclass(frozen=True)
class TopToken:
    """A token with a large coefficient, and the text around it."""

    row: int
    position: int
    coefficient: float
    center: int
    pieces: tuple[str, ...]
    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class TextEffect:
    """Change of the mean loss in nats per token when an expert is ablated; 0 is no change."""

    all: float
    by_class: Mapping[str, float | None]


@dataclass(frozen=True)
class Purity:
    """The most frequent label among an expert's top tokens.

    Attributes:
        of: What labels say: ``tag``, ``genre``.
        label: The label.
        share: Of the top tokens that have a label, those with this one, in [0, 1].
        base: The same of all tokens.
    """

    of: str
    label: str
    share: float
    base: float


@dataclass(frozen=True)
class ExpertText:
    """One expert of a layer.

    Attributes:
        expert: Its number.
        mean: Mean coefficient over all tokens.
        used: Share of tokens with a coefficient above 0.
        half: Share of tokens with at least half of `largest`.
        by_class: Mean coefficient on each kind of token; None without such tokens.
        top: Tokens with its largest coefficients.
        effect: What its ablation changes, measured; None where it was not.
        histogram: Tokens in equal bins from 0 to `largest`; empty in older files.
        largest: Upper bound of the coefficients: 1, or the largest seen where the gate has none.
        estimate: Change of the loss if it is ablated, estimated from gradients, in nats per token; None where it is not
            known.
        purity: Most frequent labels of its top tokens, where the text has labels.
        raises, lowers: Tokens whose logits its output raises and lowers most, directly.
    """

    expert: int
    mean: float
    used: float
    half: float
    by_class: Mapping[str, float | None]
    top: tuple[TopToken, ...]
    effect: TextEffect | None
    histogram: tuple[int, ...] = ()
    largest: float = 1.0
    estimate: float | None = None
    purity: tuple[Purity, ...] = ()
    raises: tuple[str, ...] = ()
    lowers: tuple[str, ...] = ()

    @property
    def worth(self) -> float:
        """What experts are ranked by: the estimate where there is one, else the effect, else the mean coefficient."""
        if self.estimate is not None:
            return self.estimate
        return self.effect.all if self.effect else self.mean

    @property
    def reads(self) -> str:
        """The kind of token with the largest mean coefficient."""
        return max((value, kind) for kind, value in self.by_class.items() if value is not None)[1]

    def row(self) -> dict[str, Any]:
        """The expert in one row of a table."""
        cost = None if self.effect is None else self.effect.all
        return {"expert": self.expert, "used": self.used, "mean": self.mean, "reads": self.reads, "loss_without": cost}


@dataclass(frozen=True)
class LayerText:
    """All experts of one layer.

    Attributes:
        layer: Its name.
        num_experts: Number of experts.
        ablated_windows: Windows on which experts were ablated.
        experts: Those used by at least `least` tokens, or all for a `least` of 0.
        least: Tokens that an expert must be used by to be listed.
    """

    layer: str
    num_experts: int
    ablated_windows: int
    experts: tuple[ExpertText, ...]
    least: int = 0

    def by_effect(self) -> list[ExpertText]:
        """The experts that read anything, those whose loss costs most first."""
        used = [expert for expert in self.experts if expert.top]
        return sorted(used, key=lambda expert: -expert.worth)

    def unlisted(self) -> str:
        """How many experts are not looked at, and why."""
        count = self.num_experts - len(self.by_effect())
        return f"{count:,} used by fewer than {self.least} tokens" if self.least else f"{count:,} read nothing"


@dataclass(frozen=True)
class WindowText:
    """One window with every layer's coefficients above 0, token by token."""

    row: int
    pieces: tuple[str, ...]
    losses: tuple[float | None, ...]
    layers: Mapping[str, tuple[tuple[tuple[int, float], ...], ...]]


@record
class TextStudy(Record):
    """What the experts of a language model do; the module describes it as JSON.

    Attributes:
        remarks: Lines that must be read with the numbers, such as the faithfulness of a decomposition and its controls.
        per: Tokens that pages state effects for: 1, or 1,000 where effects are small. Effects here are per token.
    """

    run: str
    split: str
    step: int
    tokenizer: str
    windows: int
    tokens: int
    loss: float
    bits_per_byte: float
    classes: tuple[str, ...]
    by_class: Mapping[str, Mapping[str, float | int | None]]
    layers: tuple[LayerText, ...]
    excerpts: tuple[WindowText, ...]
    schema: int = 1
    remarks: tuple[str, ...] = ()
    per: int = 1

    _folder: ClassVar[str] = ""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an experts.json, or that of a folder with an analysis.

        Raises:
            UserError: If the file is missing, damaged, or of another schema.
        """
        file = Path(path) / "experts.json" if Path(path).is_dir() else Path(path)
        found = read_json(file, "text view")
        if not isinstance(found, dict) or found.get("schema") != cls.schema:
            got = found.get("schema") if isinstance(found, dict) else type(found).__name__
            raise UserError(f"text view: expected the numbers of mumoe analyze in {file}, got schema {got!r}.")
        return read_typed(cls, found, f"text view: {file}")

    def headline(self) -> str:
        return f"{self.bits_per_byte:.3f} bits per byte on {self.tokens:,} tokens of the {self.split} split"

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer and expert: tokens that use it (a share), the kind it reads most, the loss without it."""
        return [{"layer": layer.layer, **expert.row()} for layer in self.layers for expert in layer.experts]

    def sentences(self) -> list[str]:
        """The headline, and the five experts of each layer whose ablation costs most."""
        lines = [self.headline()]
        for layer in self.layers:
            used = layer.by_effect()
            lines.append(f"{layer.layer}: {layer.num_experts:,} experts, {layer.unlisted()}")
            for expert in used[:5]:
                cost = "" if expert.effect is None else f", worth {expert.effect.all:+.3f} nats per token"
                lines.append(f"  expert {expert.expert}: most on {expert.reads}, {expert.used:.0%} of the tokens{cost}")
        return [*lines, f"Written to {self._folder}. Open experts.html."] if self._folder else lines

    def written_to(self, folder: Path) -> Self:
        """The study, which names the folder of its page."""
        vars(self)["_folder"] = str(folder)
        return self
