"""Find files that cannot be decoded before training reads them, and cache the results.

Two depths:

- ``full`` decodes every file and takes the SHA-256 of its content. ``auto`` means this for up to `FULL_LIMIT` files.
- ``header`` reads the beginning and the end of every file. It finds files that are missing, empty, not images, or
  truncated JPEG or PNG (a file without its end marker at the end is decoded to be sure), but not damage in the
  middle. The digest then covers only size and modification time. ``auto`` means this for larger sets.

Results are cached per file in one small archive for each data folder. A file whose size or modification time
differs is checked again, and so is one that changed in the two seconds before it was checked, since
a file system's clock may be too coarse to show that it changed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from mumoe.data.decode import damage, decode, open_header
from mumoe.errors import JobError, unknown_name
from mumoe.files import cache_root, new_file
from mumoe.progress import Progress

__all__ = ["DEPTHS", "FULL_LIMIT", "Checked", "check_blobs", "check_files", "is_full"]

DEPTHS = ("auto", "full", "header")

FULL_LIMIT = 50_000
"""With ``auto``, larger sets are checked by header. Decoding 50,000 photographs takes a few minutes, once."""

_BATCH = 1024
_COARSE_CLOCK = 2_000_000_000
_TAIL = 2048
_END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}


@dataclass(frozen=True)
class Checked:
    """Result of checking the content of a set of images.

    Attributes:
        digests: (num_images, 32) uint8; differs when the content does.
        problems: Position of an unreadable image -> what is wrong with it.
    """

    digests: npt.NDArray[np.uint8]
    problems: dict[int, str]


@dataclass(frozen=True)
class _Entry:
    """The cached result for one file."""

    size: int
    changed: int
    full: bool
    digest: bytes
    problem: str

    def answers(self, size: int, changed: int, full: bool) -> bool:
        return (self.size, self.changed) == (size, changed) and (self.full or not full)


def is_full(depth: str, count: int) -> bool:
    """Whether `count` images are decoded in full.

    Raises:
        UserError: If the depth is not one of DEPTHS.
    """
    if depth not in DEPTHS:
        raise unknown_name("load_data", "value of verify", depth, DEPTHS)
    return depth == "full" or (depth == "auto" and count <= FULL_LIMIT)


def check_files(
    root: Path,
    paths: Sequence[str],
    *,
    full: bool,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Checked:
    """Check image files, skipping those that were checked before and have not changed.

    Args:
        root: Folder that the paths start from.
        paths: Relative paths.
        full: Decode and hash the content, or look at the header only.
        cache_dir: Where to keep the results; see `mumoe.files.cache_root`.
        progress: Show progress.
    """
    cache = _cache_file(root, cache_dir)
    known = _load(cache)
    stats, problems = _stat_all(root, paths)
    todo = [i for i, (size, at) in stats.items() if not _answered(known.get(paths[i]), size, at, full)]
    fresh: dict[int, _Entry] = {}
    try:
        with Progress("Checking images", len(todo), enabled=progress and bool(todo)) as bar:
            for index, entry in _inspect_all(root, paths, todo, stats, full):
                fresh[index] = entry
                bar.advance()
    finally:
        with contextlib.suppress(OSError, JobError):  # the cache is optional
            _remember(cache, known, {paths[index]: entry for index, entry in fresh.items()})
    digests = np.zeros((len(paths), 32), np.uint8)
    for index, (size, at) in stats.items():
        entry = fresh.get(index) or known[paths[index]]
        if entry.problem:
            problems[index] = entry.problem
        digest = entry.digest if full else hashlib.sha256(b"%d %d" % (size, at)).digest()
        digests[index] = np.frombuffer(digest, np.uint8)
    return Checked(digests, problems)


def check_blobs(count: int, read: Callable[[int], bytes], *, full: bool, progress: bool = True) -> Checked:
    """Check images that are not files of their own, such as the rows of a table.

    Args:
        count: Number of images.
        read: Position -> bytes of the encoded image; may raise OSError.
        full: Decode and hash the content, or look at the header and hash the length, beginning and end.
        progress: Show progress.
    """
    digests = np.zeros((count, 32), np.uint8)
    problems: dict[int, str] = {}
    with Progress("Checking images", count, enabled=progress) as bar, _quiet_pillow():
        for index in range(count):
            try:
                data = read(index)
            except OSError as error:
                problems[index] = damage(error)
                continue
            part = data if full else b"%d " % len(data) + data[:4096] + data[-4096:]
            digests[index] = np.frombuffer(hashlib.sha256(part).digest(), np.uint8)
            if problem := _problem(data, full):
                problems[index] = problem
            bar.advance()
    return Checked(digests, problems)


def _stat_all(root: Path, paths: Sequence[str]) -> tuple[dict[int, tuple[int, int]], dict[int, str]]:
    """Size and modification time of every file that can be read, and what is wrong with the others."""
    stats: dict[int, tuple[int, int]] = {}
    problems: dict[int, str] = {}
    for index, path in enumerate(paths):
        try:
            found = os.stat(os.path.join(root, path))
        except (OSError, ValueError) as error:
            problems[index] = damage(error)
            continue
        if stat.S_ISREG(found.st_mode):
            stats[index] = (found.st_size, found.st_mtime_ns)
        else:
            problems[index] = "not a regular file"
    return stats, problems


def _answered(entry: _Entry | None, size: int, changed: int, full: bool) -> bool:
    return entry is not None and entry.answers(size, changed, full)


def _inspect_all(
    root: Path, paths: Sequence[str], todo: list[int], stats: dict[int, tuple[int, int]], full: bool
) -> Iterator[tuple[int, _Entry]]:
    """Check files on several threads (decoding releases the GIL), a batch at a time."""

    def inspect(index: int) -> _Entry:
        return _inspect(os.path.join(root, paths[index]), *stats[index], full)

    with _quiet_pillow(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(todo), _BATCH):
            batch = todo[start : start + _BATCH]
            yield from zip(batch, pool.map(inspect, batch), strict=True)


def _quiet_pillow() -> warnings.catch_warnings[None]:
    """Silence Pillow's warnings on odd metadata; entered once, since the filters are global to all threads."""
    return warnings.catch_warnings(action="ignore")


