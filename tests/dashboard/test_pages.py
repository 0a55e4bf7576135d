"""Every page and interaction in Chromium: no error on the console, nothing from another host, axe finds nothing."""

from __future__ import annotations

import json
import re

import pytest

from browsing import browser, opened  # noqa: F401 (a fixture)
from dashboard.made_up_run import EVIL, draw
from mumoe.dashboard.jobs import Report
from mumoe.dashboard.server import serving
from mumoe.editing.files import read_edit_file
from mumoe.errors import JobError

ROWS = ".experts .row:not(.head)"


@pytest.fixture(autouse=True)
def _no_files(run):
    yield
    for path in (run / "edits").glob("*"):
        path.unlink()


def ready(page):
    page.wait_for_selector(ROWS)
    page.wait_for_selector(".overall")
    return page


def first_expert(page) -> int:
    return int(page.locator(f"{ROWS} .num").first.inner_text())


def figures(page) -> str:
    return page.locator(".figure b").inner_text()


def settled(page, work, where=".overall") -> str:
    """The accuracy once `work` has changed the text of `where`."""
    before = page.locator(where).inner_text()
    work()
    page.wait_for_function("([old, at]) => document.querySelector(at).innerText !== old", arg=[before, where])
    return figures(page)


def changed(page, work) -> str:
    """The accuracy once `work` has changed the accuracy itself."""
    return settled(page, work, ".figure b")


def test_experts_are_sorted_filtered_and_opened(browser, running, session):  # noqa: F811
    with opened(browser, running.url) as watched:
        page = ready(watched.page)
        assert "token" not in page.url
        loads = [int(text) for text in page.locator(f"{ROWS} .num:nth-child(3)").all_inner_texts()]
        assert loads == sorted(loads, reverse=True)
        for key in ("polysemanticity", "loss", "gap", "mean", "accuracy", "expert"):
            page.get_by_label("Sort by").select_option(key)
            page.wait_for_selector("[role=columnheader][aria-sort]:not([aria-sort=none])")
        assert first_expert(page) == 0
        page.get_by_role("columnheader", name="Expert").get_by_role("button").click()
        assert first_expert(page) == 11
        page.get_by_label("Images that are").select_option("round")
        page.get_by_label("Attribute", exact=True).select_option("studio")
        page.get_by_label("Value", exact=True).select_option("plain")
        split = session.split("val")
        data = session.run.data
        chosen = (data.labels[split.images, 0] == 1) & (data.attributes["studio"].codes[split.images] == 1)
        page.get_by_text(f"on {int(chosen.sum())} images of val").wait_for()
        page.locator(ROWS).first.click()
        page.get_by_role("heading", name=re.compile("Expert \\d+")).wait_for()
        page.wait_for_selector(".detail .gallery img")
        assert page.get_by_text("<b>striped</b>").count() > 0
        assert page.locator("b:text-is('striped')").count() == 0
        assert watched.violations() == []
        assert watched.sideways() == 0
        page.get_by_label("Split").select_option("test")
        page.get_by_text("images of test").first.wait_for()


def test_edits_change_numbers_are_undone_saved_and_loaded(browser, running, run):  # noqa: F811
    with opened(browser, running.url + "#/expert/0/9") as watched:
        page = ready(watched.page)
        before = figures(page)
        after = changed(page, lambda: page.get_by_role("button", name="Ablate it").click())
        assert after != before
        assert page.get_by_text("Ablate expert 9").is_visible()
        slider = page.get_by_label("ablate-1: strength", exact=True)
        changed(page, lambda: slider.fill("0"))
        assert figures(page) == before
        page.locator("h2", has_text="Edits").click()
        assert changed(page, lambda: page.keyboard.press("Control+z")) == after
        assert changed(page, lambda: page.get_by_role("button", name="Undo").click()) == before
        assert changed(page, lambda: page.keyboard.press("Control+Shift+Z")) == after
        page.get_by_text("Write an edit").click()
        page.get_by_label("As for mumoe edit --do").fill("swap:1=2")
        page.get_by_role("button", name="Add").click()
        page.get_by_text("Swap experts 1 and 2").wait_for()
        page.get_by_label("Attribute predicted").last.select_option("round")
        page.wait_for_selector("tr.target")
        page.get_by_text(re.compile(r"\d+ to \d+%")).first.wait_for()
        page.get_by_label("Name", exact=True).fill("mine")
        page.get_by_role("button", name="Save").click()
        page.get_by_text("Written: ").wait_for()
        content = read_edit_file(run / "edits" / "mine.json")
        assert [edit.kind for edit in content.edits.values()] == ["ablate", "swap"]
        shown = page.locator(".figure b").inner_text()
        assert shown == f"{100 * _accuracy(content):.2f}%"
        page.get_by_role("button", name="Remove swap-1").click()
        page.get_by_role("button", name="Load mine").click()
        page.get_by_text("Swap experts 1 and 2").wait_for()
        assert watched.violations() == []


