"""Train a replacement to compute what an MLP computes, on captured rows; stopped at any step, it resumes bit-exactly.

Several processes each take a share of every batch, and sum their gradients.

Inputs and outputs are divided by their root mean squares, and the bias starts at the mean output. The loss of a row is
|error|^2 / |y|. AdamW without weight decay; the learning rate rises over the first 5 % of the steps, stays, and falls
to 0 along a line from `FALL` on. The order of the rows is a function of the seed and the epoch alone, so a checkpoint
holds weights, moments and the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mumoe.coefficients import Coefficients, SparseCoefficients
from mumoe.decomposition.activations import Activations, computing
from mumoe.decomposition.replacements import Replacement
from mumoe.errors import JobError, UserError, check_size
from mumoe.files import clean_folder, remove_folder, write_json, write_tensors
from mumoe.modes import evaluating
from mumoe.progress import Progress
from mumoe.records import Record, record
from mumoe.training.checkpoint import Check, Snapshot, Specs, newest, prune, specs, write
from mumoe.training.distributed import agree_all, from_main, is_main, synchronize_gates, together, world_size
from mumoe.training.signals import Interrupted, StopRequest
from mumoe.training.state import model_tensors, optimizer_tensors, restore_model, restore_optimizer

__all__ = [
    "FitSettings",
    "Fitted",
    "Twin",
    "clear_checkpoints",
    "column_sums",
    "fit_replacement",
    "measure_rows",
    "rate_of",
]

WHO = "decompose"
WARM_UP, FALL = 0.05, 0.2
"""Share of the steps in which the learning rate rises; share from which on it falls to 0 along a line."""
MEAN_ROWS, COEFFICIENT_ROWS = 50_000, 32_768
"""Rows that the Gaussian twin and the mean coefficients are measured on."""
CHECKPOINT_SECONDS = 120.0
EPS = 1e-3
"""Added to |y| in the loss, in units of root mean square 1."""
Integers = npt.NDArray[np.int64]

WEIGHTS, RESULT, CHECKPOINTS = "replacement.safetensors", "fit.json", "checkpoints"


@dataclass(frozen=True)
class FitSettings:
    """How a replacement is trained.

    Attributes:
        lr: Peak of the learning rate.
        tokens: Rows trained on, over all passes.
        batch_size: Rows of a step.
        seed: Of the weights and the order of the rows.
        precision: ``float32`` or ``bfloat16`` of the matrix products in training; gates stay in float32.
    """

    lr: float = 2e-3
    tokens: int = 500_000
    batch_size: int = 1024
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_size(self.tokens, "tokens", WHO)
        check_size(self.batch_size, "batch_size", WHO)
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise UserError(f"{WHO}: expected `lr` above 0, got {self.lr!r}. 0.002 is usual.")

    @property
    def steps(self) -> int:
        return max(self.tokens // self.batch_size, 1)


@record
class Fitted(Record):
    """A trained replacement on the validation rows.

    Attributes:
        kind: Its kind.
        lr: Learning rate.
        seed: Seed.
        steps: Steps trained.
        parameters: Learnable parameters.
        experts: Number of experts, of all levels.
        error: Squared error over the variance of the outputs (ratio of sums); 0 is exact, 1 no better than the mean.
        active: Experts with a coefficient above 0, mean over rows (L0).
        never: Share of experts that no row uses; None without experts.
        most: Largest share of rows that one expert is used by; None without experts.
        train_error: Error of the last steps in training, smoothed.
        seconds: Time spent training.
    """

    kind: str
    lr: float
    seed: int
    steps: int
    parameters: int
    experts: int
    error: float
    active: float | None
    never: float | None
    most: float | None
    train_error: float
    seconds: float

    def headline(self) -> str:
        """Error and dead experts."""
        dead = "" if self.never is None else f", {100 * self.never:.0f} % of {self.experts:,} experts never used"
        return f"{self.kind}, lr {self.lr:g}: unexplained {self.error:.4f}{dead}"


def rate_of(settings: FitSettings, step: int) -> float:
    """The learning rate of a step, from 0."""
    total = settings.steps
    warm = max(round(WARM_UP * total), min(10, total))
    rise = min(1.0, (step + 1) / warm)
    return settings.lr * rise * min(1.0, (total - step) / ((1 - FALL) * total))


def fit_replacement(
    replacement: Replacement,
    train: Activations,
    val: Activations,
    settings: FitSettings,
    folder: Path,
    *,
    twin: Twin | None = None,
    progress: bool = True,
) -> Fitted:
    """Train, or resume; the weights and the result are then in `folder`.

    Args:
        replacement: As `starting` made it from `settings.seed`; trained in place.
        train: Rows to train on.
        val: Rows to measure on.
        settings: How.
        folder: Folder of checkpoints and results.
        twin: Train on these Gaussian rows instead (a control).
        progress: Whether to show progress and the time left.

    Raises:
        UserError: If a batch has fewer rows than there are processes.
        JobError: If the loss is not finite, or the disk fails.
        Interrupted: After Ctrl-C, with a checkpoint written.
    """
    if settings.batch_size < 2 * world_size():
        raise UserError(
            f"{WHO}: expected `batch_size` of at least {2 * world_size()} for {world_size()} processes, got "
            f"{settings.batch_size}. Use a larger one, or fewer processes."
        )
    loop = _Loop(replacement, train, settings, folder, twin)
    loop.restore()
    loop.run(progress)
    _keep_means(replacement, train)
    error, counts, rows = measure_rows(replacement, val)
    result = Fitted(
        kind=replacement.shape.kind,
        lr=settings.lr,
        seed=settings.seed,
        steps=settings.steps,
        parameters=replacement.parameters_count,
        experts=replacement.shape.total,
        error=error,
        active=float(counts.sum()) / rows if len(counts) else None,
        never=float((counts == 0).double().mean()) if len(counts) else None,
        most=float(counts.max()) / rows if len(counts) else None,
        train_error=loop.smoothed,
        seconds=loop.seconds,
    )

    def keep() -> Fitted:
        write_tensors(folder / WEIGHTS, replacement.state_dict(), who=WHO)
        write_json(folder / RESULT, result.to_dict(), who=WHO)
        clear_checkpoints(folder)
        return result

    return from_main(keep)


def clear_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished training, whose weights are stored by then, and what killed processes left.

    The caller holds the lock of the decomposition.
    """
    if (folder / CHECKPOINTS).is_dir():
        remove_folder(folder / CHECKPOINTS)
    clean_folder(folder, locked=True)


