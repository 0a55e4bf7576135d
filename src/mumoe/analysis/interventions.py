"""What would be lost without each expert: all interventions in one pass over the data.

The plain way to ask it (`intervene_plainly`) evaluates the model once per expert with that expert's weight at
zero. `intervene` gives the same counts of right answers for every class and expert from one evaluation:

1. Only rows whose coefficient for expert n is above 0 can change, and they change by exactly a_n W_n z.
2. Most of these cannot change enough. With v the part of the latent that leaves (see `contributions`), logit c
   moves against logit j by at most ||v|| ||O_c - O_j||, so an answer stands while that is below the gap of the
   two logits. Each row has one number, the largest ||v|| that provably changes nothing; pairs below it are done.
3. The rest is computed. Where the decision then hangs on less than rounding error could move, the plain method
   is asked about that batch and expert, so that even ties fall as they would there.

For a layer that is not the last one, the affected rows alone are run again from that layer on.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mumoe.analysis.capture import Gated, evaluating, find_layer, watching_coefficients
from mumoe.analysis.contributions import Mode, Opened, Parts, parts_of
from mumoe.analysis.measures import Answers, Changes, counts_after, shuffle_units, specialization
from mumoe.analysis.results import Specialization
from mumoe.errors import UserError
from mumoe.layers import MuMoE

__all__ = ["Interventions", "intervene", "intervene_inside", "intervene_plainly"]

Batches = Iterable[tuple[Tensor, Tensor]]
Rest = Callable[[Tensor], Tensor]

ROUNDING = 32.0
"""Decisions closer than this many float epsilons of the terms' size are taken by the plain method."""

BLOCK = 4_000_000
"""Numbers held at once while pairs are computed."""


@dataclass(frozen=True)
class Interventions:
    """The outcome of ablating every unit of a layer in isolation.

    Attributes:
        answers: Right answers before.
        changes: Every answer that some ablation changes.
        load: (units,) images to which each unit contributes.
        silent: Pairs of image and unit after whose ablation every logit is exactly 0. The plain method, whose
            argmax takes the first of equals, then answers with class 0; so does this.
        rechecked: Batches evaluated once more by the plain method because rounding could have decided.
    """

    answers: Answers
    changes: Changes
    load: npt.NDArray[np.int64]
    silent: int = 0
    rechecked: int = 0

    def counts(self) -> npt.NDArray[np.int64]:
        """Right answers per unit and class after the unit's ablation, (units, classes)."""
        return counts_after(self.answers, self.changes)

    def specialization(self, *, resamples: int = 0, seed: int = 0) -> Specialization:
        """The measures of eq. 5; see `measures.specialization`."""
        return specialization(self.answers, self.changes, resamples=resamples, seed=seed)

    def load_control(self, *, seed: int = 0) -> Specialization:
        """The same measures for units of the same load made up of random contributions."""
        return specialization(self.answers, shuffle_units(self.changes, self.load, seed=seed))


@dataclass
class _Record:
    """Answers and changes as they are found, batch by batch."""

    num_units: int
    labels: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    changes: list[npt.NDArray[np.int64]] = field(default_factory=list)
    load: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    silent: int = 0
    rechecked: int = 0
    images: int = 0
    classes: int = 0

    def batch(self, labels: Tensor, right: Tensor, classes: int) -> int:
        """Note the answers before any intervention; returns the position of the batch's first image."""
        first, self.images, self.classes = self.images, self.images + len(labels), classes
        self.labels.append(labels.cpu())
        self.right.append(right.cpu())
        return first

    def changed(self, first: int, row: Tensor, unit: Tensor, labels: Tensor, before: Tensor, after: Tensor) -> None:
        """Note pairs whose answer differs from the one before; before and after are (pairs,) or (pairs, C)."""
        differs = (before != after).nonzero(as_tuple=True)
        pair = differs[0]
        label = labels[row[pair]] if before.ndim == 1 else differs[1]
        sign = after[differs].long() - before[differs].long()
        table = torch.stack([row[pair] + first, unit[pair], label, sign])
        if len(pair):
            self.changes.append(table.cpu().numpy())

    def loaded(self, unit: Tensor) -> None:
        counts = torch.bincount(unit, minlength=self.num_units).cpu().numpy()
        self.load = counts if not len(self.load) else self.load + counts

    def result(self, who: str) -> Interventions:
        if not self.images:
            raise UserError(f"{who}: expected at least one image, got none. Choose a split that has images.")
        labels, right = torch.cat(self.labels).numpy(), torch.cat(self.right).numpy()
        table = np.concatenate(self.changes, axis=1) if self.changes else np.zeros((4, 0), dtype=np.int64)
        answers = Answers(None if labels.ndim == 2 else labels.astype(np.int64), right, self.classes)
        changes = Changes(table[0], table[1], table[2], table[3], self.num_units)
        return Interventions(answers, changes, self.load.astype(np.int64), self.silent, self.rechecked)


