"""Read compressed files up to a limit, so that a small file cannot fill the memory or the disk.

What a file expands to may be `MOST_BYTES`, or `MOST_RATIO` times its size where that is more: enough for real data of
any size, and too little for a decompression bomb. Images have a limit of their own, `decode.MAX_PIXELS`.
"""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mumoe.errors import UserError, reason_of, require

__all__ = [
    "MOST_BYTES",
    "MOST_RATIO",
    "check_expanded",
    "copy_member",
    "most_expanded",
    "parquet_batches",
    "read_gzip",
    "require_parquet",
]

MOST_BYTES = 1 << 28
"""Bytes that a compressed file may expand to, however small it is."""

MOST_RATIO = 100
"""Times its size that a larger file may expand to; text and tables shrink 5 to 20 times."""

BLOCK = 1 << 20
"""Bytes that are expanded at a time."""

ROWS = 1024
"""Rows of a parquet file that are decoded at a time."""


def most_expanded(path: Path) -> int:
    """Bytes that a file may expand to."""
    return max(MOST_BYTES, MOST_RATIO * path.stat().st_size)


def _too_large(who: str, path: Path, most: int) -> UserError:
    return UserError(
        f"{who}: expected a compressed file that expands to at most {most:,} bytes, got more in {str(path)!r}. "
        "If it is genuine, unpack it and give what is in it."
    )


def read_gzip(path: Path, who: str) -> bytes:
    """The content of a ``.gz`` file.

    Raises:
        UserError: If it expands to more than `most_expanded`.
        OSError, EOFError, zlib.error: If it is damaged.
    """
    content = io.BytesIO()
    with gzip.open(path) as source:
        copy_member(source, content, path, who)  # type: ignore[arg-type]
    return content.getvalue()


def copy_member(source: IO[bytes], target: IO[bytes], path: Path, who: str) -> int:
    """Copy one file out of an archive; returns its size.

    Raises:
        UserError: If it is larger than `most_expanded` of the archive.
    """
    most, size = most_expanded(path), 0
    while block := source.read(BLOCK):
        size += len(block)
        if size > most:
            raise _too_large(who, path, most)
        target.write(block)
    return size


def check_expanded(path: Path, who: str) -> None:
    """Raise if a file that a library will unpack, by its extension, expands to too much; others pass.

    ``.zip`` and ``.parquet`` are judged by what they declare, which their readers do not exceed; ``.gz``, ``.tgz``,
    ``.bz2`` and ``.xz`` are expanded once, without keeping anything.

    Raises:
        UserError: If it expands to more than `most_expanded`, or is damaged.
    """
    suffix = path.suffix.lower()
    if suffix == ".zip":
        _check_zip(path, who)
    elif suffix == ".parquet":
        require_parquet(path, who)
    elif suffix in _STREAMS:
        _check_stream(path, who, _STREAMS[suffix])


def _check_zip(path: Path, who: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{who}: expected an intact zip, got {str(path)!r} ({reason_of(error, 120)}).") from error
    if size > most_expanded(path):
        raise _too_large(who, path, most_expanded(path))


def _open_gzip(path: Path) -> IO[bytes]:
    return gzip.open(path)  # type: ignore[return-value]


def _open_bz2(path: Path) -> IO[bytes]:
    import bz2

    return bz2.open(path)


def _open_xz(path: Path) -> IO[bytes]:
    import lzma

    return lzma.open(path)


_STREAMS = {".gz": _open_gzip, ".tgz": _open_gzip, ".bz2": _open_bz2, ".xz": _open_xz}


def _check_stream(path: Path, who: str, opened: Any) -> None:
    with opened(path) as source, open(os.devnull, "wb") as target:
        try:
            copy_member(source, target, path, who)
        except UserError:
            raise
        except Exception as error:  # each format has errors of its own
            raise UserError(
                f"{who}: expected an intact archive, got {str(path)!r} ({reason_of(error, 120)}). Fetch it again."
            ) from error


# Parquet --------------------------------------------------------------------------------------------------


def require_parquet(path: Path, who: str) -> None:
    """Raise if a parquet file declares more than it may expand to: encodings repeat one value in a few bytes.

    Raises:
        UserError: In this case, or if it is damaged.
    """
    arrow, parquet = require("pyarrow", "data", who), require("pyarrow.parquet", "data", who)
    try:
        found = parquet.read_metadata(path)
        parts = [found.row_group(n).column(k) for n in range(found.num_row_groups) for k in range(found.num_columns)]
        size = sum(max(part.total_uncompressed_size, part.num_values * _width(part)) for part in parts)
    except (arrow.ArrowException, OSError) as error:
        raise UserError(
            f"{who}: expected an intact parquet file, got {path} ({reason_of(error, 120)}). Write it again."
        ) from error
    if size > most_expanded(path):
        raise _too_large(who, path, most_expanded(path))


def _width(part: Any) -> int:
    """Bytes of a value in memory; of a text at least 4, the place where it ends."""
    return {"BOOLEAN": 1, "INT64": 8, "DOUBLE": 8, "INT96": 12}.get(part.physical_type, 4)


def parquet_batches(path: Path, who: str, columns: list[str] | None = None) -> Iterator[Any]:
    """The rows of a parquet file, some at a time.

    Raises:
        UserError: If it expands to more than `most_expanded`.
    """
    require_parquet(path, who)
    parquet = require("pyarrow.parquet", "data", who)
    most, size = most_expanded(path), 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            size += batch.nbytes
            if size > most:
                raise _too_large(who, path, most)
            yield batch
