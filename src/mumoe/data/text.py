"""Text as tokens on disk, cut into windows, for training language models.

A text is a folder with one file of tokens for each split, flat unsigned integers read through a memory map, and a
``meta.json`` that describes them; `data.tokenizing` writes it. The rows of the training loop are
windows of `context` tokens and the token that follows each. In training, the grid of windows is shifted by another
amount in each epoch, which depends only on the seed and the epoch.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from keyword import kwlist
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.data.base import SPLITS, SplitName
from mumoe.data.stdlib_text import stdlib_folder
from mumoe.data.tokenizing import FORMAT, META, Tokenizer, open_tokenizer
from mumoe.errors import JobError, UserError, reason_of, shown, unknown_name
from mumoe.files import read_json
from mumoe.records import read_typed

__all__ = [
    "TEXTS",
    "TOKEN_CLASSES",
    "TextData",
    "classify",
    "load_text",
    "open_text",
]

TEXTS = ("stdlib", "tokens:FOLDER")

TOKEN_CLASSES = ("keyword", "lower case", "upper case", "digit", "space", "newline", "bracket", "punctuation", "other")
"""Kinds of tokens, from the most to the least special; `classify` gives each token one."""


_WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


def classify(pieces: Sequence[str]) -> npt.NDArray[np.int64]:
    """The class of each token of a text, as positions in `TOKEN_CLASSES`.

    A token is of class ``keyword`` if its letters lie in a whole word that is a keyword of Python, wherever
    the tokens are cut. Otherwise its first character that is not a space decides. A token of spaces is
    ``newline`` if it contains a line break, else ``space``.
    """
    text = "".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    keyword = np.zeros(len(text) + 1, dtype=bool)
    for word in _WORD.finditer(text):
        if word[0] in _KEYWORDS:
            keyword[word.start() : word.end()] = True
    codes = np.empty(len(pieces), dtype=np.int64)
    for position, (piece, end) in enumerate(zip(pieces, ends, strict=True)):
        bare = piece.lstrip()
        inside = bool(keyword[end - len(bare)]) if bare else False
        codes[position] = 0 if inside else TOKEN_CLASSES.index(_kind(piece, bare))
    return codes


_KEYWORDS = frozenset(kwlist)


def _kind(piece: str, bare: str) -> str:
    if not bare:
        return "newline" if "\n" in piece else "space" if piece else "other"
    first = bare[0]
    if first.isalpha() or first == "_":
        return "upper case" if first.isupper() else "lower case"
    if first.isdigit():
        return "digit"
    if first in "()[]{}<>":
        return "bracket"
    return "punctuation" if first in string.punctuation else "other"


@dataclass(frozen=True)
class TextData:
    """A tokenized text as rows of windows: the counterpart of `ImageData`.

    Attributes:
        name: The name that the user gave.
        tokens: Split -> (tokens,) unsigned integers, memory-mapped.
        context: Tokens of a window, without the one that follows.
        tokenizer: Its tokenizer.
        tokenizer_name: ``bytes``, or the file in the folder.
        text_bytes: Split -> bytes of UTF-8 in it.
        fingerprint: Hex digest of the tokens.
        folder: Its folder.
        credits: Licence and attribution lines.
    """

    name: str
    tokens: Mapping[str, npt.NDArray[Any]]
    context: int
    tokenizer: Tokenizer
    tokenizer_name: str
    text_bytes: Mapping[str, int]
    fingerprint: str
    folder: Path
    credits: tuple[str, ...] = ()

    multi_label = False
    classes = TOKEN_CLASSES

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, Mapping) or set(self.tokens) != set(SPLITS):
            raise UserError(f"text: expected tokens of the splits {', '.join(SPLITS)}, got {shown(self.tokens)}.")
        if not isinstance(self.context, int) or self.context < 1:
            raise UserError(f"text: expected a context of at least 1 token, got {shown(self.context)}.")

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """Windows of each split; every shift of a window of train fits too."""
        counts = {name: max(len(self.tokens[name]) - 1, 0) // self.context for name in ("val", "test")}
        return {"train": max((len(self.tokens["train"]) - self.context) // self.context, 0), **counts}

    def __len__(self) -> int:
        return sum(self.rows.values())

    def describe(self) -> str:
        """A summary in one line: windows and tokens of each split, and the vocabulary."""
        parts = ", ".join(f"{name} {self.rows[name]:,} ({len(self.tokens[name]):,} tokens)" for name in SPLITS)
        return (
            f"{self.name}: windows of {self.context:,} tokens out of {self.tokenizer.vocabulary:,}; "
            f"split by document: {parts}"
        )

    def indices(self, split: SplitName) -> npt.NDArray[np.int64]:
        """Rows of a split; those of train come first, then val, then test."""
        start = sum(self.rows[name] for name in SPLITS[: SPLITS.index(split)])
        return np.arange(start, start + self.rows[split], dtype=np.int64)

    def window(self, row: int, shift: int = 0) -> npt.NDArray[np.int64]:
        """(context + 1,) tokens of a row, shifted by `shift` tokens (only in train)."""
        for name in SPLITS:
            if row < self.rows[name]:
                start = row * self.context + (shift if name == "train" else 0)
                tokens = self.tokens[name][start : start + self.context + 1].astype(np.int64)
                if tokens.max(initial=0) >= self.tokenizer.vocabulary:
                    raise JobError(
                        f"{self.name}: expected tokens below {self.tokenizer.vocabulary:,}, got {tokens.max():,}. "
                        "Write them again with mumoe tokenize."
                    )
                return tokens
            row -= self.rows[name]
        raise IndexError(row)

    @functools.cached_property
    def token_classes(self) -> npt.NDArray[np.int64]:
        """(vocabulary,) class of each token alone, for the tallies of an evaluation."""
        pieces = self.tokenizer.pieces(range(self.tokenizer.vocabulary))
        return np.array([int(classify([piece])[0]) for piece in pieces], dtype=np.int64)

    def bits_per_byte(self, loss: float, split: str) -> float:
        """A mean loss in nats per token, as bits per byte of the split's text."""
        return loss / float(np.log(2)) * len(self.tokens[split]) / max(self.text_bytes[split], 1)


