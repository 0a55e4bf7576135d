"""Serve a run on 127.0.0.1 until it is interrupted, or in a thread for tests and benchmarks."""

from __future__ import annotations

import atexit
import contextlib
import html
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mumoe.dashboard import WHO
from mumoe.dashboard.app import Dashboard, make_app
from mumoe.dashboard.background import Task
from mumoe.dashboard.guard import Secrets
from mumoe.dashboard.session import Session, open_session
from mumoe.dashboard.token_view import TokenSession, has_tokens, open_decomposed, open_tokens
from mumoe.errors import UserError, require
from mumoe.files import private_file
from mumoe.training.opening import StoredRun

if TYPE_CHECKING:
    from mumoe.decomposition.opened import Decomposition

__all__ = ["Running", "Work", "serve", "serving", "show_decomposition", "show_run"]

ADDRESS = "127.0.0.1"

Work = Callable[[Any], Session | TokenSession]
"""Opens a run; called with a function that reports progress."""


def show_run(run: StoredRun, *, port: int = 0, split: str = "", browser: bool = True) -> None:
    """Serve a run until interrupted, to the one browser that has the token of the page's address.

    Args:
        run: A run with experts; of a language model one that was analyzed.
        port: Port on 127.0.0.1; 0 uses a free one.
        split: Split to open first; by default validation, where there is one.
        browser: Whether to open the page; if not, only its address is printed.

    Raises:
        UserError: If a package is missing, the run has no experts or was not analyzed, or the port is taken.
        JobError: If the run has no intact checkpoint.
    """
    require("PIL", "vision", WHO)
    _require_experts(run)
    text = run.config.mode == "text"
    serve(
        lambda report: open_tokens(run.path) if text else open_session(run, report, split=split),
        port,
        lambda running: _announce(running, browser),
    )


def show_decomposition(decomposition: Decomposition, *, port: int = 0, browser: bool = True) -> None:
    """Serve the token view of a decomposition that was analyzed, as `show_run` does.

    Raises:
        UserError: If it was not analyzed, or the port is taken.
    """
    session = open_decomposed(decomposition)
    serve(lambda report: session, port, lambda running: _announce(running, browser))


def _require_experts(run: StoredRun) -> None:
    """Refuse a run that has nothing to show, before the server starts."""
    if run.config.mode == "text" and not has_tokens(run.path):
        raise UserError(
            f"{WHO}: expected a language model whose experts were measured, got {run.path}. "
            f"Run: mumoe analyze {run.path}"
        )
    if run.config.head.startswith(("linear", "highrank-linear")):
        raise UserError(
            f"{WHO}: expected a run with experts, got the head {run.config.head!r}, which has none. "
            "Train one with the head CPMuMoE-r256-e128."
        )


def _announce(running: Running, browser: bool) -> None:
    sys.stdout.write(f"{running.url}\nKeep the address private. Ctrl-C stops the dashboard.\n")
    sys.stdout.flush()
    if browser:  # in a thread: some browsers return only when closed, and the server has not started yet
        page = redirecting_file(running).as_uri()
        threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()


def redirecting_file(running: Running) -> Path:
    """A file that only this user can read and that redirects to the page; it is removed when the process ends.

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


class Running:
    """A server, its port and its secrets.

    Args:
        work: Opens the session.
        port: Its port; 0 uses a free one.

    Raises:
        UserError: If the port is taken.
    """

    def __init__(self, work: Work, port: int = 0) -> None:
        import uvicorn

        self.socket = _bound(port)
        self.port: int = self.socket.getsockname()[1]
        self.keys = Secrets()
        self.dashboard = Dashboard(self.keys)
        app = make_app(self.dashboard, self.port)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.dashboard.start(work)

    @property
    def url(self) -> str:
        """The page's address, with the token."""
        return f"http://{ADDRESS}:{self.port}/?token={self.keys.token}"

    @property
    def opening(self) -> Task:
        """The task that opens the run."""
        return self.dashboard.tasks[self.dashboard.opening or 0]

    def run(self) -> None:
        """Serve until interrupted, or until the run could not be opened.

        Raises:
            UserError, JobError: What the opening of the run raised.
        """
        watching = threading.Thread(target=self._watch, daemon=True)
        watching.start()
        with contextlib.suppress(KeyboardInterrupt), self.socket:
            self.server.run(sockets=[self.socket])
        if self.opening.exception is not None:
            raise self.opening.exception

    def _watch(self) -> None:
        """Stop the server a moment after a failure, so that the page can say why."""
        while self.opening.state == "running" and not self.server.should_exit:
            time.sleep(0.1)
        if self.opening.state == "failed":
            time.sleep(1.0)
            self.server.should_exit = True


def _bound(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((ADDRESS, port))
        found.listen(128)  # a browser that connects before the server is ready waits
    except (OSError, OverflowError) as error:
        found.close()
        raise UserError(f"{WHO}: expected a free port, got {port} ({error}). Leave `port` out to use any.") from error
    return found


def serve(work: Work, port: int, opened: Callable[[Running], None]) -> None:
    """Serve in the foreground; `opened` is called with the server before the first request.

    Raises:
        UserError, JobError: If the port is taken or the run cannot be opened.
    """
    running = Running(work, port)
    opened(running)
    running.run()


@contextlib.contextmanager
def serving(work: Work) -> Iterator[Running]:
    """Serve in a thread while the context lasts, with the run open."""
    running = Running(work)
    thread = threading.Thread(target=lambda: running.server.run(sockets=[running.socket]), daemon=True)
    thread.start()
    try:
        while not running.server.started or running.opening.state == "running":
            time.sleep(0.01)
            if not thread.is_alive():
                break
        if running.opening.exception is not None:
            raise running.opening.exception
        yield running
    finally:
        running.server.should_exit = True
        thread.join(10)
        running.socket.close()
