"""A run is a folder: settings, facts, metrics, checkpoints and curves, and a lock while a job works in it.

``config.toml`` the settings, ``run.json`` schema, seed, versions, commit, data fingerprint and state,
``metrics.jsonl`` one line per logged step, ``checkpoints/``, ``tensorboard/``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from mumoe import __version__
from mumoe.errors import JobError, UserError, nearest
from mumoe.files import clean_folder, read_json, write_errors, write_text
from mumoe.locks import FolderLock
from mumoe.records import read_typed
from mumoe.training.config import PLAIN, TrainConfig, read_config, to_toml
from mumoe.training.metrics_log import METRICS_FILE

__all__ = [
    "SCHEMA",
    "RunFolder",
    "check_free",
    "check_same_data",
    "disk_errors",
    "find_run",
    "pick_run",
    "started_head",
    "unknown_backbone",
    "versions",
    "write_group_config",
]

SCHEMA = 2
"""Version of the run folder. Version 1 did not record it, and its paths were relative to the working directory."""

_KNOWN = {
    *("schema", "state", "versions", "commit", "seed", "head", "parameters", "data", "credits", "classes"),
    *("multi_label", "num_features", "backbone", "features", "vocabulary", "started", "error", "result", "trackers"),
}
"""Keys of run.json."""

_NEEDED = ("seed", "head", "data", "classes", "multi_label", "num_features")


@dataclass(frozen=True)
class _Data:
    """The data in run.json."""

    name: str
    fingerprint: str
    images: int

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"{self.images} images")


@dataclass(frozen=True)
class _Facts:
    """The types of what run.json holds, as far as it is read."""

    seed: int
    head: str
    data: _Data
    classes: tuple[str, ...]
    multi_label: bool
    num_features: int
    state: str = ""
    commit: str | None = None
    parameters: int | None = None
    credits: tuple[str, ...] = ()
    backbone: str | None = None
    features: str | None = None
    vocabulary: int = 0
    started: str = ""
    result: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("num_features", "vocabulary"):
            if not 0 <= getattr(self, name) <= MOST_FEATURES:
                raise ValueError(f"{name} = {getattr(self, name)}")


MOST_FEATURES = 1 << 28
"""Features, and words of a vocabulary, that a run may have."""

_WITHOUT_EXPERTS = ("linear", "highrank-linear", "mlp")
"""Prefixes of the heads that have no experts."""

_tell = logging.getLogger("mumoe.training").warning

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "accelerate")


@contextlib.contextmanager
def disk_errors(what: str, run: Path) -> Iterator[None]:
    """Turn a failed write in a run's folder into a `JobError` that explains what is safe and how to resume."""
    with write_errors(run, who=what, remedy=_safe(run)):
        yield


def _safe(run: Path) -> str:
    return f"Earlier checkpoints are untouched. Resume with: mumoe train --resume {run}"


