"""`mumoe tokenize`: text, JSON-lines or parquet files as the tokens that a language model is trained on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar

from mumoe.parsing import Argument

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Write files of text as a folder of tokens, for mumoe train --mode text --data tokens:FOLDER."""

    COMMON: ClassVar = {"out": "tokens", "tokenizer": "tokenizer.json", "val": "0.01"}

    files: Annotated[tuple[str, ...], Argument(positional=True, metavar="FILE [FILE ...]")]
    """text files (each a document), .jsonl and .parquet files (each row a document), or folders of such"""
    out: Annotated[str, Argument(("-o", "--out"))]
    """new folder of the tokens"""
    tokenizer: str = "bytes"
    """bytes, or a tokenizer.json of Hugging Face's tokenizers, such as GPT-2's"""
    val: float = 0.005
    """share of the documents that go to the validation split"""
    test: float = 0.005
    """share of the documents that go to the test split"""
    column: str = "text"
    """field or column that holds the text"""
    credits: tuple[str, ...] = ()
    """licence and attribution lines to keep with the tokens"""


def run(options: Options) -> None:
    """Tokenize, and print the amounts."""
    from mumoe.data.tokenizing import tokenize

    meta = tokenize(
        options.files,
        options.out,
        tokenizer=options.tokenizer,
        val=options.val,
        test=options.test,
        column=options.column,
        credits=options.credits,
    )
    for split, counts in meta["splits"].items():
        numbers = f"{counts['documents']:>10,} documents  {counts['tokens']:>14,} tokens  {counts['bytes']:>14,} bytes"
        sys.stdout.write(f"{split:<5} {numbers}\n")
    if meta["without_text"]:
        sys.stdout.write(f"{meta['without_text']:,} documents without text in {options.column!r} were left out.\n")
    sys.stdout.write(f"Written to {options.out}. Train with: mumoe train --mode text --data tokens:{options.out} ...\n")
