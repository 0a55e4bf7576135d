"""Inputs and outputs of one MLP over a text, captured once and kept on disk.

A folder of the cache holds two memory-mapped matrices, rows in the order of the contexts, without the start token of
each. It grows: a longer capture of the same model, layer and text appends to a shorter one, and a stopped capture
resumes where it was. Values are float16; the outputs are computed by the MLP in float32 from the stored inputs,
so that they match exactly.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from mumoe.data.documents import Contexts
from mumoe.errors import JobError, UserError
from mumoe.files import CACHE, cache_root, read_json, write_errors, write_json
from mumoe.models.language import BATCH, LanguageModel, Mlp
from mumoe.progress import Progress
from mumoe.records import read_typed

__all__ = ["PRECISIONS", "Activations", "capture_rows", "computing", "resolve_precision"]

WHO = "decompose"
FORMAT = 1
ABOUT = "capture.json"
PRECISIONS = ("auto", "float32", "bfloat16")
ROOM = 1.05
"""Required free disk space, relative to the size that is written."""
NEEDED = 64 * 2**20
"""Bytes beyond that for checkpoints and results."""

Half = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Activations:
    """Rows of one MLP.

    Attributes:
        x: (rows, in_features) float16 what it reads.
        y: (rows, out_features) float16 what it gives.
        contexts: (contexts,) the contexts whose rows these are, in their order.
        per_context: Rows of each context: its tokens without the first.
    """

    x: Half
    y: Half
    contexts: npt.NDArray[np.int64]
    per_context: int

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Some rows of x and y as float32."""
        return torch.from_numpy(self.x[index].astype(np.float32)), torch.from_numpy(self.y[index].astype(np.float32))

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """The first rows as float32."""
        return self.rows(np.arange(min(count, len(self))))


