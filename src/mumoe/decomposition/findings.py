"""Measurements of a decomposition, as records: `Evaluation` (faithfulness beside its controls) and `Analysis`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.records import Record, record

__all__ = [
    "Analysis",
    "CombinationFinding",
    "CombinationPurity",
    "CombinationUse",
    "Combinations",
    "Evaluation",
    "ExpertFinding",
    "LevelUse",
    "Measure",
    "TokenInContext",
    "paired",
]

Interval = tuple[float, float]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """One row of the table: the model with something in the MLP's place.

    Attributes:
        name: What stands there.
        increase: Mean increase of the cross-entropy, in nats a token.
        interval: 95 % interval of it, over documents.
        error: Squared error over the variance of the MLP's outputs (ratio of sums); None where it is not defined.
        sums: Increase summed over the tokens of each document, to pair decompositions with.
    """

    name: str
    increase: float | None
    interval: Interval | None
    error: float | None
    sums: tuple[float, ...] = ()


@dataclass(frozen=True)
class LevelUse:
    """How the experts of one of several levels are used.

    Attributes:
        experts: Number of experts.
        active: Experts with a coefficient above 0, mean over rows.
        live: Experts that some row uses.
        most: Largest share of rows that one expert is used by.
        share: As `Evaluation.expert_share`, of this level: with its gate constant, and the others as they are.
    """

    experts: int
    active: float
    live: int
    most: float
    share: float | None = None


@dataclass(frozen=True)
class CombinationUse:
    """How combinations of one expert per level are used; a combination is used where all of its experts are.

    Attributes:
        possible: Number of combinations.
        active: Combinations that a row uses, mean over rows.
        rows: Rows that `occurring` and `most` were counted on, the first ones.
        occurring: Combinations that some of these rows use.
        most: Largest share of these rows that one combination is used by.
    """

    possible: int
    active: float
    rows: int
    occurring: int
    most: float


@record
class Evaluation(Record):
    """How faithful a decomposition is on documents it was not trained on, and how much of that its gate carries.

    Attributes:
        kind: Kind of the replacement.
        model: Name of the language model.
        layer: Layer.
        contexts, tokens, documents: What it was measured on; tokens are predictions.
        base: Cross-entropy of the model as it is, in nats a token.
        measures: The replacement; its controls (constant gate, shuffled coefficients); zero and mean ablation.
        expert_share: (increase with a constant gate - increase) / (increase under zero ablation - increase): 0 if the
            experts could as well be constant; None without experts.
        expert_share_interval: Of it, over documents.
        jacobian_cosine: Mean cosine of the Jacobians of replacement and MLP over rows.
        twin_error: Error on Gaussian rows of the same mean and covariance, on which it was not trained.
        active: Experts with a coefficient above 0, mean over rows (L0).
        live: Experts that some row uses.
        experts: Number of experts, of all levels.
        most: Largest share of rows that one expert is used by.
        document_tokens: Predictions of each document, in the order of `Measure.sums`.
        levels: Use of the experts of each of several levels; empty for one.
        combinations: Use of their combinations; None for one level.
    """

    kind: str
    model: str
    layer: int
    contexts: int
    tokens: int
    documents: int
    base: float
    measures: tuple[Measure, ...]
    expert_share: float | None
    expert_share_interval: Interval | None
    jacobian_cosine: float | None
    twin_error: float | None
    active: float | None
    live: int | None
    experts: int
    most: float | None
    document_tokens: tuple[float, ...] = ()
    levels: tuple[LevelUse, ...] = ()
    combinations: CombinationUse | None = None

    def to_dict(self) -> dict[str, Any]:
        return _without(super().to_dict(), () if self.levels else ("levels", "combinations"))

    def measure(self, name: str) -> Measure:
        """A row of the table by name."""
        return next(one for one in self.measures if one.name == name)

    @property
    def increase(self) -> float:
        """Increase of the cross-entropy with the replacement, in nats a token."""
        found = self.measures[0].increase
        assert found is not None
        return found

    def headline(self) -> str:
        """Increase, its interval and the expert share; a warning where experts collapsed or carry nothing."""
        low, high = self.measures[0].interval or (float("nan"),) * 2
        text = f"{self.kind} in layer {self.layer} of {self.model}: cross-entropy {self.increase:+.4f} nats a token"
        text += f" (95 % interval {low:+.4f} to {high:+.4f}; base {self.base:.3f})"
        if self.expert_share is not None:
            text += f", expert share {self.expert_share:.2f}"
        return " ".join([text + ".", *self._pairs(), *self.warnings()])

    def _pairs(self) -> list[str]:
        """Use of several levels, and of combinations."""
        found = []
        for number, level in enumerate(self.levels):
            share = "" if level.share is None else f", share {level.share:.2f} with the others as they are"
            found.append(f"Level {number}: {level.active:.1f} of {level.experts:,} experts a token{share}.")
        if (pairs := self.combinations) is not None:
            found.append(
                f"{pairs.active:,.0f} of {pairs.possible:,} combinations a token; {pairs.occurring:,} occur in "
                f"{pairs.rows:,} tokens, the most used in {100 * pairs.most:.0f} % of them."
            )
        return found

    def warnings(self) -> list[str]:
        """Warnings that a reader needs before using the numbers."""
        found = []
        if self.expert_share is not None and self.expert_share < 0.2:
            found.append("The experts contribute little: with a constant gate the model is about as good.")
        if self.most is not None and self.most > 0.9:
            found.append(f"Collapse: one expert is used by {100 * self.most:.0f} % of the tokens.")
        if self.live is not None and self.live < self.experts / 2:
            found.append(f"Only {self.live:,} of {self.experts:,} experts are used by any token here.")
        return found

    def rows(self) -> list[Mapping[str, Any]]:
        """The table: one row for each thing in the MLP's place."""
        table: list[Mapping[str, Any]] = []
        for one in self.measures:
            low, high = one.interval or (None, None)
            table.append(
                {
                    "in place of the MLP": one.name,
                    "increase": one.increase,
                    "low": low,
                    "high": high,
                    "error": one.error,
                }
            )
        return table


