"""Records: there and back through JSON, and the tables that people see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mumoe.errors import UserError
from mumoe.records import Record, record, render_table, to_plain


@dataclass(frozen=True)
class Part:
    name: str
    interval: tuple[float, float] | None


@record
class Found(Record):
    split: str
    accuracy: float | None
    parts: tuple[Part, ...] = ()
    counts: Mapping[str, int] | None = None

    def headline(self) -> str:
        return f"accuracy {self.accuracy}"

    def rows(self) -> list[dict[str, Any]]:
        return [{"part": part.name, "low": part.interval and part.interval[0]} for part in self.parts]


FOUND = Found("test", 0.75, (Part("a|b", (0.1, 0.2)), Part("c", None)), {"x": 3})


def test_json_gives_back_the_types(tmp_path):
    assert Found.from_json(FOUND.to_json()) == FOUND
    FOUND.save(tmp_path / "found.json")
    assert Found.load(tmp_path / "found.json") == FOUND
    assert json.loads((tmp_path / "found.json").read_text())["schema_version"] == 1


def test_older_files_have_fewer_fields_and_others():
    assert Found.from_dict({"split": "val", "accuracy": 1, "gone": 2}) == Found("val", 1.0)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"split": "val"}, "missing required field accuracy"),
        ({"split": 3, "accuracy": None}, "Expected str, got int - at .split"),
        ({"split": "val", "accuracy": 1, "parts": [{"name": "a", "interval": [1]}]}, "at .parts[0].interval"),
        ({"split": "val", "accuracy": 1, "schema_version": 2}, "schema_version up to 1, got 2"),
        ([], "Found"),
    ],
)
def test_values_that_do_not_fit_are_one_line(values, text):
    with pytest.raises(UserError, match="^Found.from_dict: ") as caught:
        Found.from_dict(values)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_no_json_are_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Found.load(tmp_path / "none.json")
    with pytest.raises(UserError, match="expected JSON"):
        Found.from_json("{")


def test_plain_values_have_no_nan_and_no_numpy():
    given = {1: np.float32(0.5), "n": float("nan"), "a": np.arange(2), "t": (Part("p", None),)}
    assert to_plain(given) == {"1": 0.5, "n": None, "a": [0, 1], "t": [{"name": "p", "interval": None}]}


def test_a_record_prints_as_a_short_table():
    assert repr(FOUND) == "Found: accuracy 0.75\npart    low\n----  -----\na|b   0.100\nc         -"
    many = Found("test", 0.5, tuple(Part(str(n), None) for n in range(25)))
    assert len(str(many).splitlines()) == 14
    assert str(many).endswith("15 more rows; to_frame() has all.")


def test_the_table_of_a_notebook_escapes_names():
    page = Found("test", 0.5, (Part("<b>", None),))._repr_html_()
    assert page.startswith("<p>accuracy 0.5</p>")
    assert "<td>&lt;b&gt;</td><td>-</td>" in page


def test_a_frame_has_all_rows():
    frame = FOUND.to_frame()
    assert list(frame.columns) == ["part", "low"]
    assert frame["low"].iloc[0] == 0.1


def test_markdown_escapes_bars():
    assert render_table(["", "n"], [["a|b", "1"]], "markdown") == "|      |   n |\n| ---- | --: |\n| a\\|b |   1 |\n"
    with pytest.raises(UserError, match="'html'|html"):
        render_table(["a"], [], "latex")  # type: ignore[arg-type]
