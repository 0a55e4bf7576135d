"""Every page and interaction in Chromium: no error on the console, nothing from another host, axe finds nothing.

Each part of the page says by ``aria-busy`` whether it shows what was asked for last; `Watched.still` waits for that,
so that nothing here waits for a time or for a text that may come out the same.
"""

from __future__ import annotations

import json
import re
import threading

import pytest

from axe import CLEAN, both_themes, faults
from browsing import browser, opened  # noqa: F401 (a fixture)
from dashboard.made_up_run import EVIL, draw
from mumoe.dashboard.background import Report
from mumoe.dashboard.expert_panel import Filter, expert_columns
from mumoe.dashboard.server import Running, serving
from mumoe.editing.edit_files import read_edit_file
from mumoe.errors import JobError

ROWS = ".experts .row:not(.head)"


@pytest.fixture(autouse=True)
def _no_files(run):
    yield
    for path in (run / "edits").glob("*"):
        path.unlink()


def ready(watched):
    """The page once its first list is there."""
    watched.page.wait_for_selector(ROWS)
    return watched.still()


def experts(page) -> list[int]:
    """The experts in the list, from top to bottom."""
    return page.locator(ROWS).evaluate_all("rows => rows.map(row => Number(row.id.replace('row-', '')))")


def accuracy(watched, work=None) -> str:
    """The accuracy on the page, once `work` is done and its answer drawn."""
    if work is not None:
        work()
    return watched.still().locator(".figure b").inner_text()


def test_experts_are_sorted_filtered_and_opened(browser, running, session):  # noqa: F811
    with opened(browser, running.url) as watched:
        page = ready(watched)
        columns = session_columns(session)
        assert experts(page) == columns["interest"]
        page.get_by_text("Sort and filter").click()
        for key in ("load", "polysemanticity", "loss", "gap", "mean", "accuracy"):
            page.get_by_label("Sort by").select_option(key)
            assert experts(page) == columns[key], key
        page.get_by_role("columnheader", name="No.").get_by_role("button").click()
        assert experts(page) == sorted(columns["load"])
        page.get_by_role("columnheader", name="No.").get_by_role("button").click()
        assert experts(page) == sorted(columns["load"], reverse=True)
        page.get_by_label("Images that are").select_option("round")
        page.get_by_label("Attribute", exact=True).select_option("studio")
        page.get_by_label("Value", exact=True).select_option("plain")
        split = session.split("val")
        data = session.run.data
        chosen = (data.labels[split.images, 0] == 1) & (data.attributes["studio"].codes[split.images] == 1)
        page.get_by_text(f"on {int(chosen.sum())} images of val").wait_for()
        page.locator(ROWS).first.click()
        page.get_by_role("heading", name=re.compile("Expert \\d+")).wait_for()
        watched.still().wait_for_selector(".detail .gallery img")
        assert page.get_by_text("<b>striped</b>").count() > 0
        assert page.locator("b:text-is('striped')").count() == 0
        assert both_themes(watched) == CLEAN
        page.get_by_label("Split").select_option("test")
        page.get_by_text("images of test").first.wait_for()


def session_columns(session) -> dict[str, list[int]]:
    """Column -> the used experts in the order in which the page must show them."""
    found = expert_columns(session, session.split("val"), 0, Filter(), "studio")
    used = [n for n in range(12) if found["touched"][n] > 0]
    ascending = ("polysemanticity", "accuracy", "rank")

    def ordered(name: str) -> list[int]:
        sign = 1 if name in ascending else -1
        value = found[name]
        return sorted(used, key=lambda n: (value[n] is None, sign * (value[n] or 0), n))

    named = {name: ordered(name) for name in ("load", "polysemanticity", "loss", "gap", "mean", "accuracy")}
    return {**named, "interest": ordered("rank")}


