"""`mumoe dashboard`: a run in the browser: browse its results and edit its experts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from mumoe.commands.open_run import is_decomposition, opened
from mumoe.errors import UserError
from mumoe.parsing import Argument

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Open a run in the browser: browse experts and images, edit experts and see what changes.

    The page is served on 127.0.0.1, to the one browser that has the token of its address. Ctrl-C ends it. For a run on
    another machine: start it there with --no-browser --port 8000, then ssh -L 9999:127.0.0.1:8000 HOST, and open the
    address that it printed with port 9999 in place of 8000.
    """

    COMMON: ClassVar = {"split": "test", "port": "8000", "data": "folder:/new/place"}

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of a run with experts, of the job that holds it, or of mumoe decompose"""
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
        raise UserError(f"mumoe dashboard: expected --port in 0..65535, got {options.port}. 0 uses a free one.")
    if options.split and options.split not in SPLITS:
        raise unknown_name("mumoe dashboard", "split", options.split, SPLITS)
    if is_decomposition(options.run):
        _show_decomposition(options)
        return
    _read_ahead(Path(options.run), options.data)
    found = opened(options, "mumoe dashboard", experts=True, progress=False)
    found.dashboard(port=options.port, split=options.split, browser=options.browser)


def _show_decomposition(options: Options) -> None:
    if options.split:
        raise UserError(
            f"mumoe dashboard: expected no --split for a decomposition, got {options.split}. It shows held-out text."
        )
    from mumoe.api import load

    found = load(options.run, data=options.data or None, device=options.device, progress=False)
    found.dashboard(port=options.port, browser=options.browser)


def _read_ahead(run: Path, data: str) -> None:
    """Begin to check a file of features while torch is being imported; a run that cannot be read is reported later."""
    from mumoe.files import digest_ahead, read_toml

    try:
        data = data or str(read_toml((run / "config.toml").read_text("utf-8"))["input"]["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if data.startswith("features:"):
        digest_ahead(Path(data.removeprefix("features:")))
