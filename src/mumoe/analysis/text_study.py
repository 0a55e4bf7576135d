"""What the experts of a language model do: the tokens they read, what is lost without them, and steering.

Read. Every token goes through every layer's gate. For each expert the tokens with the largest coefficients are
kept with the text around them, at most one for each window, and the mean coefficient on each kind of token.

Lost. An expert is ablated (its weights are zero in both layers of its block, for every token) and the loss is
measured again; the change is averaged over the tokens of a kind that were to be predicted. A positive change is the
value of the expert for that kind. Windows none of whose tokens uses the expert cannot change and are not run again.

Steered. Within `steer` an expert's coefficient is multiplied at every token, so that its effect grows or shrinks; 0 is
the ablation. The coefficients are not normalized again.

A hierarchy is read at its first level.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe.analysis.capturing import Gated, expert_layers, find_layer, watching_coefficients
from mumoe.analysis.findings import ExpertText, LayerText, TextEffect, TextStudy, TopToken, WindowText
from mumoe.coefficients import Coefficients
from mumoe.data.text import TOKEN_CLASSES, TextData, classify
from mumoe.devices import host
from mumoe.errors import UserError
from mumoe.modes import evaluating

__all__ = ["steer", "study_text"]

BATCH = 16

BINS = 20
"""Bins of the histogram of an expert's coefficients."""


def study_text(
    model: nn.Module,
    data: TextData,
    *,
    split: str = "test",
    layers: Sequence[str] | None = None,
    windows: int = 256,
    ablated_windows: int = 64,
    top: int = 6,
    radius: int = 48,
    excerpts: int = 4,
    run: str = "",
    step: int = 0,
) -> TextStudy:
    """Read, ablate and quote: what each expert of a language model does on a split.

    Args:
        model: A causal language model with MuMoE layers, tokens (B, T) -> an object with `logits`.
        data: The text.
        split: The split.
        layers: Names of the layers; None uses all.
        windows: Windows to read, spread evenly over the split.
        ablated_windows: The first of these on which every expert is ablated (0: none).
        top: Tokens kept for each expert.
        radius: Tokens quoted on either side of one.
        excerpts: Windows quoted with all coefficients.
        run: Folder of the run, for the record.
        step: Its step.

    Raises:
        UserError: If the model has no MuMoE layer, a name is unknown, or the split has no window.

    Cost: one evaluation of `windows`, and of at most `ablated_windows` for each expert of each layer.
    """
    chosen = _chosen(model, layers)
    rows = _spread(data.indices(split), windows)  # type: ignore[arg-type]
    if not len(rows):
        raise UserError(f"study_text: expected windows of text in the {split} split of {data.name}, got none.")
    reader = _Reader(model, data, chosen)
    with evaluating(model):
        read = reader.read(rows, top)
        ablated = rows[:ablated_windows]
        found = [reader.layer(name, read, ablated, radius) for name in chosen]
        quoted = [reader.excerpt(int(row)) for row in rows[:excerpts]]
    loss = float(read.losses.mean())
    return TextStudy(
        run=run,
        split=split,
        step=step,
        tokenizer=data.tokenizer_name,
        windows=len(rows),
        tokens=int(read.losses.numel()),
        loss=loss,
        bits_per_byte=data.bits_per_byte(loss, split),
        classes=TOKEN_CLASSES,
        by_class=read.losses_by_class(),
        layers=tuple(found),
        excerpts=tuple(quoted),
    )


def _chosen(model: nn.Module, layers: Sequence[str] | None) -> dict[str, Gated]:
    if layers is None:
        found = expert_layers(model)
        return found or dict([find_layer(model, None, "study_text")])
    return dict(find_layer(model, name, "study_text") for name in layers)


def _spread(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """So many of the rows, evenly spread and then in a fixed random order."""
    if len(rows) > count:
        rows = rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]
    return np.random.default_rng(0).permutation(rows)


