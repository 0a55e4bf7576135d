"""Error messages of calls with arguments of a wrong type."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from mumoe.calling import check_argument, checked
from mumoe.errors import UserError


@pytest.mark.parametrize("name", ["x" * 300, "a\x00b", "\ud800", "."])
def test_what_no_file_can_be_named(name):
    @checked
    def write(path: str) -> None:
        Path(path).with_name(f"{Path(path).name}.part").write_text("")
        Path(path).with_name("").write_text("")

    with pytest.raises(UserError, match="write: expected the name of a file, got: "):
        write(name)


VALUES = [("3", int), (np.float32(3), int), ([3], dict), ({"a": "b"}, Mapping[str, float]), (b"x", Sequence[int])]


@pytest.mark.parametrize(("value", "kind"), VALUES)
def test_an_argument_of_another_type(value, kind):
    with pytest.raises(UserError, match=r"^Layer: expected `number` as "):
        check_argument("Layer", "number", value, kind)


@pytest.mark.parametrize(("value", "kind"), [(3, int), (np.int64(3), int), (3, float), ({"a": 1}, Mapping[str, float])])
def test_an_argument_of_its_type(value, kind):
    check_argument("Layer", "number", value, kind)
