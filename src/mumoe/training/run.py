"""A run is a folder: settings, facts, metrics, checkpoints and curves, and a lock while a job works in it.

``config.toml`` the settings, ``run.json`` seed, versions, commit, data fingerprint and state,
``metrics.jsonl`` one line per logged step, ``checkpoints/``, ``tensorboard/``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from mumoe.errors import JobError, UserError, nearest
from mumoe.files import clean_folder, read_json, sync_file, write_errors, write_text
from mumoe.training.config import TrainConfig, read_config, to_toml

__all__ = ["MetricsLog", "RunFolder", "check_free", "disk_errors", "find_run", "versions", "write_group_config"]

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "accelerate")


class RunFolder:
    """One run's folder, and the lock on it.

    Args:
        path: The folder; `create` makes it, `open` finds it.

    Use as a context manager to hold the lock; it goes with the process, however that ends.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.metrics = self.path / "metrics.jsonl"
        self._lock: Any = None

    @classmethod
    def create(cls, path: str | Path, config: TrainConfig, facts: Mapping[str, Any]) -> RunFolder:
        """Make a new run's folder, locked, with its settings and then its facts written.

        Raises:
            JobError: If another job works in it, or the disk is full.
        """
        run = cls(path)
        with disk_errors("run", run.path):
            run.path.mkdir(parents=True, exist_ok=True)
            run.acquire()
            write_text(run.path / "config.toml", to_toml(config))
            run.checkpoints.mkdir(exist_ok=True)
            run.write_facts({"state": "running", **versions(), **facts})
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run (not locked).

        Raises:
            UserError: If the path is no run.
        """
        run = cls(path)
        if not (run.path / "run.json").is_file():
            raise _not_a_run(run.path)
        return run

    def config(self) -> TrainConfig:
        """The settings that the run was started with."""
        return read_config(self.path / "config.toml").replace(out=str(self.path))

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
            raise JobError(f"{self.path}: expected a run, got a run.json that is no table.")
        return facts

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Replace run.json."""
        with disk_errors("run", self.path):
            write_text(self.path / "run.json", json.dumps(facts, indent=1) + "\n")

    def update(self, **changes: Any) -> None:
        """Change some entries of run.json."""
        self.write_facts({**self.facts(), **changes})

    def acquire(self) -> None:
        """Take the lock, or say who holds it.

        Raises:
            JobError: If another job works in this folder.
        """
        from filelock import FileLock, Timeout

        self._lock = FileLock(self.path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._lock = None
            raise JobError(
                f"{self.path}: expected no other job in this run, got {self._holder()}. "
                "Wait for it, or give another --out."
            ) from None
        (self.path / ".holder").write_text(f"process {os.getpid()} on {platform.node()}")
        clean_folder(self.checkpoints, locked=True)

    def _holder(self) -> str:
        try:
            return (self.path / ".holder").read_text()[:200] or "another process"
        except OSError:
            return "another process"

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            (self.path / ".holder").unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunFolder:
        if self._lock is None:
            self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextlib.contextmanager
def disk_errors(what: str, run: Path) -> Iterator[None]:
    """Turn a failed write in a run's folder into a `JobError` that says what is safe and how to resume."""
    remedy = f"Earlier checkpoints are untouched. Resume with: mumoe train --resume {run}"
    with write_errors(run, who=what, remedy=remedy):
        yield


class MetricsLog:
    """metrics.jsonl: one JSON object per line, the same bytes for the same training.

    Args:
        path: The file.
        length: Bytes to keep of what is there: a resumed job cuts off what came after its checkpoint.

    Attributes:
        short: Whether the file held less than that, so that lines are missing.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115 (closed in close)
        self.short = os.path.getsize(path) < length
        self._file.truncate(min(length, os.path.getsize(path)))
        self._file.seek(0, os.SEEK_END)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a line."""
        self._file.write((json.dumps(row) + "\n").encode())
        self._file.flush()

    def sync(self) -> int:
        """Put the log on the disk; returns its length in bytes."""
        sync_file(self._file)
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_free(path: str | Path) -> None:
    """Raise unless a new run can be made at `path`; touches nothing."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: expected a folder, got the file {str(folder)!r}. Give another name.")
    if (folder / "config.toml").exists():
        raise UserError(
            f"--out: expected a new folder, got {str(folder)!r}, which holds a run. "
            f"Go on with mumoe train --resume {folder}, or give another --out."
        )
    if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise UserError(f"--out: expected a new or empty folder, got {str(folder)!r}, which holds other files.")


def find_run(path: str | Path) -> list[RunFolder]:
    """The run at a path, or the runs inside it when it holds several seeds or heads, in order of name.

    Raises:
        UserError: If there is none.
    """
    folder = Path(path)
    if (folder / "run.json").is_file():
        return [RunFolder(folder)]
    inside = sorted({*folder.glob("seed-*/run.json"), *folder.glob("*/seed-*/run.json")}, key=_by_number)
    if not inside:
        raise _not_a_run(folder)
    return [RunFolder(found.parent) for found in inside]


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
    return UserError(
        f"run: expected the folder of a run, got {str(folder)!r}, which has no run.json. "
        "Give the folder that mumoe train named."
    )


def versions() -> dict[str, Any]:
    """Versions of what computes the numbers, and the commit of the working tree that mumoe runs from."""
    from mumoe import __version__

    found = {"python": platform.python_version(), "mumoe": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": found, "commit": _commit()}


@functools.cache
def _commit() -> str | None:
    """The commit of mumoe's sources, with ``-dirty`` when they were changed; None where it is installed."""
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
    """Make the folder of several runs, with the settings that started them."""
    with disk_errors("run", path):
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "config.toml", to_toml(config))