def _accuracy(content) -> float:
    """Accuracy over both attributes; the file has that of one and its subgroups, so it is counted again."""
    from mumoe.editing.runs import open_run
    from mumoe.editing.stack import EditStack

    run = open_run(content.provenance["run"], progress=False)
    rows = run.data.indices("val")
    stack = EditStack(run.layer, dict(content.edits))
    with stack:
        return float(((run.outputs(rows) > 0) == run.data.labels[rows]).mean())


def test_a_subgroup_is_rewritten_and_the_images_it_mends_are_shown(browser, running):  # noqa: F811
    with opened(browser, running.url) as watched:
        page = ready(watched.page)
        page.get_by_text("Rewrite for a subgroup").click()
        page.get_by_label("Its value").first.select_option("<i>inked</i>")
        settled(page, lambda: page.get_by_role("button", name="Lambda of the paper").click())
        page.get_by_text("Rewrite round").wait_for()
        settled(
            page,
            lambda: page.get_by_label("rewrite-1: lambda as a number").press("ArrowUp") or page.keyboard.press("Tab"),
        )
        page.get_by_role("button", name=re.compile("broken")).click()
        page.get_by_role("heading", name="Edits").wait_for()
        assert page.get_by_label("Show", exact=True).input_value() == "broken"
        page.get_by_text(re.compile(r"\d+ images? of val\.")).wait_for()
        assert watched.violations() == []


def test_an_image_is_taken_apart_and_leads_to_its_experts(browser, running, session):  # noqa: F811
    image = next(n for n, name in enumerate(session.run.data.ids) if EVIL in name)
    with opened(browser, f"{running.url}#/image/{image}") as watched:
        page = watched.page
        page.wait_for_selector("table.apart")
        assert page.get_by_text(EVIL).first.is_visible()
        assert page.title() != "1"
        logits = page.locator("table.apart tfoot tr").first.locator("td.num").all_inner_texts()
        columns = page.locator("table.apart tbody tr").all()
        sums = [
            sum(_number(row.locator("td.num").nth(1 + n).inner_text()) for row in columns) for n in range(len(logits))
        ]
        assert sums == pytest.approx([_number(text) for text in logits], abs=0.05)
        page.locator("table.apart .link").first.click()
        page.get_by_role("heading", name=re.compile("Expert \\d+")).wait_for()
        page.get_by_role("link", name="Images").click()
        page.get_by_label("Show", exact=True).select_option("wrong")
        page.locator(".tile.wrong").first.click()
        page.wait_for_selector("table.apart")
        assert watched.violations() == []


