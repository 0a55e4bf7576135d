"""Figures are drawn in one room, and what draws them is imported when something is drawn."""

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "mumoe"


def at_run_time(tree):
    """Statements of a file that are executed, without those for type checkers."""
    nodes = list(ast.iter_child_nodes(tree))
    while nodes:
        node = nodes.pop()
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield node
            nodes += ast.iter_child_nodes(node)


def draws(path):
    imports = [node for node in at_run_time(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return any((node.module or "").startswith("matplotlib") for node in imports)


def test_matplotlib_is_used_in_plots_alone():
    found = {path.relative_to(SOURCE).parts[0] for path in SOURCE.rglob("*.py") if draws(path)}
    assert found == {"plots"}


def test_importing_the_room_imports_neither_matplotlib_nor_pillow():
    modules = [f"mumoe.plots.{path.stem}" for path in (SOURCE / "plots").glob("*.py") if path.stem != "__init__"]
    code = f"import sys\nfor name in {modules}: __import__(name)\n"
    code += "print([name for name in ('matplotlib', 'PIL', 'timm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