def _is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """(rows,) for classes, the first of equal logits winning; (rows, targets) for 0/1 targets, above 0 is 1."""
    return logits.argmax(1) == labels if labels.ndim == 1 else (logits > 0) == (labels > 0)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(rows,) how far the closest decision about right or wrong is from falling the other way."""
    if labels.ndim == 2:
        return logits.abs().amin(1)
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return (own[:, 0] - others).abs()


def _check_labels(labels: Tensor, logits: Tensor, who: str) -> None:
    classes = logits.shape[-1]
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise UserError(
            f"{who}: expected labels of {classes} targets, got {labels.shape[1]}. Use the data it was trained on."
        )
    if labels.ndim == 1 and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"{who}: expected labels in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}. "
            "Use the data it was trained on."
        )


# A layer whose output is the model's output, or goes through `rest`


def intervene(
    layer: nn.Module,
    batches: Batches,
    *,
    level: int | None = None,
    mode: Mode = "zero",
    rest: Rest | None = None,
    seed: int = 0,
) -> Interventions:
    """Ablate every unit of a layer in isolation, in one pass over the data.

    The layer is not in a network here: the batches hold its own inputs (cached features, or what
    `intervene_inside` captures). The result equals `intervene_plainly` on the same batches.

    Args:
        layer: A MuMoE, SparseMoE or HighRankLinear layer.
        batches: (x, labels): x (rows, in_features); labels (rows,) classes or (rows, targets) 0/1.
        level: Level whose experts are ablated, each with all of its combinations; None takes the only level,
            or in a hierarchy every combination.
        mode: What takes an ablated expert's place, see `contributions.MODES`.
        rest: The network after the layer, from its output to the logits; None for a final layer.
        seed: Seed of the ``resampled`` mode.

    Raises:
        UserError: If there are no images, a label does not exist, or the layer has no such level or mode.

    Cost: one evaluation, plus width * out_features for each (row, unit) pair that could change an answer.
    """
    with evaluating(layer):
        parts = parts_of(layer, level=level, mode=mode, seed=seed)
        record = _Record(parts.num_units)
        distances, norms = parts.distances(), parts.norms()
        for x, labels in batches:
            opened = parts.open(x, record.images)
            logits = opened.logits if rest is None else rest(opened.logits)
            _check_labels(labels, logits, "intervene")
            step = _Step(parts, opened, logits, labels, x, rest, record)
            step.run(distances.to(logits), norms.to(logits))
        return record.result("intervene")


@dataclass
class _Step:
    """One batch of `intervene`."""

    parts: Parts
    opened: Opened
    logits: Tensor
    labels: Tensor
    x: Tensor
    rest: Rest | None
    record: _Record

    def run(self, distances: Tensor, norms: Tensor) -> None:
        self.tolerance = self._tolerance()
        right = _is_right(self.logits, self.labels)
        if bool((_margin(self.logits, self.labels) <= self.tolerance).any()):
            right = _is_right(self._plain(None), self.labels)
        self.right = right
        self.first = self.record.batch(self.labels, right, self.logits.shape[1])
        self.record.loaded(self.opened.unit)
        self.doubtful: list[Tensor] = []
        self.outcome: list[tuple[Tensor, Tensor]] = []
        candidates = self._candidates(distances, norms)
        size = max(1, BLOCK // max(self.parts.width, self.parts.out_features))
        for pairs in candidates.split(size):
            self._compute(pairs)
        self._silent()
        self._settle()

    def _tolerance(self) -> Tensor:
        """(rows,) what rounding could do to a difference of two logits."""
        scale = self.opened.scale if self.rest is None else self.logits.abs().amax(1)
        bits = ROUNDING if self.rest is None else 16 * ROUNDING
        return scale * (bits * torch.finfo(self.logits.dtype).eps)

    def _plain(self, unit: int | None) -> Tensor:
        self.record.rechecked += 1
        y = self.parts.plain(self.x, unit, self.first if unit is not None else self.record.images)
        return y if self.rest is None else self.rest(y)

    def _candidates(self, distances: Tensor, norms: Tensor) -> Tensor:
        """Positions of the pairs that could change an answer."""
        pairs = (~self.opened.silent).nonzero()[:, 0]
        if self.rest is not None:
            return pairs
        limit = self._limits(distances, norms)
        kept = [
            block[~(self.opened.reach(block) < limit[self.opened.row[block]])]
            for block in pairs.split(max(1, BLOCK // self.parts.width))
        ]
        return torch.cat(kept) if kept else pairs

    def _limits(self, distances: Tensor, norms: Tensor) -> Tensor:
        """(rows,) reach below which no answer of the row can change."""
        slack = self.tolerance[:, None]
        if self.labels.ndim == 2:
            return ((self.logits.abs() - slack) / norms).nan_to_num(0.0).amin(1)
        own = self.logits.gather(1, self.labels[:, None])
        far = distances[self.labels].clamp(min=torch.finfo(self.logits.dtype).tiny)
        ahead = ((own - self.logits) - slack) / far
        ahead.scatter_(1, self.labels[:, None], torch.inf)
        behind = ((self.logits - own) - slack) / far
        behind.scatter_(1, self.labels[:, None], -torch.inf)
        limit = torch.where(self.right, ahead.amin(1), behind.amax(1))
        return limit.nan_to_num(0.0, posinf=torch.inf) * (1 - 1e-3)

    def _compute(self, pairs: Tensor) -> None:
        row = self.opened.row[pairs]
        y = self.opened.logits[row] - self.parts.project(self.opened.vectors(pairs))
        after = y if self.rest is None else self.rest(y)
        labels = self.labels[row]
        self.outcome.append((pairs, _is_right(after, labels)))
        self.doubtful.append(pairs[_margin(after, labels) <= self.tolerance[row]])

    def _silent(self) -> None:
        """Where nothing contributes any more the layer's output is exactly zero."""
        pairs = self.opened.silent.nonzero()[:, 0]
        self.record.silent += len(pairs)
        if not len(pairs):
            return
        nothing = torch.zeros_like(self.opened.logits[:1])
        logits = (nothing if self.rest is None else self.rest(nothing)).expand(len(pairs), -1)
        labels = self.labels[self.opened.row[pairs]]
        self.outcome.append((pairs, _is_right(logits, labels)))
        if self.rest is not None:
            near = _margin(logits, labels) <= self.tolerance[self.opened.row[pairs]]
            self.doubtful.append(pairs[near])

    def _settle(self) -> None:
        """Record the outcomes; where one is in doubt, take all of that unit's from the plain method."""
        doubtful = torch.cat(self.doubtful) if self.doubtful else self.opened.unit[:0]
        units = self.opened.unit[doubtful].unique()
        for pairs, after in self.outcome:
            row, unit = self.opened.row[pairs], self.opened.unit[pairs]
            sure = ~torch.isin(unit, units)
            before = self.right[row[sure]]
            self.record.changed(self.first, row[sure], unit[sure], self.labels, before, after[sure])
        rows = torch.arange(len(self.labels), device=self.labels.device)
        for unit in units.tolist():
            after = _is_right(self._plain(unit), self.labels)
            whose = torch.full_like(rows, unit)
            self.record.changed(self.first, rows, whose, self.labels, self.right, after)


