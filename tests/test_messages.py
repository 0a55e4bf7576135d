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
    assert len(named) > 30
    assert {(file, flag) for file, flag in named if flag not in known} == set()


COMMANDS = re.compile(r"(mumoe|torchrun|pip) .*--")
"""A command to copy, in which flags are right whoever reads it."""


def named_flags(path: Path) -> set[str]:
    """Sentences of a file, f-strings whole, that name a flag otherwise than in a command to copy."""
    tree = ast.parse(path.read_text("utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    whole = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    texts = [ast.unparse(node) for node in whole]
    texts += [node.value for node in plain if id(node) not in inside | alone and " " in node.value]
    return {text for text in texts if FLAG.search(text) and " " in text and not COMMANDS.search(text)}


def test_what_python_raises_names_arguments_and_not_flags():
    """`parsing.flag_of` turns arguments in backticks into flags; only the command line may name flags itself."""
    own = {"cli.py", "parsing.py", "commands"}
    paths = [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] not in own]
    assert {path.name: found for path in paths if (found := named_flags(path))} == {}
    assert named_flags(SOURCE / "commands" / "edit.py")
