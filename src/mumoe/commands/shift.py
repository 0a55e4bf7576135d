"""`mumoe shift`: accuracy and specialization of the same experts on shifted data, before and after."""

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
    """Measure a run, or every run of a job, on shifted images; writes shift-NAME.json."""

    COMMON: ClassVar = {"before": "val", "against": "runs/linear", "data_options": "held_out=twemoji"}

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of a run, or of a job, of which all runs are measured"""
    to: Annotated[str, Argument(positional=True, metavar="TO")]
    """train, val or test; gaussian-noise, blur or low-contrast; or other data with the same classes: folder:PATH, .."""
    before: str = ""
    """split before the shift (empty: test, or val where TO is test)"""
    split: str = "test"
    """split of other data that is used"""
    data_options: tuple[str, ...] = ()
    """options of other data as KEY=VALUE, e.g. held_out=twemoji"""
    against: tuple[str, ...] = ()
    """folders of further runs to measure, e.g. of the linear partner"""
    images: int = 0
    """images of the split before the shift that are used, drawn at random (0: all)"""
    level: int = 0
    """level of a hierarchy"""
    least_lost: int = 5
    """an expert is strong if a class loses at least this many right answers, and at least half of them"""
    seed: int = 0
    """seed of controls and corruptions"""
    out: Annotated[str, Argument(("-o", "--out"))] = ""
    """file for the numbers (default: shift-NAME.json in RUN)"""
    json: bool = False
    """print JSON instead"""


def run(options: Options) -> None:
    """Measure and print."""
    for path in (options.run, *options.against):
        require_run(path)
    from mumoe.api import open_job  # torch is imported only for runs that are there

    jobs = [
        open_job(path, device=options.device, progress=not options.quiet, data=options.data or None)
        for path in (options.run, *options.against)
    ]
    settings = settings_of(options, "before", "split", "data_options", "images", "level", "least_lost", "seed")
    others = [run for job in jobs[1:] for run in job.runs]
    found = jobs[0].shift(options.to, against=others, **settings, out=options.out or None)
    text = json.dumps(found.to_dict(), allow_nan=False) if options.json else "\n".join(found.sentences())
    sys.stdout.write(text + "\n")
