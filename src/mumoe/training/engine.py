"""The training loop, for every device, precision and number of processes. It can stop at any step and resume.

The order of the images and the learning rate are pure functions of the step, so a job's whole state is its
tensors, the generators' states and a few numbers: see `Engine.save`.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mumoe.data.base import SplitName
from mumoe.devices import widest
from mumoe.errors import JobError
from mumoe.progress import Progress
from mumoe.results import EvalResult
from mumoe.training import state
from mumoe.training.checkpoint import (
    CheckpointError,
    Snapshot,
    Stored,
    best_of,
    checkpoint_steps,
    newest,
    newest_of,
    open_stored,
    prune,
    read_best,
    write,
    write_sharded,
)
from mumoe.training.config import TrainConfig
from mumoe.training.distributed import (
    agree,
    from_main,
    gathered,
    shard,
    synchronize_gates,
    synchronize_norms,
    together,
    wants_shard,
    world_size,
)
from mumoe.training.evaluation import evaluate_split, evaluation_batch, sum_of_losses
from mumoe.training.inputs import Data
from mumoe.training.mixing import mix, share_of
from mumoe.training.networks import Trained
from mumoe.training.optimizer import make_optimizer
from mumoe.training.run import RunFolder
from mumoe.training.sampler import batches_per_epoch, derived_seed, epoch_batches, least_rows, shares
from mumoe.training.schedule import learning_rate
from mumoe.training.signals import Interrupted, StopRequest
from mumoe.training.sources import BatchSource
from mumoe.training.trackers import Trackers

__all__ = ["Engine"]

_SECONDS_BETWEEN_CHECKPOINTS = 30.0


class Engine:
    """Trains one network in one run folder.

    Args:
        config: The settings.
        network: The network to train; moved to the accelerator's device.
        source: Where batches come from.
        data: The image set or text, for its splits and classes.
        run: The run's folder, locked by the main process.
        accelerator: Accelerate's handle.
        progress: Whether to show progress.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: Trained,
        source: BatchSource,
        data: Data,
        run: RunFolder,
        accelerator: Any,
        *,
        progress: bool = True,
    ) -> None:
        self.config, self.source, self.data = config, source, data
        self.run, self.accelerator, self.progress = run, accelerator, progress
        self.train_rows, self.val_rows = data.indices("train"), data.indices("val")
        self.per_epoch = batches_per_epoch(
            len(self.train_rows), config.batch_size, least_rows(config, accelerator.num_processes)
        )
        self.total = config.steps or self.per_epoch * config.epochs
        self._prepare(network)
        self.step = 0
        self.saved = -1
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0
        self._losses = torch.zeros((), dtype=widest(accelerator.device), device=accelerator.device)
        self._unlogged = 0
        self._evaluated: dict[tuple[str, int], EvalResult] = {}
        self._started = self._last_save = time.monotonic()
        self._log_bytes = 0

    def _prepare(self, network: Trained) -> None:
        """Put the network on the device, over the processes, and an optimizer on its parameters."""
        self.network: Trained = network.to(self.accelerator.device).train()
        if world_size() > 1:
            synchronize_norms(synchronize_gates(self.network))
        self.sharded = wants_shard(self.config)
        if self.sharded:
            shard(self.network, self.accelerator.device)
        with warnings.catch_warnings():
            # Its successor is not in every version of torch that is supported.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped = self.network if self.sharded else self.accelerator.prepare_model(self.network)
        self.model: nn.Module = wrapped
        self.adamw = optimizer = make_optimizer(self.network, self.config)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    # Resuming

    def restore(self, tell: Any = None) -> bool:
        """Resume from the newest intact checkpoint, reporting damaged ones; returns False if there is none yet.

        Raises:
            CheckpointError: If there are checkpoints and none is intact.
        """
        report = tell or (lambda text: None)
        found = self._newest(report)
        if found is None:
            self.seed()
            return False
        if isinstance(found, Snapshot):
            state.restore_model(self.network, found.tensors["model"])
            state.restore_optimizer(self.network, self.adamw, found.tensors.get("optimizer", {}))
            generators = found.tensors.get("random", {})
        else:
            together(lambda: self._fill(found))
            generators = together(lambda: found.whole("random"))
        rank = self.accelerator.process_index
        try:
            known = state.restore_random(rank, generators)
        except ValueError as error:
            raise CheckpointError(f"{self.run.path}: expected an intact checkpoint, got: {error}.") from None
        if not known:
            self.seed()
        self._restore_numbers(found)
        return True

    def _newest(self, report: Callable[[str], None]) -> Snapshot | Stored | None:
        """The newest intact checkpoint, the same on all processes; several of them read only what each needs of it."""
        folder = self.run.checkpoints
        if world_size() == 1:
            return newest(folder, state.check_fit(self.network), report)
        return newest_of(folder, from_main(lambda: checkpoint_steps(folder)), self._open, self._reported(report))

    def _open(self, path: Path) -> Stored:
        rank, processes = int(self.accelerator.process_index), int(self.accelerator.num_processes)
        return together(lambda: open_stored(path, state.check_fit(self.network), rank, processes))

    def _reported(self, report: Callable[[str], None]) -> Callable[[str], None]:
        return report if self.accelerator.is_main_process else lambda text: None

    def _fill(self, found: Stored) -> None:
        state.fill_model(self.network, found)
        state.fill_optimizer(self.network, self.adamw, found)

    def restore_best(self, report: Callable[[str], None]) -> None:
        """Load the weights of the best step, unless its checkpoint is damaged."""
        if self.best is None or self.best["step"] == self.step:
            return
        folder, step = self.run.checkpoints, int(self.best["step"])
        found: Snapshot | Stored | None
        if world_size() == 1:
            found = read_best(folder, step, state.check_fit(self.network), report)
        else:
            found = best_of(folder, step, self._open, self._reported(report))
        if isinstance(found, Snapshot):
            state.restore_model(self.network, found.tensors["model"])
        elif found is not None:
            stored = found
            together(lambda: state.fill_model(self.network, stored))
        if found is not None:
            self.step = found.step

    def _restore_numbers(self, found: Snapshot | Stored) -> None:
        values = found.state
        self.step = self.saved = found.step
        self.best = values["best"]
        self.seconds = float(values["seconds"])
        if self.accelerator.is_main_process:
            self._losses.fill_(values["losses"])
        self._unlogged = int(values["unlogged"])
        self._log_bytes = int(values["log_bytes"])
        if self.accelerator.scaler is not None and values["scaler"]:
            self.accelerator.scaler.load_state_dict(values["scaler"])

    def seed(self) -> None:
        """Seed the generators, differently on each process (for dropout). The weights were initialized before."""
        import random

        import numpy as np

        seed = derived_seed(self.config.seed, 1, int(self.accelerator.process_index))
        random.seed(seed)
        np.random.seed(seed % (1 << 32))  # noqa: NPY002 (the generator that libraries use)
        torch.manual_seed(seed)

    # The loop

    def fit(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: After Ctrl-C or a termination signal; a checkpoint was written.
            JobError: If the loss is no longer a number, or the disk is full.
        """
        label = f"Training {self.config.head} (seed {self.config.seed})"
        enabled = self.progress and self.accelerator.is_main_process
        with contextlib.ExitStack() as stack:
            self.log = stack.enter_context(self._trackers())
            self.stop = stack.enter_context(StopRequest())
            self.bar = stack.enter_context(Progress(label, self.total, done=self.step, enabled=enabled))
            self._started = self._last_save = time.monotonic()
            for epoch in range(self.step // self.per_epoch, math.ceil(self.total / self.per_epoch)):
                self._epoch(epoch)

    def _trackers(self) -> Trackers:
        main = bool(self.accelerator.is_main_process)
        return Trackers(self.run, self.config, step=self.step, length=self._log_bytes, enabled=main)

    def _epoch(self, epoch: int) -> None:
        batches = epoch_batches(self.train_rows, self.config.batch_size, self.config.seed, epoch)
        batches = batches[self.step % self.per_epoch :][: self.total - self.step]
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        parts = [p for batch in batches for p in shares(batch, self.config.accumulate, processes, rank)]
        with contextlib.closing(self.source.stream(parts, epoch)) as stream:  # type: ignore[type-var]
            for batch in batches:
                self._update(stream, len(batch))
                self._after_step()

    def _update(self, stream: Iterator[tuple[Tensor, Tensor]], size: int) -> None:
        """One optimizer step on a batch of `size` images over all processes and parts."""
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.total)
        parts = self.config.accumulate
        for part in range(parts):
            with self._reducing(part == parts - 1):
                loss = self._loss(*next(stream), size)
                # Gradients are averaged over processes; this factor turns the mean into a sum.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            self._losses += loss.detach()
        if self.config.clip > 0:
            self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._unlogged += 1

    def _loss(self, inputs: Tensor, labels: Tensor, size: int) -> Tensor:
        """This part's share of the batch's mean loss; the shares of all parts and processes add up to it."""
        share, others = 1.0, labels
        if self.config.mixup:
            share = share_of(self.config.mixup, self.config.seed, self.step)
            inputs, others = mix(inputs, labels, share)
        specializes = bool(self.config.specialize and self.network.has_experts)
        with self.accelerator.autocast():
            logits, balance = self.model(inputs, labels) if specializes else self.model(inputs)
        loss = sum_of_losses(logits, labels, self.config.label_smoothing) / size
        if share < 1:
            loss = share * loss + (1 - share) * sum_of_losses(logits, others, self.config.label_smoothing) / size
        parts = self.config.accumulate * int(self.accelerator.num_processes)
        weight = -self.config.specialize if specializes else self.config.balance
        return loss + weight * balance.float() / parts

    @contextlib.contextmanager
    def _reducing(self, last: bool) -> Iterator[None]:
        """Sum gradients over processes only with the last accumulated part."""
        if self.sharded:
            self.network.set_requires_gradient_sync(last)  # type: ignore[operator]
            yield
        elif last:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def _clip(self) -> None:
        if self.sharded:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        else:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.clip)

    def _after_step(self) -> None:
        """Log, evaluate, save and stop, each if it is due at this step."""
        epoch_ends = self.step % self.per_epoch == 0
        logs = self.step % self.config.log_every == 0 or self.step == self.total
        if logs:
            self._log_losses()
        improved = self._evaluation_due(epoch_ends) and self._evaluate()
        stop = self._stops(logs or epoch_ends)
        if stop or self._save_due(epoch_ends, improved):
            self.save()
        self.bar.advance(note=self.log.note)
        if stop:
            raise Interrupted(
                f"Stopped at step {self.step} of {self.total}. Resume with: mumoe train --resume {self.run.path}"
            )

    def _stops(self, agreed: bool) -> bool:
        """Whether to stop here; several processes agree only every few steps, since that costs a message."""
        if world_size() == 1:
            return self.stop.asked
        return agreed and agree(self.stop.asked, self.accelerator.device)

    def _log_losses(self) -> None:
        total = self._losses
        if world_size() > 1:
            total = self.accelerator.reduce(total.clone(), "sum")
        loss = total.item() / self._unlogged
        self._losses.zero_()
        self._unlogged = 0
        rate = learning_rate(self.config, self.step - 1, self.total)
        epoch = round(self.step / self.per_epoch, 4)
        self.log.write({"step": self.step, "epoch": epoch, "loss": loss, "lr": rate})
        if not math.isfinite(loss):
            raise JobError(
                f"{self.run.path}: expected a finite loss, got {loss} by step {self.step}. Lower `lr`, or set `clip=1`."
            )

    def _evaluation_due(self, epoch_ends: bool) -> bool:
        if len(self.val_rows) == 0:
            return False
        if self.step == self.total:
            return True
        if self.config.eval_steps:
            return self.step % self.config.eval_steps == 0
        epoch, every = self.step // self.per_epoch, self.config.eval_every
        return epoch_ends and every > 0 and epoch % every == 0

    def _evaluate(self) -> bool:
        """Evaluate on the validation split; return whether it is the best so far."""
        result = self.evaluate("val")
        epoch: float = self.step // self.per_epoch
        if self.step % self.per_epoch:
            epoch = round(self.step / self.per_epoch, 4)
        row = {"step": self.step, "epoch": epoch, "val_loss": result.loss, "val_accuracy": result.accuracy}
        self.log.write(row)
        if self.best is not None and result.accuracy <= self.best["accuracy"]:
            return False
        self.best = {"step": self.step, "accuracy": result.accuracy}
        return True

    def evaluate(self, split: SplitName) -> EvalResult:
        """Evaluate the network as it is now on one split (collective); the last result is cached."""
        if (split, self.step) in self._evaluated:
            return self._evaluated[split, self.step]
        facts = {"run": str(self.run.path), "step": self.step}
        size = evaluation_batch(self.config, self.network)
        how: dict[str, Any] = {"progress": self.progress, **facts}
        found = evaluate_split(self.network, self.source, self.data, split, self.accelerator, size, **how)
        self._evaluated = {(split, self.step): found}
        return found

    # Checkpoints

    def _save_due(self, epoch_ends: bool, improved: bool) -> bool:
        if self.step == self.total or (improved and self.config.select == "best"):
            return True
        if self.config.checkpoint_every > 0:
            return self.step % self.config.checkpoint_every == 0
        late = time.monotonic() - self._last_save >= _SECONDS_BETWEEN_CHECKPOINTS
        return epoch_ends and agree(late, self.accelerator.device)

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one, and delete those no longer needed."""
        if self.saved == self.step:
            return
        numbers = self._numbers()
        own = {
            "model": state.model_tensors(self.network),
            "optimizer": state.optimizer_tensors(self.network, self.adamw),
        }
        shared = {"random": self._all_random()}
        if self.sharded:
            write_sharded(self.run.checkpoints, Snapshot(self.step, shared, numbers), own)
        else:
            snapshot = Snapshot(self.step, own | shared, numbers)
            from_main(lambda: write(self.run.checkpoints, snapshot))
        if self.accelerator.is_main_process:
            best = self.best["step"] if self.best and self.config.select == "best" else None
            prune(self.run.checkpoints, self.config.keep, best)
        self.saved, self._last_save = self.step, time.monotonic()

    def _numbers(self) -> dict[str, Any]:
        """Everything but tensors that this job needs to resume (collective)."""
        losses = self._losses
        if world_size() > 1:
            losses = self.accelerator.reduce(losses.clone(), "sum")
        scaler = self.accelerator.scaler
        now = time.monotonic()
        self.seconds, self._started = self.seconds + now - self._started, now
        return {
            "total": self.total,
            "losses": losses.item(),
            "unlogged": self._unlogged,
            "best": self.best,
            "seconds": self.seconds,
            "log_bytes": self.log.sync(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _all_random(self) -> dict[str, Tensor]:
        """The generators' states of all processes (collective)."""
        states = gathered(state.random_tensors(self.accelerator.process_index))
        return {name: tensor for each in states for name, tensor in each.items()}
