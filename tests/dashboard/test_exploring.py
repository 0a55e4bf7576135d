"""What leads from one expert to the next: the first view, links, pins, two side by side, words, files to keep."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

from axe import CLEAN, both_themes, outside
from browsing import browser, opened  # noqa: F401 (a fixture)
from dashboard.made_up_run import CLASSES
from dashboard.talking import get, post, refused, request
from mumoe.analysis.highlights import choose_highlights, interest_order
from mumoe.dashboard import expert_panel
from mumoe.reports.expert_views import read_study

ROWS = ".experts .row:not(.head)"
EDIT = '[{"name":"ablate-1","kind":"ablate","expert":3,"level":0,"strength":1}]'


# Numbers -------------------------------------------------------------------------------------------------------


def test_the_first_experts_are_those_of_the_study(running, run):
    units = read_study(run).units(0)
    start = get(running, "/api/state")["run"]["start"]
    chosen = choose_highlights(units)
    assert start == {
        "purest": list(chosen.purest),
        "typical": chosen.typical,
        "first": interest_order(units.modes["zero"])[0],
    }
    ranks = get(running, "/api/experts", level=0)["rank"]
    assert [ranks.index(place) for place in range(12)] == interest_order(units.modes["zero"])


def test_pictures_and_classes_of_the_list_are_those_of_the_largest_coefficients(running, session):
    found = get(running, "/api/experts", split="val", level=0)
    rows = session.split("val").images
    a = session.run.coefficients(rows, "test")[0].to_dense().numpy()
    best = [int(rows[a[:, n].argmax()]) if a[:, n].any() else -1 for n in range(12)]
    assert found["picture"] == best
    mass = a.T @ session.run.data.labels[rows].astype(np.float32)
    for n in range(12):
        expected = [c for c in np.argsort(-mass[n], kind="stable").tolist() if mass[n, c] > 0]
        assert [c for c in found["seen"][n] if c >= 0] == expected


def test_logits_without_an_expert_and_the_histogram_of_its_coefficients(running, session):
    found = get(running, "/api/expert", split="val", level=0, expert=3)
    rows = session.split("val").images
    a = session.run.coefficients(rows, "test")[0].to_dense().numpy()[:, 3]
    with session.run.layer.ablate(3):
        after = session.run.outputs(rows[a > 0])
    change = (after - session.run.outputs(rows[a > 0])).astype(np.float64).mean(0)
    shown = {item["name"]: item["change"] for kind in ("falls", "rises") for item in found["logits"][kind]}
    assert shown == pytest.approx(dict(zip(CLASSES, change.tolist(), strict=True)), abs=1e-5)
    assert all(item["change"] < 0 for item in found["logits"]["falls"])
    assert found["histogram"] == np.histogram(a[a > 0], bins=20, range=(0, 1))[0].tolist()
    assert sum(found["histogram"]) == found["touched"]


def test_logits_of_a_head_that_cannot_be_edited(session, monkeypatch):
    """A head whose experts do not make the logits has no rows to edit; the layer itself is asked."""
    split = session.split("val")
    expected = expert_panel.logit_changes(session, split, 0, 3)
    bare = type(split)(split.name, split.images, split.levels, None, split.scores)
    np.testing.assert_allclose(expert_panel.logit_changes(session, bare, 0, 3), expected, atol=1e-5)


def test_an_expert_without_images_changes_nothing(session):
    split = session.split("val")
    level = split.levels[0]
    none = type(level)(13, *(getattr(level, name) for name in ("experts", "values", "offsets", "by_expert")),
                       level.by_expert_values, torch.cat([level.starts, level.starts[-1:]]))  # fmt: skip
    assert none.peaks[12] == -1
    assert none.peaks[:12].tolist() == level.peaks.tolist()
    bare = type(split)(split.name, split.images, (none,), split.rows, split.scores)
    assert expert_panel.logit_changes(session, bare, 0, 12).tolist() == [0.0, 0.0]


def test_a_card_is_a_picture(running):
    status, headers, content = request(running, "GET", "/api/card?split=val&level=0&expert=3")
    assert (status, headers["content-type"]) == (200, "image/png")
    card = Image.open(io.BytesIO(content)).convert("RGB")
    assert card.width > 1000
    assert len(card.getcolors(1 << 24)) > 100  # images are on it
    status, _, content = request(running, "GET", "/api/card?split=val&level=0&expert=99")
    assert (status, b"expected an expert in 0..11, got 99" in content) == (404, True)


def test_an_expert_that_does_not_exist_is_reported_by_the_edit_that_names_it(running):
    said = refused(running, "/api/parse", text="ablate:999")
    assert said == "Ablate: expected an expert in 0..11, got 999. There are 12 experts."
    entry = {"name": "a", "kind": "ablate", "expert": 999, "level": 0, "strength": 1}
    assert refused(running, "/api/compare", edits=[entry]).startswith("Ablate: ")


# Pages ---------------------------------------------------------------------------------------------------------


def first(running) -> int:
    return get(running, "/api/state")["run"]["start"]["first"]


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)], ids=["wide", "phone"])
def test_it_opens_on_the_purest_strong_expert_with_its_images_above_the_bars(browser, running, width, height):  # noqa: F811
    with opened(browser, running.url, width=width, height=height) as watched:
        page = watched.page
        page.get_by_role("heading", name=f"Expert {first(running)}", exact=True).wait_for()
        watched.still()
        gallery, bars = (page.locator(f".detail {part}").first.bounding_box()["y"] for part in (".gallery", ".bars"))
        assert gallery < bars
        assert gallery < height
        assert page.locator(".detail .gallery img").count() > 0
        if width > 700:
            assert page.locator(f"{ROWS} .thumb img").count() > 0
        assert both_themes(watched) == CLEAN


def test_a_copied_link_has_the_state_and_not_the_token(browser, running):  # noqa: F811
    with opened(browser, f"{running.url}#/experts") as watched:
        page = watched.page
        page.wait_for_selector(ROWS)
        page.get_by_text("Sort and filter").click()
        page.get_by_label("Sort by").select_option("loss")
        page.get_by_label("Images that are").select_option("round")
        page.get_by_label("Search experts").fill("striped")
        page.get_by_label("Split").select_option("test")
        page.get_by_text("images of test").first.wait_for()
        page.locator(ROWS).first.click()
        page.get_by_role("button", name="Pin", exact=True).click()
        page.get_by_role("button", name="Ablate it").click()
        accuracy = watched.still().locator(".figure b").inner_text()
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        expect(page).to_have_url(re.compile("ablate-1"))
        page.get_by_role("button", name="Copy link").click()
        page.get_by_text("Copied").wait_for()
        link = page.evaluate("navigator.clipboard.readText()")
        assert link == page.url
        assert running.keys.token not in link + page.evaluate("document.documentElement.outerHTML + document.cookie")
        rows, heading = view(page)
        other = page.context.new_page()
        other.goto(link)
        other.get_by_text("Ablate expert").wait_for()
        other.locator("[aria-busy=true]").first.wait_for(state="detached")
        assert other.locator(".figure b").inner_text() == accuracy
        assert other.get_by_label("Search experts").input_value() == "striped"
        assert other.get_by_label("Split").input_value() == "test"
        assert other.locator(".pins .link").count() == 1
        same, title = view(other)
        drawn = min(
            len(rows), len(same)
        )  # the list draws the rows that fit, and how many do depends on what is above it
        assert (same[:drawn], title) == (rows[:drawn], heading)
        assert drawn > 5
        other.go_back()  # away from the page: nothing of it was put into the history twice
        assert other.url == "about:blank"


def view(page) -> tuple[list[str], str]:
    """The rows of the list and the heading of what is opened."""
    return page.locator(ROWS).evaluate_all("rows => rows.map(row => row.id)"), page.locator("h2").first.inner_text()


@pytest.mark.parametrize(
    "state",
    ["split=nope&sort=x&level=7&label=q&attribute=z&gap=none&kind=no&pins=9/99", "edits={", "edits=[3]", "edits=[{}]"],
)
def test_nonsense_in_a_link_is_left_out(browser, running, state):  # noqa: F811
    with opened(browser, f"{running.url}#/experts?{state}") as watched:
        watched.page.wait_for_selector(ROWS)
        assert watched.still().get_by_text("experts on 120 images of val").count() == 1


def test_two_experts_are_shown_side_by_side(browser, running):  # noqa: F811
    with opened(browser, f"{running.url}#/expert/0/3") as watched:
        page = watched.page
        page.get_by_role("button", name="Pin", exact=True).click()
        page.locator("#row-7").click()
        page.get_by_role("heading", name="Expert 7", exact=True).wait_for()
        page.get_by_label("Side by side with").select_option("0/3")
        for expert in (7, 3):
            page.get_by_role("heading", name=f"Expert {expert}", exact=True).wait_for()
        assert both_themes(watched) == CLEAN
        assert outside(page, ".pane") == []
        left, right = (page.get_by_label(f"Expert {n}", exact=True).bounding_box() for n in (7, 3))
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] <= right["x"]
        page.set_viewport_size({"width": 390, "height": 844})
        assert both_themes(watched) == CLEAN
        page.get_by_role("button", name="‹ Close").last.click()
        page.get_by_role("button", name="Side by side").or_(page.get_by_label("Side by side with")).wait_for()
        assert page.get_by_role("heading", name="Expert 3", exact=True).count() == 0
        page.get_by_role("button", name="‹ Experts").click()
        page.get_by_role("button", name="Unpin expert 3").click()
        assert page.locator(".pin").count() == 0


def test_every_short_word_is_explained_by_keyboard(browser, running):  # noqa: F811
    with opened(browser, f"{running.url}#/expert/0/3?edits={EDIT}") as watched:
        page = watched.still()
        page.wait_for_selector(".facts")
        page.evaluate("document.querySelectorAll('details:not(.meanings)').forEach(part => (part.open = true))")
        buttons = page.locator("button.what")
        named = {buttons.nth(n).get_attribute("aria-label") for n in range(buttons.count())}
        for word in ("load", "polysemanticity p", "strong", "the control", "effect on the logits", "re-writing score"):
            assert f"What is {word}?" in named
        for n in range(buttons.count()):
            button = buttons.nth(n)
            meaning = page.locator(f"[id='{button.get_attribute('aria-controls')}']")
            assert not meaning.is_visible()
            button.focus()
            page.keyboard.press("Enter")
            assert meaning.is_visible()
            assert len(meaning.inner_text()) > 20
        assert watched.violations() == []
        assert outside(page, ".pane") == []
        page.keyboard.press("Escape")
        assert not meaning.is_visible()
        for summary in ("What the columns mean", "What these do"):
            page.get_by_text(summary).first.focus()
            page.keyboard.press("Enter")
        text = page.locator(".meanings[open]").all_inner_texts()
        for word in ("Load", "p", "Loses most", "Ablate", "Scale", "Correct", "Set to 0"):
            assert any(f"{word}\n" in part for part in text), word


def saved(page, button) -> bytes:
    with page.expect_download() as found:
        button.click()
    return found.value.path().read_bytes()


def table(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_tables_are_saved_with_all_digits_and_cards_as_pictures(browser, running, session):  # noqa: F811
    with opened(browser, f"{running.url}#/expert/0/3?edits={EDIT}&sort=expert&unused=1") as watched:
        page = watched.still()
        page.wait_for_selector(".facts")
        rows = table(saved(page, page.get_by_role("button", name="Save experts-val as CSV")))
        columns = get(running, "/api/experts", split="val", level=0, gap=session.run.data.column_names[0])
        assert [int(row["expert"]) for row in rows] == list(range(12))
        assert [float(row["mean_coefficient"]) for row in rows] == columns["mean"]
        assert [row["polysemanticity"] for row in rows] == [
            "" if value is None else repr(value) for value in columns["polysemanticity"]
        ]
        detail = get(running, "/api/expert", split="val", level=0, expert=3)
        lost = table(saved(page, page.get_by_role("button", name="Save expert-0/3-classes-lost as CSV")))
        assert [(row["class"], float(row["share_lost"])) for row in lost] == [
            (item["name"], item["loss"]) for item in detail["analysis"]["losses"]
        ]
        bins = table(saved(page, page.get_by_role("button", name="Save expert-0/3-coefficients as CSV")))
        assert [int(row["images"]) for row in bins] == detail["histogram"]
        names = page.locator("button.csv").evaluate_all("all => all.map(button => button.ariaLabel)")
        for part in ("classes-seen", "logits", "subgroups", "fairness", "classes as"):
            assert any(part in name for name in names), part
        groups = table(saved(page, page.get_by_role("button", name="Save subgroups as CSV")))
        assert sum(int(row["images"]) for row in groups) == 120
        card = Image.open(io.BytesIO(saved(page, page.get_by_role("button", name="Card as PNG"))))
        assert card.format == "PNG"


@pytest.mark.parametrize("width", [390, 760, 1000, 1180, 1280, 1600])
def test_nothing_runs_past_the_edge_of_its_panel(browser, running, width):  # noqa: F811
    long = "a name of eighty characters that is written without any hope of fitting anywhere"
    post(running, "/api/note", level="0", expert=3, name=long, note="", before={"name": "", "note": ""})
    try:
        with opened(browser, f"{running.url}#/expert/0/3?edits={EDIT}&pins=0/3,0/7", width=width) as watched:
            page = watched.page
            for place in ("expert/0/3", "experts", "edits", "images", "image/5", "audit", "own", "pair/0/3/0/7"):
                page.evaluate(f"location.hash = '#/{place}'")
                page.wait_for_selector(f".at-{place.split('/')[0]}")
                watched.still()
                assert (place, outside(page, ".pane, .top, .tabs, .editsline"), watched.sideways()) == (place, [], 0)
    finally:
        post(running, "/api/note", level="0", expert=3, name="", note="", before={"name": long, "note": ""})


def test_where_the_edits_are_out_of_sight_their_headline_is_shown(browser, running):  # noqa: F811
    with opened(browser, f"{running.url}#/expert/0/3", width=390, height=844) as watched:
        page = watched.page
        page.get_by_role("button", name="Ablate it").click()
        page.get_by_text("Ablate expert 3").wait_for()
        headline = watched.still().locator(".figure")
        box = headline.bounding_box()
        assert 0 <= box["y"] < 844 / 2
        after = headline.locator("b").inner_text()
        page.get_by_role("link", name="Experts").click()
        line = page.locator(".editsline")
        line.wait_for()
        assert line.inner_text().startswith("1 edit: accuracy on val")
        assert after in line.inner_text()
        line.click()
        page.wait_for_selector(".at-edits .figure")
        assert not page.locator(".editsline").is_visible()
    with opened(browser, f"{running.url}#/expert/0/3?edits={EDIT}", width=1280) as watched:
        watched.page.wait_for_selector(".facts")
        assert not watched.still().locator(".editsline").is_visible()


def test_a_run_without_pictures_has_pages_without_faults(browser, running):  # noqa: F811
    def without(route) -> None:
        state = route.fetch().json()
        state["run"]["pictures"] = False
        route.fulfill(json=state)

    with opened(browser, "about:blank") as watched:
        page = watched.page
        page.route("**/api/state*", without)
        page.goto(f"{running.url}#/expert/0/3")
        page.wait_for_selector(".detail .nopicture")
        assert both_themes(watched) == CLEAN
        assert page.locator(".thumb").count() == 0
        page.evaluate("location.hash = '#/image/5'")
        page.wait_for_selector("table.apart")
        assert both_themes(watched) == CLEAN
        assert outside(page, ".pane") == []