def test_edits_change_numbers_are_undone_saved_and_loaded(browser, running, run):  # noqa: F811
    with opened(browser, running.url + "#/expert/0/9") as watched:
        page = ready(watched)
        before = accuracy(watched)
        after = accuracy(watched, page.get_by_role("button", name="Ablate it").click)
        assert after != before
        assert page.get_by_text("Ablate expert 9").is_visible()
        slider = page.get_by_label("ablate-1: strength", exact=True)
        assert accuracy(watched, lambda: slider.fill("0")) == before
        page.locator("h2", has_text="Edits").click()
        assert accuracy(watched, lambda: page.keyboard.press("Control+z")) == after
        assert accuracy(watched, page.get_by_role("button", name="Undo").click) == before
        assert accuracy(watched, lambda: page.keyboard.press("Control+Shift+Z")) == after
        page.get_by_text("Write an edit").click()
        page.get_by_label("As for mumoe edit --do").fill("swap:1=2")
        page.get_by_role("button", name="Add").click()
        page.get_by_text("Swap experts 1 and 2").wait_for()
        page.get_by_label("Attribute predicted").last.select_option("round")
        watched.still().wait_for_selector("tr.target")
        page.get_by_text(re.compile(r"\d+ to \d+%")).first.wait_for()
        page.get_by_label("File name").fill("mine")
        page.get_by_role("button", name="Save", exact=True).last.click()
        page.get_by_text("Written: ").wait_for()
        content = read_edit_file(run / "edits" / "mine.json")
        assert [edit.kind for edit in content.edits.values()] == ["ablate", "swap"]
        assert accuracy(watched) == f"{100 * _accuracy(run, content):.2f}%"
        assert subgroups(page) == recorded(content.provenance)
        page.get_by_role("button", name="Remove swap-1").click()
        page.get_by_role("button", name="Load mine").click()
        page.get_by_text("Swap experts 1 and 2").wait_for()
        assert faults(watched) == ([], 0)


def subgroups(page) -> list[list[str]]:
    """Before and after of every subgroup, as the page says."""
    rows = page.get_by_role("region", name="Subgroups").locator("tbody tr").all()
    return [[row.locator("td").nth(n).inner_text().split()[0] for n in (0, 1)] for row in rows]


def recorded(provenance) -> list[list[str]]:
    """The same from the file."""
    both = [provenance[f"metrics_{when}"]["subgroups"] for when in ("before", "after")]
    return [[f"{100 * group['accuracy']['value']:.1f}%" for group in pair] for pair in zip(*both, strict=True)]


def _accuracy(run_folder, content) -> float:
    """Accuracy over both attributes; the file has that of one and its subgroups, so it is counted again."""
    import mumoe
    from mumoe.editing.stack import EditStack

    run = mumoe.load(run_folder, progress=False).editing()
    rows = run.data.indices("val")
    stack = EditStack(run.layer, dict(content.edits))
    with stack:
        return float(((run.outputs(rows) > 0) == run.data.labels[rows]).mean())


def test_a_subgroup_is_rewritten_and_the_images_it_mends_are_shown(browser, running):  # noqa: F811
    with opened(browser, running.url) as watched:
        page = ready(watched)
        page.get_by_text("Rewrite for a subgroup").click()
        page.get_by_label("Its value").first.select_option("<i>inked</i>")
        page.get_by_role("button", name="Lambda of the paper").click()
        page.get_by_text("Rewrite round").wait_for()
        typed = page.get_by_label("rewrite-1: lambda as a number")
        assert typed.input_value() == "12"
        full = watched.still().get_by_role("region", name="Fairness metrics").inner_text()
        typed.fill("1")
        typed.press("Tab")
        assert watched.still().get_by_role("region", name="Fairness metrics").inner_text() != full
        slider = page.get_by_label("rewrite-1: lambda", exact=True)
        assert float(slider.input_value()) == pytest.approx(1, abs=float(slider.get_attribute("step")))
        page.get_by_role("button", name=re.compile("newly wrong")).click()
        page.get_by_role("heading", name="Edits").wait_for()
        assert page.get_by_label("Show", exact=True).input_value() == "broken"
        page.get_by_text(re.compile(r"\d+ images? of val\.")).wait_for()


