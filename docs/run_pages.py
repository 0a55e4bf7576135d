"""Run the code of documentation pages, in order, and compare what it prints with what the page shows.

    python docs/run_pages.py docs/tutorials/*.md            # compare
    python docs/run_pages.py --write docs/tutorials/*.md    # write what was printed into the pages

A page runs from top to bottom in an empty folder. ```python blocks share their names; ```sh blocks call `mumoe`,
which run in the same process. A ```text block shows what the block before it printed: three dots stand for any
lines. Trained numbers differ between processors: below `<!-- numbers within 0.1 -->` they may by that share, below
`<!-- numbers may differ -->` only the words are compared, below `<!-- lines may differ -->` those of the last line,
and below `<!-- order may differ -->` words in any order. A block below `<!-- not run -->` is shown only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from mumoe.files import cache_root

__all__ = ["Block", "compared", "differences", "lend_drawings", "parse", "run"]

_FENCE = re.compile(r"(?ms)^(?:<!-- (?P<note>[^\n]*) -->\n)?```(?P<kind>python|sh|text)\n(?P<text>.*?)^```$")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its kind, its text, where it is in the page, and the note above it."""

    kind: str
    text: str
    start: int
    end: int
    note: str

    @property
    def tolerance(self) -> float:
        """Relative difference that numbers may have."""
        if self.note in ("numbers may differ", "lines may differ", "order may differ"):
            return math.inf
        found = re.fullmatch(r"numbers within ([\d.]+)", self.note)
        return float(found[1]) if found else 0.0


def parse(page: str) -> list[Block]:
    """The blocks of a page that run or show output, in order."""
    return [Block(m["kind"], m["text"], m.start("text"), m.end("text"), m["note"] or "") for m in _FENCE.finditer(page)]


def run(page: str, name: str = "page") -> Iterator[tuple[Block, str]]:
    """Run a page in the current folder; yields each block that shows output with what was printed."""
    names: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in parse(page):
        if block.note == "not run":
            printed = ""
        elif block.kind == "text":
            yield block, printed
        else:
            line = page.count("\n", 0, block.start)
            printed = _python(block.text, names, name, line) if block.kind == "python" else _shell(block.text)


def _python(text: str, names: dict[str, Any], name: str, line: int) -> str:
    code = compile("\n" * line + text, name, "exec")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, names)
    return said.getvalue()


def _shell(text: str) -> str:
    from mumoe.cli import main

    said = io.StringIO()
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "mumoe", f"only `mumoe` runs in sh blocks, got {line!r}"
        with contextlib.redirect_stdout(said):
            status = main(words[1:])
        assert status == 0, f"{line}: exit status {status}"
    return said.getvalue()


def differences(expected: str, printed: str, tolerance: float) -> str:
    """Differences between shown and printed output, as a message; empty if they agree."""
    wanted, got = _lines(expected), _lines(printed)
    if _match(wanted, got, tolerance):
        return ""
    return f"the page shows\n\n{expected}\nbut the code printed\n\n{printed}"


def compared(block: Block, printed: str) -> str:
    """`differences` as the note above a block allows them."""
    texts = [block.text, printed]
    if block.note == "lines may differ":
        texts = ["\n".join(_lines(text)[-1:]) for text in texts]
    if block.note == "order may differ":
        texts = ["\n".join(sorted(_NUMBER.sub("0", text).split())) for text in texts]
    return differences(*texts, block.tolerance)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def _match(wanted: Sequence[str], got: Sequence[str], tolerance: float) -> bool:
    if not wanted:
        return not got
    if wanted[0].strip() == "...":
        return any(_match(wanted[1:], got[skip:], tolerance) for skip in range(len(got) + 1))
    return bool(got) and _same(wanted[0], got[0], tolerance) and _match(wanted[1:], got[1:], tolerance)


def _same(wanted: str, got: str, tolerance: float) -> bool:
    """Whether two lines agree, apart from blanks between words and numbers within the tolerance."""
    words, others = ([" ".join(part.split()) for part in _NUMBER.split(line)] for line in (wanted, got))
    numbers, found = ([float(n.replace(",", "")) for n in _NUMBER.findall(line)] for line in (wanted, got))
    close = (abs(a - b) <= tolerance * max(1.0, abs(a)) for a, b in zip(numbers, found, strict=False))
    return words == others and len(numbers) == len(found) and all(close)


@contextlib.contextmanager
def _empty_folder() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        cache = lend_drawings(Path(folder) / "cache")
        with mock.patch.dict(os.environ, {"MUMOE_CACHE": str(cache)}):
            yield


def lend_drawings(cache: Path) -> Path:
    """A new cache that shares the user's packages, drawings and backbone, which are slow to make, and nothing else."""
    cache.mkdir(parents=True)
    for name in ("npm", "icons", "weights"):
        kept = cache_root() / name
        kept.mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(kept, target_is_directory=True)
    return cache


def check(path: Path, *, write: bool) -> list[str]:
    """Messages about one page; with `write` the page is brought up to date instead."""
    page, wrong, changes = path.read_text(), [], []
    with _empty_folder():
        for block, printed in run(page, str(path)):
            said = compared(block, printed)
            wrong += [f"{path}: {said}"] if said else []
            changes += [(block, printed.strip("\n") + "\n")] if differences(block.text, printed, 0.0) else []
    if not write:
        return wrong
    for block, text in reversed(changes):
        page = page[: block.start] + text + page[block.end :]
    path.write_text(page)
    return []


def main() -> int:
    """Check or rewrite the pages that are named."""
    parser = argparse.ArgumentParser(description="Run the code of pages and compare what they show.")
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="write what was printed into the pages")
    options = parser.parse_args()
    wrong = [message for page in options.pages for message in check(page.resolve(), write=options.write)]
    sys.stderr.write("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
