"""Train the new modules to compute what the old ones did (the setting of transcoders), and measure the difference.

The old network runs over the data. A hook on each replaced module receives its input and output, makes one
training step of the new module and discards the rows, so memory holds one batch for any amount of data.
Every module learns from the old network's activations, never from those of another new module.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import DataLoader, SequentialSampler

from mumoe.devices import wide
from mumoe.errors import JobError, UserError
from mumoe.models.surgery.architectures import CAUSAL_ENDINGS
from mumoe.models.surgery.planning import Surgery, call, output_of
from mumoe.modes import evaluating, keeping_modes
from mumoe.progress import Progress
from mumoe.records import Record, record

__all__ = ["BlockFit", "EndToEnd", "FitReport", "fit"]


@dataclass(frozen=True)
class BlockFit:
    """How much of a module's output its replacement leaves unexplained, on held-out data.

    Attributes:
        name: The module.
        before: Squared error over the output's variance, before the fit; 0 is exact, 1 is no better than the mean.
        after: The same after it.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class EndToEnd:
    """The network with its new modules against the old one, on held-out data.

    Attributes:
        difference: Norm of the difference of the outputs over the norm of the old ones; 0 is equal.
        divergence: Mean Kullback-Leibler divergence of the new from the old predictions, in nats; None without logits.
        agreement: Share of predictions whose first choice is the same; None without logits.
        loss: Mean cross-entropy, in nats; None without labels.
    """

    difference: float
    divergence: float | None = None
    agreement: float | None = None
    loss: float | None = None


@record
class FitReport(Record):
    """The result of `fit`.

    Attributes:
        blocks: Each module's error.
        before, after: The whole network, before the fit and after it.
        original_loss: Mean cross-entropy of the old network; None without labels.
        steps: Batches trained on.
        seconds: Total time.
    """

    blocks: tuple[BlockFit, ...]
    before: EndToEnd
    after: EndToEnd
    original_loss: float | None
    steps: int
    seconds: float = field(compare=False)

    def headline(self) -> str:
        """How far the network is from the old one."""
        return f"difference of the outputs {self.before.difference:.4f}, after the fit {self.after.difference:.4f}"

    def rows(self) -> list[dict[str, Any]]:
        """One row per module."""
        return [vars(block) for block in self.blocks]

    def table(self) -> str:
        """The report as text."""
        width = max(len("module"), *(len(block.name) for block in self.blocks))
        lines = [f"{'module':<{width}}  unexplained  after fit"]
        lines += [f"{block.name:<{width}}  {block.before:>11.4f}  {block.after:>9.4f}" for block in self.blocks]
        for name in ("difference", "divergence", "agreement", "loss"):
            before, after = getattr(self.before, name), getattr(self.after, name)
            if before is not None:
                old = f" (old network {self.original_loss:.4f})" if name == "loss" else ""
                lines.append(f"whole network, {name}: {before:.4f}, after fit {after:.4f}{old}")
        return "\n".join(lines)


def fit(
    surgery: Surgery,
    batches: Iterable[Any],
    *,
    held_out: Iterable[Any] | int = 1,
    epochs: int = 1,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    progress: bool = True,
) -> FitReport:
    """Train the new modules of a surgery to reproduce the outputs of the old ones.

    Adam on the mean squared error over the variance of the module's output, one step for every module and batch.

    Args:
        surgery: The handle of `replace_modules`; afterwards its new modules are in place, in the modes they had.
        batches: Inputs of the network: tensors, (input, labels) pairs, or mappings of arguments, with or without
            ``labels`` (for a causal model, the tokens themselves). For several epochs it must be possible to iterate
            over them more than once.
        held_out: Batches to measure on; a number takes that many from the front of `batches` and trains on the rest.
        epochs: Passes over the data.
        lr: Learning rate; it falls to 0 along a cosine if the number of batches is known.
        weight_decay: Weight decay of AdamW.
        progress: Show progress and the time left.

    Raises:
        UserError: If there is no batch to train or to measure on, or `batches` is an iterator and `epochs` > 1.
        JobError: If a loss is not finite; the modules stay as they were then.
    """
    started = time.monotonic()
    training, kept = _split(batches, held_out, epochs)
    names = {target.name: surgery.replaced[target.name] for target in surgery.plan.targets}
    if not surgery.active:
        raise UserError("fit: expected a surgery whose modules are in place, got one that was undone. Redo it.")
    unexplained, spread = _unexplained(surgery, names, kept)
    original, before = _compare(surgery, kept)
    steps = _train(surgery, names, training, spread, (epochs, lr, weight_decay), progress)
    left, _ = _unexplained(surgery, names, kept)
    _, after = _compare(surgery, kept)
    blocks = tuple(BlockFit(name, unexplained[name], left[name]) for name in names)
    return FitReport(blocks, before, after, original, steps, time.monotonic() - started)


