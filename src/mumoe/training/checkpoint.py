"""Crash-safe checkpoints: safetensors and JSON in a folder that is renamed into place when complete.

A checkpoint is ``step-NNNNNNNN/`` with one safetensors file per part (model, optimizer, random), a
``state.json`` and, written last, a ``manifest.json`` with the size and SHA-256 of each. The folder appears only
when it is complete (`mumoe.files.new_folder`); the next start removes what a killed process left. Nothing is
pickled, and no file is used before its digest, names, shapes and dtypes have been checked.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mumoe.errors import JobError, reason_of
from mumoe.files import digest_file, digest_files, new_folder, read_json, remove_folder, write_tensors
from mumoe.training.run import disk_errors

__all__ = [
    "Check",
    "CheckpointError",
    "Snapshot",
    "Specs",
    "checkpoint_steps",
    "newest",
    "prune",
    "read",
    "read_best",
    "specs",
    "write",
]

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,15})")
_MANIFEST = "manifest.json"
_STATE = "state.json"

Specs = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Tensor name -> shape and type."""

Check = Callable[[Mapping[str, Specs], Mapping[str, Any]], None]
"""Called with the specs of every part and the JSON state; raises `ValueError` if they do not fit the job."""


class CheckpointError(JobError):
    """A checkpoint that is incomplete, damaged or of another model; the message names what is wrong."""


@dataclass(frozen=True)
class Snapshot:
    """Everything that a job needs to resume.

    Attributes:
        step: Optimizer steps done.
        tensors: Part -> name -> tensor on the CPU.
        state: JSON values.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def specs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of each tensor."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def write(folder: Path, snapshot: Snapshot) -> Path:
    """Write a checkpoint into `folder` (a run's ``checkpoints``); returns its folder.

    Raises:
        JobError: If the disk is full or fails; earlier checkpoints are untouched and no partial one is left behind.
    """
    target = folder / f"step-{snapshot.step:08d}"
    with disk_errors("checkpoint", folder.parent), new_folder(target) as part:
        _write_files(part, snapshot)
    return target


def _write_files(part: Path, snapshot: Snapshot) -> None:
    for name, tensors in snapshot.tensors.items():
        write_tensors(part / f"{name}.safetensors", tensors, durable=False)
    state = json.dumps({"step": snapshot.step, **snapshot.state})
    (part / _STATE).write_text(state, encoding="utf-8")
    files = {name: {"size": size, "sha256": digest} for name, (size, digest) in digest_files(part).items()}
    manifest = json.dumps({"format": FORMAT, "step": snapshot.step, "files": files})
    (part / _MANIFEST).write_text(manifest, encoding="utf-8")


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending, including damaged ones."""
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted({int(match.group(1)) for match in matches if match})


def prune(folder: Path, keep: int, also: int | None = None) -> None:
    """Delete all checkpoints but the last `keep` and the one of step `also`."""
    for step in checkpoint_steps(folder)[:-keep]:
        if step != also:
            remove_folder(folder / f"step-{step:08d}")


def newest(folder: Path, check: Check, report: Callable[[str], None]) -> Snapshot | None:
    """The newest checkpoint that is intact and fits; each newer one is passed to `report` with its problem.

    Returns None when the folder holds no checkpoint at all.

    Raises:
        CheckpointError: If there are checkpoints, but none can be used.
    """
    steps = checkpoint_steps(folder)
    last: CheckpointError | None = None
    for step in reversed(steps):
        try:
            return read(folder / f"step-{step:08d}", check)
        except CheckpointError as error:
            last = error
            report(str(error))
    if last is not None:
        raise CheckpointError(
            f"{folder}: expected an intact checkpoint, got {len(steps)} damaged. "
            f"The newest: {last} Train again into another folder."
        )
    return None


def read_best(folder: Path, step: int, check: Check, report: Callable[[str], None]) -> Snapshot | None:
    """The checkpoint of the best step; None if it is damaged, and the reason is passed to `report`."""
    try:
        return read(folder / f"step-{step:08d}", check)
    except CheckpointError as error:
        report(f"{error} The last checkpoint is used instead of the best.")
        return None


def read(path: Path, check: Check) -> Snapshot:
    """Read one checkpoint: verify its digests first, then names, shapes and dtypes with `check`.

    Raises:
        CheckpointError: If anything is missing, changed, malformed or does not fit.
    """
    try:
        files = _verified_files(path)
        state = read_json(path / _STATE)
        if not isinstance(state, dict) or state.pop("step", None) != _step_of(path):
            raise ValueError(f"{_STATE} is of another step")
        parts = [name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors")]
        tensors = {part: _read_tensors(path / f"{part}.safetensors") for part in parts}
        check({part: specs(values) for part, values in tensors.items()}, state)
    except (ValueError, TypeError, KeyError, OverflowError, OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path}: expected an intact checkpoint, got: {reason_of(error, 300).rstrip('.')}."
        ) from None
    return Snapshot(_step_of(path), tensors, state)


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError("its name is not step-NNNNNNNN")
    return int(match.group(1))


def _verified_files(path: Path) -> Mapping[str, Any]:
    """The manifest's files, after their presence, kind, size and digest have been compared with it."""
    manifest = read_json(path / _MANIFEST, most=1 << 20)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{_MANIFEST} is not of format {FORMAT}")
    if manifest.get("step") != _step_of(path):
        raise ValueError(f"{_MANIFEST} is of another step")
    files = manifest.get("files")
    if not isinstance(files, dict) or _STATE not in files:
        raise ValueError(f"{_MANIFEST} lists no {_STATE}")
    present = {entry.name for entry in path.iterdir()} - {_MANIFEST}
    if present != set(files):
        raise ValueError(f"files {sorted(present ^ set(files))[:4]} are missing or not in {_MANIFEST}")
    for name, facts in files.items():
        _verify(path / name, facts)
    return files


def _verify(path: Path, facts: Any) -> None:
    if not isinstance(facts, dict):
        raise ValueError(f"{_MANIFEST} has no entry for {path.name}")
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} is not an ordinary file")
    if status.st_size != facts.get("size"):
        raise ValueError(f"{path.name} has {status.st_size} bytes instead of {facts.get('size')}")
    if digest_file(path) != facts.get("sha256"):
        raise ValueError(f"{path.name} was changed after it was written (SHA-256 differs)")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Copies of a file's tensors, so that they outlive the file."""
    with safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
