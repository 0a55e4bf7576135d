"""The demo twice, in two processes with other hash seeds and other states of the global generators: the same bits."""

from __future__ import annotations

import pytest

from soak.part import Found
from soak.repeats import compare
from soak.steady import content


@pytest.mark.slow
def test_the_demo_twice_gives_the_same_bits(tmp_path):
    found = Found()
    compare(tmp_path, ["small-demo"], found)
    assert found.faults == []
    assert found.counts["files compared to the bit"] > 50


def test_only_times_are_left_out_of_the_comparison(tmp_path):
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text('{"seconds": 1.5, "accuracy": 0.5}')
    other.write_text('{"seconds": 1.6, "accuracy": 0.5}')
    assert content(one) == content(other)
    other.write_text('{"seconds": 1.5, "accuracy": 0.51}')
    assert content(one) != content(other)
