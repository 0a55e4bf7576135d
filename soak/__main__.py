"""Hard use, counted: what is promised is tried many times, at random but with a seed.

    python -m soak                       all parts, about two hours on two cores
    python -m soak --quick               all parts, under two minutes
    python -m soak --parts damage calls  some parts

A full run writes what it counted to `docs/results/reliability`; the exit status is 1 if a promise was broken.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mumoe import __version__
from mumoe.cli import guarded
from mumoe.errors import unknown_name
from mumoe.files import write_json
from mumoe.parsing import parse
from soak.page import write_page
from soak.part import Found, Given, Part

__all__ = ["NAMES", "Options", "main"]

NAMES = ("damage", "calls", "kills", "disk", "processes", "images", "clients", "privacy", "repeats")
"""Parts, in this order; each is the module of this name, with its `PART`."""


@dataclass(frozen=True)
class Options:
    """Try what mumoe promises under hard use, and count."""

    quick: bool = False
    """a short run, under two minutes; writes no counts"""
    parts: tuple[str, ...] = ()
    """parts to run (default: all)"""
    seed: int = 0
    """of everything that is drawn at random"""
    work: str = ""
    """folder for files (default: a temporary one)"""
    out: str = "docs/results/reliability"
    """folder of the counts of a full run"""


def main(options: Options) -> int:
    """Run the parts; returns the exit status."""
    for name in options.parts:
        if name not in NAMES:
            raise unknown_name("soak", "part", name, NAMES)
    broken = 0
    with tempfile.TemporaryDirectory(prefix="mumoe-soak-") as scratch:
        for name in options.parts or NAMES:
            work = Path(options.work or scratch) / name
            work.mkdir(parents=True, exist_ok=True)
            part: Part = importlib.import_module(f"soak.{name}").PART
            sys.stdout.write(f"{name}: {part.about}\n")
            sys.stdout.flush()
            begun = time.monotonic()
            found = part.run(Given(options.quick, options.seed, work))
            seconds = time.monotonic() - begun
            _show(found, seconds)
            broken += len(found.faults)
            if not options.quick:
                _keep(name, part, found, seconds, options)
    if not options.quick:
        write_page(Path(options.out), NAMES)
    return 1 if broken else 0


def _show(found: Found, seconds: float) -> None:
    for label, number in found.counts.items():
        sys.stdout.write(f"  {number:,} {label}\n")
    for label, value in found.measured.items():
        sys.stdout.write(f"  {label}: {value:.4g}\n")
    for line in found.skipped:
        sys.stdout.write(f"  skipped: {line}\n")
    for line in found.faults[:20]:
        sys.stdout.write(f"  BROKEN: {line}\n")
    verdict = f"{len(found.faults):,} broken" if found.faults else "held"
    sys.stdout.write(f"  {verdict}, {seconds:.0f} s\n")
    sys.stdout.flush()


def _keep(name: str, part: Part, found: Found, seconds: float, options: Options) -> None:
    about = {"part": name, "about": part.about, "seed": options.seed, "seconds": round(seconds)}
    versions = {"mumoe": __version__, "torch": torch.__version__, "python": sys.version.split()[0]}
    write_json(Path(options.out) / f"{name}.json", about | {"versions": versions} | asdict(found))


def _dispatch(arguments: list[str]) -> int:
    options = parse(Options, arguments, "python -m soak")
    return 0 if options is None else main(options)


if __name__ == "__main__":
    sys.exit(guarded(_dispatch, sys.argv[1:]))
