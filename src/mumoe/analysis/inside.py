"""Interventions on a layer inside any network: final, penultimate, or in a block over tokens.

The model is run once on every batch. For each expert only the images that use it are run again, each with that
expert's coefficients taken out of the gate's output, many experts in one batch. Rows whose answer could hang on
rounding (another batch size gives other last bits) are taken from the plain method.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mumoe.analysis.capturing import Gated, evaluating, find_layer, watching_coefficients
from mumoe.analysis.contributions import Mode
from mumoe.analysis.interventions import (
    ROUNDING,
    Batches,
    Interventions,
    Record,
    Rest,
    check_labels,
    intervene,
    intervene_plainly,
    is_right,
    margin,
)
from mumoe.coefficients import Coefficients
from mumoe.errors import UserError
from mumoe.layers import MuMoE

__all__ = ["intervene_inside"]


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
        record = Record(again.num_units)
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
        check_labels(labels, logits, "intervene_inside")
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

        def hook(module: nn.Module, args: Any, output: tuple[Coefficients, ...]) -> tuple[Any, ...]:
            a = output[self.level].to_dense().unflatten(0, (len(unit), -1)).clone()
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


def _run_again(again: _Again, seen: _Seen, record: Record, block: int, plainly: bool) -> None:
    """All interventions on one batch."""
    right = is_right(seen.logits, seen.labels)
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
        after = is_right(again.plain(seen, n), seen.labels)
        record.changed(first, rows, torch.full_like(rows, n), seen.labels, right, after)


def _is_sure(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each answer is right, and whether that is beyond what rounding could do."""
    tolerance = logits.abs().amax(1) * (32 * ROUNDING * torch.finfo(logits.dtype).eps)
    return is_right(logits, labels), margin(logits, labels) > tolerance
