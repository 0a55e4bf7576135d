"""The text of a decomposition by name, as contexts of the model's tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mumoe.data.base import SPLITS
from mumoe.data.brown import CREDIT, PACKAGE, brown_documents
from mumoe.data.documents import Contexts, Document, cut, from_tokens, sealed_contexts
from mumoe.data.stdlib_text import CREDIT as STDLIB_CREDIT
from mumoe.data.stdlib_text import stdlib_documents
from mumoe.data.text import TextData, open_text
from mumoe.data.tokenizing import documents_of, text_files
from mumoe.errors import UserError, check_size
from mumoe.files import digest_file
from mumoe.models.language import LanguageModel

__all__ = ["TEXTS", "Text", "open_contexts"]

TEXTS = ("brown", "stdlib", "folder:PATH", "tokens:FOLDER")
WHO = "decompose"
SAMPLE = 200
"""Tokens on which a tokenizer is compared with the model's."""

Text = str | Sequence[Document] | Contexts
"""A name, documents, or contexts that were made before."""


def open_contexts(
    text: Text, language: LanguageModel, length: int, *, cache_dir: str | None = None, progress: bool = True
) -> Contexts:
    """A text as contexts of a model.

    Args:
        text: ``brown`` (the Brown corpus, with genres and tags), ``stdlib`` (documentation in every Python
            installation), ``folder:PATH`` (files of text, JSON lines or parquet), ``tokens:FOLDER`` (what
            ``mumoe tokenize`` wrote, with the model's tokenizer); or documents; or contexts.
        language: The model, whose tokenizer cuts the text.
        length: Tokens of a context, the start token included.
        cache_dir: Where the corpus and the tokens are kept; None: the usual cache.
        progress: Whether to show progress.

    Raises:
        UserError: If there is no such text, it is shorter than a context, or its tokens are another model's.
        JobError: If it cannot be fetched or read.
    """
    if isinstance(text, Contexts):
        return text
    if check_size(length, "context", WHO) < 3:
        raise UserError(f"{WHO}: expected a `context` of at least 3 tokens, got {length}. 128 is usual.")
    tokenizer = language.tokenizer
    if not isinstance(text, str):
        return cut(text, tokenizer, length, "the documents")
    kind, _, place = text.partition(":")
    if text == "brown":
        made = lambda: brown_documents(cache_dir, progress=progress)  # noqa: E731
        return sealed_contexts(made, tokenizer, length, text, PACKAGE.integrity, [CREDIT], cache_dir)
    if text == "stdlib":
        documents = (Document(f"document {n}", one) for n, one in enumerate(stdlib_documents(progress=progress)))
        return cut(documents, tokenizer, length, text, [STDLIB_CREDIT])
    if kind == "folder" and place:
        paths = text_files([place])
        key = hashlib.sha256(json.dumps([digest_file(path) for path in paths]).encode()).hexdigest()
        return sealed_contexts(lambda: _documents(paths), tokenizer, length, text, key, cache_dir=cache_dir)
    if kind == "tokens" and place:
        data = open_text(Path(place).expanduser(), text, context=length - 1)
        _check_tokenizer(data, language)
        return from_tokens(_split_documents(data), tokenizer.start, length, text, data.credits)
    raise UserError(
        f"{WHO}: expected `text` out of {', '.join(TEXTS)}, got {text!r}. For a folder write folder:{text}."
    )


def _documents(paths: Sequence[Path]) -> Iterator[Document]:
    for path in paths:
        for number, text in enumerate(documents_of(path)):
            if text.strip():
                yield Document(f"{path.name} {number}" if number else path.name, text)


def _check_tokenizer(data: TextData, language: LanguageModel) -> None:
    """Refuse tokens of another tokenizer, which would be read as other words."""
    sample = data.tokens["train"][:SAMPLE].tolist()
    sample = [token for token in sample if token != data.tokenizer.end]
    known = max(sample, default=0) < language.tokenizer.vocabulary
    if not known or data.tokenizer.decode(sample) != language.tokenizer.decode(sample):
        raise UserError(
            f"{data.name}: expected tokens of the tokenizer of {language.name}, got others. "
            "Write them with: mumoe tokenize --tokenizer TOKENIZER.JSON, the file of that model."
        )


def _split_documents(data: TextData) -> Iterator[tuple[str, list[int]]]:
    """Split and tokens of each document, without the token between documents."""
    for split in SPLITS:
        tokens = np.asarray(data.tokens[split])
        ends = np.flatnonzero(tokens == data.tokenizer.end)
        for part in np.split(tokens, ends):
            ids = part[part != data.tokenizer.end].tolist()
            if ids:
                yield split, ids
