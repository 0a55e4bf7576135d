"""Folders that cannot be written and disks that are small, for root too."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["can_mount", "filled", "limit_files", "read_only", "small_disk"]

PAGE = 4096


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mounted read-only as root, whom permissions do not stop; else without write permission."""
    mounted = os.geteuid() == 0
    if mounted:
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    else:
        folder.chmod(0o555)
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        else:
            folder.chmod(0o755)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a disk on a folder."""
    if os.geteuid() != 0:
        return False
    try:
        with small_disk(folder, 16 * PAGE):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes in memory, mounted on a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled(disk: Path, left: int) -> Iterator[None]:
    """A disk with only so many bytes free, whole pages."""
    ballast = disk / ".ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with ballast.open("wb") as file:
        taken = max(free - left, 0) // PAGE * PAGE
        if taken:
            os.posix_fallocate(file.fileno(), 0, taken)
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def limit_files(disk: Path, left: int) -> Iterator[None]:
    """A disk in memory on which only so many more files and folders can be made."""
    status = os.statvfs(disk)

    def allow(number: int) -> None:
        subprocess.run(["mount", "-o", f"remount,nr_inodes={number}", str(disk)], check=True)

    allow(status.f_files - status.f_ffree + left)
    try:
        yield
    finally:
        allow(status.f_files)
