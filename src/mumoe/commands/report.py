"""`mumoe report`: one folder of pages about a run or several, which opens from disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mumoe.commands.opening import require_run
from mumoe.errors import UserError
from mumoe.parsing import Argument

if TYPE_CHECKING:
    from mumoe.data.base import ImageData
    from mumoe.reports.views import RunView

__all__ = ["Options", "report", "run", "run_names"]


@dataclass(frozen=True)
class Options:
    """Write a folder of pages about runs, to open from disk or send as a zip; several runs are compared."""

    COMMON: ClassVar = {
        "out": "report",
        "max_images": "8",
    }
    """Shown first in help, with an example of each."""

    runs: Annotated[tuple[str, ...], Argument(positional=True, metavar="RUN [RUN ...]")]
    """folders of runs, or of several seeds or heads"""
    out: Annotated[str, Argument(("-o", "--out"))] = ""
    """folder of the report; an earlier report there is replaced (empty: RUN/report of the first run)"""
    max_images: int = 20
    """images shown per expert, drawn at random and with the largest coefficients (0: none)"""
    quiet: bool = False
    """show no progress"""


def run(options: Options) -> None:
    """Write the report and say what it lacks."""
    page, views = report(options)
    missing = [f"{view.name}: {found.reason}" for view in views for found in view.missing if found.command]
    remedies = [found.command for view in views for found in view.missing if found.command]
    lines = [f"{text} Make it with: {command}" for text, command in zip(missing, remedies, strict=True)]
    sys.stdout.write("\n".join([*lines, f"Written to {page}. Open it in a browser."]) + "\n")


def report(options: Options, *, data: ImageData | None = None) -> tuple[Path, list[RunView]]:
    """Write the report; returns its first page and what it shows.

    Args:
        options: The settings.
        data: An image set to take instead of those that the runs name.

    Raises:
        UserError: If a folder is no run, or the report would replace something else.
    """
    if options.max_images < 0:
        raise UserError(f"mumoe report: expected max_images >= 0, got {options.max_images}. 0 shows none.")
    for path in options.runs:
        require_run(path)
    from mumoe.reports.gather import gather  # torch is imported only for runs that are there
    from mumoe.reports.site import check_out, write_report

    out = check_out(options.out or Path(options.runs[0]) / "report")
    views: list[RunView] = []
    images: dict[str, ImageData] = {}
    for path, name in zip(options.runs, run_names(options.runs), strict=True):
        found = _images(path, options, data)
        for view in gather(path, data=found, most_images=options.max_images, name=name):
            views.append(view)
            if found is not None:
                images[view.name] = found
    return write_report(views, out, data=images, progress=not options.quiet), views


def _images(path: str, options: Options, data: ImageData | None) -> ImageData | None:
    from mumoe.reports.gather import open_images
    from mumoe.reports.views import Missing

    if data is not None or not options.max_images:
        return data
    found: Any = open_images(path, progress=not options.quiet)
    return None if isinstance(found, Missing) else found


def run_names(paths: Sequence[str]) -> list[str]:
    """The shortest end of each path that no other has; a folder named after a seed keeps its parent's name."""
    parts = [Path(path).resolve().parts for path in paths]
    names = []
    for own in parts:
        most = 2 if own[-1].startswith("seed-") and len(own) > 2 else 1
        while most < len(own) and sum(other[-most:] == own[-most:] for other in parts) > 1:
            most += 1
        names.append("/".join(own[-most:]))
    return names