# Data -----------------------------------------------------------------------------------------------------


def _split(batches: Iterable[Any], held_out: Iterable[Any] | int, epochs: int) -> tuple[Iterable[Any], list[Any]]:
    if epochs < 1:
        raise UserError(f"fit: expected epochs >= 1, got {epochs}. Give 1.")
    again = iter(batches) is not batches
    if epochs > 1 and not again:
        raise UserError("fit: expected re-iterable batches for several epochs, got an iterator. Give a list.")
    if not isinstance(held_out, int):
        return batches, _some(list(held_out), "held_out")
    if held_out < 1:
        raise UserError(f"fit: expected at least 1 batch held out, got {held_out}. Give 1.")
    shuffled = isinstance(batches, DataLoader) and not isinstance(batches.sampler, SequentialSampler)
    if shuffled and epochs > 1:
        raise UserError(
            "fit: expected held_out=BATCHES with a loader that shuffles, got a number, which would take other "
            "batches in every epoch. Give a second loader."
        )
    if not again:
        kept = list(itertools.islice(batches, held_out))
        return batches, _some(kept, "batches")
    return _Rest(batches, held_out), _some(list(itertools.islice(batches, held_out)), "batches")


class _Rest:
    """An iterable without its first `skip` items."""

    def __init__(self, items: Iterable[Any], skip: int) -> None:
        self.items, self.skip = items, skip

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.items, self.skip, None)

    def __len__(self) -> int:
        return max(0, len(self.items) - self.skip)  # type: ignore[arg-type]


def _some(batches: list[Any], name: str) -> list[Any]:
    if not batches:
        raise UserError(f"fit: expected at least one batch in {name}, got none. Give the network's inputs.")
    return batches


def _arguments(batch: Any, device: torch.device) -> tuple[Any, Tensor | None]:
    """The arguments of the network, and the labels if there are any."""
    if isinstance(batch, Mapping):
        moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        return moved, moved.pop("labels", None)
    if isinstance(batch, tuple | list):
        labels = batch[1].to(device) if len(batch) > 1 else None
        return batch[0].to(device), labels
    return batch.to(device), None


def _device(surgery: Surgery) -> torch.device:
    return next(surgery.parameters()).device


# Measures -------------------------------------------------------------------------------------------------


