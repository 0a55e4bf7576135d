"""`mumoe report`: one folder of pages about a run or several, which opens from disk."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from mumoe.commands.open_run import is_decomposition, require_run
from mumoe.errors import UserError
from mumoe.parsing import Argument

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Write a folder of pages about runs, to open from disk or send as a zip; several runs are compared.

    Of a decomposition it is one page about its experts, once these were analyzed.
    """

    COMMON: ClassVar = {"out": "report", "max_images": "8"}

    runs: Annotated[tuple[str, ...], Argument(positional=True, metavar="RUN [RUN ...]")]
    """folders of runs, or of several seeds or heads; or one of mumoe decompose"""
    out: Annotated[str, Argument(("-o", "--out"))] = ""
    """folder of the report; an earlier report there is replaced (empty: RUN/report of the first run)"""
    max_images: int = 20
    """images shown per expert, drawn at random and with the largest coefficients (0: none)"""
    local_paths: bool = False
    """write paths of this machine in full (otherwise only their last part)"""
    quiet: bool = False
    """show no progress"""


def run(options: Options) -> None:
    """Write the report and print what it lacks."""
    if options.max_images < 0:
        raise UserError(f"mumoe report: expected max_images >= 0, got {options.max_images}. 0 shows none.")
    if any(map(is_decomposition, options.runs)):
        _report_decomposition(options)
        return
    for path in options.runs:
        require_run(path)
    from mumoe.api import load_runs, write_report  # torch is imported only for runs that are there

    jobs = {Path(path): load_runs(path, progress=not options.quiet) for path in options.runs}
    out = options.out or Path(options.runs[0]) / "report"
    written = write_report(jobs, out, max_images=options.max_images, local_paths=options.local_paths)
    sys.stdout.write("\n".join(written.sentences()) + "\n")


def _report_decomposition(options: Options) -> None:
    if len(options.runs) > 1:
        raise UserError(f"mumoe report: expected one decomposition alone, got {len(options.runs)} folders. Name one.")
    from mumoe.api import load

    page = load(options.runs[0], progress=not options.quiet).report(options.out or Path(options.runs[0]) / "report")
    sys.stdout.write(f"Written to {page}. Open it in a browser.\n")
