"""A decomposition as a `TextStudy`, which the dashboard's token view and the report's page of experts read.

The tokens are those of `Decomposition.analyze`. Kinds of tokens are the tags of the text where it has some, else
letters, digits and the like. Of experts on several levels each level is a layer of the study, with the experts that it
numbers. Coefficients have no upper bound, so shades and histograms run from 0 to an expert's
largest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mumoe.analysis.findings import ExpertText, LayerText, Purity, TextEffect, TextStudy, TopToken, WindowText
from mumoe.data.documents import Contexts
from mumoe.data.text import TOKEN_CLASSES, classify
from mumoe.decomposition.bench import Bench
from mumoe.decomposition.findings import Analysis, Evaluation, ExpertFinding
from mumoe.decomposition.looking import PER_MILLE, LookSettings, coefficient_entries
from mumoe.decomposition.replacements import Replacement, Shape
from mumoe.modes import evaluating

__all__ = ["remarks", "text_study"]

BINS = 20
"""Bins of the histogram of an expert's coefficients."""
MOST_TAGS = 11
"""Tags that are kinds of tokens; the rest counts as one kind."""
REST = "other"

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@torch.no_grad()
def text_study(
    replacement: Replacement,
    bench: Bench,
    contexts: Contexts,
    found: Analysis,
    settings: LookSettings,
    *,
    run: str = "",
    excerpts: int = 6,
) -> TextStudy:
    """What was found of the experts, with the text around their tokens and all coefficients of some contexts.

    Args:
        replacement: With experts.
        bench: The contexts that were looked at.
        contexts: The text that they are from.
        found: What was found.
        settings: How it was looked at.
        run: Folder of the decomposition, for the record.
        excerpts: Contexts kept with all coefficients.
    """
    bench = dataclasses.replace(bench, precision="float32")  # as in the analysis
    with evaluating(replacement):
        losses = bench.run(lambda x, _: replacement(x)).numpy().astype(np.float64)
        reader = _Reader.of(replacement, bench, contexts)
    tokens = bench.language.tokenizer.decode
    size = sum(len(tokens(row[2:]).encode()) for row in bench.tokens.tolist())
    ablated = min(settings.ablated_contexts, len(bench.tokens))
    ordered = sorted(found.found, key=lambda one: (one.level, one.expert))
    layers = []
    for level, (name, count) in enumerate(zip(reader.layers, replacement.shape.levels, strict=True)):
        experts = tuple(reader.expert(one, settings) for one in ordered if one.level == level)
        layers.append(LayerText(name, count, ablated, experts, found.least))
    return TextStudy(
        run=run,
        split=found.split,
        step=0,
        tokenizer=found.model,
        windows=len(bench.tokens),
        tokens=found.tokens,
        loss=float(losses.mean()),
        bits_per_byte=float(losses.sum()) / size / math.log(2),
        classes=reader.kinds,
        by_class=reader.losses_by_kind(losses),
        layers=tuple(layers),
        excerpts=tuple(reader.excerpt(row, losses[row]) for row in range(min(excerpts, len(losses)))),
        per=int(PER_MILLE),
    )


def remarks(found: Analysis, measured: Evaluation | None) -> tuple[str, ...]:
    """Lines that stand above the experts: faithfulness and expert share, purity beside its control, estimates."""
    lines = [measured.headline()] if measured else ["How faithful it is was not measured: run evaluate."]
    for of in ("tag", "genre"):
        pure, random = getattr(found, f"{of}_purity"), getattr(found, f"{of}_random")
        if pure is not None and random is not None:
            lines.append(
                f"Purity by {of}: {pure:.2f} of an expert's top tokens share one; of random tokens {random:.2f}."
            )
    if found.ablation_correlation is not None:
        count = sum(one.loss is not None for one in found.found)
        lines.append(
            f"What an ablation costs is estimated from gradients, and measured for {count} experts: "
            f"correlation {found.ablation_correlation:.2f}."
        )
    if found.combinations is not None:
        lines.append("Each level has experts of its own; a token uses every combination of one used expert per level.")
        lines.append(found.combinations.headline())
    return tuple(lines)


def _kinds(bench: Bench, contexts: Contexts) -> tuple[Ints, tuple[str, ...]]:
    """(contexts, T - 1) kind of each token after the first of a context, and the names of the kinds."""
    tag = contexts.tag[contexts.order("test")[: len(bench.tokens)]][:, 1:]
    if not (tag >= 0).any():
        pieces = bench.language.tokenizer.pieces
        kinds = np.stack([classify(pieces(row[1:])) for row in bench.tokens.tolist()])
        return kinds.astype(np.int64), tuple(TOKEN_CLASSES)
    counts = np.bincount(tag[tag >= 0], minlength=len(contexts.tags))
    kept = [int(one) for one in np.argsort(-counts, kind="stable")[:MOST_TAGS] if counts[one]]
    place = np.full(len(contexts.tags) + 1, len(kept))  # the last entry is that of tokens without a tag
    place[kept] = np.arange(len(kept))
    return place[tag], (*(contexts.tags[one] for one in kept), REST)


