"""The report in a browser, from disk: every kind of page, wide and narrow, light and dark, by mouse and by keyboard."""

import sys
from pathlib import Path

import pytest

from browsing import browser, opened

sys.path.insert(0, str(Path(__file__).parent))


__all__ = ["browser"]

FORMS = [(1280, False), (1280, True), (390, False), (390, True)]
"""Width of the window, and whether it is dark."""

BROKEN = "[...document.images].filter(i => i.loading !== 'lazy' && !i.naturalWidth).map(i => i.src)"
COLUMN = "([n, rows]) => [...document.querySelectorAll(rows)].map(row => row.cells[n].dataset.value)"
SHOWN = "tr:not([hidden])"
CLASS, STRONG, P, LOAD = 1, 3, 4, 8
"""Columns of the table of experts."""


PAGES = (
    "index.html",
    "run/index.html",
    "run/experts.html",
    "run/experts/0-1.html",
    "run/hierarchy.html",
    "run/edits.html",
    "run/audit.html",
    "other-i-run/images-2.html",
)


@pytest.mark.parametrize(("width", "dark"), [FORMS[0], FORMS[3]])
def test_pages_are_whole_readable_and_quiet(browser, site, width, dark):
    """No console error, no other host, nothing wider than the window, nothing that axe-core finds serious."""
    with opened(browser, (site[0] / PAGES[0]).as_uri(), width=width, dark=dark) as watched:
        for name in PAGES:
            watched.page.goto((site[0] / name).as_uri())
            assert watched.sideways() == 0, name
            for details in watched.page.query_selector_all("details"):
                details.evaluate("element => element.open = true")
            assert watched.violations() == [], name
            assert (
                watched.page.evaluate("[...document.images].filter(i => i.loading !== 'lazy' && !i.naturalWidth)") == []
            )


def test_the_browser_takes_the_figure_that_fits(browser, site):
    for (width, dark), ending in zip(FORMS, (".svg", "-dark.svg", "-narrow.svg", "-narrow-dark.svg"), strict=True):
        with opened(browser, (site[0] / "other-i-run/experts.html").as_uri(), width=width, dark=dark) as watched:
            taken = watched.page.evaluate("document.querySelector('img.chart').currentSrc")
            assert taken.endswith(f"polysemanticity-0{ending}")


def column(page, number, rows="tr"):
    return page.evaluate(COLUMN, [number, f"#experts tbody {rows}"])


def test_the_table_sorts_by_every_column(browser, site):
    with opened(browser, (site[0] / "other-i-run/experts.html").as_uri()) as watched:
        page = watched.page
        page.get_by_role("button", name="load (images)").click()
        loads = [int(value) for value in column(page, LOAD)]
        assert loads == sorted(loads, reverse=True)
        page.get_by_role("button", name="load (images)").click()
        assert [int(value) for value in column(page, LOAD)] == sorted(loads)
        assert page.get_by_role("columnheader", name="load (images)").get_attribute("aria-sort") == "ascending"
        page.get_by_role("button", name="polysemanticity", exact=True).click()
        values = column(page, P)
        known = [float(value) for value in values if value]
        assert known == sorted(known, reverse=True)
        assert len(known) < len(values)
        assert values[len(known) :] == [""] * (len(values) - len(known))
        page.get_by_role("button", name="class that loses most").click()
        names = [name for name in column(page, CLASS) if name]
        assert names == page.evaluate("names => [...names].sort((a, b) => a.localeCompare(b))", names)


def test_a_long_table_is_shown_in_parts(browser, site):
    with opened(browser, (site[0] / "other-i-run/experts.html").as_uri()) as watched:
        page = watched.page
        assert len(column(page, 0, SHOWN)) == 10
        assert page.get_by_role("status").inner_text() == "12 experts, the first 10 shown"
        page.get_by_role("button", name="Show 10 more").click()
        assert len(column(page, 0, SHOWN)) == 12
        assert page.get_by_role("status").inner_text() == "12 experts"
        assert not page.locator("#more").is_visible()
        page.get_by_role("button", name="load (images)").click()
        assert column(page, LOAD, SHOWN) == column(page, LOAD)[:10]


def test_the_table_is_filtered(browser, site):
    with opened(browser, (site[0] / "other-i-run/experts.html").as_uri()) as watched:
        page = watched.page
        strong = column(page, STRONG).count("1")
        assert 0 < strong < 10
        page.get_by_label("strong only").check()
        assert page.get_by_role("status").inner_text() == f"{strong} of 12 experts"
        assert set(column(page, STRONG, SHOWN)) == {"1"}
        page.get_by_label("strong only").uncheck()
        page.get_by_label("Class, name or number").fill("11")
        assert column(page, 0, SHOWN) == ["11"]
        page.get_by_label("Class, name or number").fill("TEAL")
        rows = page.locator("#experts tbody tr:visible")
        assert 0 < rows.count() < 12
        assert all("teal" in text for text in rows.evaluate_all("rows => rows.map(row => row.dataset.find)"))


def test_everything_is_reached_by_keyboard(browser, site):
    """From the top: skip link, a page of the menu, a heading that sorts, an expert, the next one."""
    with opened(browser, (site[0] / "other-i-run/index.html").as_uri()) as watched:
        page = watched.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the content"
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        page.get_by_role("link", name="Experts", exact=True).focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/experts.html")
        page.get_by_role("button", name="polysemanticity", exact=True).focus()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        assert (
            page.get_by_role("columnheader", name="polysemanticity", exact=True).get_attribute("aria-sort")
            == "descending"
        )
        page.keyboard.press("Tab")
        page.locator("#experts tbody a").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/experts/0-*.html")
        page.get_by_role("link", name="→").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/experts/0-*.html")


def test_images_load_when_they_come_into_view(browser, site):
    with opened(browser, (site[0] / "other-i-run/images.html").as_uri(), height=500) as watched:
        page = watched.page
        last = page.locator("img").last
        last.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=last.element_handle())
