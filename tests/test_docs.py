"""The documentation: links lead somewhere, code prints what its page shows, the site builds and lacks nothing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

from browsing import browser, opened  # noqa: F401 (a fixture)

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
PUBLIC = [
    "mumoe",
    *(f"mumoe.{room}" for room in ("analysis", "data", "deploy", "models.surgery", "kernels", "training")),
]
RUN = ["quickstart", "costs", "tutorials/inspect", "tutorials/bias", "tutorials/replace", "tutorials/layer"]
RUN += ["data/folders", "data/csv", "data/features", "data/huggingface", "data/text"]


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
    monkeypatch.setenv("MUMOE_CACHE", str(pages.lend_drawings(tmp_path / "cache")))
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    shown = list(pages.run(page, f"{name}.md"))
    assert shown
    assert [said for block, printed in shown if (said := pages.compared(block, printed))] == []


def test_every_tutorial_and_format_is_run():
    written = {f"{room}/{page.stem}" for room in ("tutorials", "data") for page in (DOCS / room).glob("*.md")}
    assert written - {"data/embedded"} == {name for name in RUN if "/" in name}  # the sets by name take minutes to draw


def test_what_a_page_shows_is_compared():
    assert pages.differences("loss 0.50\n", "loss  0.50\n", 0.0) == ""
    assert "the code printed" in pages.differences("loss 0.50\n", "loss 0.52\n", 0.0)
    assert pages.differences("loss 0.50\n", "loss 0.52\n", 0.05) == ""
    assert pages.differences("loss 0.50\n", "gain 0.50\n", float("inf")) != ""
    assert pages.differences("a\n...\nc\n", "a\nb\nb\nc\n", 0.0) == ""
    assert pages.differences("a\n...\nc\n", "a\nb\n", 0.0) != ""
    assert pages.differences("a 1 2\n", "a 1\n", 1.0) != ""


def test_what_may_differ_is_said_above_a_block():
    def said(note, shown, printed):
        (block,) = pages.parse(f"<!-- {note} -->\n```text\n{shown}\n```\n")
        return bool(pages.compared(block, printed))

    assert (said("order may differ", "b 1\na 2", "a 3\nb 1"), said("order may differ", "b 1\na 2", "a 3\nc 1")) == (
        False,
        True,
    )
    assert (said("lines may differ", "a\nb\nc 1", "a\nx\ny\nc 2"), said("lines may differ", "a\nc", "a\nd")) == (
        False,
        True,
    )


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


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: the application, what it warned of, and the folder of its pages."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    out = tmp_path_factory.mktemp("site")
    warned = io.StringIO()
    with warnings.catch_warnings(), patch_docutils(DOCS), docutils_namespace():
        warnings.simplefilter("ignore")
        app = Sphinx(DOCS, DOCS, out / "html", out / "trees", "html", status=None, warning=warned, freshenv=True)
        app.build()
    return app, warned.getvalue(), out / "html"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(site):
    app, warned, html = site
    assert warned == ""
    assert len(list(html.rglob("*.html"))) >= len(PAGES)
    in_navigation = {page for pages in app.env.toctree_includes.values() for page in pages}
    assert app.env.found_docs - in_navigation == {"index"}


@pytest.mark.slow
def test_the_site_asks_no_other_host_for_anything(site):
    _, _, html = site
    loads = re.compile(r"<(?:(?:script|img|iframe|source)[^>]+src|link[^>]+href)=\"https?:[^\"]+")
    assert {str(page): found for page in html.rglob("*.html") if (found := loads.findall(page.read_text()))} == {}
    assert [css.name for css in html.rglob("*.css") if re.search(r"url\(\W?https?:|@import", css.read_text())] == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
@pytest.mark.parametrize("name", ["index", "gallery", "glossary", "benchmarks", "method", "costs"])
def test_pages_are_sound_in_a_browser(site, browser, name, width, dark):  # noqa: F811
    _, _, html = site
    with opened(browser, (html / f"{name}.html").as_uri(), width=width, dark=dark) as watched:
        formulas = watched.page.locator(".math")
        if formulas.count():  # typeset from the site's own copy of MathJax
            watched.page.wait_for_function("() => !document.querySelector('.math:not(:has(mjx-container))')")
            assert watched.page.locator("mjx-merror, [data-mml-node=merror]").count() == 0
        assert (formulas.count() > 0) == (name in ("glossary", "method", "costs"))
        assert watched.violations() == []
        assert watched.sideways() == 0


@pytest.mark.slow
def test_mathjax_is_a_file_of_the_site(site):
    _, _, html = site
    assert 'src="_static/mathjax/tex-svg.js' in (html / "method.html").read_text(encoding="utf-8")
    assert 'src="_static/mathjax' not in (html / "index.html").read_text(encoding="utf-8")
    assert (html / "_static" / "mathjax" / "LICENSE").is_file()


@pytest.mark.slow
def test_summary_tables_list_every_name_of_a_module(site):
    from mumoe import functional

    _, _, html = site
    page = (html / "api" / "mathematics.html").read_text(encoding="utf-8")
    table = page[page.index("autosummary") : page.index("</table>")]
    names = [name for name in functional.__all__ if callable(getattr(functional, name))]
    assert len(names) > 5
    assert [name for name in names if f'href="#mumoe.functional.{name}"' not in table] == []


@pytest.mark.slow
def test_links_of_the_site_lead_somewhere(site):
    _, _, html = site
    ids = {page: set(re.findall(r' id="([^"]+)"', page.read_text())) for page in html.rglob("*.html")}
    dead = set()
    for page in ids:
        for target in re.findall(r'<(?:a|img|link|script)[^>]+(?:href|src)="([^":]+)"', page.read_text()):
            path, _, anchor = unquote(target).partition("#")
            file = (page.parent / path.partition("?")[0]).resolve() if path else page
            if not file.is_file() or (anchor and file in ids and anchor not in ids[file]):
                dead.add((str(page.relative_to(html)), target))
    assert dead == set()


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    app, _, _ = site
    entries = app.env.domains.python_domain.objects.items()
    listed = [resolve(name) for name, entry in entries if entry.objtype != "module"]
    documented = {id(thing) for thing in listed if callable(thing)}
    rooms = {room: importlib.import_module(room) for room in PUBLIC}
    names = [(room, name, getattr(module, name)) for room, module in rooms.items() for name in module.__all__]
    assert len(names) > 80
    assert [f"{room}.{name}" for room, name, thing in names if callable(thing) and id(thing) not in documented] == []


def resolve(name: str) -> object:
    """What a dotted name of the reference stands for, or None for an attribute that only objects have."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        with contextlib.suppress(ImportError):
            found: object = importlib.import_module(".".join(parts[:split]))
            for part in parts[split:]:
                found = getattr(found, part, None)
            return found
    return None
