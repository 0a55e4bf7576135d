"""`mumoe dashboard` on the command line: served from the first line it prints until it is interrupted."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from dashboard.made_up_run import CLASSES
from dashboard.talking import get
from mumoe import cli
from mumoe.dashboard.server import serving
from mumoe.dashboard.session import open_session
from mumoe.training.opening import StoredRun


class Started:
    """A dashboard in another process."""

    def __init__(self, line: str) -> None:
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)\n", line)
        assert found, line
        self.port = int(found[1])
        self.keys = type("Keys", (), {"token": found[2], "page": ""})()


def test_it_serves_until_it_is_interrupted(run):
    source = Path(__file__).parents[2] / "src"
    command = [sys.executable, "-m", "mumoe.cli", "dashboard", str(run), "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        started = Started(process.stdout.readline())
        assert process.stdout.readline() == "Keep the address private. Ctrl-C stops the dashboard.\n"
        while "run" not in (state := get(started, "/api/state")):
            assert state["opening"]["state"] == "running"
        assert state["run"]["classes"] == list(CLASSES)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130)
        assert "Traceback" not in process.stderr.read()


BROWSER = """#!{python}
import pathlib, re, sys, urllib.parse, urllib.request
pathlib.Path({seen!r}).write_text(repr(sys.argv))
path = urllib.request.url2pathname(urllib.parse.urlparse(sys.argv[-1]).path)
mode = oct(pathlib.Path(path).stat().st_mode & 0o777)
address = re.search(r'url=([^"]+)"', pathlib.Path(path).read_text())[1]
answer = urllib.request.urlopen(address)
pathlib.Path({result!r}).write_text(repr((mode, path, address, answer.status)))
"""


def test_the_token_is_handed_to_the_browser_in_a_file_that_only_the_user_can_read(run, tmp_path):
    """What a process was started with is read by every user of the machine."""
    seen, result, browser = tmp_path / "seen", tmp_path / "result", tmp_path / "browser"
    browser.write_text(BROWSER.format(python=sys.executable, seen=str(seen), result=str(result)))
    browser.chmod(0o700)
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "BROWSER": f"{browser} %s"}
    command = [sys.executable, "-m", "mumoe.cli", "dashboard", str(run)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        started = Started(process.stdout.readline())
        assert process.stdout.readline() == "Keep the address private. Ctrl-C stops the dashboard.\n"
        for _ in range(300):
            if result.is_file() and result.read_text().endswith(")"):
                break
            time.sleep(0.1)
        arguments = Path(f"/proc/{process.pid}/cmdline").read_text()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert started.keys.token not in seen.read_text()
    mode, path, address, status = ast.literal_eval(result.read_text())
    assert started.keys.token not in arguments
    assert seen.read_text().count("file://") == 1
    assert (mode, status) == ("0o600", 200)
    assert address == f"http://127.0.0.1:{started.port}/?token={started.keys.token}"
    assert not Path(path).exists()


def said(capsys, *arguments) -> tuple[int, str]:
    status = cli.main(["dashboard", *map(str, arguments), "--no-browser"])
    return status, capsys.readouterr().err


def test_wrong_calls_are_told_before_anything_is_served(run, tmp_path, capsys):
    status, text = said(capsys, tmp_path / "none")
    assert (status, "expected the folder of a run" in text) == (2, True)
    status, text = said(capsys, run, "--port", 70000)
    assert (status, "expected --port in 0..65535, got 70000" in text) == (2, True)
    status, text = said(capsys, run, "--split", "vall")
    assert (status, "Did you mean 'val'?" in text) == (2, True)


def test_a_port_that_is_taken_is_told(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, text = said(capsys, run, "--port", taken.getsockname()[1])
    assert status == 2
    assert "expected a free port" in text
    assert text.count("\n") == 1


def test_coefficients_are_kept_and_checked_against_the_gate(run):
    cache = run / "dashboard" / "coefficients-val"
    with serving(lambda report: open_session(StoredRun(run, progress=False), report)):
        written = cache.stat().st_mtime_ns
    with serving(lambda report: open_session(StoredRun(run, progress=False), report)):
        assert cache.stat().st_mtime_ns == written
    values = np.load(cache / "layer0-level0-values.npy")
    np.save(cache / "layer0-level0-values.npy", values[::-1].copy())
    session = open_session(StoredRun(run, progress=False))
    assert cache.stat().st_mtime_ns != written
    a = session.run.coefficients(session.split("val").images, "test")[0].to_dense()
    np.testing.assert_allclose(session.split("val").levels[0].dense(torch.arange(120)), a, atol=1e-6)
