"""The tests that need no torch, on every supported Python that this machine has; `make pythons`.

Each interpreter gets a folder of its own in .pythons with what mumoe needs besides torch, compiles the sources, and
runs the tests of `WITHOUT_TORCH`. With --full it gets torch too (about 3 GB to download, 6 GB on disk) and also runs
the tests of the layer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
WITHOUT_TORCH = (
    *(f"tests/test_{name}.py" for name in ("browser_setup", "messages", "startup")),
    *(f"tests/data/test_{name}.py" for name in ("cache", "csv", "decode", "named", "splits", "verify")),
)
OF_THE_LAYER = ("tests/test_functional.py", "tests/test_layers.py", "tests/test_costs.py", "tests/test_cli.py")
TESTING = ("pytest>=8.3", "hypothesis>=6.120", "pillow>=11", "filelock>=3.16")


def interpreters() -> dict[str, str]:
    """Version -> path of an interpreter: on PATH, or among pyenv's."""
    found = {}
    homes = sorted((Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions").glob("3.*/bin"))
    for version in SUPPORTED:
        own = [str(home / "python") for home in homes if home.parent.name.startswith(f"{version}.")]
        for candidate in [*reversed(own), shutil.which(f"python{version}")]:
            if candidate and _says(candidate) == version:
                found[version] = candidate
                break
    return found


def _says(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def needed(full: bool) -> list[str]:
    """What is installed: the project's dependencies, torch among them if `full`, and what the tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [item for item in project["dependencies"] if full or not item.startswith("torch")] + list(TESTING)


def check(version: str, python: str, full: bool) -> bool:
    """Install, compile and test with one interpreter; whether all went well."""
    place = ROOT / ".pythons" / version
    inside = place / "bin" / "python"
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    pip = [str(inside), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    tests = [*WITHOUT_TORCH, *(OF_THE_LAYER if full else ())]
    steps = [
        *([[python, "-m", "venv", str(place)]] if not inside.exists() else []),
        [*pip, *needed(full)],
        [str(inside), "-W", "error", "-m", "compileall", "-q", "-f", str(ROOT / "src")],
        [str(inside), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
    ]
    for step in steps:
        if subprocess.run(step, cwd=ROOT, env=settings, check=False).returncode:
            sys.stderr.write(f"Python {version}: failed at: {' '.join(step)}\n")
            return False
    left = "" if full else "; skipped the layer's tests, which need torch: make pythons FULL=1 downloads it"
    sys.stdout.write(f"Python {version}: passed{left}\n")
    return True


def main(arguments: list[str]) -> int:
    """Check every interpreter; returns the exit status."""
    found = interpreters()
    passed = [check(version, python, "--full" in arguments) for version, python in found.items()]
    missing = [version for version in SUPPORTED if version not in found]
    if missing:
        sys.stdout.write(f"Python {', '.join(missing)}: skipped, not installed\n")
    return 0 if found and all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