def coefficient_bins(a: Tensor) -> Tensor:
    """(BINS, N) of how many rows of a (rows, N) lie in each of the equal bins of [0, 1]; zeros are left out."""
    rows, experts = a.nonzero(as_tuple=True)
    place = (a[rows, experts].double() * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(place * a.shape[1] + experts, minlength=BINS * a.shape[1])
    return counts.view(BINS, a.shape[1])


@dataclass
class _Gathered:
    """Sums over what was read of one layer's first level.

    Attributes:
        total: (classes, N) coefficients summed over the tokens of each kind.
        used: (N,) tokens with a coefficient above 0.
        half: (N,) tokens with one of at least 1/2.
        bins: (BINS, N) tokens with a coefficient above 0 in each bin of [0, 1].
        peaks: (windows, N) the largest coefficient in each window.
        places: (windows, N) where it is.
    """

    total: Tensor
    used: Tensor
    half: Tensor
    bins: Tensor
    peaks: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)

    @classmethod
    def empty(cls, experts: int) -> _Gathered:
        zeros = torch.zeros(2 + BINS, experts, dtype=torch.int64)
        return cls(torch.zeros(len(TOKEN_CLASSES), experts, dtype=torch.float64), zeros[0], zeros[1], zeros[2:])

    def add(self, a: Tensor, kinds: Tensor) -> None:
        """a (B, T, N); kinds (B, T) of the tokens read."""
        flat = a.flatten(0, 1)
        self.total.index_add_(0, kinds.flatten(), host(flat))
        self.used += (flat > 0).sum(0)
        self.half += (flat >= 0.5).sum(0)
        self.bins += coefficient_bins(host(flat))
        peak, place = a.max(1)
        self.peaks.append(peak)
        self.places.append(place)


@dataclass
class _Read:
    """What one pass over the windows gathered.

    Attributes:
        rows: The windows.
        losses: (windows, T) nats of each predicted token.
        read: (windows, T) kinds of the tokens read.
        predicted: (windows, T) kinds of the tokens predicted.
        layers: What was gathered of each layer.
        top: Tokens to keep for each expert.
    """

    rows: npt.NDArray[np.int64]
    losses: Tensor
    read: Tensor
    predicted: Tensor
    layers: Mapping[str, _Gathered]
    top: int

    def losses_by_class(self) -> dict[str, dict[str, float | int | None]]:
        found: dict[str, dict[str, float | int | None]] = {}
        for code, name in enumerate(TOKEN_CLASSES):
            chosen = self.losses[self.predicted == code]
            found[name] = {"tokens": len(chosen), "loss": float(chosen.mean()) if len(chosen) else None}
        return found


