"""Opening of what a verb reads: a run, the run of a job that `pick_run` picks, or a saved model; stderr names it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

from mumoe.parsing import Argument

if TYPE_CHECKING:
    from mumoe.api import Run
    from mumoe.deploy.model import HeadModel, ImageClassifier

__all__ = [
    "RunOptions",
    "is_decomposition",
    "note_for",
    "opened",
    "opened_classifier",
    "place",
    "require_run",
    "settings_of",
]


@dataclass(frozen=True)
class RunOptions:
    """Options of a verb that reads a run and its data."""

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of a run, or of the job that holds it"""
    data: str = field(default="", kw_only=True)
    """the data where they are now, e.g. folder:/new/place (empty: where the run found them)"""
    device: str = field(default="auto", kw_only=True)
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    quiet: bool = field(default=False, kw_only=True)
    """show no progress"""


class Opening(Protocol):
    """Options of a verb that opens a run."""

    @property
    def run(self) -> str: ...
    @property
    def device(self) -> str: ...


def opened(options: Opening, who: str, *, experts: bool = False, **given: Any) -> Run:
    """The run that a verb's options name; with `experts` one that has some, where a job has such a head.

    `given` is for `mumoe.api.open_run`; `data` and `quiet` are read from the options where they have them.

    Raises:
        UserError: As `mumoe.api.open_run`.
    """
    from mumoe.training.run import pick_run

    require_run(options.run)
    path = pick_run(options.run, experts=experts, note=note_for(who)).path
    from mumoe.api import open_run  # torch is imported only for a run that is there

    settings: dict[str, Any] = {"device": options.device, "progress": not getattr(options, "quiet", False)}
    if name := getattr(options, "data", ""):
        settings["data"] = name
    return open_run(path, **{**settings, **given})


def settings_of(options: Opening, *names: str) -> dict[str, Any]:
    """The named options, as a verb passes them on."""
    return {name: getattr(options, name) for name in names}


def require_run(path: str) -> None:
    """Raise `UserError` unless a path is a run, a job or a saved model; without importing torch."""
    from mumoe.deploy.saved import is_saved
    from mumoe.training.run import find_run

    if not is_saved(Path(path)):
        find_run(path)


def is_decomposition(path: str) -> bool:
    """Whether a folder is one of `mumoe decompose`; without importing torch."""
    return (Path(path) / "decomposition.json").is_file()


def place(options: Opening, who: str, edits: str = "") -> tuple[Path, Callable[[], ImageClassifier | HeadModel]]:
    """The folder of a saved model or of a run, and a function that loads what it exports, with edits folded in.

    Raises:
        UserError: As `opened`, and for a converted network.
    """
    from mumoe.deploy.saved import is_saved

    if is_saved(Path(options.run)):
        model = functools.partial(_saved_classifier, options, who)
        return Path(options.run), lambda: model().with_edits(edits) if edits else model()
    run = opened(options, who)
    return run.path, lambda: (run.with_edits(edits) if edits else run).exportable()


def opened_classifier(options: Opening, who: str) -> ImageClassifier:
    """The classifier of a saved model or of a run.

    Raises:
        UserError: As `place`, and for a run that does not know its backbone.
    """
    from mumoe.deploy.saved import is_saved

    return _saved_classifier(options, who) if is_saved(Path(options.run)) else opened(options, who).classifier


def _saved_classifier(options: Opening, who: str) -> ImageClassifier:
    from mumoe.api import load
    from mumoe.deploy.saved import is_converted
    from mumoe.errors import UserError

    if is_converted(Path(options.run)):
        raise UserError(f"{who}: expected a run or a saved classifier, got the converted network {options.run!r}.")
    return cast("ImageClassifier", load(options.run, device=options.device)[0])


def note_for(who: str) -> Any:
    """Writes a line to stderr, preceded by the name of a verb."""
    return lambda line: sys.stderr.write(f"{who}: {line[:1].lower()}{line[1:]}\n")