# The oracle


def intervene_plainly(
    layer: nn.Module,
    batches: Batches,
    *,
    level: int | None = None,
    mode: Mode = "zero",
    rest: Rest | None = None,
    seed: int = 0,
) -> Interventions:
    """What `intervene` computes, by one full evaluation per unit: the definition, slow and simple.

    Arguments, errors and result are those of `intervene`; `batches` must be a collection that can be read twice.
    """
    with evaluating(layer):
        parts = parts_of(layer, level=level, mode=mode, seed=seed)
        record = _Record(parts.num_units)
        for x, labels in batches:
            opened = parts.open(x, record.images)
            logits = parts.plain(x, None, record.images)
            logits = logits if rest is None else rest(logits)
            _check_labels(labels, logits, "intervene_plainly")
            right = _is_right(logits, labels)
            first = record.batch(labels, right, logits.shape[1])
            record.loaded(opened.unit)
            record.silent += int(opened.silent.sum())
            rows = torch.arange(len(labels), device=labels.device)
            for unit in range(parts.num_units):
                y = parts.plain(x, unit, first)
                after = _is_right(y if rest is None else rest(y), labels)
                record.changed(first, rows, torch.full_like(rows, unit), labels, right, after)
        return record.result("intervene_plainly")


# A layer inside any network


