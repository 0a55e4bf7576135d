"""The documentation: links lead somewhere, the code of pages runs and prints what they show, pictures are the script's."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
RUN = ["quickstart", "costs", "tutorials/inspect", "tutorials/bias", "tutorials/replace", "tutorials/layer"]


def load(path: Path) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


pages = load(DOCS / "run_pages.py")


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures that are not on the web, without fenced and inline code."""
    text = re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def missing(page: Path) -> list[str]:
    """Links of a page to a file that does not exist, or to a heading that the file does not have."""
    found = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            found.append(target)
    return found


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and MyST name them in links."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files():
    assert len(PAGES) > 10
    assert {str(page.relative_to(ROOT)): found for page in PAGES if (found := missing(page))} == {}


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# Two words\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#two-words) [b](https://x.org/y) ![c](no.svg) `[d](no.md)` [e](other.md#three) [f](#g)\n"
    )
    assert missing(page) == ["no.svg", "other.md#three", "#g"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_pages_run_and_show_what_is_printed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path / "cache"))
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    shown = list(pages.run(page, f"{name}.md"))
    assert shown
    assert [said for block, printed in shown if (said := pages.differences(block.text, printed, block.tolerance))] == []


def test_every_tutorial_is_run():
    assert {f"tutorials/{page.stem}" for page in (DOCS / "tutorials").glob("*.md")} <= set(RUN)


def test_what_a_page_shows_is_compared():
    assert pages.differences("loss 0.50\n", "loss  0.50\n", 0.0) == ""
    assert "the code printed" in pages.differences("loss 0.50\n", "loss 0.52\n", 0.0)
    assert pages.differences("loss 0.50\n", "loss 0.52\n", 0.05) == ""
    assert pages.differences("loss 0.50\n", "gain 0.50\n", float("inf")) != ""
    assert pages.differences("a\n...\nc\n", "a\nb\nb\nc\n", 0.0) == ""
    assert pages.differences("a\n...\nc\n", "a\nb\n", 0.0) != ""
    assert pages.differences("a 1 2\n", "a 1\n", 1.0) != ""


def test_a_page_that_fails_or_shows_something_else_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = "```python\nx = 2\n```\n\n```python\nprint(x)\n```\n\n<!-- numbers within 0.1 -->\n```text\n3\n```\n"
    ((block, printed),) = pages.run(page)
    assert (printed, block.tolerance) == ("2\n", 0.1)
    with pytest.raises(AssertionError, match="only `mumoe` runs"):
        list(pages.run("```sh\nrm -r x\n```\n"))
    with pytest.raises(AssertionError, match="exit status 2"):
        list(pages.run("```sh\nmumoe trian\n```\n"))
    assert list(pages.run("<!-- not run -->\n```sh\nrm -r x\n```\n")) == []


@pytest.mark.slow
def test_pictures_are_those_that_the_script_draws(tmp_path):
    load(DOCS / "pictures" / "draw.py").main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (DOCS / "pictures").glob("*.svg")}
    assert {f"pictures/{name}" for name in drawn} == {link for link in links(DOCS / "method.md") if "pictures" in link}