@dataclass
class _Loop:
    """The training of one replacement."""

    replacement: Replacement
    rows: Activations
    settings: FitSettings
    folder: Path
    twin: Twin | None = None
    step: int = 0
    smoothed: float = math.nan
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(
            self.replacement.parameters(), lr=self.settings.lr, weight_decay=0.0, fused=True
        )
        self.device = self.replacement.bias.device
        if world_size() > 1:
            synchronize_gates(self.replacement)
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    # State ------------------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def restore(self) -> None:
        """Continue from the newest whole checkpoint, if there is one."""
        found = together(lambda: newest(self.checkpoints, _check(self.replacement), lambda _: None))
        if found is None:
            return
        restore_model(self.replacement, found.tensors["model"])
        restore_optimizer(self.replacement, self.optimizer, found.tensors["optimizer"])
        self.step, self.smoothed = found.step, float(found.state["smoothed"])
        self.seconds = float(found.state["seconds"])

    def save(self) -> None:
        tensors = {
            "model": model_tensors(self.replacement),
            "optimizer": optimizer_tensors(self.replacement, self.optimizer),
        }
        snapshot = Snapshot(self.step, tensors, {"smoothed": self.smoothed, "seconds": self.seconds})

        def keep() -> None:
            write(self.checkpoints, snapshot)
            prune(self.checkpoints, keep=1)

        from_main(keep)

    # Steps ------------------------------------------------------------------------------------------------------

    def run(self, progress: bool) -> None:
        total, begun, before = self.settings.steps, time.monotonic(), self.seconds
        saved = begun
        self.replacement.train()
        title = f"Training {self.replacement.shape.kind}"
        with StopRequest() as stop, Progress(title, total - self.step, enabled=progress and is_main()) as bar:
            while self.step < total:
                self._step()
                now = time.monotonic()
                self.seconds = before + now - begun
                asked, late = agree_all((stop.asked, now - saved > CHECKPOINT_SECONDS), self.device)
                if asked and self.step < total:
                    self.save()
                    raise Interrupted(f"Stopped at step {self.step:,} of {total:,}; the same call resumes there.")
                if late and self.step < total:
                    self.save()
                    saved = now
                bar.advance(note=f"unexplained {self.smoothed:.4f}")
        self.replacement.eval()

    def _step(self) -> None:
        x, y = self._batch()
        for group in self.optimizer.param_groups:
            group["lr"] = rate_of(self.settings, self.step)
        with computing(self.settings.precision, self.device):
            output, _ = self.replacement.output_of(x)
        errors = (output.float() - y).square().sum(-1)
        loss = (errors / (y.norm(dim=-1) + EPS)).mean() * (len(y) / self.settings.batch_size)
        value, share = _whole_batch(loss.detach(), errors.detach(), y, self.settings.batch_size)
        if not math.isfinite(value):
            raise JobError(f"{WHO}: expected a finite loss at step {self.step}, got {value}. Lower `lr`.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._sum_gradients()
        self.replacement.project_gradients()
        self.optimizer.step()
        self.replacement.renormalize()
        self.smoothed = share if math.isnan(self.smoothed) else 0.95 * self.smoothed + 0.05 * share
        self.step += 1

    def _sum_gradients(self) -> None:
        """Sum the gradients of the processes' shares of the batch."""
        if world_size() > 1:
            for parameter in self.replacement.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)

    def _batch(self) -> tuple[Tensor, Tensor]:
        """This process's rows of a step, in units of root mean square 1."""
        size, scales = self.settings.batch_size, self.replacement
        mine = slice(0, size)
        if (processes := world_size()) > 1:
            rank = torch.distributed.get_rank()
            mine = slice(rank * size // processes, (rank + 1) * size // processes)
        if self.twin is not None:
            x, y = self.twin.rows(size, self.settings.seed, self.step, mine)
        else:
            x, y = self.rows.rows(self._index(self.step * size, size)[mine])
        return x.to(self.device) / scales.in_scale, y.to(self.device) / scales.out_scale

    def _index(self, begin: int, count: int) -> Integers:
        """Positions `begin` and after in the endless sequence of passes, each in an order of its own."""
        parts: list[Integers] = []
        while count:
            epoch, place = divmod(begin, len(self.rows))
            if epoch != self._epoch:
                draw = np.random.default_rng((self.settings.seed, epoch))
                self._epoch, self._order = epoch, draw.permutation(len(self.rows))
            parts.append(self._order[place : place + count])
            begin, count = begin + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)