def test_an_image_is_taken_apart_and_leads_to_its_experts(browser, running, session):  # noqa: F811
    image = next(n for n, name in enumerate(session.run.data.ids) if EVIL in name)
    with opened(browser, f"{running.url}#/image/{image}", dark=True) as watched:
        page = watched.page
        page.wait_for_selector("table.apart")
        assert page.get_by_text(EVIL).first.is_visible()
        assert page.title() != "1"
        logits = [
            number(text) for text in page.locator("table.apart tfoot tr").first.locator("td.num").all_inner_texts()
        ]
        rows = [row.locator("td.num").all_inner_texts() for row in page.locator("table.apart tbody tr").all()]
        sums = [sum(number(row[1 + n]) for row in rows) for n in range(len(logits))]
        assert sums == pytest.approx(logits, abs=0.005 * (len(rows) + 1))
        assert faults(watched) == ([], 0)
        page.locator("table.apart .link").first.click()
        page.get_by_role("heading", name=re.compile("Expert \\d+")).wait_for()
        page.get_by_role("link", name="Images").click()
        page.get_by_label("Show", exact=True).select_option("wrong")
        watched.still().locator("button.tile.wrong").first.click()
        page.wait_for_selector("table.apart")


def number(text: str) -> float:
    """A number as the page writes it."""
    return float(text.replace("−", "-"))


def test_an_own_picture_and_one_that_is_none(browser, running, tmp_path):  # noqa: F811
    picture, none = tmp_path / "<b>own.png", tmp_path / "none.png"
    draw(True, True, True, 7).save(picture)
    none.write_bytes(b"no picture")
    with opened(browser, running.url + "#/own") as watched:
        page = watched.page
        page.set_input_files("input[type=file]", picture)
        page.wait_for_selector("table.apart")
        assert page.get_by_text("<b>own.png").is_visible()
        assert faults(watched) == ([], 0)
        page.dispatch_event(".drop", "drop", {"dataTransfer": dragged(page, picture, "dropped.png")})
        page.get_by_text("dropped.png").wait_for()
        assert watched.still().locator("table.apart tbody tr").count() > 0
        page.set_viewport_size({"width": 390, "height": 844})
        page.emulate_media(color_scheme="dark")
        page.set_input_files("input[type=file]", none)
        page.get_by_text("expected a picture, got a file that cannot be read").wait_for()
        assert faults(watched) == ([], 0)
        refused = [text for text in watched.problems if "status 400" in text or "400 (Bad Request)" in text]
        assert refused == watched.problems
        watched.problems.clear()


def dragged(page, path, name: str):
    """What a browser hands over when a file is dropped."""
    make = """([bytes, name]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], name));
      return transfer;
    }"""
    return page.evaluate_handle(make, [list(path.read_bytes()), name])


def test_an_audit_shows_both_rankings_and_leads_to_experts(browser, running, session):  # noqa: F811
    with opened(browser, running.url) as watched:
        page = ready(watched)
        page.get_by_role("link", name="Audit").click()
        page.get_by_label("Attribute to audit").select_option("<b>striped</b>")
        watched.still().get_by_role("region", name="By named attributes").wait_for()
        audit = session.audits["val", "<b>striped</b>"]
        rows = page.get_by_role("region", name="By named attributes").locator("tbody tr")
        assert rows.count() == len(audit.by_attributes.findings[:50])
        first = rows.first.inner_text()
        assert audit.by_attributes.findings[0].group_in_words() in first
        assert f"{audit.by_attributes.findings[0].score:.3f}" in first.replace("−", "-")
        assert both_themes(watched) == CLEAN
        page.get_by_role("region", name="By experts").locator("tbody .link").first.click()
        expert = audit.findings[0].experts[0][1]
        page.get_by_role("heading", name=f"Expert {expert}", exact=True).wait_for()


def test_a_phone_has_every_page(browser, running):  # noqa: F811
    with opened(browser, running.url, width=390, height=844, dark=True) as watched:
        page = watched.page
        page.wait_for_selector(".detail .gallery img")
        found = {"first": faults(watched)}
        page.get_by_role("button", name="‹ Experts").click()
        page = ready(watched)
        found["experts"] = faults(watched)
        page.locator(ROWS).first.click()
        page.wait_for_selector(".detail .gallery img")
        found["expert"] = faults(watched)
        page.get_by_role("button", name="Ablate it").click()
        page.get_by_text("Ablate expert").wait_for()
        found["edits"] = faults(watched)
        page.get_by_role("link", name="Images").click()
        page.wait_for_selector(".at-images button.tile")
        page.emulate_media(color_scheme="light")
        found["images"] = faults(watched)
        page.locator("button.tile").first.click()
        page.wait_for_selector("table.apart")
        found["image"] = faults(watched)
        page.get_by_role("link", name="Audit").click()
        watched.still().get_by_role("region", name="By experts").wait_for()
        found["audit"] = faults(watched)
        assert found == dict.fromkeys(found, ([], 0))


