"""`mumoe analyze`: what each expert of a trained run does, as JSON, figures and image grids, or tokens of text."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mumoe.analysis.settings import check_settings
from mumoe.commands.open_run import RunOptions, opened, require_run
from mumoe.parsing import Argument

if TYPE_CHECKING:
    from mumoe.analysis.findings import TextStudy
    from mumoe.analysis.study import Study

__all__ = ["Options", "analyze_run", "run"]

_OF_IMAGES = ("split", "modes", "threshold", "least_lost", "images", "resamples", "batch_size")
SETTINGS = (*_OF_IMAGES, "windows", "ablated_windows")


@dataclass(frozen=True)
class Options(RunOptions):
    """Measure what each expert of a run does; the results go to RUN/analysis."""

    COMMON: ClassVar = {"split": "val", "modes": "zero mean", "experts": "3 17 49", "images": "12", "out": "analysis"}

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of a run with a MuMoE, sparse-moe or highrank-linear head, or of a language model with MuMoE blocks; or of
    the job that holds it"""
    split: str = "test"
    """train, val or test"""
    modes: tuple[str, ...] = ("zero",)
    """what replaces an ablated expert: zero (the paper's), mean, resampled"""
    experts: tuple[int, ...] = ()
    """experts whose images are shown (default: the first ten that process any)"""
    images: int = 6
    """images shown per expert, once at random and once the largest coefficients (0: none)"""
    threshold: float = 0.5
    """coefficient from which an image counts as processed by an expert"""
    least_lost: int = 5
    """an expert is strong if a class loses at least this many right answers, and at least half of them"""
    resamples: int = 1000
    """bootstrap resamples for the confidence intervals (0: none)"""
    seed: int = 0
    """seed of bootstrap, controls and the images drawn at random"""
    batch_size: int = 500
    """images at a time"""
    windows: int = 256
    """windows of text that are read, of a language model"""
    ablated_windows: int = 64
    """windows on which each expert of a language model is ablated"""
    out: Annotated[str, Argument(("-o", "--out"))] = ""
    """folder for the results (default: RUN/analysis)"""


def run(options: Options) -> None:
    """Analyze and print the main numbers."""
    check_settings(**_settings(options))
    require_run(options.run)
    found = analyze_run(options)
    sys.stdout.write("\n".join(found.sentences()) + "\n")


def analyze_run(options: Options, **given: Any) -> Study | TextStudy:
    """Analyze the run that the options name; `given` as for `mumoe.load`."""
    check_settings(**_settings(options))
    run = opened(options, "mumoe analyze", experts=True, **given)
    return run.analyze(**_settings(options), experts=options.experts, seed=options.seed, out=options.out or None)


def _settings(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in SETTINGS}
