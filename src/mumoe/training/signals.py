"""Turn Ctrl-C and termination into a request that the loop handles at the end of its step."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupted", "StopRequest"]


class Interrupted(KeyboardInterrupt):
    """The job was asked to stop and did, after writing a checkpoint; the message says how to resume."""


class StopRequest(AbstractContextManager["StopRequest"]):
    """While it is open, the first Ctrl-C or SIGTERM only sets `asked`; a second one acts at once.

    Outside the main thread, where Python does not allow signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
