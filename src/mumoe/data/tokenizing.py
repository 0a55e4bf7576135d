"""Tokenizers, and tokenizing of text, JSON-lines or parquet files, document by document, in bounded memory.

A document goes to val or test by a digest of its text, so that the split depends neither on the order of the
files nor on their number, and equal documents are never in different splits.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mumoe.data.archives import parquet_batches
from mumoe.data.base import SPLITS
from mumoe.data.layout import files_below
from mumoe.errors import JobError, UserError, require, shown
from mumoe.files import inside, new_folder, regular_size

__all__ = [
    "BYTES",
    "FORMAT",
    "META",
    "ByteTokenizer",
    "FileTokenizer",
    "Tokenizer",
    "documents_of",
    "open_tokenizer",
    "split_of",
    "text_files",
    "tokenize",
    "write_tokens",
]

META = "meta.json"
FORMAT = 1
BYTES = "bytes"

SUFFIXES = (".txt", ".md", ".rst", ".jsonl", ".parquet")
_AT_ONCE = 1 << 22
"""Number of characters that are encoded together."""


# Tokenizers -----------------------------------------------------------------------------------------------


class Tokenizer(Protocol):
    """Text to tokens and back.

    Attributes:
        vocabulary: Number of tokens.
        end: The token between two documents.
    """

    vocabulary: int
    end: int

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of some texts, without separators."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; incomplete characters become U+FFFD."""
        ...

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token alone."""
        ...


class ByteTokenizer:
    """Every byte of UTF-8 a token; byte 0 between documents."""

    vocabulary, end = 256, 0

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.replace("\0", " ").encode("utf-8")) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes([int(token) for token in tokens]).decode("utf-8", errors="replace")

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        return [chr(token) if token < 128 else "\ufffd" for token in tokens]


class FileTokenizer:
    """A tokenizer of Hugging Face's ``tokenizers``, from its tokenizer.json.

    Args:
        path: The file. Its token ``<|endoftext|>``, or else its last special token, separates documents.

    Raises:
        UserError: If the file is not a tokenizer, or has no such token.
    """

    def __init__(self, path: Path) -> None:
        tokenizers = require("tokenizers", "text", "tokenizer")
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise UserError(f"tokenizer: expected a tokenizer.json, got {str(path)!r} ({error}).") from None
        self.vocabulary = int(self._tokenizer.get_vocab_size())
        special = {str(token): number for number, token in self._tokenizer.get_added_tokens_decoder().items()}
        end = self._tokenizer.token_to_id("<|endoftext|>")
        if end is None and not special:
            raise UserError(f"tokenizer: expected a special token that ends documents, got none in {str(path)!r}.")
        self.end = int(max(special.values()) if end is None else end)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        return [self.decode([token]) for token in tokens]


def open_tokenizer(name: str, folder: Path | None = None) -> Tokenizer:
    """``bytes``, or a tokenizer.json: a path, or a file name within `folder`.

    Raises:
        UserError: If it is neither.
    """
    if name == BYTES:
        return ByteTokenizer()
    try:
        path = Path(name).expanduser() if folder is None else inside(folder, name)
        found = path.is_file()
    except (ValueError, OSError, RuntimeError):  # a name that cannot be one of a file, or of a user's home
        found = False
    if not found:
        raise UserError(f"tokenizer: expected {BYTES!r} or a tokenizer.json, got {shown(name)}, which does not exist.")
    return FileTokenizer(path)


# Writing --------------------------------------------------------------------------------------------------


def tokenize(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str = BYTES,
    val: float = 0.005,
    test: float = 0.005,
    column: str = "text",
    credits: Sequence[str] = (),
) -> dict[str, Any]:
    """Tokenize files into a new folder for `text.open_text`; it appears only when it is complete.

    Args:
        files: Text files (each a document), ``.jsonl`` and ``.parquet`` files (each row a document), or folders
            of such.
        out: The new folder.
        tokenizer: ``bytes``, or a tokenizer.json, which is copied into the folder.
        val: Share of the documents that go to the validation split.
        test: Share that goes to the test split.
        column: Field or column of the text.
        credits: Licence and attribution lines to store with it.

    Returns:
        The content of meta.json.

    Raises:
        UserError: If there is no such file or tokenizer, or `out` exists.
        JobError: If a file cannot be read.
    """
    folder = Path(out).expanduser()
    if folder.exists():
        raise UserError(f"tokenize: expected a new folder, got {str(folder)!r}, which exists. Give another `out`.")
    if min(val, test) < 0 or val + test >= 1:
        raise UserError(f"tokenize: expected shares that leave some for train, got val={val}, test={test}.")
    paths = text_files(files)
    made = open_tokenizer(tokenizer)
    with new_folder(folder, who="mumoe tokenize") as part:
        name = BYTES
        if tokenizer != BYTES:
            name = "tokenizer.json"
            shutil.copyfile(Path(tokenizer).expanduser(), part / name)
        documents = (text for path in paths for text in documents_of(path, column))
        return write_tokens(part, documents, made, name, val=val, test=test, credits=credits)


def text_files(names: Sequence[str | Path]) -> list[Path]:
    """Files that can be read as text, those of folders in the order of their names.

    Raises:
        UserError: If there is none, or a name does not exist.
        JobError: If a folder cannot be listed.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            closed: list[str] = []
            paths += sorted(found for found in files_below(path, closed) if found.suffix in SUFFIXES)
            if closed:
                raise JobError(
                    f"tokenize: expected folders that can be listed, got {closed[0]}. Change its permissions."
                )
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"tokenize: expected a file or folder, got {str(path)!r}, which does not exist.")
    if not paths:
        raise UserError(f"tokenize: expected files of {', '.join(SUFFIXES)}, got none.")
    return paths


