"""Options that messages name exist: every ``--option`` in a text of the package is one of a verb."""

import ast
import contextlib
import io
import re
from pathlib import Path

import pytest

import mumoe
from mumoe import cli

SOURCE = Path(mumoe.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
OTHERS = {"--help", "--debug", "--version", "--force-reinstall", "--standalone", "--nproc-per-node"}
"""Options of `mumoe` itself, of pip and of torchrun."""


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every option that the help of a verb shows."""
    with contextlib.redirect_stdout(io.StringIO()) as helps:
        for verb in cli.VERBS:
            assert cli.main([verb, "--help"]) == 0
    return set(FLAG.findall(helps.getvalue())) | OTHERS


def texts(path: Path) -> list[str]:
    """The sentences of a file: its texts without docstrings, and without single arguments of other programs."""
    tree = ast.parse(path.read_text("utf-8"))
    alone = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in alone]
    found = [node.value for node in constants if isinstance(node.value, str)]
    return [text for text in found if re.search(r"\s", text.strip())]


def test_the_options_that_messages_name_exist(known):
    assert {"--target", "--root", "--data"} <= known
    named = {(path.name, flag) for path in SOURCE.rglob("*.py") for text in texts(path) for flag in FLAG.findall(text)}
    assert len(named) > 50
    assert {(file, flag) for file, flag in named if flag not in known} == set()
