"""What a trial must not do is seen: each broken promise is planted once, beside what keeps it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from mumoe.errors import JobError, UserError
from soak.trials import Answered, Limits, Tally, Trial, judged, run_trials


def tried(run, limits: Limits | None = None, **about) -> Tally:
    """One trial, in the middle of two that hold."""
    trials = [Trial("held", lambda: None, "first"), Trial("tried", run, "the recipe", **about)]
    trials.append(Trial("held", lambda: None, "last"))
    found = run_trials(lambda number: trials[number], range(3), ["held", "tried"], limits or Limits(hang=0.5))
    assert found.counts["held"]["returned"] == 2  # whatever the one between them did
    return found


def raising(error: BaseException):
    def run() -> None:
        raise error

    return run


def test_results_and_errors_of_one_line_hold() -> None:
    for run, outcome in (
        (lambda: 1, "returned"),
        (raising(UserError("who: expected this, got that.")), "refused"),
        (raising(JobError("who: expected this, got that.")), "refused"),
        (raising(Answered()), "refused"),
    ):
        found = tried(run)
        assert found.counts["tried"][outcome] == 1
        assert found.faults == []


def lines() -> None:
    error = UserError("")
    error.args = ("one\ntwo",)
    raise error


def chained() -> None:
    try:
        raise MemoryError("8 GiB")
    except MemoryError as error:
        raise UserError("who: expected a small file, got a large one.") from error


def touched() -> None:
    np.zeros(300_000_000).fill(1)


def stubborn() -> None:
    while True:
        try:
            time.sleep(100)
        except BaseException:
            continue


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (raising(KeyError("name")), "KeyError: 'name'"),
        (lines, "2 lines"),
        (chained, "out of memory"),
        (touched, "out of memory"),
        (lambda: time.sleep(100), "not done after the time limit"),
        (lambda: os.kill(os.getpid(), 9), "signal 9"),
        (lambda: os._exit(0), "ended"),
        (lambda: subprocess.run(["true"], check=True), "started: subprocess.Popen"),
    ],
)
def test_a_broken_promise_is_seen(run, words: str) -> None:
    (fault,) = tried(run).faults
    assert words in fault
    assert "the recipe" in fault


def test_processor_time_is_limited() -> None:
    (fault,) = tried(lambda: sum(range(10**6)), Limits(seconds=0.001)).faults
    assert "processor time" in fault


def test_a_trial_that_cannot_be_interrupted_is_ended() -> None:
    (fault,) = tried(stubborn, Limits(hang=0.1)).faults
    assert "could not be interrupted" in fault


@pytest.mark.parametrize("links", [False, True])
def test_a_file_outside_is_seen(tmp_path: Path, links: bool) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir(), outside.mkdir()
    (inside / "x").write_text("x"), (outside / "x").write_text("x")
    limits = Limits(inside=[inside], decoys=[outside])
    assert tried((inside / "x").read_text, limits).faults == []
    (fault,) = tried((outside / "x").read_text, limits).faults
    assert "open of" in fault
    decoy = tried((outside / "x").read_text, Limits(inside=[tmp_path], decoys=[outside]), links=links).faults
    assert ["outside the folder" in line for line in decoy] == [True] * (not links)


def test_an_interrupt_that_ends_a_trial_is_no_fault() -> None:
    found = tried(lambda: time.sleep(100), Limits(stop=0.1, hang=5))
    assert found.faults == []
    assert found.counts["tried"]["stopped"] == 1


def test_programs_are_refused_where_a_trial_is_alone() -> None:
    assert "PermissionError" in tried(lambda: subprocess.run(["true"], check=True), Limits(alone=True)).faults[0]


def test_a_long_message_is_a_fault() -> None:
    error = UserError("short")
    error.args = ("x" * 3000,)
    assert judged(error)[0] == "broken"
    assert judged(UserError("x" * 100_000))[0] == "refused"
