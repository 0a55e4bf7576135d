"""Run every benchmark, each in a process of its own, then write the tables of the docs: `make bench`.

    python -m benchmarks.run [--full] [--out DIR] [NAME ...]

The quick mode takes about two minutes on two idle cores, the full one about an hour. Results go to
benchmarks/results/*.json, tables to docs/benchmarks.md and docs/complexity.md; with ``--out`` the docs do not change.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks import measuring, pages
from benchmarks.measuring import RESULTS, Options

NAMES = ("layer", "complexity", "features", "interventions", "startup")
"""Modules of this folder that measure something and write `results/NAME.json`."""

LONG = ("report_pages", "dashboard")
"""The same, without a quick mode: they run with ``--full`` or by name."""


def command(name: str, asked: Options) -> list[str]:
    """The command line of one benchmark."""
    if name in LONG:
        return [sys.executable, "-m", f"benchmarks.{name}"]
    return [sys.executable, "-m", f"benchmarks.{name}", *["--full"] * asked.full, "--out", str(asked.out)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run those that are named on the command line, or all."""
    asked = measuring.options(__doc__ or "", argv, NAMES + LONG)
    failed = []
    for name in asked.only or (NAMES + LONG if asked.full and asked.out == RESULTS else NAMES):
        print(f"== {name}", flush=True)
        start = time.monotonic()
        if subprocess.run(command(name, asked), check=False).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
    if asked.out == RESULTS:
        pages.main()
    if failed:
        sys.stderr.write(f"bench: failed: {', '.join(failed)}\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
