"""Jobs for several processes: small ones of every kind, whose rows do not divide, and what they leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mumoe
from mumoe.data.documents import Document
from mumoe.files import read_json, write_json
from mumoe.training import StoredRun, TrainConfig, resume, train
from mumoe.training.distributed import world_size
from mumoe.training.run import RunFolder
from soak import small

__all__ = ["FITS", "World", "curve", "cut_back", "digests_of", "distance", "run_fit", "run_job"]

FITS = {"decompose cp-linear": "cp-linear", "decompose hadamard": "hadamard", "decompose tr": "tr"}
"""Decompositions by name, and their kinds; the gate of the last normalizes over the batch."""

_SAME: dict[str, Any] = {"precision": "fp32", "device": "cpu", "checkpoint_every": 2, "keep": 3, "log_every": 1}


@dataclass(frozen=True)
class World:
    """Data of the jobs, and the jobs.

    Attributes:
        folder: Where everything lies.
        jobs: Settings by name.
    """

    folder: Path
    jobs: dict[str, TrainConfig] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, *, only_heads: bool = False) -> World:
        """Write the data: 149 rows, 37 pictures and 28 texts to train on; or the rows alone."""
        torch.set_num_threads(1)
        folder.mkdir(parents=True, exist_ok=True)
        features = small.single_features(folder / "features.safetensors", 247)
        head = small.head_job(features, batch_size=23, clip=1.0, **_SAME)
        jobs = {"head": head, "head in parts": head.replace(head="TRMuMoE-r4-e3", norm="layer", accumulate=2)}
        if only_heads:
            return cls(folder, {"head": head.replace(epochs=2)})
        table = small.pictures(folder, 61)
        jobs["finetune"] = small.finetune_job(
            table, "test_efficientnet", **(_SAME | {"dropout": 0.0, "lr": 1e-4, "batch_size": 13, "epochs": 2})
        )
        sizes = ("depth=1", "width=8", "token_hidden=16", "channel_hidden=32", "patch_size=4")
        jobs["mixer"] = small.mixer_job(table, **(_SAME | {"network_options": sizes, "batch_size": 13, "mixup": 0.5}))
        tokens = small.tokens(folder / "tokens", small.text_files(folder / "text"))
        shape = ("depth=2", "heads=2", "width=16", "context=24")
        jobs["gpt2"] = small.text_job(tokens, **(_SAME | {"network_options": shape, "batch_size": 25}))
        small.language_model(folder / "llama")
        return cls(folder, jobs)

    def documents(self) -> list[Document]:
        """The text that is decomposed."""
        paths = sorted((self.folder / "text").glob("*.txt"))
        splits = {7: "val", 8: "test"}
        texts = [path.read_text(encoding="utf-8") for path in paths]
        return [Document(f"d{n}", text, split=splits.get(n % 9, "train")) for n, text in enumerate(texts)]


def run_job(config: TrainConfig, out: Path, begun: bool) -> Callable[[], None]:
    """Train into a folder, or resume what was begun there; each process notes the bits of its state at the end."""

    def run() -> None:
        import mumoe.training.jobs as jobs

        real = jobs._finish

        def finish(engine: Any, parameters: int) -> Any:
            result = real(engine, parameters)
            val = result.evaluations["val"]
            _note(out, _state_of(engine.network, engine.adamw), {"val": f"{val.loss!r} {val.accuracy!r}"})
            return result

        jobs._finish = finish
        if begun:
            resume(out, progress=False)
        else:
            train(config.replace(out=str(out)), progress=False)
        _leave()

    return run


def run_fit(world: World, name: str, out: Path) -> Callable[[], None]:
    """Decompose into a folder, or resume."""

    def run() -> None:
        from mumoe.decomposition import fitting, opened

        real = opened.fit_replacement  # type: ignore[attr-defined]

        def fit(replacement: Any, *arguments: Any, **options: Any) -> Any:
            found = real(replacement, *arguments, **options)
            _note(out, replacement.state_dict(), {"error": repr(found.error)})
            return found

        opened.fit_replacement = fit  # type: ignore[attr-defined]
        fitting.CHECKPOINT_SECONDS = 0.05
        given = {**small.DECOMPOSED, "lr": (4e-3,), "batch_size": 65, "kind": FITS[name], "tokens": 4000}
        if name.endswith("tr"):
            given |= {"experts": 6, "rank": 3, "lr": (1e-3,)}
        text, cache = world.documents(), world.folder / "cache"
        mumoe.decompose(str(world.folder / "llama"), text=text, out=out, cache_dir=cache, progress=False, **given)
        _leave()

    return run


def _leave() -> None:
    """End a process as the command line does, once all of them are done."""
    if world_size() > 1:
        torch.distributed.barrier()


def _state_of(network: Any, optimizer: Any) -> dict[str, Tensor]:
    """Weights, buffers and moments; of sharded ones, all of them (collective)."""
    found: dict[str, Tensor] = dict(network.state_dict())
    for name, parameter in network.named_parameters():
        found |= {f"{name}/{moment}": tensor for moment, tensor in optimizer.state.get(parameter, {}).items()}
    return {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in found.items()}


def _note(out: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    digests = {name: hashlib.sha256(_bytes(tensor)).hexdigest() for name, tensor in tensors.items()}
    rank = os.environ.get("RANK", "0")
    write_json(out.parent / f"{out.name}.state" / f"{rank}.json", {**digests, **facts})


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def digests_of(out: Path, count: int) -> list[Any]:
    """What each process noted about its state at the end."""
    return [read_json(out.parent / f"{out.name}.state" / f"{rank}.json", "soak") for rank in range(count)]


def curve(run: Path) -> list[float]:
    """Every loss that a run has logged."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] if "loss" in row else row["val_loss"] for row in rows]


def distance(one: Path, other: Path) -> tuple[float, float]:
    """Largest difference of the losses of two runs, and of their weights, opened by one process."""
    if (one / "decomposition.json").is_file():
        both = [mumoe.load(str(path)) for path in (one, other)]
        errors = [dec.fitted[0].error for dec in both]
        pairs = [_tensors(path / "replacement.safetensors") for path in (one, other)]
        return abs(errors[0] - errors[1]), _far(*pairs)
    losses, others = curve(one), curve(other)
    if len(losses) != len(others):
        return float("inf"), float("inf")
    apart = max(abs(a - b) for a, b in zip(losses, others, strict=True))
    weights = [StoredRun(path, device="cpu").network.state_dict() for path in (one, other)]
    return apart, _far(*weights)


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _far(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    gaps = [float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel()]
    return max(gaps, default=0.0)


def cut_back(whole: Path, out: Path) -> None:
    """A copy of a finished run as it was at the first checkpoint that it keeps."""
    shutil.copytree(whole, out)
    for path in sorted((out / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    RunFolder.open(out).update(state="running")
