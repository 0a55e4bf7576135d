"""A decomposition in the dashboard: its experts, names and notes, and texts that are written with one scaled."""

from __future__ import annotations

import json
import time

import pytest
from playwright.sync_api import expect

import mumoe
from axe import CLEAN, both_themes, outside
from browsing import browser, opened  # noqa: F401 (a fixture)
from dashboard.talking import get, post, refused, request
from mumoe import cli
from mumoe.analysis.expert_notes import ExpertNotes
from mumoe.dashboard.server import serving
from mumoe.dashboard.token_view import open_decomposed
from mumoe.errors import UserError

LAYER = "model.layers.1.mlp"
PROMPT = "the old cat sees"


@pytest.fixture(scope="module")
def shown(analyzed):
    with serving(lambda report: open_decomposed(analyzed)) as found:
        yield found


def written(running, **given):
    """What a request to write ends in."""
    number = post(running, "/api/text/generate", **given)["job"]
    while (job := get(running, "/api/job", number=number))["state"] == "running":
        time.sleep(0.02)
    return job


def test_columns_are_those_of_the_analysis(shown, analyzed):
    columns = get(shown, "/api/text/layer", layer=0)
    assert len(columns["expert"]) == analyzed.found.live
    for place, expert in enumerate(columns["expert"]):
        one = analyzed.found.expert(expert)
        assert columns["purity"][place] == pytest.approx(one.tag_excess)
        assert columns["estimate"][place] == pytest.approx(one.estimate / 1000)
        measured = columns["effect"][place]
        assert measured == (None if one.loss is None else pytest.approx(one.loss / 1000))
    state = get(shown, "/api/state")["run"]
    assert (state["per"], state["estimated"], state["steers"]["most_tokens"]) == (1000, True, 100)
    assert columns["most"][0] == analyzed.found.expert(columns["expert"][0]).tag
    assert any("of random tokens" in line for line in state["remarks"])


def test_written_texts_are_those_of_generate(shown, analyzed):
    expert = analyzed.found.found[0].expert
    given = {"prompt": PROMPT, "tokens": 12, "expert": expert}
    found = written(shown, **given, factor=20)["result"]
    assert PROMPT + found["original"] == analyzed.generate(PROMPT, 12, original=True)
    assert PROMPT + found["plain"] == analyzed.generate(PROMPT, 12)
    assert PROMPT + found["steered"] == analyzed.generate(PROMPT, 12, scale={expert: 20.0})
    assert found["steered"] != found["plain"] != found["original"]
    rates = {one.expert: one.rate for one in analyzed.found.found}
    nearest = min(abs(rate - rates[expert]) for other, rate in rates.items() if other != expert)
    assert found["control"] != expert
    assert abs(rates[found["control"]] - rates[expert]) == pytest.approx(nearest)
    assert PROMPT + found["controlled"] == analyzed.generate(PROMPT, 12, scale={found["control"]: 20.0})
    again = written(shown, **given, factor=1)["result"]
    assert again["steered"] == again["plain"] == found["plain"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": " "}, "expected a prompt"),
        ({"prompt": "a" * 2001}, "expected a prompt"),
        ({"tokens": 101}, "expected 1 to 100 tokens to write, got 101"),
        ({"tokens": True}, "expected 1 to 100 tokens"),
        ({"expert": "3"}, "expected the number of an expert, got '3'"),
        ({"factor": 21}, "expected a factor from -20 to 20, got 21"),
        ({"factor": None}, "expected a factor from -20 to 20, got None"),
    ],
)
def test_wrong_requests_to_write_are_refused(shown, wrong, words):
    given = {"prompt": PROMPT, "tokens": 4, "expert": 0, "factor": 2.0, **wrong}
    assert words in refused(shown, "/api/text/generate", **given)


def test_an_expert_that_is_not_there_is_said(shown, analyzed):
    idle = next(n for n in range(analyzed.found.experts) if analyzed.found.expert(n) is None)
    status, _, content = request(shown, "GET", f"/api/text/expert?layer=0&expert={idle}")
    assert status == 400
    assert f"expected an expert of {LAYER} that at least 5 tokens use, got {idle}" in json.loads(content)["error"]
    job = written(shown, prompt=PROMPT, tokens=4, expert=99999, factor=2)
    assert job["state"] == "failed"
    assert "expected an expert in 0.." in job["error"]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["wide", "phone"])
def test_the_page(browser, shown, analyzed, width, dark):  # noqa: F811
    first = analyzed.found.found[0].expert
    with opened(browser, shown.url, width=width, dark=dark) as watched:
        page = watched.page
        page.get_by_role("heading", name=f"Expert {first} of {LAYER}").wait_for()
        detail = page.get_by_role("region", name=f"Expert {first} of {LAYER}")
        expect(detail).to_contain_text("nats per 1,000 tokens, as estimated from gradients")
        labels = page.get_by_role("region", name="Labels of its top tokens").locator("tbody tr")
        assert labels.first.inner_text().startswith("tag")
        centers = page.locator(".quotes .token.center")
        assert "".join(centers.all_inner_texts()).strip()
        assert page.locator(".quotes .token.center").first.get_attribute("style") == "--a: 1.000;"
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_role("button", name="Write 40 tokens").click()
        texts = page.locator(".written .quote")
        expect(texts).to_have_count(4)
        assert texts.nth(1).inner_text() == analyzed.generate(PROMPT, 40)
        page.get_by_label("Factor as a number").fill("1")
        page.get_by_label("Factor as a number").press("Enter")
        page.get_by_text("Scaling changes nothing here.").wait_for()
        page.get_by_role("slider", name="Factor").press("End")
        page.get_by_role("heading", name=f"Steered: expert {first} × 20").wait_for()
        assert texts.nth(2).inner_text() == analyzed.generate(PROMPT, 40, scale={first: 20.0})
        assert both_themes(watched) == CLEAN
        assert outside(page, ".pane") == []
        page.get_by_role("textbox", name="Name").fill(f"cats {width}")
        page.get_by_role("button", name="Save", exact=True).click()
        page.get_by_text("Saved.").wait_for()
        assert ExpertNotes.of_run(analyzed.path).name(first, LAYER) == f"cats {width}"
        page.get_by_role("link", name="Texts").click()
        page.locator(".whole button.token").nth(3).click()
        page.get_by_text("Token 4:").wait_for()
        assert (watched.violations(), watched.sideways()) == ([], 0)


def test_a_folder_is_opened_by_the_command(analyzed, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("mumoe.dashboard.server.serve", lambda work, port, opened: seen.append((work(None), port)))
    assert cli.main(["dashboard", str(analyzed.path), "--port", "8000"]) == 0
    (session, port) = seen[0]
    assert (port, session.study.layers[0].layer) == (8000, LAYER)
    assert cli.main(["dashboard", str(analyzed.path), "--split", "val"]) == 2
    assert "expected no --split for a decomposition" in capsys.readouterr().err


def test_one_that_was_not_analyzed_is_refused(model_folder, small, tmp_path):
    dec = mumoe.decompose(model_folder, out=tmp_path / "dec", **small)
    with pytest.raises(UserError, match="expected a decomposition that was analyzed"):
        dec.dashboard()