def _without(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Without fields that say nothing about one level: its files have no trace of several."""
    return {name: value for name, value in values.items() if name not in names}


def paired(first: Measure, second: Measure, tokens: Sequence[float], resamples: int = 2000) -> tuple[float, Interval]:
    """Difference of two increases, first minus second, with its 95 % interval over the same documents."""
    difference = np.array(first.sums) - np.array(second.sums)
    return ratio(difference, np.array(tokens)), interval(
        lambda w: w @ difference / (w @ np.array(tokens)), len(tokens), resamples
    )


def ratio(sums: Floats, counts: Floats) -> float:
    """Ratio of sums."""
    return float(sums.sum() / counts.sum())


def interval(statistic: Any, documents: int, resamples: int = 2000, seed: int = 0) -> Interval:
    """95 % percentile interval of a statistic over documents drawn with replacement.

    Args:
        statistic: (resamples, documents) how often each is drawn -> (resamples,).
        documents: Number of documents.
        resamples: Draws.
        seed: Of the draws.
    """
    weights = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), size=resamples)
    values = statistic(weights.astype(np.float64))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class TokenInContext:
    """A token that an expert is used by.

    Attributes:
        before, token, after: Text.
        coefficient: The expert's there.
        document: Name of the document.
        tag: Tag of the token; empty for none.
    """

    before: str
    token: str
    after: str
    coefficient: float
    document: str
    tag: str = ""


@dataclass(frozen=True)
class ExpertFinding:
    """One expert.

    Attributes:
        expert: Its number, within its level.
        rate: Share of tokens that use it.
        mean: Mean coefficient where it is used.
        estimate: Change of the loss if it is ablated, estimated to second order (see `looking`), in nats a thousand
            tokens; above 0 it helps.
        loss: The same measured by ablation; None where that was not done.
        tag, tag_share, tag_excess: Most frequent tag of its top tokens, its share, and that above the base rate.
        genre, genre_share, genre_excess: The same of the genre.
        token_share: Share of its top tokens that are the most frequent one among them.
        raises, lowers: Tokens whose logits its mean contribution raises and lowers most, directly.
        top: Tokens with its largest coefficients.
        level: Its level, from 0.
    """

    expert: int
    rate: float
    mean: float
    estimate: float | None = None
    loss: float | None = None
    tag: str = ""
    tag_share: float | None = None
    tag_excess: float | None = None
    genre: str = ""
    genre_share: float | None = None
    genre_excess: float | None = None
    token_share: float | None = None
    raises: tuple[str, ...] = ()
    lowers: tuple[str, ...] = ()
    top: tuple[TokenInContext, ...] = ()
    level: int = 0


@dataclass(frozen=True)
class CombinationFinding:
    """One combination of one expert per level.

    Attributes:
        experts: The expert of each level.
        rate: Share of tokens that use all of them.
        alone: Share of tokens that use each.
        mean: Mean product of the coefficients where it is used.
        loss: Change of the loss if the combination's weight is 0 and all others stay, in nats a thousand tokens; None
            where that was not measured.
        tag, tag_share: Most frequent tag of its top tokens, and its share.
        tag_alone: That share for as many top tokens of each expert.
        top: Tokens with the largest products.
    """

    experts: tuple[int, ...]
    rate: float
    alone: tuple[float, ...]
    mean: float
    loss: float | None = None
    tag: str = ""
    tag_share: float | None = None
    tag_alone: tuple[float | None, ...] = ()
    top: tuple[TokenInContext, ...] = ()


@dataclass(frozen=True)
class CombinationPurity:
    """Purity by tag of combinations beside that of their experts; all shares are means over the same combinations.

    Equally many tokens are taken of everything: those that use the combination, up to `LookSettings.pure`.

    Attributes:
        count: Combinations, drawn at random from those with enough tokens.
        top: Share of the most frequent tag among the tokens with the largest products.
        top_alone: The same of the top tokens of each level's expert.
        any: Of random tokens that use the combination.
        any_alone: Of random tokens that use each level's expert: what a smaller set has by chance.
    """

    count: int
    top: float
    top_alone: tuple[float, ...]
    any: float
    any_alone: tuple[float, ...]


@dataclass(frozen=True)
class Combinations:
    """Analysis of the combinations of experts of several levels.

    Attributes:
        possible: Number of combinations.
        tokens: Tokens that combinations were looked at on, the first ones.
        occurring: Combinations that some of these tokens use.
        live: Those used by at least `Analysis.least` of them.
        purity: Beside that of experts; None without enough tagged tokens.
        found: The most used ones.
    """

    possible: int
    tokens: int
    occurring: int
    live: int
    purity: CombinationPurity | None
    found: tuple[CombinationFinding, ...]

    def headline(self) -> str:
        """How many occur, and what the "and" of their experts selects beside controls."""
        text = f"{self.occurring:,} of {self.possible:,} combinations occur in {self.tokens:,} tokens"
        if (one := self.purity) is not None:
            experts, subsets = (" and ".join(f"{v:.2f}" for v in ones) for ones in (one.top_alone, one.any_alone))
            text += (
                f"; tag purity of {one.count:,} of them, by their top tokens {one.top:.2f} (of their experts alone "
                f"{experts}), by random tokens {one.any:.2f} ({subsets})"
            )
        return text + "."


@record
class Analysis(Record):
    """Analysis of the experts of a decomposition.

    Attributes:
        kind, model, layer: Of the decomposition.
        tokens: Tokens looked at.
        split: Where they are from.
        experts: Number of experts, of all levels.
        live: Experts used by at least `least` of these tokens.
        least: Tokens that make an expert count as live.
        tag_purity, genre_purity: Mean share of the most frequent label among top tokens, over live experts.
        tag_random, genre_random: The same of equally many random tokens: the purity expected by chance.
        ablation_correlation: Correlation of measured and estimated loss changes; None for fewer than 3 ablations.
        found: One entry for each live expert, by estimated loss change, largest first.
        credits: Licence and attribution lines of model and text.
        levels: Experts of each of several levels; empty for one.
        combinations: Their combinations; None for one level.
    """

    kind: str
    model: str
    layer: int
    tokens: int
    split: str
    experts: int
    live: int
    least: int
    tag_purity: float | None
    genre_purity: float | None
    tag_random: float | None
    genre_random: float | None
    ablation_correlation: float | None
    found: tuple[ExpertFinding, ...]
    credits: tuple[str, ...] = field(default_factory=tuple)
    levels: tuple[int, ...] = ()
    combinations: Combinations | None = None

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        if self.levels:
            return values
        values["found"] = [_without(one, ("level",)) for one in values["found"]]
        return _without(values, ("levels", "combinations"))

    def expert(self, number: int, level: int = 0) -> ExpertFinding | None:
        """One expert by its number within a level; None if it is not live."""
        return next((one for one in self.found if (one.level, one.expert) == (level, number)), None)

    def headline(self) -> str:
        """How many experts are live, and how pure they are beside random tokens."""
        text = f"{self.live:,} of {self.experts:,} experts are used by at least {self.least} of {self.tokens:,} tokens"
        if self.tag_purity is not None and self.tag_random is not None:
            text += f"; tag purity {self.tag_purity:.2f} (random tokens {self.tag_random:.2f})"
        text += "."
        return text if self.combinations is None else f"{text} {self.combinations.headline()}"

    def rows(self) -> list[Mapping[str, Any]]:
        """One row for each live expert."""
        names = ("expert", "rate", "mean", "estimate", "loss", "tag", "tag_share", "tag_excess", "genre", "genre_share")
        more = ("genre_excess", "token_share")
        table: list[Mapping[str, Any]] = []
        for one in self.found:
            level = {"level": one.level} if self.levels else {}
            row = {**level, **{name: getattr(one, name) for name in (*names, *more)}}
            texts = {"raises": " ".join(one.raises), "top": " | ".join(hit.token for hit in one.top)}
            table.append({**row, **texts})
        return table
