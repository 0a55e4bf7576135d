"""The notebooks of examples/: they run from the beginning, and what is committed is what such a run shows."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import mumoe

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any) -> list[str]:
    """Kinds of what a cell shows: images and tables; not what it says while it works."""
    kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
    return [kind for kind in kinds if kind in ("image/png", "text/html")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_mumoe_alone_and_its_outputs_are_committed(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nodes = [node for cell in code_of(notebook) for node in ast.walk(ast.parse(cell.source))]
    imported = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["mumoe"]
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert [cell.execution_count for cell in code_of(notebook)] == list(range(1, len(code_of(notebook)) + 1))
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in shown(cell) for cell in code_of(notebook)) >= 2
    text = path.read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert "/tmp" not in text


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(path: Path, tmp_path: Path, monkeypatch) -> None:
    """Numbers may differ in the last digits between machines; what is shown after each cell may not."""
    monkeypatch.setenv("PYTHONPATH", str(Path(mumoe.__file__).parents[1]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    committed, run = nbformat.read(path, 4), nbformat.read(path, 4)
    for cell in code_of(run):
        cell.outputs = []
    (tmp_path / "work").mkdir()
    NotebookClient(
        run, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path / "work"}}
    ).execute()
    for before, after in zip(code_of(committed), code_of(run), strict=True):
        assert shown(after) == shown(before), before.source