def load_text(name: str, *, context: int, cache_dir: str | None = None, progress: bool = True) -> TextData:
    """A text by name: ``stdlib`` (documentation in every Python installation) or ``tokens:FOLDER``.

    Raises:
        UserError: For an unknown name or a folder without tokens, or a context longer than its text.
    """
    if name.startswith("tokens:"):
        return open_text(Path(name.removeprefix("tokens:")).expanduser(), name, context=context)
    if (Path(name).expanduser() / META).is_file():
        raise UserError(f"train: expected a text, got the folder {name!r}. Use tokens:{name}.")
    if name != "stdlib":
        raise unknown_name("train", "text", name, TEXTS)
    return open_text(stdlib_folder(cache_dir, progress=progress), name, context=context)


def open_text(folder: Path, name: str = "", *, context: int) -> TextData:
    """The text in a folder that `data.tokenizing` wrote.

    Raises:
        UserError: If the folder holds none, or its training split is shorter than a window.
        JobError: If its files are damaged.
    """
    found = _meta(folder)
    try:
        meta = read_typed(_Meta, found, META)
        kind = np.dtype(meta.dtype)
        tokens = {split: _map(folder / f"{split}.bin", kind, meta.splits[split].tokens) for split in SPLITS}
        sizes = {split: meta.splits[split].bytes for split in SPLITS}
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        raise JobError(
            f"{folder}: expected intact tokens, got: {reason_of(error)}. Write them again with mumoe tokenize."
        ) from None
    tokenizer = open_tokenizer(meta.tokenizer, folder)
    name = name or f"tokens:{folder}"
    data = TextData(name, tokens, context, tokenizer, meta.tokenizer, sizes, meta.fingerprint, folder, meta.credits)
    if data.rows["train"] < 1:
        raise UserError(
            f"{data.name}: expected a training text of at least {2 * context:,} tokens for a context of "
            f"{context:,}, got {len(tokens['train']):,}. Use a smaller context or more text."
        )
    return data


@dataclass(frozen=True)
class _Split:
    """A split in meta.json."""

    tokens: int
    bytes: int


@dataclass(frozen=True)
class _Meta:
    """What meta.json holds besides its format."""

    dtype: str
    splits: Mapping[str, _Split]
    fingerprint: str
    tokenizer: str
    credits: tuple[str, ...] = ()


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    if not path.is_file():
        raise UserError(
            f"text: expected a folder of tokens, got {str(folder)!r} without {META}. "
            "Write one with: mumoe tokenize FILES --out FOLDER"
        )
    try:
        meta = read_json(path)
    except ValueError as error:
        raise JobError(f"{path}: expected JSON, got: {error}. Write it again with mumoe tokenize.") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise JobError(f"{path}: expected tokens of format {FORMAT}, got others. Write them again with mumoe tokenize.")
    return meta


def _map(path: Path, kind: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    if kind.kind != "u":
        raise ValueError(f"dtype {kind}")
    size = path.stat().st_size if path.is_file() else -1
    if size != count * kind.itemsize:
        raise ValueError(f"{path.name} of {size} bytes instead of {count * kind.itemsize}")
    if count == 0:
        return np.zeros(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r", shape=(count,))