def _inspect(path: str, size: int, changed: int, full: bool) -> _Entry:
    try:
        if full:
            data = Path(path).read_bytes()
            return _Entry(size, changed, True, hashlib.sha256(data).digest(), _problem(data, full))
        return _Entry(size, changed, False, bytes(32), _header_problem(path))
    except OSError as error:
        return _Entry(size, changed, full, bytes(32), damage(error))


def _problem(data: bytes, full: bool) -> str:
    """What is wrong with an encoded image; empty if nothing."""
    try:
        if not full and data:
            with open_header(io.BytesIO(data)) as image:
                if _ends_well(image.format, data[-_TAIL:]):
                    return ""
        decode(data)
    except Exception as error:
        return damage(error)
    return ""


def _header_problem(path: str) -> str:
    """`_problem` by header, reading only the parts of the file that this needs."""
    with open(path, "rb") as file:
        try:
            with open_header(file) as image:
                kind = image.format
            tail = _tail(path)
        except Exception:
            return _problem(Path(path).read_bytes(), full=True)
    return "" if _ends_well(kind, tail) else _problem(Path(path).read_bytes(), full=True)


def _tail(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(_TAIL, os.path.getsize(path)), os.SEEK_END)
        return file.read()


def _ends_well(kind: str | None, tail: bytes) -> bool:
    return kind in _END_MARKS and _END_MARKS[kind] in tail


def _cache_file(root: Path, cache_dir: str | os.PathLike[str] | None) -> Path:
    key = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24]
    return cache_root(cache_dir) / "checks" / f"{key}.npz"


def _load(file: Path) -> dict[str, _Entry]:
    """The cached results; a missing, damaged or foreign archive counts as empty."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            paths, problems = (_unpack(archive[name]) for name in ("paths", "problems"))
            sizes, changed, full = (archive[name].tolist() for name in ("sizes", "changed", "full"))
            digests = [row.tobytes() for row in archive["digests"]]
        columns = zip(sizes, changed, full, digests, problems, strict=True)
        return {path: _Entry(*row) for path, row in zip(paths, columns, strict=True)}
    except Exception:
        return {}


def _remember(file: Path, known: dict[str, _Entry], fresh: dict[str, _Entry]) -> None:
    """Add results to the archive, which is written beside it and then renamed into place."""
    newest = time.time_ns() - _COARSE_CLOCK
    fresh = {path: entry for path, entry in fresh.items() if entry.changed < newest}
    if not fresh:
        return
    with new_file(file, durable=False) as part, part.open("wb") as output:
        _save(output, {**known, **fresh})


def _save(output: IO[bytes], entries: dict[str, _Entry]) -> None:
    rows = list(entries.values())
    np.savez(
        output,
        paths=_pack(entries),
        problems=_pack(row.problem for row in rows),
        sizes=np.array([row.size for row in rows], np.int64),
        changed=np.array([row.changed for row in rows], np.int64),
        full=np.array([row.full for row in rows], np.bool_),
        digests=np.frombuffer(b"".join(row.digest for row in rows), np.uint8).reshape(-1, 32),
    )


def _pack(texts: Iterable[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer("\0".join(texts).encode("utf-8", "surrogatepass"), np.uint8)


def _unpack(packed: npt.NDArray[np.uint8]) -> list[str]:
    return packed.tobytes().decode("utf-8", "surrogatepass").split("\0")
