"""`mumoe stability`: whether the experts of one seed of a job reappear in the others, beside random gates."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar

from mumoe.commands.open_run import RunOptions, require_run, settings_of
from mumoe.parsing import Argument

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options(RunOptions):
    """Match the experts of every two seeds by their coefficients on the same images; writes stability.json."""

    COMMON: ClassVar = {"head": "CPMuMoE-r256-e128", "split": "val", "level": "1", "draws": "10"}

    run: Annotated[str, Argument(positional=True, metavar="JOB")]
    """folder of a job with several seeds"""
    head: Annotated[str, Argument(("--spec",))] = ""
    """head whose seeds are compared (empty: the one with experts that is best on validation)"""
    split: str = "test"
    """split on which strong experts are measured, and coefficients compared if all seeds have the same split"""
    level: int = 0
    """level of a hierarchy whose experts are matched"""
    threshold: float = 0.5
    """correlation of coefficients from which a strong expert counts as reappearing"""
    least_lost: int = 5
    """an expert is strong if a class loses at least this many right answers, and at least half of them"""
    draws: int = 5
    """random gates drawn for each seed, for the control"""
    seed: int = 0
    """seed of the controls"""
    out: Annotated[str, Argument(("-o", "--out"))] = ""
    """file for the numbers (default: stability.json beside the seeds)"""
    json: bool = False
    """print JSON instead"""


def run(options: Options) -> None:
    """Measure and print."""
    require_run(options.run)
    from mumoe.api import open_job  # torch is imported only for a job that is there

    job = open_job(options.run, device=options.device, progress=not options.quiet, data=options.data or None)
    settings = settings_of(options, "head", "split", "level", "threshold", "least_lost", "draws", "seed")
    found = job.stability(**settings, out=options.out or None)
    text = json.dumps(found.to_dict(), allow_nan=False) if options.json else "\n".join(found.sentences())
    sys.stdout.write(text + "\n")
