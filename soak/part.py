"""What a part of the soak is given, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Found", "Given", "Part"]


@dataclass(frozen=True)
class Given:
    """What a part is given.

    Attributes:
        quick: A short run, of a few seconds; else the full one.
        seed: Of everything that is drawn at random.
        work: An empty folder of the part's own.
    """

    quick: bool
    seed: int
    work: Path

    def many(self, full: int, quick: int) -> int:
        """A number of trials: `full`, or `quick` in a short run."""
        return quick if self.quick else full


@dataclass
class Found:
    """What a part found.

    Attributes:
        counts: What was tried, and how often; by label.
        measured: Figures that are not counts (seconds, bytes, ratios), by label.
        faults: One line for each promise that was broken; empty if all held.
        skipped: One line for each trial that this machine does not allow.
    """

    counts: dict[str, int] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def count(self, label: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[label] = self.counts.get(label, 0) + number

    def add(self, counts: Mapping[str, int]) -> None:
        """Add several counts."""
        for label, number in counts.items():
            self.count(label, number)


@dataclass(frozen=True)
class Part:
    """One part of the soak.

    Attributes:
        about: What is promised, in one sentence; a row of the page.
        run: Tries it.
    """

    about: str
    run: Callable[[Given], Found]
