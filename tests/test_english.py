"""Plain English: prose of the package and its docs contains no word of a list that each names a better one.

Prose is what a reader reads: docstrings, comments, messages and help in Python, text of Markdown outside code, text of
templates, strings and comments of scripts. Identifiers, code in backticks and doctests are not prose.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PLACES = (
    "src",
    "reproduction",
    "benchmarks",
    "examples",
    "docs",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "Makefile",
)
SKIPPED = ("/_build/", "/__pycache__/", "/vendor/", "docs/results/gpt2/experts.html", "docs/results/decompose/")
"""Parts of paths without prose of ours: built pages, scripts of others, quoted text."""

LATER: tuple[str, ...] = ()
"""Files, or folders, that are not checked yet."""


class Word(NamedTuple):
    """A word or phrase that prose avoids.

    Attributes:
        pattern: What finds it; letter case is ignored.
        better: What to write instead.
        example: A sentence that it is found in.
        plain: A sentence that is fine.
    """

    pattern: str
    better: str
    example: str
    plain: str


WORDS = (
    Word(r"\btold\b", "reported, logged, raised", "Damaged ones are told.", "Reports damaged checkpoints."),
    Word(r"\bsaid\b", "reported, stated, printed", "What it lacks is said.", "Prints what the report lacks."),
    Word(r"\bdear(er|est|ly)?\b", "expensive", "Many matrices are dear.", "Many matrices are expensive."),
    Word(r"\b(go|goes|went|gone|going) on\b(?! top)", "resume, continue", "The run goes on.", "It goes on top."),
    Word(r"\bmend(s|ed|ing)?\b", "correct", "An edit mends answers.", "Amend the commit."),
    Word(r"\b(no|any|some|every)body('s)?\b", "name the person or condition", "Nobody asks.", "The body of a page."),
    Word(r"\bhad (better|best)\b", "should", "One had better check.", "It had a better accuracy."),
    Word(r"\bwhat (is|they|it) found\b", "findings, results", "It prints what is found.", "It prints results."),
    Word(r"\bby (it|him|her)self\b|\bby themselves\b", "automatically, alone", "It starts by itself.", "It restarts."),
    Word(r"\bto be had\b", "available, an upper bound", "The best that is to be had.", "The upper bound."),
    Word(r"\bat hand\b", "available, current", "The batch at hand.", "By hand, at a handful of sizes."),
    Word(r"\bone's\b", "your, the", "Data of one's own.", "Someone's data."),
    Word(
        r"(^|[.!?:] )take (?!care\b|(a |the )?(screenshots?|pictures?)\b)",
        "use",
        "Too many. Take load_run.",
        "Steps take a second.",
    ),
    Word(r"\b(none|0) takes\b", "uses, picks", "None takes the only layer.", "Each one takes a second."),
    Word(r"\bwhatever\b", "regardless of, any", "Whatever the dtype.", "For any dtype."),
    Word(r"\b(anew|afresh)\b", "again, new", "Weights are drawn anew.", "A new draw of weights."),
    Word(r"\bas it stands\b", "unchanged, current", "The file as it stands.", "It stands for a layer."),
    Word(r"\breckon(s|ed|ing)?\b", "assume, count", "It reckons with noise.", "It assumes noise."),
    Word(r"\b(is|are) asked for\b", "is requested", "The head that is asked for.", "The requested head."),
    Word(r"\bfor want of\b", "without", "For want of a GPU.", "Without a GPU."),
    Word(r"\bthe usual way\b", "name the path or method", "None: the usual way.", "The usual split."),
    Word(r"\bwrite it like\b", "use this form", "Write it like that.", "Write it in this form."),
    Word(r"\bof \S+ change anything\b", "change a prediction", "4 of 8 change anything.", "It may change anything."),
    Word(r"\bcosts? more than numbers\b", "overhead dominates", "Calls cost more than numbers.", "It costs more."),
)

ALLOWED: dict[tuple[str, str], str] = {
    ("src/mumoe/analysis/contributions.py", "Take a batch (rows, in) apart"): "to take apart, not to use",
}
"""File and beginning of a sentence -> why it keeps a word of the list."""


class Passage(NamedTuple):
    """A piece of prose: its first and last line in the file, and its text."""

    first: int
    last: int
    text: str


# Prose of each kind of file -----------------------------------------------------------------------------------------


def python(text: str, shift: int = 0) -> Iterator[Passage]:
    """Docstrings, other strings with a space, and comments."""
    tree = ast.parse(text)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            words = "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            words = node.value
        else:
            continue
        if " " in words.strip():
            yield Passage(node.lineno + shift, (node.end_lineno or node.lineno) + shift, sentences(words))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [(token.start[0], token.string.lstrip("#: ")) for token in tokens if token.type == tokenize.COMMENT]
    yield from joined([(line + shift, comment) for line, comment in comments])


def sentences(words: str) -> str:
    """A docstring without its examples and without the names of arguments and attributes."""
    words = re.sub(r"(?m)^[ \t]*(>>>|\.\.\. ).*$", "", words)
    return re.sub(r"(?m)^([ \t]+)\*{0,2}\w+(, \*{0,2}\w+)*: ", r"\1", words)


def joined(lines: list[tuple[int, str]]) -> Iterator[Passage]:
    """Lines that follow each other as one passage, so that a phrase across a line's end is found."""
    start = 0
    for place in range(1, len(lines) + 1):
        if place == len(lines) or lines[place][0] != lines[place - 1][0] + 1:
            part = lines[start:place]
            yield Passage(part[0][0], part[-1][0], " ".join(text for _, text in part))
            start = place


