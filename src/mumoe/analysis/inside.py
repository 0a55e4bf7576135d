"""Ablations of a layer inside any network: penultimate, or in a block over tokens.

The model is run once on every batch. For each expert only the images that use it are run again, each with that
expert's coefficients taken out of the gate's output, many experts in one batch. Rows whose answer could depend on
rounding (the last bits change with the batch size) are computed by the plain method.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mumoe.analysis.capturing import Gated, watching_coefficients
from mumoe.analysis.outcomes import ROUNDING, Batches, Record, Rest, check_labels, is_right, margin
from mumoe.analysis.settings import Mode
from mumoe.coefficients import Coefficients
from mumoe.errors import UserError

__all__ = ["Again", "Seen", "one_level", "run_again", "watched"]


@dataclass(frozen=True)
class Seen:
    """One batch: what went in, what reached the layer, its coefficients, the logits."""

    inputs: Tensor
    labels: Tensor
    x: Tensor
    coefficients: Sequence[Tensor]
    logits: Tensor
    final: bool


def watched(model: nn.Module, part: Gated, batches: Batches) -> Iterator[Seen]:
    """Run the model batch by batch; nothing stays on its modules."""
    for inputs, labels in batches:
        if not len(inputs):
            continue
        x: list[Tensor] = []
        y: list[Tensor] = []
        a: list[Sequence[Tensor]] = []
        before = part.register_forward_pre_hook(lambda module, args, x=x: x.append(args[0].detach()))
        after = part.register_forward_hook(lambda module, args, out, y=y: y.append(_output(out)))
        try:
            with watching_coefficients({"": part}, _keep_in(a)):
                logits = _logits(model(inputs))
        finally:
            before.remove()
            after.remove()
        if len(x) != 1:
            raise UserError(
                f"intervene: expected a layer that runs once per forward, got {len(x)} runs. Choose another layer."
            )
        check_labels(labels, logits)
        final = y[0].shape == logits.shape and torch.equal(y[0], logits)
        yield Seen(inputs, labels, x[0], a[0], logits, final)


def _keep_in(found: list[Sequence[Tensor]]) -> Callable[[str, Sequence[Tensor]], None]:
    return lambda name, coefficients: found.append(coefficients)


def _logits(out: Any) -> Tensor:
    """What a model returns: logits, or an object that has them."""
    logits: Tensor = getattr(out, "logits", out)
    return logits


def _output(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def one_level(part: Gated, name: str, level: int | None, mode: Mode) -> int:
    levels = len(part.num_experts)
    if level is None and levels == 1:
        level = 0
    if level is None or not 0 <= level < levels:
        raise UserError(
            f"intervene: expected a level in 0..{levels - 1} for {name!r}, got {level}. "
            "Combinations of levels can be ablated in a final layer."
        )
    if mode not in ("zero", "mean"):
        raise UserError(
            f"intervene: expected mode 'zero' or 'mean' for {name!r}, got {mode!r}. "
            "Give rest=, or ablate a final layer."
        )
    return level


@dataclass(frozen=True)
class Again:
    """Run images again with an expert ablated, another one for each image."""

    model: nn.Module
    part: Gated
    level: int
    mode: Mode
    rest: Rest | None

    @property
    def num_units(self) -> int:
        return self.part.num_experts[self.level]

    def logits(self, seen: Seen, image: Tensor, unit: Tensor) -> Tensor:
        """(pairs, classes) for these images, each with its own expert ablated."""
        with self._changed(unit):
            if self.rest is not None:
                return self.rest(_output(self.part(seen.x[image])))
            return _logits(self.model(seen.inputs[image]))

    def plain(self, seen: Seen, unit: int) -> Tensor:
        """(images, classes) for the whole batch with one expert ablated."""
        if self.mode == "zero":
            with self.part.ablate([unit], level=self.level):
                return _logits(self.model(seen.inputs))
        images = len(seen.inputs)
        with self._changed(torch.full((images,), unit, device=seen.labels.device)):
            return _logits(self.model(seen.inputs))

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


def run_again(again: Again, seen: Seen, record: Record, block: int, plainly: bool) -> None:
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
    for n in units.tolist():
        record.whole_batch(first, n, seen.labels, right, again.plain(seen, n))


def _is_sure(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each answer is right, and whether rounding could not change that."""
    tolerance = logits.abs().amax(1) * (32 * ROUNDING * torch.finfo(logits.dtype).eps)
    return is_right(logits, labels), margin(logits, labels) > tolerance
