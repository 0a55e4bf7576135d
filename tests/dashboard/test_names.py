"""Names and notes of experts from the page: saved at once, guarded, and never over another client's."""

from __future__ import annotations

import json
import re

import pytest

import mumoe
from browsing import browser, opened  # noqa: F401 (a fixture)
from dashboard.talking import get, post, refused, request
from mumoe.analysis.expert_notes import FILE, ExpertNotes
from mumoe.files import write_text


@pytest.fixture(autouse=True)
def _no_notes(run):
    yield
    (run / FILE).unlink(missing_ok=True)


NOTHING = {"name": "", "note": ""}


def test_a_name_is_saved_with_the_run_and_read_by_the_facade(running, run):
    assert get(running, "/api/notes") == {"levels": {}, "problem": ""}
    found = post(running, "/api/note", level="0", expert=3, name=" round  ones", note="also <i>", before=NOTHING)
    assert found["levels"] == {"0": {"3": {"name": "round ones", "note": "also <i>"}}}
    opened_run = mumoe.load(run, progress=False)
    assert opened_run.notes.name(3) == "round ones"
    opened_run.name_expert(4, "given in a notebook")
    assert get(running, "/api/notes")["levels"]["0"]["4"]["name"] == "given in a notebook"


def test_the_second_of_two_changes_from_the_same_text_is_refused(running, run):
    post(running, "/api/note", level="0", expert=3, name="first", note="", before=NOTHING)
    said = refused(running, "/api/note", level="0", expert=3, name="second", note="", before=NOTHING)
    assert said == (
        "expert notes: expected expert 3 with no name and no note, got the name 'first' and no note: "
        "it was changed elsewhere. Load it again and repeat your change."
    )
    assert ExpertNotes.of_run(run).name(3) == "first"
    post(running, "/api/note", level="0", expert=3, name="second", note="", before={"name": "first", "note": ""})
    assert ExpertNotes.of_run(run).name(3) == "second"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"expert": 12}, "expected an expert in 0..11, got 12"),
        ({"expert": -1}, "expected an expert in 0..11, got -1"),
        ({"level": "1"}, "expected a level out of 0, got '1'"),
        ({"name": "x" * 81}, "expected a name of at most 80 characters, got 81"),
        ({"name": 3}, "expected a name and a note as texts"),
        ({"before": None}, "expected a name and a note as texts"),
    ],
)
def test_what_cannot_be_saved_is_answered_in_one_line(running, run, given, said):
    usual = {"level": "0", "expert": 0, "name": "a", "note": "", "before": NOTHING}
    assert said in refused(running, "/api/note", **(usual | given))
    assert not (run / FILE).exists()


def test_names_are_changed_by_the_page_alone(running, run):
    body = json.dumps({"level": "0", "expert": 0, "name": "a", "note": "", "before": NOTHING}).encode()
    for headers in ({"X-Mumoe-Page": None}, {"Origin": "http://evil.example"}, {"Cookie": None}):
        assert request(running, "POST", "/api/note", body, headers=headers)[0] in (401, 403)
    assert request(running, "GET", "/api/note?level=0&expert=0&name=a")[0] == 405
    assert not (run / FILE).exists()


def test_a_damaged_file_leaves_the_page_working_and_is_not_replaced(running, run):
    write_text(run / FILE, "{")
    found = get(running, "/api/notes")
    assert found["levels"] == {}
    assert FILE in found["problem"]
    assert FILE in refused(running, "/api/note", level="0", expert=0, name="a", note="", before=NOTHING)
    assert (run / FILE).read_text() == "{"
    assert len(get(running, "/api/experts", level=0)["load"]) == 12


def save(page) -> None:
    page.get_by_role("form", name="Name and note").get_by_role("button", name="Save", exact=True).click()


def test_a_name_is_suggested_changed_and_searched(browser, running, run, session):  # noqa: F811
    suggestion = get(running, "/api/expert", split="val", level=0, expert=3)["suggestion"]
    with opened(browser, f"{running.url}#/expert/0/3") as watched:
        page = watched.page
        page.get_by_role("button", name="Use the suggestion").click()
        page.get_by_text("Saved.").wait_for()
        assert ExpertNotes.of_run(run).name(3) == suggestion != ""
        page.get_by_role("heading", name=f"Expert 3{suggestion}").wait_for()
        page.get_by_label("Name", exact=True).fill("<b>mine</b>")
        page.get_by_label("Note", exact=True).fill("Looks at edges")
        save(page)
        page.get_by_text("Saved.").wait_for()
        assert ExpertNotes.of_run(run).of(3).note == "Looks at edges"
        for query, found in (("<b>mine", [3]), ("EDGES", [3]), ("nowhere", []), ("3", None)):
            page.get_by_label("Search experts").fill(query)
            shown = page.locator(".experts .row:not(.head)").evaluate_all("rows => rows.map(row => row.id)")
            assert found is None or shown == [f"row-{n}" for n in found], query
            assert found is not None or "row-3" in shown
        page.get_by_label("Search experts").fill("")
        row = page.locator("#row-3")
        assert "<b>mine</b>" in row.inner_text()
        assert watched.violations() == []


def test_two_pages_do_not_overwrite_each_other(browser, running, run):  # noqa: F811
    with (
        opened(browser, f"{running.url}#/expert/0/5") as first,
        opened(browser, f"{running.url}#/expert/0/5") as second,
    ):
        for watched in (first, second):
            watched.page.get_by_label("Name", exact=True).wait_for()
            watched.still()
        second.page.get_by_label("Name", exact=True).fill("second")
        first.page.get_by_label("Name", exact=True).fill("first")
        save(first.page)
        first.page.get_by_text("Saved.").wait_for()
        save(second.page)
        second.page.get_by_text(re.compile("expected expert 5 with no name .*, got the name 'first'")).wait_for()
        second.page.get_by_text("Now: first.").wait_for()
        assert ExpertNotes.of_run(run).name(5) == "first"
        assert second.page.get_by_label("Name", exact=True).input_value() == "second"
        save(second.page)
        second.page.get_by_text("Saved.").wait_for()
        assert ExpertNotes.of_run(run).name(5) == "second"
        assert [text for text in second.problems if "400" not in text] == []
        second.problems.clear()
