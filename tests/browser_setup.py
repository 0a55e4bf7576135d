"""The browser that the tests of pages open: finding one, and installing one where there is none.

`make test` runs ``check`` before it installs anything large, and ``get`` beside the installation of the packages. The
tests find the browser with `find`. Needs the standard library alone, since it runs before anything is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

OVERRIDE = "MUMOE_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APPLICATIONS = ("Google Chrome.app/Contents/MacOS/Google Chrome", "Chromium.app/Contents/MacOS/Chromium")
DOWNLOADED = (
    "chromium-*/chrome-*/chrome",
    "chromium-*/chrome-*/chrome.exe",
    "chromium-*/chrome-*/*.app/Contents/MacOS/*",
)
REMEDY = f"Install Chromium (Debian: apt-get install chromium) or Chrome, or set {OVERRIDE} to the path of one."
SECONDS_TO_CONNECT = 5
MOST_SECONDS = 900
PROJECT = Path(__file__).parent.parent / "pyproject.toml"


class NoBrowser(Exception):
    """No browser, and no way to one; the text is one line."""


def find() -> str | None:
    """Path of a Chromium or Chrome that starts: the override, PATH, macOS applications, Playwright's own.

    Raises:
        NoBrowser: If the override is set and is not a browser that starts.
    """
    chosen = os.environ.get(OVERRIDE)
    if chosen:
        if starts(chosen):
            return chosen
        raise NoBrowser(f"make test: expected a browser that starts at {OVERRIDE}, got {chosen}. {REMEDY}")
    return next(filter(starts, candidates()), None)


def candidates() -> Iterator[str]:
    """Paths where a browser may be, the best first."""
    yield from filter(None, map(shutil.which, NAMES))
    for folder in (Path("/Applications"), Path.home() / "Applications"):
        yield from (str(folder / name) for name in APPLICATIONS if (folder / name).is_file())
    for pattern in DOWNLOADED:
        yield from sorted(map(str, downloads().glob(pattern)), key=_revision, reverse=True)


def downloads() -> Path:
    """Folder of the browsers that Playwright has downloaded."""
    named = os.environ.get("PLAYWRIGHT_BROWSERS_PATH", "0")
    if named != "0":
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/ms-playwright"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "ms-playwright"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ms-playwright"


def _revision(path: str) -> int:
    found = re.search(r"chromium-(\d+)", path)
    return int(found[1]) if found else 0


def starts(path: str) -> bool:
    """Whether the program runs at all: a placeholder of a package manager, or a missing library, ends with an error."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


# Ways to a browser ---------------------------------------------------------------------------------------------


def check() -> None:
    """Return at once if there is a browser or a way to one.

    Raises:
        NoBrowser: If there is neither.
    """
    if find() or can_download() or administrator() is not None:
        return
    raise NoBrowser(f"make test: expected Chromium or Chrome for the tests of pages, got none. {REMEDY}")


def get() -> str:
    """Path of a browser; installs one if needed.

    Raises:
        NoBrowser: If every way failed.
    """
    found = find()
    tried = []
    for name, way in (("Playwright", download), ("apt-get", install)):
        if found is None:
            tried.append(f"{name}: {_last_line(way())}")
            found = find()
    if found is None:
        raise NoBrowser(f"make test: expected a way to Chromium or Chrome, got none ({'; '.join(tried)}). {REMEDY}")
    return found


def administrator() -> list[str] | None:
    """What to write before apt-get so that it may install, or None where it may not or is not there."""
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and _run(["sudo", "-n", "true"])[0]:
        return ["sudo", "-n"]
    return None


def install() -> str:
    """Install Chromium with the system's package manager; returns what it printed."""
    allowed = administrator()
    if allowed is None:
        return "not there, or not allowed"
    quiet = [*allowed, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    worked, text = _run([*quiet, "update"])
    if worked:
        _, text = _run([*quiet, "install", "-y", "--no-install-recommends", "chromium"])
    return text


def playwright() -> list[str] | None:
    """Command of Playwright, which is installed if needed; None if that fails."""
    if importlib.util.find_spec("playwright") is None:
        needed = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]["test"]
        package = next(item for item in needed if item.startswith("playwright"))
        if not _run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", package])[0]:
            return None
    return [sys.executable, "-m", "playwright"]


def can_download() -> bool:
    """Whether the server that Playwright downloads from answers: asked once, since Playwright may try for minutes."""
    command = playwright()
    worked, text = _run([*command, "install", "--dry-run", "chromium"]) if command else (False, "")
    address = re.search(r"Download url:\s*(\S+)", text)
    if not worked or address is None:
        return False
    try:
        request = urllib.request.Request(address[1], method="HEAD")
        with urllib.request.urlopen(request, timeout=SECONDS_TO_CONNECT):
            return True
    except (OSError, urllib.error.URLError, ValueError):
        return False


def download() -> str:
    """Have Playwright download its own Chromium, with the libraries it needs where that is allowed."""
    if not can_download():
        return "its downloads cannot be reached"
    command = playwright()
    assert command is not None
    worked, text = _run([*command, "install", "--no-shell", "chromium"])
    if worked and next(filter(starts, candidates()), None) is None and administrator() is not None:
        _, text = _run([*command, "install-deps", "chromium"])
    return text


def _run(command: list[str]) -> tuple[bool, str]:
    """Whether a command worked, and what it printed."""
    places = {**os.environ, "PLAYWRIGHT_BROWSERS_PATH": str(downloads())}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        done = subprocess.run(command, **pipes, text=True, env=places, timeout=MOST_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, done.stdout


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1].strip()


def main(arguments: list[str]) -> int:
    """Run ``check`` or ``get``; returns the exit status."""
    try:
        {"check": check, "get": get}[arguments[0]]()
    except NoBrowser as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
