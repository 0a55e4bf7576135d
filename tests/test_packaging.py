"""What an import costs, which room may import which, and that the README runs."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "mumoe"

PROBE = """
import sys, time
import torch
before, start = set(sys.modules), time.perf_counter()
import mumoe
mumoe.MuMoE, mumoe.costs, mumoe.SparseMoE
seconds = time.perf_counter() - start
new = {name.partition('.')[0] for name in set(sys.modules) - before}
print(seconds, sorted(new - set(sys.stdlib_module_names)))
"""


def test_import_needs_torch_alone_and_is_quick():
    runs = [subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, _, names = min((run.stdout.partition(" ") for run in runs), key=lambda parts: float(parts[0]))
    assert ast.literal_eval(names) == ["lazy_loader", "mumoe"]
    assert float(seconds) < 0.5


def test_few_core_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) <= 10
    assert (SOURCE / "py.typed").exists()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


# Rooms in the order of the arrows: a room may import itself and what stands before it.
ORDER = [
    {"errors", "files", "progress", "results"},
    {"functional", "kernels", "factorization_base", "modes"},
    {"coefficients"},
    {"sparse_gate", "ablation"},
    {"factorizations", "gating"},
    {"specs"},
    {"baselines", "costs", "cost_tables"},
    {"layers"},
    {"models"},
    {"training", "analysis", "editing"},
    {"demo", "deploy"},
    {"dashboard"},
    {"commands", "cli"},
]
NO_LAYERS = ["data", "results", "reports", "plots", "editing/fairness"]


def imported(path: Path) -> set[str]:
    """Rooms of mumoe that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mumoe"):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mumoe.")}
    return names


def test_arrows():
    level = {room: depth for depth, rooms in enumerate(ORDER) for room in rooms}
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for other in imported(path) & set(level):
            if room in level:
                assert level[other] <= level[room], f"{path.relative_to(SOURCE)} imports {other}"


LATE = {"__init__.py", "api.py", "cli.py", "commands"}
"""The facade and the command line: what they call is imported when it is called."""


def late_imports(path: Path) -> list[str]:
    """Imports of our own modules inside functions."""
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    found = (node for function in functions for node in ast.walk(function))
    texts = [ast.unparse(node) for node in found if isinstance(node, ast.Import | ast.ImportFrom)]
    return [text for text in texts if text.split()[1].partition(".")[0] in ("mumoe", "")]


def test_rooms_import_each_other_at_the_top():
    rooms = [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] not in LATE]
    assert {path.relative_to(SOURCE): found for path in rooms if (found := late_imports(path))} == {}
    assert late_imports(SOURCE / "api.py")


def test_the_wheel_has_no_reproduction():
    """The wheel is src/mumoe alone, and nothing in it needs what is left out."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert tool == {"packages": ["src/mumoe"]}
    assert not list((SOURCE / "recipes").rglob("*.py"))
    assert (ROOT / "reproduction" / "__main__.py").is_file()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.partition(".")[0] == "reproduction" for name in names), path


def test_the_reproduction_calls_no_command():
    for path in (ROOT / "reproduction").rglob("*.py"):
        assert "commands" not in imported(path), path


BEHIND = {
    "the planted bias that it shares with the demo": {"demo.bias_bench", "demo.bias_heads", "demo.planted_bias"},
    "figures and tables in other words than the library's": {
        "editing.fairness_tables", "plots.effects", "plots.expert_sheet", "plots.loads", "plots.style",
        "plots.subgroup_accuracy", "plots.tradeoff", "plots.training_curves", "plots.trend", "analysis.text_pages",
    },
    "heads that share images and features": {"analysis.analyzing", "training.inputs", "training.tasks"},
    "jobs, seeds and splits of a study of several data sets": {"api", "data.splits", "data.subset", "training.compare"},
    "settings from TOML": {"training.config", "training.networks"},
    "gates that are not trained": {"analysis.controls"},
    "layers of other packages, trained as `mumoe.train` trains its own": {
        "training.optimizer", "training.sampler", "training.schedule", "training.sources",
    },
    "errors, files, progress, options": {"cli", "errors", "files", "parsing", "progress", "records"},
}  # fmt: skip
"""What the reproduction needs and no documented module offers, by reason."""


def modules_used(path: Path) -> set[str]:
    """Modules of mumoe that a file names."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in found if name.partition(".")[0] == "mumoe"}


def test_the_reproduction_uses_what_is_documented():
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").iterdir())
    public = {"mumoe", *re.findall(r"automodule:: (mumoe[\w.]*)", pages)}
    public |= {f"mumoe.{stub.parent.name}" for stub in SOURCE.glob("*/__init__.pyi")}
    used = {name for path in (ROOT / "reproduction").rglob("*.py") for name in modules_used(path)}
    assert used - public == {f"mumoe.{name}" for names in BEHIND.values() for name in names}


@pytest.mark.parametrize("room", NO_LAYERS)
def test_rooms_that_know_no_layers(room):
    files = [SOURCE / f"{room}.py"] if (SOURCE / f"{room}.py").exists() else list((SOURCE / room).rglob("*.py"))
    forbidden = {"layers", "factorization_base", "factorizations", "gating", "functional", "baselines", "models"}
    for path in files:
        assert not imported(path) & forbidden, path


def readme_blocks() -> list[str]:
    text = (ROOT / "README.md").read_text()
    return [block.partition("```")[0] for block in text.split("```python\n")[1:]]


def test_the_layer_of_the_readme_runs():
    (block,) = (block for block in readme_blocks() if "train(" not in block)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.slow
def test_the_classifier_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in readme_blocks() if "train(" in block)
    found = {}
    exec(compile(block, "README.md", "exec"), found)
    assert found["study"].expert(17).effect.strong
    assert found["run"].notes.name(17) == "letters and digits"
    assert (tmp_path / "model.onnx").is_file()
    assert (tmp_path / "report" / "index.html").is_file()