@dataclass(frozen=True)
class _Reader:
    """Runs the model over windows of the text."""

    model: nn.Module
    data: TextData
    layers: Mapping[str, Gated]

    def tokens(self, rows: npt.NDArray[np.int64]) -> Tensor:
        device = next(self.model.parameters()).device
        return torch.from_numpy(np.stack([self.data.window(int(row)) for row in rows])).to(device)

    def pieces(self, tokens: Tensor) -> list[str]:
        return self.data.tokenizer.pieces(tokens.tolist())

    def losses(self, tokens: Tensor) -> Tensor:
        """(B, T) nats of each predicted token."""
        logits = self.model(tokens[:, :-1], use_cache=False).logits.float()
        return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").cpu()

    def coefficients(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses, and each layer's (B, T, N) coefficients."""
        seen: dict[str, Tensor] = {}

        def see(name: str, levels: Sequence[Tensor]) -> None:
            seen[name] = levels[0].float().cpu().unflatten(0, (len(tokens), -1))

        with watching_coefficients(dict(self.layers), see):
            losses = self.losses(tokens)
        return losses, seen

    def read(self, rows: npt.NDArray[np.int64], top: int) -> _Read:
        gathered = {name: _Gathered.empty(layer.num_experts[0]) for name, layer in self.layers.items()}
        losses, read, predicted = [], [], []
        for part in _parts(rows):
            tokens = self.tokens(part)
            kinds = torch.from_numpy(np.stack([classify(self.pieces(window)) for window in tokens]))
            found, coefficients = self.coefficients(tokens)
            for name, a in coefficients.items():
                gathered[name].add(a, kinds[:, :-1])
            losses.append(found)
            read.append(kinds[:, :-1])
            predicted.append(kinds[:, 1:])
        return _Read(rows, torch.cat(losses), torch.cat(read), torch.cat(predicted), gathered, top)

    def layer(self, name: str, read: _Read, ablated: npt.NDArray[np.int64], radius: int) -> LayerText:
        """Everything about one layer's experts."""
        part, found = self.layers[name], read.layers[name]
        peaks, places = torch.cat(found.peaks), torch.cat(found.places)
        counts = torch.bincount(read.read.flatten(), minlength=len(TOKEN_CLASSES))
        tokens = int(counts.sum())
        experts = []
        for expert in range(part.num_experts[0]):
            sums = found.total[:, expert]
            by_class = {
                kind: round(float(sums[code] / counts[code]), 6) if counts[code] else None
                for code, kind in enumerate(TOKEN_CLASSES)
            }
            experts.append(
                ExpertText(
                    expert=expert,
                    mean=float(sums.sum()) / tokens,
                    used=int(found.used[expert]) / tokens,
                    half=int(found.half[expert]) / tokens,
                    by_class=by_class,
                    top=self._top(name, expert, read, peaks[:, expert], places[:, expert], radius),
                    effect=self._effect(part, expert, read, ablated, peaks[:, expert]) if len(ablated) else None,
                    histogram=tuple(found.bins[:, expert].tolist()),
                )
            )
        return LayerText(name, part.num_experts[0], len(ablated), tuple(experts))

    def _top(
        self, name: str, expert: int, read: _Read, peaks: Tensor, places: Tensor, radius: int
    ) -> tuple[TopToken, ...]:
        order = peaks.argsort(descending=True, stable=True)[: read.top]
        order = order[peaks[order] > 0]
        if not len(order):
            return ()
        tokens = self.tokens(read.rows[order.numpy()])
        a = self.coefficients(tokens)[1][name][..., expert]
        found = []
        for window, values, which in zip(tokens, a, order.tolist(), strict=True):
            place = int(places[which])
            start, stop = max(0, place - radius), min(len(values), place + radius + 1)
            pieces = self.pieces(window[start:stop])
            quoted = [round(float(value), 4) for value in values[start:stop]]
            found.append(
                TopToken(int(read.rows[which]), place, float(peaks[which]), place - start, tuple(pieces), tuple(quoted))
            )
        return tuple(found)

    def _effect(
        self, part: Gated, expert: int, read: _Read, ablated: npt.NDArray[np.int64], peaks: Tensor
    ) -> TextEffect:
        """Change of the loss on the first windows, those that use the expert run again without it."""
        before = read.losses[: len(ablated)]
        after = before.clone()
        using = (peaks[: len(ablated)] > 0).nonzero()[:, 0].numpy()
        for positions in _parts(using):
            with part.ablate([expert], level=0):
                after[positions] = self.losses(self.tokens(ablated[positions]))
        change, kinds = host(after - before), read.predicted[: len(ablated)]
        by_class: dict[str, float | None] = {}
        for code, kind in enumerate(TOKEN_CLASSES):
            chosen = change[kinds == code]
            by_class[kind] = round(float(chosen.mean()), 6) if len(chosen) else None
        return TextEffect(float(change.mean()), by_class)

    def excerpt(self, row: int) -> WindowText:
        """One window with all coefficients above 0."""
        tokens = self.tokens(np.array([row]))
        losses, seen = self.coefficients(tokens)
        sparse = {name: tuple(_sparse(values) for values in a[0]) for name, a in seen.items()}
        pieces = self.pieces(tokens[0, :-1])
        return WindowText(row, tuple(pieces), (None, *(round(float(v), 4) for v in losses[0, :-1])), sparse)


def _sparse(values: Tensor) -> tuple[tuple[int, float], ...]:
    return tuple((int(n), round(float(values[n]), 4)) for n in values.nonzero()[:, 0])


def _parts(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


# Steering


@contextlib.contextmanager
def steer(layer: Gated, experts: Mapping[int, float], *, level: int = 0) -> Iterator[Gated]:
    """Within the context the coefficients of these experts are multiplied, at every token.

    Args:
        layer: A MuMoE layer or block.
        experts: Expert to factor; 0 ablates it, 1 changes nothing, negative factors reverse it.
        level: Level of a hierarchy.

    Raises:
        UserError: If the level or an expert does not exist.
    """
    if not 0 <= level < len(layer.num_experts):
        raise UserError(f"steer: expected a level in 0..{len(layer.num_experts) - 1}, got {level}.")
    last = layer.num_experts[level] - 1
    for expert in experts:
        if not 0 <= expert <= last:
            raise UserError(f"steer: expected an expert in 0..{last}, got {expert}. Use one of these.")

    def hook(module: nn.Module, args: Any, output: tuple[Coefficients, ...]) -> tuple[Any, ...]:
        a = output[level].to_dense()
        scale = torch.ones_like(a[:1])
        for expert, factor in experts.items():
            scale[0, expert] = factor
        return (*output[:level], a * scale, *output[level + 1 :])

    handle = layer.gate.register_forward_hook(hook)
    try:
        yield layer
    finally:
        handle.remove()
