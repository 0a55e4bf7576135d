"""`mumoe evaluate`: loss and accuracy of trained runs on a split, by class or by attribute."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar

from mumoe.commands.open_run import RunOptions
from mumoe.data.base import SPLITS
from mumoe.errors import unknown_name
from mumoe.parsing import Argument
from mumoe.records import to_plain
from mumoe.results import EvalResult
from mumoe.training.run import find_run

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options(RunOptions):
    """Evaluate a run, or every run of a job over several seeds or heads."""

    COMMON: ClassVar = {"split": "val", "json": "", "classes": "20"}

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of the run, or of the job that holds it"""
    split: str = "test"
    """train, val or test"""
    json: bool = False
    """print one JSON object per run instead"""
    classes: int = 5
    """how many of the hardest classes to name (0: none)"""


def run(options: Options) -> None:
    """Evaluate and print."""
    if options.split not in SPLITS:
        raise unknown_name("mumoe evaluate", "split", options.split, SPLITS)
    find_run(options.run)
    from mumoe.api import load_runs  # torch is imported only for a run that is there

    given = {"data": options.data, "device": options.device, "progress": not options.quiet}
    for run in load_runs(options.run, **given):
        result = run.evaluate(options.split)
        sys.stdout.write(json.dumps(to_plain(result)) if options.json else "\n".join(_lines(result, options.classes)))
        sys.stdout.write("\n")


def _lines(result: EvalResult, hardest: int) -> list[str]:
    lines = [result.headline()]
    known = [(value, name) for name, value in result.per_class.items() if value is not None]
    for value, name in sorted(known)[:hardest]:
        lines.append(f"  {value:.4f}  {name} ({result.class_counts[name]:,})")
    missing = len(result.per_class) - len(known)
    return [*lines, f"  {missing} classes have no image in this split"] if missing else lines