def documents_of(path: Path, column: str = "text") -> Iterator[str]:
    """The documents of a file, one at a time.

    Raises:
        JobError: If it cannot be read, or has no such column.
    """
    try:
        regular_size(path)
        if path.suffix == ".parquet":
            yield from _rows(path, column)
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as file:
                for line in file:
                    yield _document(_field(json.loads(line), column))
        else:
            yield path.read_text(encoding="utf-8")
    except KeyError:
        raise JobError(f"{path}: expected a column {column!r}, got none. Name it with `column`.") from None
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"{path}: expected text, got: {' '.join(str(error).split())[:200]}.") from None


def _rows(path: Path, column: str) -> Iterator[str]:
    parquet = require("pyarrow.parquet", "data", "mumoe tokenize")
    with parquet.ParquetFile(path) as file:
        if column not in file.schema_arrow.names:
            raise KeyError(column)
    for batch in parquet_batches(path, "mumoe tokenize", [column]):
        yield from map(_document, batch.column(0).to_pylist())


def _field(row: Any, column: str) -> Any:
    if not isinstance(row, dict):
        raise ValueError(f"a line that is not an object: {shown(row)}")
    return row[column]


def _document(value: Any) -> str:
    """The text of a row; empty if it has none."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str):
        raise ValueError(f"a row of type {type(value).__name__}")
    return value


def split_of(text: str, val: float, test: float) -> str:
    """The split of a document, by its content."""
    place = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    return "val" if place < val else "test" if place < val + test else "train"


def write_tokens(
    folder: Path,
    documents: Iterable[str],
    tokenizer: Tokenizer,
    tokenizer_name: str,
    *,
    val: float,
    test: float,
    credits: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the token files and meta.json of some documents into an empty folder; returns the content of meta.json.

    Raises:
        UserError: If there is no document.
    """
    kind = np.dtype("uint8" if tokenizer.vocabulary <= 256 else "uint16" if tokenizer.vocabulary <= 65536 else "uint32")
    counts = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
    empty = [0]
    digest = hashlib.sha256(f"{tokenizer_name} {kind}".encode())
    files = {split: (folder / f"{split}.bin").open("wb") for split in SPLITS}
    try:
        for texts in _groups(documents, empty):
            for text, ids in zip(texts, tokenizer.encode_all(texts), strict=True):
                split = split_of(text, val, test)
                values = np.array([*ids, tokenizer.end], dtype=kind)
                files[split].write(values.tobytes())
                digest.update(split.encode() + values.tobytes())
                count = counts[split]
                count["documents"] += 1
                count["tokens"] += len(values)
                count["bytes"] += len(text.encode("utf-8", "replace"))
    finally:
        for file in files.values():
            file.close()
    if not counts["train"]["documents"]:
        raise UserError("tokenize: expected documents for the training split, got none. Give more files.")
    meta = {
        "format": FORMAT,
        "tokenizer": tokenizer_name,
        "vocabulary": tokenizer.vocabulary,
        "dtype": str(kind),
        "splits": counts,
        "fingerprint": digest.hexdigest(),
        "without_text": empty[0],
        "credits": list(credits),
    }
    (folder / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    return meta


def _groups(documents: Iterable[str], empty: list[int]) -> Iterator[list[str]]:
    """Documents in groups of bounded length, empty ones left out and counted."""
    group: list[str] = []
    size = 0
    for text in documents:
        if not text.strip():
            empty[0] += 1
            continue
        group.append(text)
        size += len(text)
        if size >= _AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group
