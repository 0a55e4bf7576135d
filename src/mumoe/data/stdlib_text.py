"""Text that is part of every Python installation: the language's help topics and the library's docstrings.

About two megabytes: `pydoc_data.topics`, and the docstrings of the standard library's modules, classes and
functions, read from its source files without importing any. Its content depends on the Python version, which is
part of the folder's name and of the fingerprint.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import platform
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from mumoe.data.cache import sealed_folder
from mumoe.data.tokenizing import BYTES, ByteTokenizer, write_tokens
from mumoe.files import cache_root
from mumoe.progress import track

__all__ = ["CREDIT", "docstrings", "stdlib_documents", "stdlib_folder"]

CREDIT = f"Help topics and docstrings of Python {platform.python_version()}, PSF License Version 2"
VAL = TEST = 0.04
_SKIPPED = {
    "__pycache__",
    "config",
    "dist-packages",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
_RECIPE = "2"
"""Increase it when the choice of documents changes."""


def stdlib_folder(cache_dir: str | None = None, *, progress: bool = True) -> Path:
    """The text as bytes in the cache, written on first use (about ten seconds).

    Raises:
        UserError: If the cache cannot be written.
    """

    def write(folder: Path) -> None:
        documents = stdlib_documents(progress=progress)
        write_tokens(folder, documents, ByteTokenizer(), BYTES, val=VAL, test=TEST, credits=[CREDIT])

    key = hashlib.sha256(f"{sys.version} {_RECIPE}".encode()).hexdigest()[:12]
    place = cache_root(cache_dir) / "text" / f"stdlib-{platform.python_version()}-{key}"
    return sealed_folder(place, write, who="stdlib")[0]


def stdlib_documents(*, progress: bool = False) -> Iterator[str]:
    """Every help topic, then the docstrings of every module, in order of name."""
    topics = importlib.import_module("pydoc_data.topics").topics
    yield from (str(topics[name]) for name in sorted(topics))
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(root.rglob("*.py")) if not _SKIPPED & set(path.relative_to(root).parts[:-1])]
    for path in track(paths, "Reading docstrings", len(paths), enabled=progress):
        text = docstrings(path.read_bytes())
        if text:
            yield text


def docstrings(source: bytes) -> str:
    """The docstrings of a source file, each below its ``def`` or ``class`` line; "" if there are none."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                parts.append(f"{_head(node)}{text}\n")
    return "\n".join(parts)


def _head(node: ast.AST) -> str:
    """``def name(a, b):`` or ``class Name:``, empty for a module."""
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}:\n"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"def {node.name}({ast.unparse(node.args)}):\n"
    return ""