def test_everything_is_reached_by_keyboard(browser, running):  # noqa: F811
    with opened(browser, running.url) as watched:
        page = ready(watched)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "To the content"
        page.keyboard.press("Enter")
        tab_to(page, "document.activeElement.getAttribute('role') === 'grid'")
        wanted, last = experts(page)[2], experts(page)[-1]
        for key in ("ArrowDown", "ArrowDown", " ", "End", " ", "Home", "ArrowDown", "ArrowDown", "Enter"):
            page.keyboard.press(key)
        page.get_by_role("heading", name=f"Expert {wanted}", exact=True).wait_for()
        page.get_by_text("2 selected").wait_for()
        tab_to(page, "document.activeElement.closest('[aria-label=\"Selected experts\"]')")
        before = accuracy(watched)
        both = accuracy(watched, lambda: page.keyboard.press("Enter"))
        assert both != before
        for expert in (wanted, last):
            page.get_by_text(f"Ablate expert {expert}", exact=True).wait_for()
        tab_to(page, "document.activeElement.getAttribute('aria-label') === 'ablate-2: strength'")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("document.activeElement.value") == "0.99"
        accuracy(watched, lambda: page.keyboard.press("Control+z"))
        assert page.evaluate("document.activeElement.value") == "1"
        assert accuracy(watched, lambda: page.keyboard.press("Control+z")) == before
        page.get_by_role("link", name="Images").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".at-images button.tile")
        tab_to(page, "document.activeElement.matches('button.tile')")
        for key in ("End", "Home", "ArrowRight"):
            page.keyboard.press(key)
        page.wait_for_selector(".tile[data-place='1']:focus")
        page.keyboard.press("Enter")
        page.wait_for_selector("table.apart")


def tab_to(page, there: str, most: int = 60) -> None:
    """Press Tab until an expression is true."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate(f"Boolean({there})"):
            return
    pytest.fail(f"{most} tabs do not lead to {there}")


def test_opening_shows_its_progress_and_why_it_failed(browser):  # noqa: F811
    go = threading.Event()

    def work(report: Report):
        report(3, 4, "Computing coefficients of 100 val images")
        go.wait(60)
        raise JobError("run: expected an intact checkpoint, got <b>none</b>. Train again.")

    running = Running(work)
    thread = threading.Thread(target=lambda: running.server.run(sockets=[running.socket]), daemon=True)
    thread.start()
    try:
        with opened(browser, running.url) as watched:
            watched.page.get_by_text("Computing coefficients of 100 val images: 75%").wait_for()
            assert watched.violations() == []
            go.set()
            watched.page.get_by_text("got <b>none</b>. Train again.").wait_for()
    finally:
        running.server.should_exit = True
        thread.join(10)
        running.socket.close()
    with pytest.raises(JobError, match="intact checkpoint"), serving(work):
        pass


def test_the_page_holds_what_the_json_holds(browser, running, run):  # noqa: F811
    analysis = json.loads((run / "analysis" / "analysis.json").read_text())
    effect = max(analysis["study"]["units"][0]["modes"]["zero"]["effects"], key=lambda item: item["top_loss"])
    with opened(browser, f"{running.url}#/expert/0/{effect['unit']}") as watched:
        page = watched.page
        page.wait_for_selector(".facts")
        text = page.locator(".facts").inner_text()
        assert f"{effect['polysemanticity']:.2f}" in text
        first = page.locator(".bars.spans li").first.inner_text()
        low, high = effect["loss_intervals"][0]
        digits = 1 if all(abs(share) < 0.1 for _, share in effect["losses"]) else 0
        assert f"{100 * effect['top_loss']:.{digits}f}%" in first
        assert f"{100 * low:.{digits}f}% to {100 * high:.{digits}f}%".replace("-", "−") in first