def intervene_inside(
    model: nn.Module,
    batches: Batches,
    *,
    layer: str | None = None,
    level: int | None = None,
    mode: Mode = "zero",
    rest: Rest | None = None,
    block: int = 256,
    plainly: bool = False,
) -> Interventions:
    """Ablate every expert of one layer of a network: final, penultimate, or inside a block with tokens.

    A final layer is recognized (its output is the model's) and handed to `intervene`. Of any other layer only
    the affected images are run again for each expert, many experts at a time: from that layer on if `rest` is given,
    else from the start.

    Args:
        model: Any model with MuMoE layers or blocks in it.
        batches: (inputs of the model, labels).
        layer: Name of the layer; None takes the only one.
        level: As in `intervene`; of a block or a layer over tokens only single levels can be ablated.
        mode: ``zero`` or ``mean``; a final layer also ``resampled``.
        rest: The network after the layer: from its output to the logits, for any number of rows.
        block: Images run again at a time.
        plainly: Evaluate once per expert instead, the oracle.

    Raises:
        UserError: If there is no such layer, level or mode, or no image.
    """
    name, part = find_layer(model, layer, "intervene_inside")
    with evaluating(model):
        stream = _look(model, part, batches)
        seen = next(stream, None)
        if seen is None:
            raise UserError("intervene_inside: expected at least one image, got none. Choose a split with images.")
        whole = itertools.chain([seen], stream)
        if isinstance(part, MuMoE) and seen.x.ndim == 2 and (seen.final or rest is not None):
            method = intervene_plainly if plainly else intervene
            inner = ((each.x, each.labels) for each in whole)
            return method(part, inner, level=level, mode=mode, rest=None if seen.final else rest)
        again = _Again(model, part, _one_level(part, name, level, mode), mode, rest)
        record = _Record(again.num_units)
        for each in whole:
            _run_again(again, each, record, block, plainly)
        return record.result("intervene_inside")


@dataclass(frozen=True)
class _Seen:
    """One batch: what went in, what reached the layer, its coefficients, the logits."""

    inputs: Tensor
    labels: Tensor
    x: Tensor
    coefficients: list[Tensor]
    logits: Tensor
    final: bool


def _look(model: nn.Module, part: Gated, batches: Batches) -> Iterator[_Seen]:
    """Run the model batch by batch; nothing stays on its modules."""
    for inputs, labels in batches:
        if not len(inputs):
            continue
        x: list[Tensor] = []
        y: list[Tensor] = []
        a: list[list[Tensor]] = []
        before = part.register_forward_pre_hook(lambda module, args, x=x: x.append(args[0].detach()))
        after = part.register_forward_hook(lambda module, args, out, y=y: y.append(_output(out)))
        try:
            with watching_coefficients({"": part}, _Kept(a)):
                logits = model(inputs)
        finally:
            before.remove()
            after.remove()
        if len(x) != 1:
            raise UserError(
                f"intervene_inside: expected a layer that runs once per forward, got {len(x)} runs. "
                "Choose another layer."
            )
        _check_labels(labels, logits, "intervene_inside")
        final = y[0].shape == logits.shape and torch.equal(y[0], logits)
        yield _Seen(inputs, labels, x[0], a[0], logits, final)