def markdown(text: str) -> Iterator[Passage]:
    """Paragraphs outside fenced code; the content of directives such as notes is prose."""
    fence, lines = None, []
    for line, content in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(```+|~~~+)(.*)", content)
        if mark and fence is None and not re.match(r"\{(note|tip|warning|important|admonition|dropdown)", mark[2]):
            fence = mark[1]
        elif mark and fence is not None and mark[1].startswith(fence) and not mark[2].strip():
            fence = None
        elif not mark and fence is None and content.strip():
            lines.append((line, re.sub(r"\]\([^)]*\)|<[^>]*>", "] ", content)))
    yield from joined(lines)


def html(text: str) -> Iterator[Passage]:
    """Text between tags, and of the attributes that are shown or read out, without template code."""
    blank: Callable[[re.Match[str]], str] = lambda found: "\n" * found[0].count("\n")  # noqa: E731
    text = re.sub(r"(?s)<script.*?</script>|<style.*?</style>|\{%.*?%\}|\{#.*?#\}", blank, text)
    text = re.sub(r"(?s)\{\{.*?\}\}", lambda found: "{}" + blank(found), text)
    for shown in re.finditer(r'(?:title|alt|placeholder|aria-label|content)="([^"]+)"|>([^<>]+)<', text):
        words = shown[1] or shown[2]
        line = text.count("\n", 0, shown.start(1 if shown[1] else 2)) + 1
        if " " in words.strip():
            yield Passage(line, line + words.count("\n"), words)


SCRIPT = re.compile(
    r"""//(?P<line>[^\n]*)|/\*(?P<block>.*?)\*/|"(?P<double>(?:\\.|[^"\\\n])*)"|'(?P<single>(?:\\.|[^'\\\n])*)'"""
    r"""|`(?P<template>(?:\\.|[^`\\])*)`""",
    re.DOTALL,
)


def script(text: str) -> Iterator[Passage]:
    """Comments, and strings with a space, of JavaScript."""
    for found in SCRIPT.finditer(text):
        words = re.sub(r"\$\{[^{}]*(\}|$)", "{}", found[found.lastgroup or 0])
        words = re.sub(r"<[^<>]*>", "{}", words)
        line = text.count("\n", 0, found.start()) + 1
        if " " in words.strip():
            yield Passage(line, line + found[0].count("\n"), words)


def notebook(text: str) -> Iterator[Passage]:
    """Markdown cells, and prose of code cells; lines are not those of the file, so the number of the cell is given."""
    for number, cell in enumerate(json.loads(text)["cells"], 1):
        source = "".join(cell["source"])
        reader = markdown if cell["cell_type"] == "markdown" else python
        yield from (Passage(number, number, passage.text) for passage in reader(source))


def plain(text: str) -> Iterator[Passage]:
    """Every line, such as those of TOML and of the Makefile."""
    lines = [(line, content.lstrip("#\t @")) for line, content in enumerate(text.splitlines(), 1)]
    yield from (Passage(line, line, content) for line, content in lines if content.strip())


READERS: dict[str, Callable[[str], Iterator[Passage]]] = {
    ".py": python,
    ".md": markdown,
    ".html": html,
    ".js": script,
    ".ipynb": notebook,
    ".toml": plain,
    "": plain,
}


# The search ---------------------------------------------------------------------------------------------------------


def files() -> list[Path]:
    """Every file of prose."""
    places = [ROOT / place for place in PLACES]
    every = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return [path for path in every if path.is_file() and path.suffix in READERS and not skipped(path)]


def skipped(path: Path) -> bool:
    return any(part in path.as_posix() for part in SKIPPED)


def is_later(name: str) -> bool:
    """Whether a file, or a folder that holds it, is in `LATER`."""
    return any(name == place or name.startswith(place + "/") for place in LATER)


def findings(name: str, text: str) -> list[str]:
    """``file:line: 'word': better word`` for each word of the list in the prose of a file."""
    lines, found = text.splitlines(), []
    for passage in READERS[Path(name).suffix](text):
        words = " ".join(re.sub(r"``[^`]+``|`[^`]+`", "`", passage.text).split())
        if any(file == name and start in words for file, start in ALLOWED):
            continue
        for word in WORDS:
            for match in re.finditer(word.pattern, words, re.IGNORECASE):
                longest = max(match[0].split(), key=len)
                near = range(passage.first, min(passage.last, len(lines)) + 1)
                line = next((n for n in near if longest in lines[n - 1]), passage.first)
                found.append(f"{name}:{line}: {match[0].strip()!r}: write {word.better}")
    return found


def test_prose_has_no_word_of_the_list():
    names = [path.relative_to(ROOT).as_posix() for path in files()]
    checked = [name for name in names if not is_later(name)]
    assert len(checked) > 150
    assert {Path(name).suffix for name in checked} >= {".py", ".md", ".ipynb", ".toml", ""}
    found = [line for name in checked for line in findings(name, (ROOT / name).read_text("utf-8"))]
    assert found == [], "\n" + "\n".join(found)


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.pattern)
def test_each_word_is_found_and_plain_words_are_not(word):
    assert any(f"write {word.better}" in line for line in findings("planted.md", word.example))
    assert findings("planted.md", word.plain) == []


SENTENCE = "A killed run goes on\n    with the same bits."
"""A planted sentence whose words are on two lines."""

PLANTED = {
    "docstring.py": f'def run():\n    """{SENTENCE}"""\n',
    "message.py": 'raise ValueError(f"{who}: a run that "\n    f"goes on. Use {x}.")\n',
    "comment.py": "x = 1  # a run goes\n# on from here\n",
    "page.md": "# Title\n\nA killed run goes\non.\n",
    "note.md": "```{note}\nA killed run goes on.\n```\n",
    "page.html": '<p>One</p>\n<p title="A run goes on">{{ run.goes_on }} runs</p>\n',
    "text.html": "<p>\n  A run goes on.\n</p>\n",
    "script.js": "const a = 1;\nshow(`The ${run} goes on`);\n",
    "script_comment.js": "const a = 'b';\n// the run goes on\n",
    "book.ipynb": json.dumps({"cells": [{"cell_type": "markdown", "source": ["A run\n", "goes on."]}]}),
    "items.toml": 'x = 1\nnotes = ["A run goes on."]\n',
    "Makefile": 'help:\n\t@echo "a run that goes on"\n',
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_words_are_found_in_each_kind_of_prose(name):
    (line,) = findings(name, PLANTED[name])
    assert re.fullmatch(rf"{re.escape(name)}:(1|2|3): 'goes on': write resume, continue", line)


def test_the_line_of_a_word_is_named():
    text = '"""One.\n\nTwo.\n\nThe message is told.\n"""\n'
    assert findings("lines.py", text) == ["lines.py:5: 'told': write reported, logged, raised"]


CODE = {
    "name.py": "told = 1\nx = {'mended': told}\nprint('mended')\n",
    "backticks.py": '"""The field `mended`, and ``goes on``."""\n',
    "doctest.py": '"""An example.\n\n>>> run("goes on")\n"""\n',
    "attribute.py": '"""A record.\n\n    Attributes:\n        mended: Corrected answers.\n"""\n',
    "fence.md": "Output:\n\n```text\nthe run goes on\n```\n",
    "inline.md": "The field `mended` of [a page](goes on).\n",
    "code.html": "<p>{{ goes on }}</p><script>// goes on</script><b data-x='goes on'>x y</b>\n",
    "name.js": "const told = mended(goes, on);\n",
    "nested.js": 'html`<a onClick=${() => show("mended")}>See all</a> ${told && html`<b>${text}</b>`}`;\n',
}


@pytest.mark.parametrize("name", CODE)
def test_code_is_not_prose(name):
    assert findings(name, CODE[name]) == []


def test_exceptions_and_postponed_places_are_still_there():
    names = [path.relative_to(ROOT).as_posix() for path in files()]
    assert all(any(name == place or name.startswith(place + "/") for name in names) for place in LATER)
    for name, start in ALLOWED:
        assert start in " ".join((ROOT / name).read_text("utf-8").split())
