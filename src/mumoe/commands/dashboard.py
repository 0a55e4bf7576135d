"""`mumoe dashboard`: a run's results in the browser, to look at and to change."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mumoe.errors import UserError, require

if TYPE_CHECKING:
    from mumoe.dashboard.server import Running

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Open a run in the browser: browse experts and images, edit experts and see at once what changes.

    The page is served on 127.0.0.1, to the one browser that has the token of its address. Ctrl-C ends it.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folder of a run with experts"""
    port: int = 0
    """port on 127.0.0.1 (0: any that is free)"""
    split: str = ""
    """split to open first: train, val or test (empty: val, where there is one)"""
    browser: bool = True
    """open the page in the browser; --no-browser prints its address alone"""


def run(options: Options) -> None:
    """Serve until interrupted."""
    from mumoe.data.base import SPLITS
    from mumoe.errors import unknown_name

    if not 0 <= options.port < 65536:
        raise UserError(f"mumoe dashboard: expected --port in 0..65535, got {options.port}. 0 takes a free one.")
    if options.split and options.split not in SPLITS:
        raise unknown_name("mumoe dashboard", "split", options.split, SPLITS)
    for package in ("starlette", "uvicorn"):
        require(package, "dashboard", "mumoe dashboard")
    require("PIL", "vision", "mumoe dashboard")
    _read_ahead(Path(options.run))
    folder = _folder(options.run)
    from mumoe.dashboard.server import serve
    from mumoe.dashboard.session import open_session
    from mumoe.dashboard.texts import has_text, open_text

    text = has_text(Path(folder))
    serve(
        lambda report: open_text(Path(folder)) if text else open_session(folder, report, split=options.split),
        options.port,
        lambda running: _opened(running, options.browser),
    )


def _read_ahead(run: Path) -> None:
    """Begin to check a file of features while torch is being imported; a run that cannot be read is told of later."""
    import tomllib

    from mumoe.files import digest_ahead

    try:
        data = str(tomllib.loads((run / "config.toml").read_text("utf-8"))["input"]["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if data.startswith("features:"):
        digest_ahead(Path(data.removeprefix("features:")))


def _folder(run: str) -> str:
    """The one run at a path, refused now if it has no experts, before anything is served."""
    from mumoe.training.run import find_run

    found = find_run(run)
    if len(found) > 1:
        names = ", ".join(str(folder.path) for folder in found[:4])
        raise UserError(f"mumoe dashboard: expected one run, got {len(found)} ({names}). Name one of them.")
    if found[0].config().mode == "text":
        _require_text(found[0].path)
    head = str(found[0].facts().get("head", ""))
    if head.startswith(("linear", "highrank-linear")):
        raise UserError(
            f"mumoe dashboard: expected a run with experts, got the head {head!r}, which has none. "
            "Train one with --head CPMuMoE-r256-e128."
        )
    return str(found[0].path)


def _require_text(run: Path) -> None:
    from mumoe.dashboard.texts import has_text

    if not has_text(run):
        raise UserError(
            f"mumoe dashboard: expected a language model whose experts were measured, got {run}. "
            f"Run: mumoe analyze {run}"
        )


def _opened(running: Running, browser: bool) -> None:
    import webbrowser

    sys.stdout.write(f"{running.url}\nThe address is for you alone. Ctrl-C ends the dashboard.\n")
    sys.stdout.flush()
    if browser:
        webbrowser.open(running.url)
