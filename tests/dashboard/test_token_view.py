"""The token view, from the file that `mumoe analyze` writes of a language model."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from playwright.sync_api import expect

from axe import CLEAN, both_themes, outside
from browsing import browser, opened  # noqa: F401 (a fixture)
from dashboard.talking import get, refused, request
from mumoe.analysis.expert_notes import FILE, ExpertNotes
from mumoe.analysis.findings import ExpertText, LayerText, TextEffect, TextStudy, TopToken, WindowText
from mumoe.dashboard.server import serving
from mumoe.dashboard.token_view import open_tokens
from mumoe.errors import UserError
from mumoe.files import write_json

PIECES = ("The", " <b>cat</b>", "\n", " sat", " 42")


def make_study() -> TextStudy:
    def expert(n: int) -> ExpertText:
        top = TopToken(n, 2, 0.9 - n / 100, 1, PIECES, (0.1, 0.9 - n / 100, 0.0, 0.2, 0.0))
        effect = TextEffect(0.01 * n, {"word": 0.02 * n, "digit": None}) if n % 2 else None
        by_class = {"word": 0.3 + n / 1000, "digit": None}
        return ExpertText(n, 0.1 + n / 1000, 0.5, 0.1, by_class, (top,), effect, tuple(range(20)))

    layers = tuple(LayerText(f"h.{k}.mlp", 40, 3, tuple(expert(n) for n in range(40))) for k in range(2))
    coefficients = tuple(((n, 0.6), (n + 1, 0.4)) for n in range(5))
    window = WindowText(7, PIECES, (None, 1.5, 0.25, 2.0, 3.0), {"h.0.mlp": coefficients, "h.1.mlp": coefficients})
    by_class = {"word": {"tokens": 80, "loss": 1.5}, "digit": {"tokens": 0, "loss": None}}
    return TextStudy("run", "val", 10, "bytes", 4, 80, 1.25, 1.8, ("word", "digit"), by_class, layers, (window,))


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    write_json(path / "analysis" / "experts.json", make_study())
    with serving(lambda report: open_tokens(path)) as found:
        yield found


def test_columns_and_experts_are_those_of_the_file(text_run):
    columns = get(text_run, "/api/text/layer", layer=1)
    assert columns["expert"] == list(range(40))
    assert columns["effect"][:4] == [None, 0.01, None, 0.03]
    assert columns["most"][0] == "word"
    assert columns["example"][0] == " <b>cat</b>"
    found = get(text_run, "/api/text/expert", layer=0, expert=5)
    assert found["top"][0]["pieces"] == list(PIECES)
    assert get(text_run, "/api/text/excerpt", number=0)["losses"][1] == 1.5


@pytest.mark.parametrize(
    "path", ["layer?layer=2", "expert?layer=0&expert=40", "excerpt?number=1", "excerpt?number=-1", "expert?layer=x"]
)
def test_what_is_not_there_is_said(text_run, path):
    status, _, content = request(text_run, "GET", f"/api/text/{path}")
    assert status == 400
    assert "dashboard: expected" in json.loads(content)["error"]


def test_a_run_of_the_other_kind_is_said(text_run, running):
    assert b"expected a language model" in request(running, "GET", "/api/text/layer?layer=0")[2]
    assert b"expected a run on images" in request(text_run, "GET", "/api/experts?level=0")[2]


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2}', '{"schema": 1}'])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "experts.json").write_text(content)
    with pytest.raises(UserError, match="text view: "):
        open_tokens(tmp_path)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["wide", "phone"])
def test_the_pages_of_tokens(browser, text_run, width, dark):  # noqa: F811
    with opened(browser, text_run.url, width=width, dark=dark) as watched:
        page = watched.page
        page.get_by_role("heading", name="Expert 39 of h.0.mlp").wait_for()
        page.get_by_role("button", name="‹ Experts").click()
        page.wait_for_selector(".experts .row:not(.head)")
        order = page.locator(".experts .row:not(.head)").evaluate_all("rows => rows.map(row => row.id)")
        assert order[:3] == ["row-39", "row-37", "row-35"]
        worth = page.locator(".experts .row:not(.head) .num:nth-child(2)").first.inner_text()
        assert worth == "+0.3900"
        page.locator(".experts .row:not(.head)").first.click()
        page.get_by_role("heading", name="Expert 39 of h.0.mlp").wait_for()
        page.wait_for_selector(".quotes .token.center")
        assert page.locator(".quotes .token.center").inner_text() == " <b>cat</b>"
        assert (watched.violations(), watched.sideways()) == ([], 0)
        page.get_by_role("link", name="Texts").click()
        page.get_by_role("button", name=" sat").click()
        page.get_by_text("loss 2.00 nats").wait_for()
        assert (watched.violations(), watched.sideways()) == ([], 0)
        page.get_by_role("button", name="expert 4").click()
        page.get_by_role("heading", name="Expert 4 of h.0.mlp").wait_for()


def test_an_expert_of_a_layer_is_named_searched_pinned_and_compared(browser, text_run):  # noqa: F811
    assert get(text_run, "/api/text/expert", layer=1, expert=3)["suggestion"] == "mostly word"
    folder = text_run.dashboard.tokens.folder
    with opened(browser, f"{text_run.url}#/expert/1/3") as watched:
        page = watched.page
        page.get_by_role("button", name="Use the suggestion: mostly word").click()
        page.get_by_text("Saved.").wait_for()
        assert ExpertNotes.of_run(folder).name(3, "h.1.mlp") == "mostly word"
        page.get_by_role("button", name="Pin", exact=True).click()
        page.get_by_label("Layer (experts)").select_option("1")
        page.get_by_label("Search experts").fill("mostly")
        rows = page.locator(".experts .row:not(.head)")
        expect(rows).to_have_count(1)
        assert "mostly word" in rows.inner_text()
        page.get_by_label("Search experts").fill("")
        page.locator("#row-7").click()
        page.get_by_role("heading", name="Expert 7 of h.1.mlp").wait_for()
        page.get_by_label("Side by side with").select_option("1/3")
        page.get_by_role("heading", name="Expert 3 of h.1.mlp").wait_for()
        assert both_themes(watched) == CLEAN
        assert outside(page, ".pane") == []
        assert page.locator(".histogram [role=img]").first.get_attribute("aria-label").startswith("Tokens by coeff")
        with page.expect_download() as found:
            page.get_by_role("button", name="Save experts-h.1.mlp as CSV").click()
        rows = list(csv.DictReader(io.StringIO(found.value.path().read_text(), newline="")))
        assert len(rows) == 40
        assert {row["name"] for row in rows if row["expert"] == "3"} == {"mostly word"}
        expect(page).to_have_url(re.compile("pins="))
        link = page.url
        assert text_run.keys.token not in link
        other = page.context.new_page()
        other.goto(link)
        other.get_by_role("heading", name="Expert 3 of h.1.mlp").wait_for()
        assert other.locator(".pin").count() == 1
    said = refused(text_run, "/api/note", level="h.9", expert=0, name="a", note="", before={"name": "", "note": ""})
    assert "Did you mean" in said or "expected a level out of h.0.mlp, h.1.mlp" in said
    (folder / FILE).unlink()


@pytest.mark.parametrize("state", ["layer=9&sort=x&pins=9/1", "text=77&token=-4&of=x"])
@pytest.mark.parametrize("place", ["experts", "texts", "expert/9/1", "pair/0/1/7/7"])
def test_nonsense_in_a_link_of_tokens_is_left_out(browser, text_run, state, place):  # noqa: F811
    with opened(browser, f"{text_run.url}#/{place}?{state}") as watched:
        watched.page.wait_for_selector(".pane")
        assert watched.still().locator(".problem").count() == 0
