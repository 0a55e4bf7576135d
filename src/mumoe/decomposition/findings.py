"""Measurements of a decomposition, as records: `Evaluation` (faithfulness beside its controls) and `Analysis`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.records import Record, record

__all__ = ["Analysis", "Evaluation", "ExpertFinding", "Measure", "TokenInContext", "paired"]

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
        experts: Number of experts.
        most: Largest share of rows that one expert is used by.
        document_tokens: Predictions of each document, in the order of `Measure.sums`.
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
        return " ".join([text + ".", *self.warnings()])

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
        expert: Its number.
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


@record
class Analysis(Record):
    """Analysis of the experts of a decomposition.

    Attributes:
        kind, model, layer: Of the decomposition.
        tokens: Tokens looked at.
        split: Where they are from.
        experts: Number of experts.
        live: Experts used by at least `least` of these tokens.
        least: Tokens that make an expert count as live.
        tag_purity, genre_purity: Mean share of the most frequent label among top tokens, over live experts.
        tag_random, genre_random: The same of equally many random tokens: the purity expected by chance.
        ablation_correlation: Correlation of measured and estimated loss changes; None for fewer than 3 ablations.
        found: One entry for each live expert, by estimated loss change, largest first.
        credits: Licence and attribution lines of model and text.
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

    def expert(self, number: int) -> ExpertFinding | None:
        """One expert by number; None if it is not live."""
        return next((one for one in self.found if one.expert == number), None)

    def headline(self) -> str:
        """How many experts are live, and how pure they are beside random tokens."""
        text = f"{self.live:,} of {self.experts:,} experts are used by at least {self.least} of {self.tokens:,} tokens"
        if self.tag_purity is not None and self.tag_random is not None:
            text += f"; tag purity {self.tag_purity:.2f} (random tokens {self.tag_random:.2f})"
        return text + "."

    def rows(self) -> list[Mapping[str, Any]]:
        """One row for each live expert."""
        names = ("expert", "rate", "mean", "estimate", "loss", "tag", "tag_share", "tag_excess", "genre", "genre_share")
        more = ("genre_excess", "token_share")
        table: list[Mapping[str, Any]] = []
        for one in self.found:
            row = {name: getattr(one, name) for name in (*names, *more)}
            texts = {"raises": " ".join(one.raises), "top": " | ".join(hit.token for hit in one.top)}
            table.append({**row, **texts})
        return table
