"""Progress: a bar in a terminal, lines in a log, nothing when it is off."""

from __future__ import annotations

import io
import sys
import types

import pytest

from mumoe.progress import Progress, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch, stream: io.StringIO, **options) -> str:
    """What three units write."""
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("Counting", 3, **options) as progress:
        for loss in (3, 2, 1):
            progress.advance(note=f"loss {loss}")
    return stream.getvalue()


class Cell(io.StringIO):
    """What stderr is in a notebook, as far as its class tells."""

    __module__ = "ipykernel.iostream"


@pytest.mark.parametrize("stream", [Terminal, Cell])
def test_a_bar_in_terminals_and_notebooks(monkeypatch, stream) -> None:
    text = shown(monkeypatch, stream())
    last = text.rstrip().rpartition("\r")[2]
    assert last.startswith("Counting: 100%")
    assert "3/3" in last
    assert "loss 1" in last


def test_lines_in_a_log_and_no_more_often_than_asked(monkeypatch) -> None:
    assert shown(monkeypatch, io.StringIO(), interval=0.0).splitlines() == [
        "Counting: 1 of 3, 0 s left loss 3",
        "Counting: 2 of 3, 0 s left loss 2",
        "Counting: 3 of 3, 0 s left loss 1",
    ]
    assert shown(monkeypatch, io.StringIO(), interval=60.0) == ""


def test_a_process_that_knows_of_notebooks_is_none(monkeypatch) -> None:
    """Starting a notebook imports ipykernel into the process that starts it."""
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert shown(monkeypatch, io.StringIO(), interval=60.0) == ""


def test_nothing_when_it_is_off(monkeypatch) -> None:
    assert shown(monkeypatch, Terminal(), enabled=False, interval=0.0) == ""
    assert list(track("ab", "Letters", 2, enabled=False)) == ["a", "b"]


class Clock:
    """Time that passes by a second with every look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


def test_a_log_that_began_also_ends(monkeypatch) -> None:
    """Lines every few seconds would leave the last units out: the log would end before the step."""
    monkeypatch.setattr("mumoe.progress.time", Clock())
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with Progress("Counting", 5000, interval=2.5) as progress:
        for _ in range(4):
            progress.advance(1250)
    assert stream.getvalue().splitlines() == [
        "Counting: 3,750 of 5,000, 1 s left",
        "Counting: 5,000 of 5,000, 6 s in all",
    ]


def test_a_step_that_fails_does_not_claim_its_end(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with pytest.raises(ValueError), Progress("Counting", 3, interval=0.0) as progress:
        progress.advance()
        raise ValueError
    assert stream.getvalue().splitlines() == ["Counting: 1 of 3, 0 s left"]


def test_a_resumed_step_counts_what_was_done_and_estimates_from_what_is_left(monkeypatch) -> None:
    monkeypatch.setattr("mumoe.progress.time", Clock())
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with Progress("Training", 100, done=90, interval=0.0) as progress:
        progress.advance(5)
    assert stream.getvalue().splitlines() == ["Training: 95 of 100, 2 s left"]
