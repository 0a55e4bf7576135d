"""Finding a browser, and installing one, on machines made of a few scripts: PATH, a home folder, commands that fail."""

import os
import stat
from pathlib import Path

import pytest

import browser_setup

WORKS = "#!/bin/sh\necho Chromium 1\n"
BROKEN = "#!/bin/sh\necho 'install the snap first' >&2\nexit 1\n"


class Machine:
    """A machine whose PATH is one folder.

    Attributes:
        programs: The folder of PATH.
        home: The home folder.
    """

    def __init__(self, folder: Path) -> None:
        self.programs, self.home = folder / "bin", folder / "home"
        self.programs.mkdir()
        self.home.mkdir()
        for name in ("sh", "env", "echo", "chmod", "true"):
            (self.programs / name).symlink_to(f"/bin/{name}")

    def add(self, path: str | Path, text: str = WORKS) -> str:
        """A program in PATH, or at a path in the home folder."""
        place = self.programs / path if isinstance(path, str) else self.home / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(place.stat().st_mode | stat.S_IXUSR)
        return str(place)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(made.programs))
    monkeypatch.setenv("HOME", str(made.home))
    for name in (browser_setup.OVERRIDE, "PLAYWRIGHT_BROWSERS_PATH", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(browser_setup, "playwright", lambda: None)
    return made


@pytest.mark.parametrize("name", browser_setup.NAMES)
def test_every_name_on_path_is_found(machine, name):
    assert browser_setup.find() is None
    path = machine.add(name)
    assert browser_setup.find() == path


def test_a_placeholder_that_does_not_start_is_passed_over(machine):
    machine.add("chromium", BROKEN)
    machine.add("chromium-browser", BROKEN)
    assert browser_setup.find() is None
    path = machine.add("google-chrome-stable")
    assert browser_setup.find() == path


def test_an_application_of_macos_is_found(machine):
    assert browser_setup.find() is None
    path = machine.add(Path("Applications/Google Chrome.app/Contents/MacOS/Google Chrome"))
    assert browser_setup.find() == path


def test_the_newest_that_playwright_downloaded_is_found(machine):
    machine.add(Path(".cache/ms-playwright/chromium-999/chrome-linux/chrome"))
    newest = machine.add(Path(".cache/ms-playwright/chromium-1255/chrome-linux64/chrome"))
    assert browser_setup.find() == newest
    on_path = machine.add("chromium")
    assert browser_setup.find() == on_path


def test_the_override_comes_first_and_is_never_replaced(machine, monkeypatch):
    machine.add("chromium")
    own = machine.add(Path("own/browser"))
    monkeypatch.setenv(browser_setup.OVERRIDE, own)
    assert browser_setup.find() == own
    monkeypatch.setenv(browser_setup.OVERRIDE, str(machine.home / "nothing"))
    assert browser_setup.main(["check"]) == 1


def test_an_ordinary_user_without_a_way_is_stopped_at_once_by_one_line(machine, capsys):
    machine.add("apt-get")
    machine.add("sudo", "#!/bin/sh\necho 'a password is required' >&2\nexit 1\n")
    assert browser_setup.main(["check"]) == 1
    text = capsys.readouterr().err
    assert text == f"make test: expected Chromium or Chrome for the tests of pages, got none. {browser_setup.REMEDY}\n"
    assert "apt-get install chromium" in text


APT = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *install*) printf '#!/bin/sh\\necho Chromium\\n' > {target}; chmod +x {target};; esac
"""


@pytest.mark.parametrize("sudo", [False, True])
def test_the_package_manager_installs_it_where_that_is_allowed(machine, monkeypatch, sudo):
    log = machine.home / "log"
    machine.add("apt-get", APT.format(log=log, target=machine.programs / "chromium"))
    if sudo:
        machine.add("sudo", '#!/bin/sh\nshift\nexec "$@"\n')
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    browser_setup.check()
    assert browser_setup.get() == str(machine.programs / "chromium")
    assert log.read_text().splitlines() == ["-qq update", "-qq install -y --no-install-recommends chromium"]


def test_what_failed_is_said_when_every_way_failed(machine, monkeypatch, capsys):
    machine.add("apt-get", "#!/bin/sh\necho 'E: Unable to locate package chromium'\nexit 100\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert browser_setup.main(["get"]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "(Playwright: its downloads cannot be reached; apt-get: E: Unable to locate package chromium)" in text


def test_playwright_downloads_its_own_where_its_server_answers(machine, monkeypatch, tmp_path):
    reachable = tmp_path / "archive.zip"
    target = machine.home / ".cache/ms-playwright/chromium-1255/chrome-linux64/chrome"
    target.parent.mkdir(parents=True)
    script = machine.add(
        Path("playwright"),
        '#!/bin/sh\ncase "$*" in *--dry-run*) echo \'  Download url:   ' + reachable.as_uri() + "';; "
        f"*) printf '#!/bin/sh\\necho Chromium\\n' > {target}; chmod +x {target};; esac\n",
    )
    monkeypatch.setattr(browser_setup, "playwright", lambda: [script])
    assert not browser_setup.can_download()
    assert browser_setup.main(["get"]) == 1
    reachable.touch()
    browser_setup.check()
    assert browser_setup.get() == str(target)


def test_the_tests_of_pages_open_what_is_found(machine):
    import browsing

    path = machine.add("chrome")
    assert browsing.find_chromium() == path
