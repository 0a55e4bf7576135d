"""A dataclass of options as a command line: values, errors in one line, help in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import pytest

from mumoe.errors import UserError
from mumoe.parsing import Argument, flag_of, parse


@dataclass(frozen=True)
class Base:
    """Bake bread. Times are in minutes."""

    recipe: Annotated[str, Argument(positional=True, metavar="RECIPE")]
    """file of the recipe"""
    guests: Annotated[tuple[str, ...], Argument(positional=True, metavar="GUEST [GUEST ...]")]
    """who eats"""
    grain: Literal["wheat", "rye"] = "wheat"
    """what is ground"""
    loaves: int = 1
    """how many"""
    salt: float = 0.02
    """share of the flour, 2% or so"""


@dataclass(frozen=True)
class Options(Base):
    """Bake bread. Times are in minutes."""

    COMMON: ClassVar = {"grain": "rye", "sweet": ""}

    out: Annotated[str, Argument(("-o", "--out"))] = ""
    """where it goes"""
    lambda_: Annotated[str, Argument(("--lambda",))] = "auto"
    """strength"""
    sweet: bool = False
    """add sugar"""
    crust: bool = True
    """with a crust"""
    seeds: tuple[int, ...] = (1, 2)
    """seeds on top"""
    limit: int | None = None
    """most loaves"""
    oven: str = field(default="", metadata={"group": "heat", "flags": ("--stove",)})
    """which oven
    is used"""
    quiet: bool = False
    """show nothing"""


def read(*arguments: str, default: Options | None = None) -> Options:
    return parse(Options, list(arguments), "mumoe bake", default)


def error(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments)
    return str(caught.value)


def test_values_have_the_types_of_their_fields():
    assert read("a.toml", "ann") == Options("a.toml", ("ann",))
    given = ["--grain", "rye", "--loaves=3", "--salt", "1e-3", "-o", "x", "--lambda", "2", "--sweet", "--no-crust"]
    expected = {"grain": "rye", "loaves": 3, "salt": 0.001, "out": "x", "lambda_": "2", "sweet": True, "crust": False}
    assert read("a", "b", "c", *given) == Options("a", ("b", "c"), **expected)
    assert read("a", "b", "--seeds", "4", "5", "--limit", "7") == Options("a", ("b",), seeds=(4, 5), limit=7)
    assert read("a", "b", "--seeds").seeds == ()
    assert read("a", "b", "--seeds", "4", "--sweet", "--seeds", "5", "6").seeds == (4, 5, 6)
    assert read("a", "b", "--loaves", "-1").loaves == -1
    assert read("a", "b", "--no-quiet", "--sweet", "--no-sweet").sweet is False


def test_positional_arguments_stand_anywhere_and_underscores_count_as_hyphens():
    assert read("--sweet", "a", "--loaves", "2", "b", "--no-crust", "c").guests == ("b", "c")
    assert parse(Base, ["a", "b", "--grain=rye"], "x").grain == "rye"
    assert read("a", "b", "--out=under_score").out == "under_score"
    assert read("a", "b", "--no_crust").crust is False


def test_values_from_elsewhere_are_kept_where_no_flag_is_given():
    before = Options("a", ("b",), loaves=5, sweet=True)
    assert read("--loaves", "6", default=before) == Options("a", ("b",), loaves=6, sweet=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "expected RECIPE (file of the recipe) and GUEST (who eats), got nothing."),
        (("a",), "expected GUEST (who eats), got nothing."),
        (("a", "b", "--grain", "rice"), "expected a --grain out of rye, wheat, got 'rice'. Did you mean 'rye'?"),
        (("a", "b", "--loaves", "two"), "expected --loaves as a whole number, got 'two'."),
        (
            ("a", "b", "--loaves", "9" * 20),
            "expected --loaves of at most 9,223,372,036,854,775,807, got 99999999999999999999.",
        ),
        (("a", "b", "--salt", "much"), "expected --salt as a number, got 'much'."),
        (("a", "b", "--loaves"), "expected a value for --loaves, got nothing."),
        (("a", "b", "--out"), "expected a value for --out, got nothing."),
        (("a", "b", "--loavs", "3"), "expected known options, got --loavs 3. Did you mean '--loaves'?"),
        (("a", "b", "--nothing"), "expected known options, got --nothing. See"),
        (("a", "b", "--sweet=yes"), "--sweet: ignored explicit argument 'yes'."),
    ],
)
def test_what_is_wrong_is_one_line(arguments, expected):
    assert error(*arguments).startswith(f"mumoe bake: {expected}")
    assert error(*arguments).endswith("See mumoe bake --help.")


def test_help_shows_groups_examples_and_defaults_that_say_something(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert read("--help") is None
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "usage: mumoe bake RECIPE GUEST [GUEST ...] [options]"
    titles = [line for line in lines if line.endswith("s:") or line == "heat:"]
    assert titles == ["arguments:", "common options:", "more options:", "heat:", "general options:"]
    assert (
        lines[lines.index("common options:") + 1]
        == "--grain {wheat,rye} what is ground; e.g. --grain rye (default: wheat)"
    )
    assert "--sweet add sugar; e.g. --sweet" in lines
    assert "-o, --out OUT where it goes" in lines
    assert "--crust, --no-crust with a crust (default: on)" in lines
    assert "--seeds N ... seeds on top (default: 1 2)" in lines
    assert "--salt X share of the flour, 2% or so (default: 0.02)" in lines
    assert "--limit N most loaves" in lines
    assert "--stove STOVE which oven is used" in lines
    assert lines[-1] == "--quiet show nothing"
    assert "--no-quiet" not in "".join(lines)


def test_the_flag_of_a_field():
    assert [flag_of(Options, "out", value) for value in ("", "True", "a b")] == ["--out", "--out", "--out a b"]
    assert [flag_of(Options, "spoon", value) for value in ("", "2")] == ["spoon", "spoon=2"]
    assert [flag_of(Options, name) for name in ("recipe", "out", "lambda_", "no")[:3]] == [
        "RECIPE",
        "--out",
        "--lambda",
    ]
