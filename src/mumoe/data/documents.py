"""Documents with labels, and their tokens as contexts of one length: the text that a language model is looked at with.

A document has a text, a genre and tags of stretches of it; genre and tags may be missing. Its tokens are cut into
contexts, each of which begins with the model's start token; what is left at the end of a document is dropped. A
document belongs to one split as a whole, chosen by a digest of its text (`tokenizing.split_of`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mumoe.data.base import SPLITS
from mumoe.data.cache import sealed_folder
from mumoe.data.tokenizing import split_of
from mumoe.errors import UserError, unknown_name
from mumoe.files import cache_root, read_array, read_json, write_json

__all__ = ["Contexts", "Document", "OffsetTokenizer", "Span", "cut", "from_tokens", "sealed_contexts"]

SHARE = 0.1
"""Share of the documents in val, and in test."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """A stretch of a text, from character `start` to before `end`, and its tag."""

    start: int
    end: int
    tag: str


@dataclass(frozen=True)
class Document:
    """A text with its labels.

    Attributes:
        name: Of the document.
        text: The text.
        genre: Its genre; empty where unknown.
        spans: Tags of stretches of the text, ascending and apart.
        split: train, val or test; empty: by a digest of the text.
    """

    name: str
    text: str
    genre: str = ""
    spans: tuple[Span, ...] = ()
    split: str = ""


class OffsetTokenizer(Protocol):
    """What cutting needs of a tokenizer.

    Attributes:
        key: Digest of everything that its tokens depend on.
        start: Token that every context begins with.
    """

    key: str
    start: int

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """For each text its tokens, without special ones, and the characters that each of them covers."""
        ...


@dataclass(frozen=True)
class Contexts:
    """Contexts of one length.

    Attributes:
        name: As the user gave it.
        tokens: (contexts, length) int64; the first column is the start token.
        document: (contexts,) number of the document.
        tag: (contexts, length) number of each token's tag; -1 for none.
        split: (contexts,) position in `SPLITS`.
        documents: Names of the documents.
        document_genre: (documents,) number of each document's genre; -1 for none.
        genres: Their names.
        tags: Names of the tags.
        fingerprint: Hex digest of all of it.
        credits: Licence and attribution lines.
    """

    name: str
    tokens: Integers
    document: Integers
    tag: Integers
    split: Integers
    documents: tuple[str, ...]
    document_genre: Integers
    genres: tuple[str, ...]
    tags: tuple[str, ...]
    fingerprint: str
    credits: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of a context, the start token included."""
        return int(self.tokens.shape[1])

    @property
    def genre(self) -> Integers:
        """(contexts,) number of the genre; -1 for none."""
        return self.document_genre[self.document]

    def order(self, split: str) -> Integers:
        """The contexts of a split in one fixed random order that takes documents in turn.

        The first so many of them come from as many documents as possible, and more of them begin with the same ones.

        Raises:
            UserError: If there is no such split.
        """
        if split not in SPLITS:
            raise unknown_name("decompose", "split", split, SPLITS)
        rows = np.flatnonzero(self.split == SPLITS.index(split))
        rows = np.random.default_rng(0).permutation(rows)
        turn = np.zeros(len(rows), dtype=np.int64)
        seen: dict[int, int] = {}
        for place, document in enumerate(self.document[rows].tolist()):
            turn[place] = seen[document] = seen.get(document, -1) + 1
        return rows[np.argsort(turn, kind="stable")]

    def describe(self) -> str:
        """One line: contexts and documents of each split."""
        parts = []
        for number, name in enumerate(SPLITS):
            chosen = self.split == number
            documents = len(np.unique(self.document[chosen]))
            parts.append(f"{name} {int(chosen.sum()):,} ({documents:,} documents)")
        return f"{self.name}: contexts of {self.length:,} tokens: {', '.join(parts)}"


