"""Everything drawn at random, computed twice in two processes, and compared to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from soak.children import own_process
from soak.part import Found, Given, Part
from soak.repeated import STEPS
from soak.steady import contents, differences

__all__ = ["PART", "compare"]

QUICK = ("train-head", "edit")
THREADED = ("train-mixer", "finetune-cnn", "features")
"""Also computed with two threads."""
PLACE = "place"


def run(given: Given) -> Found:
    """Twice with other hash seeds and other states of the global generators; in a full run also with two threads."""
    found = Found()
    steps = QUICK if given.quick else tuple(name for name in STEPS if name != "small-demo")
    compare(given.work, steps, found)
    if not given.quick:
        own_process("soak.repeated", given.work / PLACE, "--threads", 2, "--steps", *THREADED)
        pairs = [[contents(given.work / name / step) for name in ("one", PLACE)] for step in THREADED]
        differ = sum(len(differences(*pair)) for pair in pairs)
        found.measured["files that differ between one and two threads (not promised)"] = differ
    return found


def compare(work: Path, steps: Sequence[str], found: Found) -> None:
    """Run steps in two processes, at the same place one after the other, and compare all their files."""
    for start, name in enumerate(("one", "other")):
        hashes = {"PYTHONHASHSEED": str(start + 1)}
        taken = own_process("soak.repeated", work / PLACE, "--start", start, "--steps", *steps, environment=hashes)
        (work / PLACE).rename(work / name)
        if "demo" in taken:
            found.measured[f"seconds of the demo, {name} run"] = taken["demo"]
    for step in steps:
        one, other = (contents(work / name / step) for name in ("one", "other"))
        found.count("kinds of work that were repeated")
        found.count("files compared to the bit", len(one))
        if unlike := differences(one, other):
            found.faults.append(f"{step}: {len(unlike)} of {len(one)} files differ: {', '.join(unlike[:6])}")


PART = Part(
    "Everything drawn at random is seeded: the same call gives the same bits in another process, with any hash seed "
    "and any state of the global generators; only times differ.",
    run,
)
