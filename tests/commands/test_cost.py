"""`mumoe cost`: the table, and sizes that make none."""

from __future__ import annotations

import pytest

from mumoe.cli import main
from mumoe.cost_tables import CostTable, compare_costs


def test_a_table_of_every_factorization(capsys):
    assert main(["cost", "--in-features", "8", "--out-features", "4", "--experts", "3", "--ranks", "cp=5"]) == 0
    said = capsys.readouterr().out
    parameters = 5 * (8 + 4 + 3)
    row = next(line.split() for line in said.splitlines() if line.startswith("cp"))
    assert row[1:3] == ["5", str(parameters)]


def test_the_table_from_python():
    found = compare_costs(8, 4, (3,), ranks=["cp=5", "cp=2"])
    frame = found.to_frame().set_index(["layer", "rank"])
    assert frame.loc[("cp", "5"), "parameters"] == 5 * (8 + 4 + 3)
    assert frame.loc[("cp", "2"), "parameters"] == 2 * (8 + 4 + 3)
    assert frame.loc[("linear", "-"), "flops"] == 8 * 4
    assert CostTable.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--experts", "0"], "expected --experts >= 1 for each level, got 0"),
        (["--experts", "3", "-2"], "expected --experts >= 1 for each level, got 3 -2"),
        (["--experts", "3", "--in-features", "0"], "expected --in-features >= 1, got 0"),
        (["--experts", "3", "--ranks", "cp=0"], "expected rank as an int >= 1, got 0"),
    ],
)
def test_sizes_below_one_are_refused(capsys, arguments, text):
    sizes = (
        ["--in-features", "8", "--out-features", "4"] if "--in-features" not in arguments else ["--out-features", "4"]
    )
    assert main(["cost", *sizes, *arguments]) == 2
    said = capsys.readouterr()
    assert text in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
