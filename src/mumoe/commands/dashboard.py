"""`mumoe dashboard`: a run's results in the browser, to look at and to change."""

from __future__ import annotations

import atexit
import html
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from mumoe.commands.open_run import opened
from mumoe.errors import UserError, require
from mumoe.files import private_file
from mumoe.parsing import Argument

if TYPE_CHECKING:
    from mumoe.api import Run
    from mumoe.dashboard.server import Running

__all__ = ["Options", "redirecting_file", "run"]


@dataclass(frozen=True)
class Options:
    """Open a run in the browser: browse experts and images, edit experts and see at once what changes.

    The page is served on 127.0.0.1, to the one browser that has the token of its address. Ctrl-C ends it. For a run on
    another machine: start it there with --no-browser --port 8000, then ssh -L 9999:127.0.0.1:8000 HOST, and open the
    address that it printed with port 9999 in place of 8000.
    """

    COMMON: ClassVar = {
        "split": "test",
        "port": "8000",
        "data": "folder:/new/place",
    }
    """Shown first in help, with an example of each."""

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of a run with experts, or of the job that holds it"""
    port: int = 0
    """port on 127.0.0.1 (0: any that is free)"""
    split: str = ""
    """split to open first: train, val or test (empty: val, where there is one)"""
    browser: bool = True
    """open the page in the browser; --no-browser prints its address alone"""
    data: str = ""
    """the data where they are now, e.g. folder:/new/place (empty: where the run found them)"""
    device: str = "auto"
    """where features are extracted: auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""


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
    _read_ahead(Path(options.run), options.data)
    run = opened(options, "mumoe dashboard", experts=True, progress=False)
    _require_experts(run)
    from mumoe.dashboard.server import serve
    from mumoe.dashboard.texts import open_text

    text = run.config.mode == "text"
    serve(
        lambda report: open_text(run.path) if text else run.session(report, split=options.split),
        options.port,
        lambda running: _opened(running, options.browser),
    )


def _read_ahead(run: Path, data: str) -> None:
    """Begin to check a file of features while torch is being imported; a run that cannot be read is reported later."""
    import tomllib

    from mumoe.files import digest_ahead

    try:
        data = data or str(tomllib.loads((run / "config.toml").read_text("utf-8"))["input"]["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if data.startswith("features:"):
        digest_ahead(Path(data.removeprefix("features:")))


def _require_experts(run: Run) -> None:
    """Refuse a run without experts before anything is served."""
    if run.config.mode == "text":
        _require_text(run.path)
    elif run.config.head.startswith(("linear", "highrank-linear")):
        raise UserError(
            f"mumoe dashboard: expected a run with experts, got the head {run.config.head!r}, which has none. "
            "Train one with --spec CPMuMoE-r256-e128."
        )


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
    if browser:  # in a thread: some browsers return only when they are closed, and the server has not started yet
        page = redirecting_file(running).as_uri()
        threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()


def redirecting_file(running: Running) -> Path:
    """A file that only this user can read and that leads to the page; it is removed when the process ends.

    A browser's arguments are in the list of processes, which every user of the machine can read: the token must not be
    among them.
    """
    address = html.escape(running.url, quote=True)
    page = private_file(
        '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
        f'<meta http-equiv="refresh" content="0; url={address}"><title>mumoe dashboard</title>'
        f'<a href="{address}">Open the dashboard</a>\n',
        prefix="mumoe-dashboard-",
        suffix=".html",
    )
    atexit.register(page.unlink, missing_ok=True)
    return page
