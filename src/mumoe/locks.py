"""The lock of a folder in which one job at a time works; it ends with the process, even if that is killed."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from types import TracebackType
from typing import Any

from mumoe.errors import JobError
from mumoe.files import HOLDER, JOB_LOCK, write_errors

__all__ = ["FolderLock"]


class FolderLock:
    """The lock of a folder, as a context manager; the folder is made if it is missing.

    Args:
        folder: The folder.
        who: First word of the messages.
        what: What another job would be in, for the message.
        remedy: Last sentence of the message if the folder cannot be written.
    """

    def __init__(self, folder: Path, *, who: str, what: str = "this folder", remedy: str | None = None) -> None:
        self.folder, self.who, self.what, self.remedy = folder, who, what, remedy
        self._lock: Any = None

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._lock is not None

    def acquire(self) -> None:
        """Acquire it, unless this object holds it.

        Raises:
            JobError: If another job works in the folder, or it cannot be written.
        """
        from filelock import FileLock, Timeout

        if self._lock is not None:
            return
        lock = FileLock(self.folder / JOB_LOCK)
        try:
            with write_errors(self.folder, who=self.who, remedy=self.remedy):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0)
        except Timeout:
            raise JobError(
                f"{self.folder}: expected no other job in {self.what}, got {self._holder()}. "
                "Wait for it, or give another `out`."
            ) from None
        self._lock = lock
        with contextlib.suppress(OSError):  # it only tells others who holds the lock
            (self.folder / HOLDER).write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")

    def _holder(self) -> str:
        try:
            return (self.folder / HOLDER).read_text(encoding="utf-8")[:200] or "another process"
        except (OSError, ValueError):
            return "another process"

    def release(self) -> None:
        """Release it, if it is held."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self.folder / HOLDER).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