class RunFolder:
    """One run's folder, and the lock on it.

    Args:
        path: The folder; `create` makes it, `open` finds it.

    Use as a context manager to hold the lock, which is also released when the process ends, even if it is killed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.metrics = self.path / METRICS_FILE
        self._lock = FolderLock(self.path, who="run", what="this run", remedy=_safe(self.path))

    @classmethod
    def create(cls, path: str | Path, config: TrainConfig, facts: Mapping[str, Any]) -> RunFolder:
        """Make a new run's folder, locked, with its settings and then its facts written.

        Raises:
            JobError: If another job works in it, or the disk is full.
        """
        run = cls(path)
        run.make(config, facts)
        return run

    def make(self, config: TrainConfig, facts: Mapping[str, Any]) -> None:
        """Write the settings and then the facts of a new run into its folder, and hold its lock.

        Raises:
            JobError: If another job works in it, or the disk is full.
        """
        with disk_errors("run", self.path):
            self.acquire()
            write_text(self.path / "config.toml", to_toml(config.absolute()))
            self.checkpoints.mkdir(exist_ok=True)
            self.write_facts({"schema": SCHEMA, "state": "running", **versions(), **facts})

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run (not locked). One of an earlier version, or with unknown keys, opens with a warning.

        Raises:
            UserError: If the path is not a run, or one that a later version wrote.
        """
        run = cls(path)
        if not (run.path / "run.json").is_file():
            raise _not_a_run(run.path)
        run._check_schema(run.facts(), _tell_once)
        return run

    def config(self) -> TrainConfig:
        """The settings that the run was started with; those that this version does not have are ignored."""

        def ignored(names: list[str]) -> None:
            _tell_once(
                f"{self.path}: ignored the unknown {_plural('setting', names)} {', '.join(names)} of config.toml "
                f"(written by {_writer(self.facts())})."
            )

        return read_config(self.path / "config.toml", PLAIN, unknown=ignored).replace(out=str(self.path))

    def _check_schema(self, facts: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        schema = facts.get("schema", 1)
        if type(schema) is not int or schema > SCHEMA:
            raise UserError(
                f"{self.path}: expected a run of schema {SCHEMA} or earlier, got schema {schema}, written by "
                f"{_writer(facts)}. Install that version or a later one."
            )
        if schema < SCHEMA:
            tell(f"{self.path}: opened a run of the earlier schema {schema}, written by {_writer(facts)}.")
        if strange := sorted(set(facts) - _KNOWN):
            tell(f"{self.path}: ignored the unknown {_plural('key', strange)} {', '.join(strange)} of run.json.")
        if missing := [key for key in _NEEDED if key not in facts]:
            raise JobError(
                f"{self.path}: expected a run, got a run.json without {', '.join(missing)}. "
                "Restore it, or train again into another folder."
            )
        try:
            read_typed(_Facts, facts, "run.json")
        except UserError as error:
            raise JobError(f"{self.path}: {error} Restore it, or train again into another folder.") from None

    def facts(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            JobError: If it is damaged.
        """
        try:
            facts = read_json(self.path / "run.json")
        except ValueError as error:
            raise JobError(f"{self.path}: expected a run, got: {error}. Train again into another folder.") from None
        if not isinstance(facts, dict):
            raise JobError(f"{self.path}: expected a run, got a run.json that is not a table.")
        return facts

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Replace run.json."""
        with disk_errors("run", self.path):
            write_text(self.path / "run.json", json.dumps(facts, indent=1) + "\n")

    def update(self, **changes: Any) -> None:
        """Change some entries of run.json."""
        self.write_facts({**self.facts(), **changes})

    def acquire(self) -> None:
        """Acquire the lock, unless this object holds it; the folder is made if it is missing.

        Raises:
            JobError: If another job works in this folder, or it cannot be written.
        """
        if not self._lock.held:
            self._lock.acquire()
            clean_folder(self.checkpoints, locked=True)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def check_free(path: str | Path) -> None:
    """Raise unless a new run can be made at `path`; touches nothing."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`out`: expected a folder, got the file {str(folder)!r}. Give another name.")
    if (folder / "config.toml").exists():
        raise UserError(
            f"`out`: expected a new folder, got {str(folder)!r}, which holds a run. "
            f"Resume it with mumoe train --resume {folder}, or give another `out`."
        )
    if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise UserError(f"`out`: expected a new or empty folder, got {str(folder)!r}, which holds other files.")


def find_run(path: str | Path) -> list[RunFolder]:
    """The run at a path, or the runs inside it when it holds several seeds or heads, in order of name.

    Raises:
        UserError: If there is none.
    """
    folder = Path(path)
    if (folder / "run.json").is_file():
        return [RunFolder.open(folder)]
    inside = sorted({*folder.glob("seed-*/run.json"), *folder.glob("*/seed-*/run.json")}, key=_by_number)
    if not inside:
        raise _not_a_run(folder)
    runs = [RunFolder(found.parent) for found in inside]
    for run in runs:
        run._check_schema(run.facts(), lambda text: None)  # reported when one is opened
    return runs


def pick_run(path: str | Path, *, experts: bool = False, note: Callable[[str], None] = lambda line: None) -> RunFolder:
    """The run at a path; for a job, the first seed of the head that is best on validation.

    Heads are compared by their mean accuracy on the validation split over the seeds that are finished. Without one
    that is finished, or without a validation split, it is the head that the job was started with, else the first by
    name.

    Args:
        path: A run, or the folder of several seeds or heads.
        experts: Whether to prefer heads with experts; one without is used only if there is no other.
        note: Called with one line that says which run of a job is used, and lists all of them.

    Raises:
        UserError: If there is no run.
    """
    found = find_run(path)
    if len(found) == 1:
        return found[0]
    by_head: dict[str, list[RunFolder]] = {}
    for run in found:
        by_head.setdefault(str(run.path.parent), []).append(run)
    heads = {name: runs for name, runs in by_head.items() if not experts or _has_experts(runs[0])} or by_head
    accuracy = {name: _validation_accuracy(runs) for name, runs in heads.items()}
    started = started_head(Path(path))
    best = max(heads, key=lambda name: (accuracy[name], heads[name][0].facts().get("head") == started))
    run = RunFolder.open(heads[best][0].path)
    kind = "head with experts" if experts and len(heads) < len(by_head) else "head"
    why = "the first seed"
    if len(heads) == 1 and len(by_head) > 1:
        why += f" of the only {kind}"
    elif len(heads) > 1 and accuracy[best] >= 0:
        why += f" of the best {kind} on validation ({accuracy[best]:.4f})"
    elif len(heads) > 1:
        why += f" of the first {kind} (no validation accuracy)"
    note(f"Using {run.path}, {why}. Runs of this job: {_choices(Path(path), by_head)}.")
    return run


def _has_experts(run: RunFolder) -> bool:
    head = str(run.facts().get("head", ""))
    return not any(head == word or head.startswith(f"{word}-") for word in _WITHOUT_EXPERTS)


def _validation_accuracy(runs: Sequence[RunFolder]) -> float:
    """Mean over the finished seeds, -1 without any."""
    results = [(run.facts().get("result") or {}).get("evaluations", {}).get("val") for run in runs]
    values = [float(result["accuracy"]) for result in results if result]
    return sum(values) / len(values) if values else -1.0


def started_head(job: Path) -> str:
    """The head that a job of several runs was started with; empty if it is not recorded."""
    config = job / "config.toml"
    return read_config(config, PLAIN, unknown=lambda names: None).head if config.is_file() else ""


def _choices(job: Path, by_head: Mapping[str, Sequence[RunFolder]]) -> str:
    """All runs of a job by head and seed, as paths below it."""
    parts = []
    for runs in by_head.values():
        head = f"{runs[0].path.parent.relative_to(job)}/".removeprefix("./")
        parts.append(", ".join(f"{head}{run.path.name}" for run in runs))
    return "; ".join(parts)


def check_same_data(run: RunFolder, data: Any) -> None:
    """Raise `UserError` unless data have the content that a run was trained on."""
    known = run.facts()["data"]
    if (data.fingerprint, len(data)) != (known["fingerprint"], known["images"]):
        raise UserError(
            f"{run.path}: expected the data that it was trained on ({known['name']}, {known['images']:,} rows), "
            f"got other content in {data.name} ({len(data):,} rows). Restore them, or name them with `data`."
        )


def unknown_backbone(run: RunFolder, config: TrainConfig) -> UserError:
    """The error for a run that cannot read images, because the network that computed its features is not recorded."""
    if config.data.startswith("features:"):
        why = f"features of a file ({config.data.removeprefix('features:')})"
        works = "evaluate, analyze, audit, fairness, edit, report, dashboard and the export of the head to onnx work"
    else:
        why = "features that were passed in without their backbone"
        works = "report, the export of the head to onnx and mumoe.load(..., features=...) work"
    return UserError(
        f"{run.path}: expected a run that knows its backbone, got one trained on {why}: which network computed them "
        f"is unknown. For this run {works}; train on images, or pass the backbone too, for the rest."
    )


@functools.cache
def _tell_once(text: str) -> None:
    _tell(text)


def _writer(facts: Mapping[str, Any]) -> str:
    found = facts.get("versions")
    return f"mumoe {found.get('mumoe', '(unknown version)')}" if isinstance(found, dict) else "an unknown version"


def _plural(word: str, items: Sequence[str]) -> str:
    return word if len(items) == 1 else f"{word}s"


def _by_number(path: Path) -> tuple[str, int]:
    seed = path.parent.name.removeprefix("seed-")
    return str(path.parent.parent), int(seed) if seed.isdigit() else 0


def _not_a_run(folder: Path) -> UserError:
    if not folder.is_dir():
        base = folder.parent
        names = [entry.name for entry in base.iterdir() if entry.is_dir()] if base.is_dir() else []
        close = nearest(folder.name, names)
        remedy = f"Did you mean {str(base / close)!r}?" if close else "Give the folder of a run."
        return UserError(f"run: expected the folder of a run, got {str(folder)!r}, which does not exist. {remedy}")
    if (folder / "config.toml").is_file():
        return UserError(
            f"run: expected the folder of a run, got {str(folder)!r}, where a job was started and stopped before its "
            f"first run. Continue with: mumoe train --resume {folder}"
        )
    return UserError(
        f"run: expected the folder of a run, got {str(folder)!r}, which has no run.json. "
        "Give the folder that mumoe train printed."
    )


def versions() -> dict[str, Any]:
    """Versions of the libraries that compute the numbers, and the commit of the working tree that mumoe runs from."""
    found = {"python": platform.python_version(), "mumoe": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": found, "commit": _commit()}


@functools.cache
def _commit() -> str | None:
    """The commit of mumoe's sources, with ``-dirty`` if they were changed; None for an installed package."""
    if _git("ls-files", "--error-unmatch", __file__) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def write_group_config(path: Path, config: TrainConfig) -> None:
    """Create the folder of several runs, with the settings that started them."""
    with disk_errors("run", path):
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "config.toml", to_toml(config.absolute()))