@dataclass(frozen=True)
class _Reader:
    """Coefficients of all tokens, by expert and row, with what is known of each row.

    Attributes:
        bench: The contexts.
        kind: (contexts, T - 1) kind of each token.
        kinds: Their names.
        key: (entries,) expert * rows + row, ascending; the number of an expert is its column, see `Shape`.
        value: (entries,) coefficients.
        shape: Sizes of the replacement.
    """

    bench: Bench
    kind: Ints
    kinds: tuple[str, ...]
    key: Ints
    value: Floats
    shape: Shape

    @classmethod
    def of(cls, replacement: Replacement, bench: Bench, contexts: Contexts) -> _Reader:
        entries = coefficient_entries(replacement, bench.x)
        key = entries.expert.numpy() * len(bench.x) + entries.row.numpy()
        order = np.argsort(key)
        value = entries.value.numpy()[order].astype(np.float64)
        return cls(bench, *_kinds(bench, contexts), key[order], value, replacement.shape)

    @property
    def layers(self) -> list[str]:
        """Name of each level."""
        name, count = self.bench.mlp.name, len(self.shape.levels)
        return [name] if count == 1 else [f"{name}, level {level}" for level in range(count)]

    @property
    def rows(self) -> int:
        return len(self.bench.x)

    def of_expert(self, expert: int) -> tuple[Ints, Floats]:
        """Rows that use an expert, ascending, and their coefficients."""
        start, stop = np.searchsorted(self.key, [expert * self.rows, (expert + 1) * self.rows])
        return self.key[start:stop] - expert * self.rows, self.value[start:stop]

    def losses_by_kind(self, losses: Floats) -> dict[str, dict[str, float | int | None]]:
        """Tokens that are predicted, and their mean loss, by kind; losses (contexts, T - 2)."""
        found: dict[str, dict[str, float | int | None]] = {}
        for code, name in enumerate(self.kinds):
            chosen = losses[self.kind[:, 1:] == code]
            found[name] = {"tokens": len(chosen), "loss": float(chosen.mean()) if len(chosen) else None}
        return found

    def expert(self, one: ExpertFinding, settings: LookSettings) -> ExpertText:
        row, value = self.of_expert(self.shape.column((one.level, one.expert)))
        largest = float(value.max())
        counts = np.bincount(self.kind.reshape(-1), minlength=len(self.kinds))
        sums = np.bincount(self.kind.reshape(-1)[row], weights=value, minlength=len(self.kinds))
        by_kind = {
            name: round(float(sums[code] / counts[code]), 6) if counts[code] else None
            for code, name in enumerate(self.kinds)
        }
        top = np.argsort(-value, kind="stable")[: settings.top]
        bins = np.minimum((value / largest * BINS).astype(np.int64), BINS - 1)
        return ExpertText(
            expert=one.expert,
            mean=float(value.sum()) / self.rows,
            used=len(row) / self.rows,
            half=float((value >= largest / 2).sum()) / self.rows,
            by_class=by_kind,
            top=tuple(self._quote(row, value, int(row[at]), settings) for at in top),
            effect=None if one.loss is None else TextEffect(one.loss / PER_MILLE, {}),
            histogram=tuple(np.bincount(bins, minlength=BINS).tolist()),
            largest=largest,
            estimate=None if one.estimate is None else one.estimate / PER_MILLE,
            purity=tuple(_purity(one)),
            raises=one.raises,
            lowers=one.lowers,
        )

    def _quote(self, rows: Ints, values: Floats, row: int, settings: LookSettings) -> TopToken:
        """The token at a row with the text around it, and this expert's coefficients there."""
        per = self.kind.shape[1]
        window, at = divmod(row, per)
        start, stop = max(0, at - settings.before), min(per, at + 1 + settings.after)
        quoted = np.zeros(stop - start)
        first, last = np.searchsorted(rows, [window * per + start, window * per + stop])
        quoted[rows[first:last] - window * per - start] = values[first:last]
        shown = tuple(round(value, 4) for value in quoted.tolist())
        return TopToken(window, at, shown[at - start], at - start, self._pieces(window, start, stop), shown)

    def _pieces(self, window: int, start: int, stop: int | None) -> tuple[str, ...]:
        tokens: Sequence[int] = self.bench.tokens[window, 1:].tolist()[start:stop]
        return tuple(self.bench.language.tokenizer.pieces(tokens))

    def excerpt(self, window: int, losses: Floats) -> WindowText:
        """A context with all coefficients above 0; its first token's loss does not count."""
        per = self.kind.shape[1]
        row, expert = self.key % self.rows, self.key // self.rows
        inside = row // per == window
        pairs: list[list[list[tuple[int, float]]]] = [[[] for _ in range(per)] for _ in self.layers]
        for place, column, value in zip(row[inside] % per, expert[inside], self.value[inside], strict=True):
            level, number = self.shape.place(int(column))
            pairs[level][int(place)].append((number, round(float(value), 4)))
        shown = (None, *(round(float(loss), 4) for loss in losses))
        layers = {
            name: tuple(tuple(token) for token in tokens) for name, tokens in zip(self.layers, pairs, strict=True)
        }
        return WindowText(window, self._pieces(window, 0, None), shown, layers)


def _purity(one: ExpertFinding) -> list[Purity]:
    found = []
    for of in ("tag", "genre"):
        share, excess = getattr(one, f"{of}_share"), getattr(one, f"{of}_excess")
        if share is not None and excess is not None:
            found.append(Purity(of, getattr(one, of), share, share - excess))
    return found