@contextmanager
def _watching(surgery: Surgery, see: Callable[[str, Tensor, Tensor], None]) -> Iterator[nn.Module]:
    """The old network in evaluation mode; `see(name, input, output)` is called as each replaced module runs."""

    def hook(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            see(name, x.detach(), output.detach())

        return seen

    with surgery.suspended() as model, evaluating(model):
        handles = [
            target.module.register_forward_hook(hook(target.name), with_kwargs=True) for target in surgery.plan.targets
        ]
        try:
            yield model
        finally:
            for handle in handles:
                handle.remove()


def _unexplained(
    surgery: Surgery, names: Mapping[str, nn.Module], batches: list[Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """For every module: squared error over variance, and the variance (mean over features)."""
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0, 0.0] for name in names}  # rows, error, y, y squared

    def see(name: str, x: Tensor, y: Tensor) -> None:
        axis = 1 if getattr(names[name], "channels_first", False) else -1
        wrong = (wide(names[name](x)) - wide(y)).square().sum().item()
        rows = wide(y).movedim(axis, -1).flatten(0, -2)
        mine = sums[name]
        sums[name] = [mine[0] + len(rows), mine[1] + wrong, mine[2] + rows.sum(0), mine[3] + rows.square().sum(0)]

    with evaluating(nn.ModuleList(names.values())), _watching(surgery, see) as model:
        for batch in batches:
            call(model, _arguments(batch, _device(surgery))[0])
    unexplained, spread = {}, {}
    for name, (count, wrong, total, squares) in sums.items():
        if not count:
            raise UserError(f"fit: expected the network to use {name!r} on the held-out batches, got no call.")
        variance = (squares - total.square() / count).sum().clamp(min=1e-30).item()
        unexplained[name] = wrong / variance
        spread[name] = variance / count / len(total)
    return unexplained, spread


def _compare(surgery: Surgery, batches: list[Any]) -> tuple[float | None, EndToEnd]:
    """The loss of the old network, and the new one against it."""
    shift = any(base.__name__.endswith(CAUSAL_ENDINGS) for base in type(surgery.model).__mro__)
    sums = torch.zeros(6, dtype=torch.float64)  # difference, norm, divergence, agreement, old loss, new loss
    rows = labelled = 0
    for batch in batches:
        arguments, labels = _arguments(batch, _device(surgery))
        with surgery.suspended() as model, evaluating(model):
            old, logits = _output(call(model, arguments))
        with evaluating(surgery.model):
            new, _ = _output(call(surgery.model, arguments))
        sums[:2] += torch.stack([(new - old).square().sum(), old.square().sum()]).cpu()
        if logits:
            rows += old[..., 0].numel()
            sums[2:4] += _predictions(old, new).cpu()
        if logits and labels is not None:
            losses, count = _losses(old, new, labels, shift)
            sums[4:] += losses.cpu()
            labelled += count
    difference = math.sqrt(sums[0] / sums[1].clamp(min=1e-30))
    divergence, agreement = (float(value) / rows for value in sums[2:4]) if rows else (None, None)
    old_loss, new_loss = (float(value) / labelled for value in sums[4:]) if labelled else (None, None)
    return old_loss, EndToEnd(difference, divergence, agreement, new_loss)


def _output(result: Any) -> tuple[Tensor, bool]:
    """The network's output as one tensor in the widest float of its device, and whether it is logits."""
    found = output_of(result)
    if found is None:
        raise UserError(
            f"fit: expected a network that returns a tensor, logits or last_hidden_state, got {type(result).__name__}."
        )
    return wide(found), found is not getattr(result, "last_hidden_state", None)


def _predictions(old: Tensor, new: Tensor) -> Tensor:
    """Sums of divergence and of agreement."""
    before, after = old.log_softmax(-1), new.log_softmax(-1)
    divergence = (before.exp() * (before - after)).sum()
    return torch.stack([divergence, (old.argmax(-1) == new.argmax(-1)).to(old).sum()])


def _losses(old: Tensor, new: Tensor, labels: Tensor, shift: bool) -> tuple[Tensor, int]:
    """Sums of cross-entropy of the old and the new logits, and their number; labels of -100 are ignored."""
    if shift:
        old, new, labels = old[:, :-1], new[:, :-1], labels[:, 1:]
    labels = labels.reshape(-1)
    pairs = [F.cross_entropy(logits.flatten(0, -2), labels, reduction="sum") for logits in (old, new)]
    return torch.stack(pairs), int((labels != -100).sum())


# Training -------------------------------------------------------------------------------------------------


def _train(
    surgery: Surgery,
    names: Mapping[str, nn.Module],
    batches: Iterable[Any],
    spread: Mapping[str, float],
    settings: tuple[int, float, float],
    progress: bool,
) -> int:
    epochs, lr, decay = settings
    total = epochs * _count(batches)
    optimizers = {name: torch.optim.AdamW(m.parameters(), lr=lr, weight_decay=decay) for name, m in names.items()}
    losses: dict[str, float] = {}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        with torch.enable_grad():
            loss = (names[name](x) - y).float().square().mean() / max(spread[name], 1e-30)
        losses[name] = float(loss)
        if not math.isfinite(losses[name]):
            raise JobError(f"fit: expected a finite loss of {name!r}, got {losses[name]}. Lower lr, now {lr:g}.")
        loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    steps = 0
    with _training(nn.ModuleList(names.values())), Progress("Distilling", total, enabled=progress) as bar:
        for batch in itertools.chain.from_iterable(itertools.repeat(batches, epochs)):
            for optimizer in optimizers.values():
                optimizer.param_groups[0]["lr"] = _rate(lr, steps, total)
            with _watching(surgery, see) as model:
                call(model, _arguments(batch, _device(surgery))[0])
            steps += 1
            bar.advance(note=f"unexplained {sum(losses.values()) / max(len(losses), 1):.4f}")
    if not steps:
        raise UserError("fit: expected batches besides the held-out ones, got none. Give more batches.")
    return steps


def _count(batches: Any) -> int:
    """Number of batches; 0 if it is unknown."""
    try:
        return len(batches)
    except TypeError:
        return 0


def _rate(lr: float, step: int, total: int) -> float:
    return lr * 0.5 * (1 + math.cos(math.pi * step / total)) if total else lr


@contextmanager
def _training(modules: nn.Module) -> Iterator[None]:
    """Training mode without dropout, so that the function itself is learnt; all flags are restored afterwards."""
    with keeping_modes(modules):
        for module in modules.modules():
            module.training = not isinstance(module, _DropoutNd)
        yield
