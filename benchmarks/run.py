"""Run every benchmark, one after the other, each in a process of its own: `make bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def names() -> list[str]:
    """Modules of this folder that measure something and write `results/NAME.json`."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("run", "__init__"))


def main() -> int:
    """Run those that are named on the command line, or all."""
    chosen = sys.argv[1:] or names()
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        sys.stderr.write(f"bench: expected benchmarks out of {', '.join(names())}, got {unknown[0]!r}.\n")
        return 2
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        sys.stderr.write(f"bench: failed: {', '.join(failed)}\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