def _whole_batch(loss: Tensor, errors: Tensor, y: Tensor, size: int) -> tuple[float, float]:
    """Loss of a batch over all processes, and its squared error over the variance of its outputs."""
    if world_size() == 1:
        return float(loss), float(errors.sum() / (y - y.mean(0)).square().sum())
    sums = torch.cat([torch.stack([loss, errors.sum(), y.square().sum()]).double(), y.double().sum(0)])
    torch.distributed.all_reduce(sums)
    spread = sums[2] - sums[3:].square().sum() / size
    return float(sums[0]), float(sums[1] / spread)


def _check(replacement: Replacement) -> Check:
    expected = specs(replacement.state_dict())

    def check(found: Mapping[str, Specs], numbers: Mapping[str, Any]) -> None:
        if found.get("model") != expected:
            raise ValueError("model.safetensors is of another replacement")
        if "optimizer" not in found or not {"smoothed", "seconds"} <= set(numbers):
            raise ValueError("the optimizer's state is missing")

    return check


# Measures ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def _keep_means(replacement: Replacement, rows: Activations) -> None:
    """Measure the mean coefficients on training rows."""
    if replacement.mixture is None:
        return
    total = torch.zeros(replacement.shape.total, dtype=torch.float64)
    count = 0
    for x, _ in _parts(rows, COEFFICIENT_ROWS):
        a = replacement.coefficients(x.to(replacement.bias.device))
        assert a is not None
        total += column_sums(a).cpu()
        count += len(x)
    replacement.mean_coefficients.copy_(total / count)


def column_sums(a: Coefficients, used: bool = False) -> Tensor:
    """(experts,) sum over rows of the coefficients, or the number of rows that use each; float64."""
    if isinstance(a, SparseCoefficients):
        values = (a.values > 0).double() if used else a.values.double()
        return values.new_zeros(a.num_experts).index_add_(0, a.indices, values)
    dense = a.to_dense()
    return ((dense > 0) if used else dense).double().sum(0)


@torch.no_grad()
def measure_rows(replacement: Replacement, rows: Activations) -> tuple[float, Tensor, int]:
    """Squared error over the outputs' variance, (experts,) rows that use each expert, and the number of rows."""
    wrong = 0.0
    squares, total = 0.0, torch.zeros(replacement.shape.out_features, dtype=torch.float64)
    counts = torch.zeros(replacement.shape.total, dtype=torch.float64)
    device = replacement.bias.device
    with evaluating(replacement):
        for x, y in _parts(rows, len(rows)):
            output, a = replacement.output_of(x.to(device) / replacement.in_scale)
            y = y.double()
            wrong += float(((output * replacement.out_scale).double().cpu() - y).square().sum())
            squares += float(y.square().sum())
            total += y.sum(0)
            if a is not None:
                counts += column_sums(a, used=True).cpu()
    spread = squares - float(total.square().sum()) / len(rows)
    return wrong / spread, counts, len(rows)


def _parts(rows: Activations, most: int, size: int = 4096) -> Any:
    for start in range(0, min(most, len(rows)), size):
        yield rows.rows(np.arange(start, min(start + size, most, len(rows))))


# Gaussian twin ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twin:
    """Gaussian rows of the mean and covariance of captured inputs, with the MLP's outputs for them.

    Attributes:
        mean: (in,).
        root: (in, in) a square root of the covariance.
        mlp: The module, (rows, in) -> (rows, out).
    """

    mean: Tensor
    root: Tensor
    mlp: nn.Module

    @classmethod
    def of(cls, rows: Activations, mlp: nn.Module) -> Twin:
        """The twin of captured rows."""
        x = rows.first(MEAN_ROWS)[0].double()
        values, vectors = torch.linalg.eigh(torch.cov(x.mT))
        return cls(x.mean(0).float(), (vectors * values.clamp(min=0).sqrt()).float(), mlp)

    @torch.no_grad()
    def rows(self, count: int, seed: int, step: int, part: slice | None = None) -> tuple[Tensor, Tensor]:
        """Rows of a step on the CPU, or some of them; a function of seed and step alone."""
        drawn = torch.from_numpy(np.random.default_rng((seed, step, 1)).standard_normal((count, len(self.mean))))
        x = (self.mean + drawn.float() @ self.root.mT)[part or slice(None)]
        return x, self.mlp(x.to(next(self.mlp.parameters()).device)).float().cpu()
