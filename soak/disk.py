"""Full disks, read-only folders, and two processes on one folder."""

from __future__ import annotations

from soak.children import found_by
from soak.part import Found, Given, Part

__all__ = ["PART"]

QUICK = ("--jobs", "train-head", "--only", "full")
SLOW = "export-onnx"
"""Tracing takes longer than everything else together; the files are written as those of the other exports."""


def run(given: Given) -> Found:
    """Try every writer; see `soak.disk_trials`."""
    chosen = QUICK if given.quick else ("--without", SLOW)
    return found_by("soak.disk_trials", given.work, "--trials", 1, "--seed", given.seed, *chosen)


PART = Part(
    "On a full disk and in a read-only folder a job ends with one line, loses nothing and leaves nothing partial; of "
    "two processes on one folder each is right or ends with one line.",
    run,
)
