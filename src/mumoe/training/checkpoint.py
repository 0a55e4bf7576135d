"""Crash-safe checkpoints: safetensors and JSON in a folder that is renamed into place when complete.

A checkpoint is ``step-NNNNNNNN/`` with one safetensors file per part (model, optimizer, random), a
``state.json`` and, written last, a ``manifest.json`` with the size and SHA-256 of each. Of a job that shards, model
and optimizer are folders to which each process writes its own rows (`mumoe.training.shards`). The folder appears only
when it is complete (`mumoe.files.new_folder`); the next start removes what a killed process left. Nothing is
pickled, and no file is used before its digest, names, shapes and dtypes have been checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mumoe.errors import JobError, reason_of
from mumoe.files import digest_file, digest_files, new_folder, read_json, remove_folder, write_tensors
from mumoe.training.distributed import from_main, gathered, together
from mumoe.training.run import disk_errors
from mumoe.training.shards import fill, read_whole, shards_of_this_process, survey, write_shards

__all__ = [
    "Check",
    "CheckpointError",
    "Snapshot",
    "Specs",
    "Stored",
    "best_of",
    "checkpoint_steps",
    "newest",
    "newest_of",
    "open_stored",
    "prune",
    "read",
    "read_best",
    "specs",
    "write",
    "write_sharded",
]

FORMAT, SHARDED = 1, 2
"""Formats of the manifest: parts as files, and as folders of shards."""
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
        tensors: Part -> name -> tensor.
        state: JSON values.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """A checkpoint on disk that was checked; its tensors are read into those of a job, each process its own rows.

    Attributes:
        step: Optimizer steps done.
        state: JSON values.
        parts: Part -> its file, or its folder of shards.
        specs: Part -> names, shapes and types of its tensors.
    """

    step: int
    state: Mapping[str, Any]
    parts: Mapping[str, Path]
    specs: Mapping[str, Specs]

    def fill(self, part: str, targets: Mapping[str, Tensor]) -> None:
        """Read a part into tensors, which may be sharded, by the names in the checkpoint."""
        fill(self.parts[part], targets)

    def whole(self, part: str) -> dict[str, Tensor]:
        """The tensors of a part; none if there is no such part."""
        return read_whole(self.parts[part]) if part in self.parts else {}


Found = TypeVar("Found", Snapshot, Stored)


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


def write_sharded(folder: Path, snapshot: Snapshot, shards: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """As `write`, with further parts to which each process writes its own shards (collective).

    Raises:
        JobError: On all processes, as `write`, if one of them cannot write.
    """
    target = folder / f"step-{snapshot.step:08d}"
    with disk_errors("checkpoint", folder.parent), contextlib.ExitStack() as stack:
        part = Path(from_main(lambda: str(stack.enter_context(new_folder(target)))))
        for name, tensors in shards.items():
            write_shards(part / name, tensors)
        owns = gathered(together(lambda: _own_shards(part)))
        digests = {name: found for own in owns for name, found in own.items()}

        def finish() -> None:
            _write_files(part, snapshot, digests)
            stack.close()

        from_main(finish)
    return target


def _own_shards(part: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of the files that this process has written."""
    own = [path.relative_to(part).as_posix() for path in shards_of_this_process(part)]
    return {name: ((part / name).stat().st_size, digest_file(part / name)) for name in own}


def _write_files(part: Path, snapshot: Snapshot, shards: Mapping[str, tuple[int, str]] | None = None) -> None:
    """Write the files of a checkpoint, the manifest last; `shards` are sizes and digests of those that are there."""
    for name, tensors in snapshot.tensors.items():
        write_tensors(part / f"{name}.safetensors", tensors, durable=False)
    state = json.dumps({"step": snapshot.step, **snapshot.state})
    (part / _STATE).write_text(state, encoding="utf-8")
    found = digest_files(part) if shards is None else {**digest_files(part, deep=False), **shards}
    files = {name: {"size": size, "sha256": digest} for name, (size, digest) in found.items()}
    form = FORMAT if shards is None else SHARDED
    (part / _MANIFEST).write_text(json.dumps({"format": form, "step": snapshot.step, "files": files}), encoding="utf-8")


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
    return newest_of(folder, checkpoint_steps(folder), lambda path: read(path, check), report)


