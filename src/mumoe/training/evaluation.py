"""Loss and accuracy of a network over a split, by class, by attribute or by kind of token, over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe.data.text import TextData
from mumoe.devices import widest
from mumoe.progress import DELAY, Progress
from mumoe.results import EvalResult
from mumoe.training.config import TrainConfig
from mumoe.training.sampler import Indices
from mumoe.training.sources import BatchSource

__all__ = ["Tally", "evaluate_network", "evaluate_split", "evaluation_batch", "sum_of_losses"]


def sum_of_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over images or windows of text.

    Binary and averaged over attributes when labels are 0/1 rows; averaged over tokens, in nats, when they are
    (B, T) next tokens. Smoothing spreads that share of the target evenly over all classes (binary: towards 1/2).
    """
    if labels.ndim == 2 and not labels.is_floating_point():
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing
        )
        return loss / labels.shape[1]
    if labels.ndim == 1:
        return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)
    target = labels * (1 - smoothing) + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="sum")
    return loss / labels.shape[1]


@dataclass
class Tally:
    """Sums over the images seen: correct predictions and images of each class, and the loss.

    Attributes:
        right: (num_classes,) images of the class with a correct prediction; multi-label: correct predictions of
            the attribute; text: tokens of the kind that were predicted as the likeliest.
        images: (num_classes,) images of the class; multi-label: images that have the attribute; text: tokens.
        loss: Scalar, summed over images or windows.
        count: Scalar, images or windows.
        kinds: (vocabulary,) kind of each token, for text.
    """

    right: Tensor
    images: Tensor
    loss: Tensor
    count: Tensor
    kinds: Tensor | None = None

    @classmethod
    def empty(cls, num_classes: int, device: torch.device, kinds: Tensor | None = None) -> Tally:
        zeros = torch.zeros(2, num_classes, dtype=torch.int64, device=device)
        scalars = torch.zeros(2, dtype=widest(device), device=device)
        return cls(zeros[0], zeros[1], scalars[0], scalars[1], kinds)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch."""
        self.loss += sum_of_losses(logits, labels).to(self.loss.dtype)
        self.count += len(labels)
        if self.kinds is not None:
            self._add_classes(labels.flatten(), logits.flatten(0, 1).argmax(1), self.kinds)
            return
        if labels.ndim == 2:
            self.right += ((logits > 0) == (labels > 0.5)).sum(0)
            self.images += (labels > 0.5).sum(0)
            return
        self._add_classes(labels, logits.argmax(1))

    def _add_classes(self, labels: Tensor, answers: Tensor, kinds: Tensor | None = None) -> None:
        classes = labels if kinds is None else kinds[labels]
        self.right += torch.bincount(classes[answers == labels], minlength=len(self.right))
        self.images += torch.bincount(classes, minlength=len(self.images))

    def result(self, classes: Sequence[str], *, multi_label: bool, **facts: Any) -> EvalResult:
        """The tally as accuracies."""
        count, images, right = int(self.count), self.images.tolist(), self.right.tolist()
        among = [count] * len(images) if multi_label else images
        per_class = [hits / n if n else None for hits, n in zip(right, among, strict=True)]
        return EvalResult(
            count=count,
            loss=float(self.loss) / max(count, 1),
            accuracy=sum(right) / max(sum(among), 1),
            per_class=dict(zip(classes, per_class, strict=True)),
            class_counts=dict(zip(classes, images, strict=True)),
            **facts,
        )


def evaluation_batch(config: TrainConfig, network: Any) -> int:
    """Rows evaluated together: many feature vectors, else as many as one training step holds at once."""
    if network.on_features:
        return max(config.batch_size, 1024)
    return max(1, config.batch_size // config.accumulate)


def evaluate_split(
    network: nn.Module,
    source: BatchSource,
    data: Any,
    split: str,
    accelerator: Any,
    batch_size: int,
    *,
    progress: bool = False,
    **facts: Any,
) -> EvalResult:
    """Evaluate a network on one split of an image set or a text (collective)."""
    kinds = None
    if isinstance(data, TextData):
        kinds = torch.from_numpy(data.token_classes).to(accelerator.device)
    rows = data.indices(split)
    doing = f"Evaluating on {split}" if progress and accelerator.is_main_process else ""
    how: dict[str, Any] = {"kinds": kinds, "doing": doing}
    tally = evaluate_network(network, source, rows, len(data.classes), accelerator, batch_size, **how)
    result = tally.result(data.classes, multi_label=data.multi_label, split=split, **facts)
    if isinstance(data, TextData):
        return replace(result, bits_per_byte=data.bits_per_byte(result.loss, split))
    return result


@torch.no_grad()
def evaluate_network(
    network: nn.Module,
    source: BatchSource,
    rows: Indices,
    num_classes: int,
    accelerator: Any,
    batch_size: int,
    *,
    kinds: Tensor | None = None,
    doing: str = "",
) -> Tally:
    """Tally a network over some images or windows, each process taking its share of every batch.

    `kinds` is the class of each token, for text; `doing` is what the progress says, empty for none. The network's
    training mode is restored afterwards.
    """
    batches = np.array_split(rows, max(1, -(-len(rows) // batch_size)))
    shares = [np.array_split(b, accelerator.num_processes)[accelerator.process_index] for b in batches]
    # A process without rows runs the network too, since the others wait for its shards; the result does not count.
    mine = [share if len(share) else batch[:1] for share, batch in zip(shares, batches, strict=True)]
    tally = Tally.empty(num_classes, accelerator.device, kinds)
    before = network.training
    network.eval()
    try:
        with Progress(doing, len(rows), enabled=bool(doing), delay=DELAY) as bar:
            whole = zip(batches, shares, source.stream(mine, None), strict=True)
            for batch, share, (inputs, labels) in whole:
                if len(labels):  # else the split has no rows
                    with accelerator.autocast():
                        logits, _ = network(inputs)
                    if len(share):
                        tally.add(logits, labels)
                bar.advance(len(batch))
    finally:
        network.train(before)
    if accelerator.num_processes == 1:
        return tally
    right, images, loss, count = (
        accelerator.reduce(part, "sum") for part in (tally.right, tally.images, tally.loss, tally.count)
    )
    return Tally(right, images, loss, count, kinds)
