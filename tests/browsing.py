"""Pages in a headless Chromium that is watched: errors on the console, requests that fail or leave the machine.

A test takes the `browser` fixture (import it into the test's module) and opens pages with `opened`:

    from browsing import browser, opened

    def test_page(browser, tmp_path):
        with opened(browser, url, width=390, dark=True) as watched:
            watched.page.get_by_role("link", name="Experts").click()
            assert watched.violations() == []
        # on leaving: no console error, no failed request, no request to another host
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

import axe
import browser_setup

ARGUMENTS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
HERE = ("", "127.0.0.1")


def find_chromium() -> str:
    """Path of Chromium or Chrome; fails, instead of skipping, where there is none."""
    try:
        found = browser_setup.find()
    except browser_setup.NoBrowser as error:
        pytest.fail(str(error), pytrace=False)
    if found is None:
        pytest.fail(f"No Chromium or Chrome was found. {browser_setup.REMEDY}", pytrace=False)
    return found


@contextlib.contextmanager
def launched(**options: Any) -> Iterator[Any]:
    """A running browser; options go to playwright's `launch`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), chromium_sandbox=False, args=list(ARGUMENTS), **options
        )
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for the tests of a module; every page has a profile of its own."""
    with launched() as running:
        yield running


@dataclass
class Watched:
    """A page and what went wrong on it.

    Attributes:
        page: playwright's page.
        problems: One line for every console error or warning, uncaught exception, failed request, answer of 400
            and above, and request to another host.
    """

    page: Any
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        page = self.page
        page.on("console", lambda said: self._note(said.type in ("error", "warning"), f"console: {said.text}"))
        page.on("pageerror", lambda error: self._note(True, f"exception: {error}"))
        page.on("requestfailed", lambda request: self._note(True, f"failed: {request.url} {request.failure}"))
        page.on("request", lambda request: self._note(not _is_here(request.url), f"other host: {request.url}"))
        page.on("response", lambda found: self._note(found.status >= 400, f"status {found.status}: {found.url}"))

    def _note(self, bad: bool, text: str) -> None:
        if bad:
            self.problems.append(text)

    def violations(self) -> list[str]:
        """What axe-core finds serious or critical, one line per rule with the first elements."""
        return axe.violations(self.page)

    def still(self) -> Any:
        """The page once nothing on it is busy: all that was asked for by clicks and keys so far is drawn."""
        self.page.locator("[aria-busy=true], [role=status] progress").first.wait_for(state="detached")
        return self.page

    def sideways(self) -> int:
        """Pixels by which the page is wider than the window; 0 if nothing is cut or has to be scrolled to."""
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(wide))


def _is_here(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or (parts.hostname or "") in HERE


@contextlib.contextmanager
def opened(browser: Any, url: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> Iterator[Watched]:
    """A watched page at a URL; on exit, any error on it fails the test."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        has_touch=width < 500,
    )
    try:
        watched = Watched(context.new_page())
        watched.page.goto(url)
        yield watched
        assert watched.problems == []
    finally:
        context.close()
