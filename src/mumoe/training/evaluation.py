"""Loss and accuracy of a network over a split, by class or by attribute, over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe.results import EvalResult
from mumoe.training.sampler import Indices
from mumoe.training.sources import Source

__all__ = ["Tally", "evaluate_network", "sum_of_losses"]


def sum_of_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over images; binary and averaged over attributes when labels are 0/1 rows.

    Smoothing moves that share of the target to all classes alike (binary: towards 1/2).
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)
    target = labels * (1 - smoothing) + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="sum")
    return loss / labels.shape[1]


@dataclass
class Tally:
    """Sums over the images seen: right answers and images of each class, and the loss.

    Attributes:
        right: (num_classes,) images of the class answered right; multi-label: right answers about it.
        images: (num_classes,) images of the class; multi-label: images that have the attribute.
        loss: Scalar, summed over images.
        count: Scalar, images.
    """

    right: Tensor
    images: Tensor
    loss: Tensor
    count: Tensor

    @classmethod
    def empty(cls, num_classes: int, device: torch.device) -> Tally:
        zeros = torch.zeros(2, num_classes, dtype=torch.int64, device=device)
        wide = torch.float32 if device.type == "mps" else torch.float64
        scalars = torch.zeros(2, dtype=wide, device=device)
        return cls(zeros[0], zeros[1], scalars[0], scalars[1])

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch."""
        self.loss += sum_of_losses(logits, labels).to(self.loss.dtype)
        self.count += len(labels)
        if labels.ndim == 2:
            self.right += ((logits > 0) == (labels > 0.5)).sum(0)
            self.images += (labels > 0.5).sum(0)
            return
        right = labels[logits.argmax(1) == labels]
        self.right += torch.bincount(right, minlength=len(self.right))
        self.images += torch.bincount(labels, minlength=len(self.images))

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


@torch.no_grad()
def evaluate_network(
    network: nn.Module, source: Source, rows: Indices, num_classes: int, accelerator: Any, batch_size: int
) -> Tally:
    """Tally a network over some images, each process taking its share of every batch.

    The network's training mode is put back afterwards.
    """
    batches = np.array_split(rows, max(1, -(-len(rows) // batch_size)))
    mine = [np.array_split(b, accelerator.num_processes)[accelerator.process_index] for b in batches]
    tally = Tally.empty(num_classes, accelerator.device)
    before = network.training
    network.eval()
    try:
        for inputs, labels in source.stream(mine, None):
            if len(labels) == 0:  # fewer images than processes
                continue
            with accelerator.autocast():
                logits, _ = network(inputs)
            tally.add(logits, labels)
    finally:
        network.train(before)
    if accelerator.num_processes == 1:
        return tally
    sums = [accelerator.reduce(part, "sum") for part in (tally.right, tally.images, tally.loss, tally.count)]
    return Tally(*sums)