def newest_of(
    folder: Path, steps: Sequence[int], open_one: Callable[[Path], Found], report: Callable[[str], None]
) -> Found | None:
    """As `newest`, of these steps, each opened by a function that raises `CheckpointError`."""
    last: CheckpointError | None = None
    for step in reversed(steps):
        try:
            return open_one(folder / f"step-{step:08d}")
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
    return best_of(folder, step, lambda path: read(path, check), report)


def best_of(folder: Path, step: int, open_one: Callable[[Path], Found], report: Callable[[str], None]) -> Found | None:
    """As `read_best`, opened by a function that raises `CheckpointError`."""
    try:
        return open_one(folder / f"step-{step:08d}")
    except CheckpointError as error:
        report(f"{error} The last checkpoint is used instead of the best.")
        return None


def read(path: Path, check: Check) -> Snapshot:
    """Read one checkpoint: verify its digests first, then names, shapes and dtypes with `check`.

    Raises:
        CheckpointError: If anything is missing, changed, malformed or does not fit.
    """
    with _damage(path):
        state, parts = _verified(path)
        tensors = {name: read_whole(part) if part.is_dir() else _read_tensors(part) for name, part in parts.items()}
        check({part: specs(values) for part, values in tensors.items()}, state)
        return Snapshot(_step_of(path), tensors, state)


def open_stored(path: Path, check: Check, rank: int, processes: int) -> Stored:
    """Check one checkpoint as `read` does, without reading it; this process verifies its share of the digests.

    Raises:
        CheckpointError: As `read`.
    """
    with _damage(path):
        state, parts = _verified(path, rank, processes)
        found = {name: survey(part) for name, part in parts.items()}
        check(found, state)
        return Stored(_step_of(path), state, parts, found)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path}: expected an intact checkpoint, got: {reason_of(error, 300).rstrip('.')}."
        ) from None


def _verified(path: Path, rank: int = 0, processes: int = 1) -> tuple[dict[str, Any], dict[str, Path]]:
    """The JSON state and the parts, after the manifest's digests were compared."""
    files = _verified_files(path, rank, processes)
    state = read_json(path / _STATE)
    if not isinstance(state, dict) or state.pop("step", None) != _step_of(path):
        raise ValueError(f"{_STATE} is of another step")
    whole = [name for name in files if name.endswith(".safetensors")]
    tops = dict.fromkeys(name.partition("/")[0] for name in whole)
    return state, {top.removesuffix(".safetensors"): path / top for top in tops}


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError("its name is not step-NNNNNNNN")
    return int(match.group(1))


def _verified_files(path: Path, rank: int, processes: int) -> Mapping[str, Any]:
    """The manifest's files, after their presence, kind, size and, of a process's share, digest were compared."""
    manifest = read_json(path / _MANIFEST, most=1 << 20)
    if not isinstance(manifest, dict) or manifest.get("format") not in (FORMAT, SHARDED):
        raise ValueError(f"{_MANIFEST} is not of format {FORMAT} or {SHARDED}")
    if manifest.get("step") != _step_of(path):
        raise ValueError(f"{_MANIFEST} is of another step")
    files = manifest.get("files")
    if not isinstance(files, dict) or _STATE not in files:
        raise ValueError(f"{_MANIFEST} lists no {_STATE}")
    present = set(_names(path)) - {_MANIFEST}
    if present != set(files):
        raise ValueError(f"files {sorted(present ^ set(files))[:4]} are missing or not in {_MANIFEST}")
    for number, (name, facts) in enumerate(sorted(files.items())):
        _verify(path / name, facts, digest=number % processes == rank)
    return files


def _names(path: Path) -> Iterator[str]:
    """Names of the files in a checkpoint and in the folders of its parts, links not followed."""
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            yield from (f"{entry.name}/{inside.name}" for inside in os.scandir(entry.path))
        else:
            yield entry.name


def _verify(path: Path, facts: Any, digest: bool) -> None:
    if not isinstance(facts, dict):
        raise ValueError(f"{_MANIFEST} has no entry for {path.name}")
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} is not an ordinary file")
    if status.st_size != facts.get("size"):
        raise ValueError(f"{path.name} has {status.st_size} bytes instead of {facts.get('size')}")
    if digest and digest_file(path) != facts.get("sha256"):
        raise ValueError(f"{path.name} was changed after it was written (SHA-256 differs)")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Copies of a file's tensors, so that they outlive the file."""
    with safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