def _number(text: str) -> float:
    return float(text.replace("−", "-"))


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)], ids=["dark", "phone"])
def test_an_own_picture_and_one_that_is_none(browser, running, tmp_path, width, dark):  # noqa: F811
    picture, none = tmp_path / "<b>own.png", tmp_path / "none.png"
    draw(True, True, True, 7).save(picture)
    none.write_bytes(b"no picture")
    with opened(browser, running.url + "#/own", width=width, dark=dark) as watched:
        page = watched.page
        page.set_input_files("input[type=file]", picture)
        page.wait_for_selector("table.apart")
        assert page.get_by_text("<b>own.png").is_visible()
        assert watched.violations() == []
        assert watched.sideways() == 0
        page.set_input_files("input[type=file]", none)
        page.get_by_text("expected a picture, got a file that cannot be read").wait_for()
        assert watched.violations() == []
        refused = [text for text in watched.problems if "status 400" in text or "400 (Bad Request)" in text]
        assert refused == watched.problems
        watched.problems.clear()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_has_every_page(browser, running, dark):  # noqa: F811
    with opened(browser, running.url, width=390, height=844, dark=dark) as watched:
        page = watched.page
        page.wait_for_selector(ROWS)
        pages = []
        page.locator(ROWS).first.click()
        page.wait_for_selector(".detail .gallery img")
        pages.append((watched.violations(), watched.sideways()))
        page.get_by_role("button", name="Ablate it").click()
        page.get_by_text("Ablate expert").wait_for()
        pages.append((watched.violations(), watched.sideways()))
        page.get_by_role("link", name="Images").click()
        page.locator(".tile").first.click()
        page.wait_for_selector("table.apart")
        pages.append((watched.violations(), watched.sideways()))
        page.get_by_role("link", name="Experts").click()
        page.wait_for_selector(ROWS)
        pages.append((watched.violations(), watched.sideways()))
        assert pages == [([], 0)] * 4


def test_everything_is_reached_by_keyboard(browser, running):  # noqa: F811
    with opened(browser, running.url) as watched:
        page = ready(watched.page)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "To the content"
        page.keyboard.press("Enter")
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.getAttribute('role')") == "grid":
                break
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        wanted = int(page.locator(ROWS).nth(2).locator(".num").first.inner_text())
        page.wait_for_selector(f"#row-{wanted}.active")
        page.keyboard.press(" ")
        page.keyboard.press("End")
        page.keyboard.press(" ")
        page.get_by_text("2 selected").wait_for()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=f"Expert {wanted}", exact=True).wait_for()
        page.get_by_role("group", name="Selected experts").get_by_role("button", name="Ablate").focus()
        page.keyboard.press("Enter")
        page.get_by_label("ablate-2: strength", exact=True).focus()
        settled(page, lambda: [page.keyboard.press("ArrowLeft") for _ in range(5)])
        page.get_by_text(f"Ablate expert {wanted}", exact=True).wait_for()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_opening_shows_its_progress_and_why_it_failed(browser):  # noqa: F811
    import threading

    go = threading.Event()

    def work(report: Report):
        report(3, 4, "Computing coefficients of 100 val images")
        go.wait(20)
        raise JobError("run: expected a whole checkpoint, got <b>none</b>. Train again.")

    from mumoe.dashboard.server import Running

    running = Running(work)
    thread = threading.Thread(target=lambda: running.server.run(sockets=[running.socket]), daemon=True)
    thread.start()
    try:
        while not running.server.started:
            pass
        with opened(browser, running.url) as watched:
            watched.page.get_by_text("Computing coefficients of 100 val images: 75%").wait_for()
            assert watched.violations() == []
            go.set()
            watched.page.get_by_text("got <b>none</b>. Train again.").wait_for()
    finally:
        running.server.should_exit = True
        thread.join(10)
        running.socket.close()
    with pytest.raises(JobError, match="whole checkpoint"), serving(work):
        pass


def test_the_page_holds_what_the_json_holds(browser, running, run):  # noqa: F811
    analysis = json.loads((run / "analysis" / "analysis.json").read_text())
    effect = max(analysis["study"]["units"][0]["modes"]["zero"]["effects"], key=lambda item: item["top_loss"])
    with opened(browser, f"{running.url}#/expert/0/{effect['unit']}") as watched:
        page = watched.page
        page.wait_for_selector(".facts")
        text = page.locator(".facts").inner_text()
        assert f"{effect['polysemanticity']:.2f} ({effect['interval'][0]:.2f} to {effect['interval'][1]:.2f})" in text
        first = page.locator(".bars.spans li").first.inner_text()
        low, high = effect["loss_intervals"][0]
        assert f"{100 * effect['top_loss']:.0f}%" in first
        assert f"{100 * low:.0f}% to {100 * high:.0f}%".replace("-", "−") in first