@dataclass(frozen=True)
class _Kept:
    """Keeps the coefficients that it is shown."""

    found: list[list[Tensor]]

    def __call__(self, name: str, coefficients: Sequence[Tensor]) -> None:
        self.found.append(list(coefficients))


def _output(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _one_level(part: Gated, name: str, level: int | None, mode: Mode) -> int:
    levels = len(part.num_experts)
    if level is None and levels == 1:
        level = 0
    if level is None or not 0 <= level < levels:
        raise UserError(
            f"intervene_inside: expected a level in 0..{levels - 1} for {name!r}, got {level}. "
            "Combinations of levels can be ablated in a final layer."
        )
    if mode not in ("zero", "mean"):
        raise UserError(
            f"intervene_inside: expected mode 'zero' or 'mean' for {name!r}, got {mode!r}. "
            "Give rest=, or ablate a final layer."
        )
    return level


@dataclass(frozen=True)
class _Again:
    """Run images again with an expert ablated, another one for each image."""

    model: nn.Module
    part: Gated
    level: int
    mode: Mode
    rest: Rest | None

    @property
    def num_units(self) -> int:
        return self.part.num_experts[self.level]

    def logits(self, seen: _Seen, image: Tensor, unit: Tensor) -> Tensor:
        """(pairs, classes) for these images, each with its own expert ablated."""
        with self._changed(unit):
            if self.rest is not None:
                return self.rest(_output(self.part(seen.x[image])))
            out: Tensor = self.model(seen.inputs[image])
            return out

    def plain(self, seen: _Seen, unit: int) -> Tensor:
        """(images, classes) for the whole batch with one expert ablated."""
        if self.mode == "zero":
            with self.part.ablate([unit], level=self.level):
                out: Tensor = self.model(seen.inputs)
                return out
        images = len(seen.inputs)
        with self._changed(torch.full((images,), unit, device=seen.labels.device)):
            changed: Tensor = self.model(seen.inputs)
            return changed

    @contextlib.contextmanager
    def _changed(self, unit: Tensor) -> Iterator[None]:
        """The gate's coefficients with unit[i] taken out of all rows of image i."""

        def hook(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            a = output[self.level].unflatten(0, (len(unit), -1)).clone()
            chosen = unit[:, None, None].expand(-1, a.shape[1], 1)
            share = a.gather(2, chosen)
            a.scatter_(2, chosen, 0.0)
            if self.mode == "mean":
                a += share / a.shape[2]
            return (*output[: self.level], a.flatten(0, 1), *output[self.level + 1 :])

        handle = self.part.gate.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def _run_again(again: _Again, seen: _Seen, record: _Record, block: int, plainly: bool) -> None:
    """All interventions on one batch."""
    right = _is_right(seen.logits, seen.labels)
    first = record.batch(seen.labels, right, seen.logits.shape[1])
    used = (seen.coefficients[again.level] > 0).unflatten(0, (len(right), -1)).any(1)
    image, unit = used.nonzero(as_tuple=True)
    record.loaded(unit)
    units = torch.arange(again.num_units, device=unit.device)
    if not plainly:
        outcome = [
            _is_sure(again.logits(seen, i, n), seen.labels[i])
            for i, n in zip(image.split(block), unit.split(block), strict=True)
        ]
        after = torch.cat([part for part, _ in outcome]) if outcome else right[:0]
        sure = torch.cat([part for _, part in outcome]) if outcome else used[0, :0]
        units = unit[~sure].unique()
        kept = ~torch.isin(unit, units)
        record.changed(first, image[kept], unit[kept], seen.labels, right[image[kept]], after[kept])
        record.rechecked += len(units)
    rows = torch.arange(len(right), device=unit.device)
    for n in units.tolist():
        after = _is_right(again.plain(seen, n), seen.labels)
        record.changed(first, rows, torch.full_like(rows, n), seen.labels, right, after)


def _is_sure(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each answer is right, and whether that is beyond what rounding could do."""
    tolerance = logits.abs().amax(1) * (16 * ROUNDING * torch.finfo(logits.dtype).eps)
    return _is_right(logits, labels), _margin(logits, labels) > tolerance
