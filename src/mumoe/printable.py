"""Text that can be written everywhere: in UTF-8 files, and on terminals that show ASCII alone.

A name that is read from a folder may hold bytes that are not UTF-8; Python keeps them as surrogates, which no file,
page or archive accepts. They are replaced once, where a data set is made (`mumoe.data.base.ImageData`); paths that are
opened keep them. What a terminal cannot show is replaced where it is printed (`prepare_streams`, in `mumoe.cli`).
"""

from __future__ import annotations

import codecs
import contextlib
import sys

__all__ = ["prepare_streams", "printable"]

_ASCII = {"→": "->", "±": "+-", "×": "x", "…": "...", "–": "-", "−": "-", "·": "-", "≥": ">=", "≤": "<="}
_HANDLER = "mumoe.printable"


def printable(text: str) -> str:
    r"""The text with each byte that is not UTF-8 written as an escape.

    >>> printable(b"caf\xe9".decode("utf-8", "surrogateescape"))
    'caf\\xe9'
    """
    if text.isascii():
        return text
    return text.encode("utf-8", errors=_HANDLER).decode("utf-8")


def prepare_streams() -> None:
    """Have stdout and stderr replace what their encoding lacks, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # replaced by a program, or closed
            stream.reconfigure(errors=_HANDLER)  # type: ignore[union-attr]


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return _ASCII.get(character) or character.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error(_HANDLER, _replace)
