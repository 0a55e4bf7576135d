"""The record of the layer's benchmark: nothing measured is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import layer
from benchmarks.measuring import Options


def test_parts_on_the_command_line_leave_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = [{"part": part, "new": False} for part in ("sizes", "others", "zero")]
    (tmp_path / "layer.json").write_text(json.dumps({"rows": old}))
    written = []

    def run(cases: list[layer.Case], tell: Any, keep: Any) -> list[dict[str, Any]]:
        assert {case.part for case in cases} == {"others"}
        keep([{"part": "others", "new": True}])  # after the first case
        written.append((tmp_path / "layer.json").read_text())
        return [{"part": "others", "new": True}, {"part": "others", "new": True}]

    monkeypatch.setattr(layer, "run", run)
    layer.main(Options(False, tmp_path, ("others",)))
    rows = json.loads((tmp_path / "layer.json").read_text())["rows"]
    assert [(row["part"], row["new"]) for row in rows] == [
        ("sizes", False),
        ("others", True),
        ("others", True),
        ("zero", False),
    ]
    assert len(json.loads(written[0])["rows"]) == 3
