"""What a verb opens: one run, the run of a job that `pick_run` picks, or a saved model; which one it is, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from mumoe.api import Run
    from mumoe.deploy.model import HeadModel, ImageClassifier

__all__ = ["note_for", "opened", "opened_classifier", "place", "require_run"]


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


def require_run(path: str) -> None:
    """Raise `UserError` unless a path is a run, a job or a saved model; without importing torch."""
    from mumoe.deploy.saved import is_saved
    from mumoe.training.run import find_run

    if not is_saved(Path(path)):
        find_run(path)


def place(options: Opening, who: str) -> tuple[Path, Callable[[], ImageClassifier | HeadModel]]:
    """The folder of a saved model or of a run, and a function that loads what it exports.

    Raises:
        UserError: As `opened`, and for a converted network.
    """
    from mumoe.deploy.saved import is_converted, is_saved
    from mumoe.errors import UserError

    folder = Path(options.run)
    if is_converted(folder):
        raise UserError(f"{who}: expected a run or a saved classifier, got the converted network {options.run!r}.")
    if is_saved(folder):
        from mumoe.api import load

        return folder, lambda: cast("ImageClassifier", load(folder, device=options.device)[0])
    run = opened(options, who)
    return run.path, run.exportable


def opened_classifier(options: Opening, who: str) -> ImageClassifier:
    """The classifier of a saved model or of a run.

    Raises:
        UserError: As `place`, and for a run that does not know its backbone.
    """
    from mumoe.deploy.saved import is_saved

    if is_saved(Path(options.run)):
        return cast("ImageClassifier", place(options, who)[1]())
    return opened(options, who).classifier


def note_for(who: str) -> Any:
    """Writes a line to stderr in the name of a verb."""
    return lambda line: sys.stderr.write(f"{who}: {line[:1].lower()}{line[1:]}\n")