def resolve_precision(name: str, device: torch.device) -> str:
    """``float32`` or ``bfloat16``: what the language model's matrix products are computed in.

    ``auto`` uses bfloat16 if the device has instructions for it, as CPUs with AVX512_BF16 or AMX do.

    Raises:
        UserError: If the name is unknown.
    """
    if name not in PRECISIONS:
        raise UserError(f"{WHO}: expected `precision` out of {', '.join(PRECISIONS)}, got {name!r}. Use auto.")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    fast = device.type == "cpu" and any(
        getattr(torch.cpu, probe, bool)() for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return "bfloat16" if fast else "float32"


def computing(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which a model computes in a precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def capture_rows(
    language: LanguageModel,
    layer: int,
    contexts: Contexts,
    split: str,
    count: int,
    *,
    precision: str,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Activations:
    """The rows of the first `count` contexts of a split; those missing from the cache are captured.

    Args:
        language: The model; layers after `layer` are not run.
        layer: Whose MLP.
        contexts: The text.
        split: Of the text.
        count: Contexts, in `Contexts.order`; all of the split if there are fewer.
        precision: ``float32`` or ``bfloat16``.
        cache_dir: Where; None: the usual cache.
        progress: Whether to show progress.

    Raises:
        UserError: If the disk has too little room, or the split is empty.
        JobError: If an activation is not finite in float16, or the disk fails.
    """
    mlp, order = language.mlp(layer), contexts.order(split)
    if not len(order):
        raise UserError(f"{WHO}: expected contexts in the {split} split of {contexts.name}, got none. Give more text.")
    order = order[: -(-count // BATCH) * BATCH]  # whole batches, so that values do not depend on the count
    folder = _folder(language, mlp, contexts, split, precision, cache_dir)
    store = _Store(folder, mlp.parts.widths[0], mlp.parts.widths[-1], contexts.length - 1)
    if store.done() >= len(order):  # also in a cache that cannot be written
        return store.open(order[:count])
    with write_errors(folder, who=WHO, remedy=CACHE):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if store.done() < len(order):
                store.check_room(len(order))
                _append(store, language, mlp, contexts, order, precision, progress)
    return store.open(order[:count])


def _folder(
    language: LanguageModel,
    mlp: Mlp,
    contexts: Contexts,
    split: str,
    precision: str,
    cache_dir: str | os.PathLike[str] | None,
) -> Path:
    key = [FORMAT, language.digest, mlp.name, contexts.fingerprint, split, precision, language.device.type, BATCH]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
    return cache_root(cache_dir) / "activations" / f"{split}-{mlp.layer}-{digest}"


@dataclass(frozen=True)
class _About:
    """What capture.json holds.

    Attributes:
        contexts: Complete contexts.
    """

    contexts: int


@dataclass(frozen=True)
class _Store:
    """The two files of a folder, and how many of their contexts are written."""

    folder: Path
    into: int
    out: int
    per_context: int

    def done(self) -> int:
        """Number of complete contexts; anything after them in the files is unfinished."""
        path = self.folder / ABOUT
        if not path.is_file():
            return 0
        try:
            done = read_typed(_About, read_json(path), WHO).contexts
        except UserError:  # damaged: the rows are captured again
            return 0
        sizes = [
            (self.folder / f"{name}.bin").stat().st_size for name in "xy" if (self.folder / f"{name}.bin").is_file()
        ]
        whole = [done * self.per_context * width * 2 for width in (self.into, self.out)]
        fits = len(sizes) == 2 and all(size >= needed for size, needed in zip(sizes, whole, strict=True))
        return done if fits and done > 0 else 0

    def bytes_of(self, contexts: int) -> int:
        return contexts * self.per_context * (self.into + self.out) * 2

    def check_room(self, contexts: int) -> None:
        """Refuse a capture that the disk cannot hold.

        Raises:
            UserError: If there is less room than is needed.
        """
        wanted = (self.bytes_of(contexts) - self.bytes_of(self.done())) * ROOM + NEEDED
        free = shutil.disk_usage(self.folder).free
        if free < wanted:
            raise UserError(
                f"{WHO}: expected {wanted / 2**30:.2f} GB of free disk in {self.folder.parent} for the activations, "
                f"got {free / 2**30:.2f} GB. Use fewer `tokens`, or set MUMOE_CACHE to another folder."
            )

    @contextlib.contextmanager
    def appending(self) -> Iterator[Any]:
        """A function that writes the rows of some more contexts, and counts them once they are on disk."""
        begin = self.done()
        with contextlib.ExitStack() as stack:
            files = []
            for name, width in zip("xy", (self.into, self.out), strict=True):
                path = self.folder / f"{name}.bin"
                path.touch()
                file = stack.enter_context(path.open("r+b"))
                file.truncate(begin * self.per_context * width * 2)
                file.seek(0, os.SEEK_END)
                files.append(file)
            done = [begin]

            def write(x: Tensor, y: Tensor, contexts: int) -> None:
                for file, values in zip(files, (x, y), strict=True):
                    file.write(values.contiguous().numpy().tobytes())
                    file.flush()
                done[0] += contexts
                write_json(self.folder / ABOUT, {"format": FORMAT, "contexts": done[0]}, durable=False)

            yield write

    def open(self, order: npt.NDArray[np.int64]) -> Activations:
        rows = len(order) * self.per_context
        maps = [
            np.memmap(self.folder / f"{name}.bin", dtype=np.float16, mode="r", shape=(rows, width))
            for name, width in zip("xy", (self.into, self.out), strict=True)
        ]
        return Activations(maps[0], maps[1], order, self.per_context)


def _append(
    store: _Store,
    language: LanguageModel,
    mlp: Mlp,
    contexts: Contexts,
    order: npt.NDArray[np.int64],
    precision: str,
    progress: bool,
) -> None:
    begin = store.done()
    title = f"Capturing layer {mlp.layer}"
    with store.appending() as write, Progress(title, len(order) - begin, enabled=progress) as bar:
        for start in range(begin, len(order), BATCH):
            x, y = _batch(language, mlp, torch.from_numpy(contexts.tokens[order[start : start + BATCH]]), precision)
            write(x.flatten(0, 1), y.flatten(0, 1), len(x))
            bar.advance(len(x))


@torch.no_grad()
def _batch(language: LanguageModel, mlp: Mlp, tokens: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """x and y (contexts, tokens - 1, width) in float16."""
    with computing(precision, language.device):
        x = language.mlp_input(tokens, mlp.layer)[:, 1:].half()
    y = mlp.module(x.float()).half()
    for name, values in (("inputs", x), ("outputs", y)):
        if not bool(values.isfinite().all()):
            raise JobError(
                f"{WHO}: expected {name} of the MLP in layer {mlp.layer} below 65,504, got larger ones. "
                "Choose another layer."
            )
    return x.cpu(), y.cpu()
