"""Run the application on 127.0.0.1 until it is interrupted, or in a thread for tests and benchmarks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from mumoe.dashboard.app import Dashboard, make_app
from mumoe.dashboard.guard import Secrets
from mumoe.dashboard.jobs import Job
from mumoe.dashboard.session import Session
from mumoe.dashboard.texts import TextSession
from mumoe.errors import UserError

__all__ = ["Running", "Work", "serve", "serving"]

ADDRESS = "127.0.0.1"

Work = Callable[[Any], Session | TextSession]
"""Opens a run; is given the report to tell its progress to."""


class Running:
    """A server and where it is.

    Args:
        work: Opens the session.
        port: Its port; 0 takes a free one.

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
    def opening(self) -> Job:
        """How far the opening of the run is."""
        return self.dashboard.jobs[self.dashboard.opening or 0]

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
        found.listen(128)  # a browser that is quicker than the server waits
    except (OSError, OverflowError) as error:
        found.close()
        raise UserError(
            f"mumoe dashboard: expected a free port, got {port} ({error}). Leave out --port to take any."
        ) from error
    return found


def serve(work: Work, port: int, opened: Callable[[Running], None]) -> None:
    """Serve in the foreground; `opened` is told where, before the first request.

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