def cut(
    documents: Iterable[Document], tokenizer: OffsetTokenizer, length: int, name: str, credits: Sequence[str] = ()
) -> Contexts:
    """Contexts of documents.

    Args:
        documents: The documents.
        tokenizer: Of the model.
        length: Tokens of a context, the start token included.
        name: As the user gave it.
        credits: Licence and attribution lines.

    Raises:
        UserError: If no document is as long as a context.
    """
    given = list(documents)
    genres = sorted({one.genre for one in given if one.genre})
    tags = sorted({span.tag for one in given for span in one.spans})
    number = {tag: place for place, tag in enumerate(tags)}
    rows: list[list[int]] = []
    labels: list[list[int]] = []
    owners: list[tuple[int, int]] = []
    longest, step = 0, length - 1
    for place, (one, (ids, offsets)) in enumerate(zip(given, _encoded(given, tokenizer), strict=True)):
        found = _tags_of(one.spans, offsets, number)
        split = SPLITS.index(one.split or split_of(one.text, SHARE, SHARE))
        longest = max(longest, len(ids))
        for begin in range(0, len(ids) - step + 1, step):
            rows.append([tokenizer.start, *ids[begin : begin + step]])
            labels.append([-1, *found[begin : begin + step]])
            owners.append((place, split))
    if not rows:
        raise UserError(
            f"{name}: expected a document of at least {step:,} tokens for a context of {length:,}, got at most "
            f"{longest:,} in {len(given):,} documents. Give a longer text, or a smaller context."
        )
    arrays = (
        np.array(rows, dtype=np.int64),
        np.array([owner for owner, _ in owners], dtype=np.int64),
        np.array(labels, dtype=np.int64),
        np.array([split for _, split in owners], dtype=np.int64),
        np.array([genres.index(one.genre) if one.genre else -1 for one in given], dtype=np.int64),
    )
    tokens, document, tag, split_numbers, document_genre = arrays
    return Contexts(
        name=name,
        tokens=tokens,
        document=document,
        tag=tag,
        split=split_numbers,
        documents=tuple(one.name for one in given),
        document_genre=document_genre,
        genres=tuple(genres),
        tags=tuple(tags),
        fingerprint=_digest(arrays),
        credits=tuple(credits),
    )


def from_tokens(
    documents: Iterable[tuple[str, Sequence[int]]], start: int, length: int, name: str, credits: Sequence[str] = ()
) -> Contexts:
    """Contexts of documents that are tokens already.

    Args:
        documents: Split and tokens of each document.
        start: Token that every context begins with.
        length: Tokens of a context, the start token included.
        name: As the user gave it.
        credits: Licence and attribution lines.

    Raises:
        UserError: As `cut`.
    """
    given = list(documents)
    tokenizer = _Tokens(start, [list(ids) for _, ids in given])
    named = [Document(f"document {place}", str(place), split=split) for place, (split, _) in enumerate(given)]
    return cut(named, tokenizer, length, name, credits)


@dataclass
class _Tokens:
    """A tokenizer of documents whose text is their number."""

    start: int
    ids: list[list[int]]
    key: str = ""

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        return [(self.ids[int(text)], [(0, 0)] * len(self.ids[int(text)])) for text in texts]


def _encoded(
    documents: Sequence[Document], tokenizer: OffsetTokenizer
) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    for start in range(0, len(documents), 64):
        yield from tokenizer.encode([one.text for one in documents[start : start + 64]])


def _tags_of(spans: Sequence[Span], offsets: Sequence[tuple[int, int]], number: dict[str, int]) -> list[int]:
    """Tag of each token: that of the stretch which holds the token's last character."""
    found, place = [], 0
    for start, end in offsets:
        while place < len(spans) and spans[place].end <= end - 1:
            place += 1
        inside = place < len(spans) and spans[place].start < end and end > start
        found.append(number[spans[place].tag] if inside else -1)
    return found


def _digest(arrays: Sequence[Integers]) -> str:
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(f"{values.shape} ".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


# In the cache ---------------------------------------------------------------------------------------------

_ARRAYS = ("tokens", "document", "tag", "split", "document_genre")
_NAMES = ("documents", "genres", "tags", "credits")


def sealed_contexts(
    made: Any,
    tokenizer: OffsetTokenizer,
    length: int,
    name: str,
    key: str,
    credits: Sequence[str] = (),
    cache_dir: str | os.PathLike[str] | None = None,
) -> Contexts:
    """`cut`, kept in the cache: a second call reads what the first one wrote.

    Args:
        made: Returns the documents; called only if they are not in the cache.
        tokenizer: Of the model.
        length: Tokens of a context.
        name: As the user gave it.
        key: Digest of what the documents depend on.
        credits: Licence and attribution lines.
        cache_dir: Where; None: the usual cache.

    Raises:
        UserError: As `cut`.
    """

    def write(folder: Path) -> None:
        found = cut(made(), tokenizer, length, name, credits)
        for array in _ARRAYS:
            np.save(folder / f"{array}.npy", getattr(found, array))
        texts = {part: getattr(found, part) for part in _NAMES}
        write_json(folder / "contexts.json", {**texts, "fingerprint": found.fingerprint})

    whole = hashlib.sha256(json.dumps(["1", key, tokenizer.key, tokenizer.start, length]).encode()).hexdigest()
    folder = sealed_folder(cache_root(cache_dir) / "contexts" / whole[:20], write, who="decompose")[0]
    about = read_json(folder / "contexts.json", "decompose")
    held: dict[str, Any] = {array: read_array(folder / f"{array}.npy") for array in _ARRAYS}
    held |= {part: tuple(about[part]) for part in _NAMES}
    return Contexts(name, **held, fingerprint=about["fingerprint"])
