"""`mumoe fairness`: accuracy of subgroups and the paper's fairness metrics, before and after edits."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import ClassVar

from mumoe.commands.open_run import RunOptions, opened, require_run, settings_of

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options(RunOptions):
    """Measure a run's model on subgroups: every combination of a 0/1 attribute and a sensitive one."""

    COMMON: ClassVar = {"target": "Blond_Hair", "sensitive": "Male", "edits": "blond.json", "split": "val", "json": ""}

    target: str
    """the attribute that is predicted"""
    sensitive: str
    """the sensitive attribute"""
    label: int = 1
    """label of the target subgroup, 0 or 1"""
    value: str = ""
    """sensitive value of the target subgroup, e.g. 1 or yes (empty: the one that is right least often)"""
    edits: str = ""
    """file of edits to compare with the model as it was trained, and with a blind shift of its threshold"""
    split: str = "test"
    """train, val or test"""
    resamples: int = 1000
    """bootstrap resamples of the intervals (0: none)"""
    seed: int = 0
    """of the bootstrap"""
    json: bool = False
    """print JSON instead of tables"""


def run(options: Options) -> None:
    """Measure and print."""
    require_run(options.run)
    settings = settings_of(options, "label", "value", "split", "resamples", "seed")
    run = opened(options, "mumoe fairness")
    found = run.fairness(options.target, options.sensitive, edits=options.edits or None, **settings)
    if options.json:
        plain = {name: report.to_dict() for name, report in found.models.items()}
        sys.stdout.write(json.dumps(plain, allow_nan=False) + "\n")
        return
    sys.stdout.write(f"{found.headline()}\n\n{found.tables()}")
