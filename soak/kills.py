"""Kill every kind of job at random moments and continue it."""

from __future__ import annotations

from soak.children import found_by
from soak.part import Found, Given, Part

__all__ = ["PART"]

QUICK = ("train-head",)


def run(given: Given) -> Found:
    """Kill, open, continue, compare; see `soak.killer`."""
    chosen = ("--jobs", *QUICK) if given.quick else ()
    return found_by("soak.killer", given.work, "--kills", given.many(200, 4), "--seed", given.seed, *chosen)


PART = Part(
    "A job killed at any moment leaves folders that open, or say in one line what is missing; continued, it ends with "
    "the bits of the uninterrupted job.",
    run,
)
