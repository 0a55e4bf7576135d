"""Held-out contexts on which decompositions of a layer are measured: its inputs, and the losses without its MLP.

A `Bench` is made once for a model, layer and text: the hidden states before the layer, the MLP's input, and the
losses of the unchanged model, with the MLP's output at zero, and with its output at the mean. Every replacement of
the layer then costs one run of the layers after it. The first position, the start token, keeps the original MLP
throughout, and its prediction does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mumoe.data.cache import sealed_folder
from mumoe.data.documents import Contexts
from mumoe.decomposition.activations import computing
from mumoe.errors import UserError
from mumoe.files import cache_root, write_tensors
from mumoe.models.language import BATCH, LanguageModel, Mlp, Tail
from mumoe.progress import Progress

__all__ = ["Bench", "Change", "make_bench", "swapped"]

WHO = "decompose"
FORMAT = 1

Change = Callable[[Tensor, Tensor], Tensor]
"""Function of the MLP's inputs (rows, in) and outputs (rows, out), without first positions, to new outputs."""


class swapped:
    """Within the context, an MLP's output is that of a function at every position but the first of each context."""

    def __init__(self, module: nn.Module, change: Change) -> None:
        self.module, self.change = module, change

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(self._swap)

    def _swap(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, y = args[0][:, 1:], output[:, 1:]
        with torch.autocast(x.device.type, enabled=False):
            new = self.change(x.float().reshape(-1, x.shape[-1]), y.float().reshape(-1, y.shape[-1]))
        return torch.cat([output[:, :1], new.reshape(y.shape).to(output.dtype)], dim=1)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


@dataclass(frozen=True)
class Bench:
    """Contexts to measure on.

    Attributes:
        language: The model.
        mlp: The MLP that is replaced.
        tail: The layers from it on.
        tokens: (contexts, T).
        document: (contexts,) number of each context's document.
        hidden: (contexts, T, width) what the layer reads.
        x: (contexts * (T - 1), in) what the MLP reads, without first positions.
        losses: ``base``, ``zero``, ``mean``: (contexts, T - 2) nats of each token that counts.
        precision: Precision of the language model.
    """

    language: LanguageModel
    mlp: Mlp
    tail: Tail
    tokens: Tensor
    document: npt.NDArray[np.int64]
    hidden: Tensor
    x: Tensor
    losses: dict[str, Tensor]
    precision: str

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """(rows, out) what the original MLP gives, in float32."""
        return torch.cat([self.mlp.module(part.to(self.language.device)).float().cpu() for part in self.x.split(4096)])

    @torch.no_grad()
    def run(self, change: Change | None, *, contexts: Tensor | None = None) -> Tensor:
        """Losses (contexts, T - 2) of the tokens that count, with the MLP's output changed.

        Args:
            change: What stands in its place; None for the model as it is.
            contexts: Which contexts; None for all.
        """
        chosen = torch.arange(len(self.tokens)) if contexts is None else contexts
        found = []
        for part in chosen.split(BATCH):
            if change is None:
                found.append(self._losses(part))
                continue
            with swapped(self.mlp.module, change):
                found.append(self._losses(part))
        return torch.cat(found)

    def _losses(self, part: Tensor) -> Tensor:
        with computing(self.precision, self.language.device):
            return self.tail.losses(self.tokens[part], self.hidden[part])[:, 1:].cpu()

    def predictions(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (contexts, T - 2, vocabulary) of some contexts with the model in its current state, differentiable if
        enabled, and the tokens (contexts, T - 2) that follow."""
        tokens = self.tokens[part].to(self.language.device)
        with computing(self.precision, self.language.device):
            return self.tail.logits(tokens, self.hidden[part])[:, 1:-1], tokens[:, 2:]


def make_bench(
    language: LanguageModel,
    layer: int,
    contexts: Contexts,
    count: int,
    mean: Tensor,
    *,
    precision: str,
    split: str = "test",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Bench:
    """The bench of a layer, from the cache if it is there.

    Args:
        language: The model.
        layer: Whose MLP.
        contexts: The text.
        count: Contexts; all of the split if there are fewer.
        mean: (out,) mean output of the MLP in training.
        precision: ``float32`` or ``bfloat16``.
        split: Of the text.
        cache_dir: Where; None: the usual cache.
        progress: Whether to show progress.

    Raises:
        UserError: If the split has no contexts.
    """
    mlp, order = language.mlp(layer), contexts.order(split)[:count]
    if not len(order):
        raise UserError(f"{WHO}: expected contexts in the {split} split of {contexts.name}, got none. Give more text.")
    tokens = torch.from_numpy(contexts.tokens[order])
    with computing(precision, language.device):
        tail = language.tail(layer, tokens[:1])

    def write(folder: Path) -> None:
        write_tensors(folder / "bench.safetensors", _measured(language, mlp, tail, tokens, mean, precision, progress))

    key = [FORMAT, language.digest, mlp.name, contexts.fingerprint, split, precision, len(order), language.device.type]
    key += [hashlib.sha256(mean.numpy().tobytes()).hexdigest(), tail.cut]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
    folder = sealed_folder(cache_root(cache_dir) / "activations" / f"bench-{layer}-{digest}", write, who=WHO)[0]
    held = load_file(folder / "bench.safetensors")
    losses = {name: held[name] for name in ("base", "zero", "mean")}
    return Bench(language, mlp, tail, tokens, contexts.document[order], held["hidden"], held["x"], losses, precision)


def _measured(
    language: LanguageModel, mlp: Mlp, tail: Tail, tokens: Tensor, mean: Tensor, precision: str, progress: bool
) -> dict[str, Tensor]:
    hidden, x = [], []
    with Progress("Preparing held-out contexts", 4 * len(tokens), enabled=progress) as bar:
        for part in tokens.split(BATCH):
            with computing(precision, language.device):
                hidden.append(language.before(part, mlp.layer).cpu())
                x.append(language.mlp_input(part, mlp.layer)[:, 1:].float().flatten(0, 1).cpu())
            bar.advance(len(part))
        bench = Bench(
            language, mlp, tail, tokens, np.zeros(0, np.int64), torch.cat(hidden), torch.cat(x), {}, precision
        )
        changes: dict[str, Change | None] = {
            "base": lambda x, y: y,
            "zero": lambda x, y: torch.zeros_like(y),
            "mean": lambda x, y: mean.to(y).expand_as(y),
        }
        losses = {}
        for name, change in changes.items():
            losses[name] = bench.run(change)
            bar.advance(len(tokens))
    return {"hidden": bench.hidden, "x": bench.x, **losses}
