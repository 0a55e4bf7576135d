"""Combinations of the experts of a hierarchy: those that occur, beside their control, with images of the open split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from axe import CLEAN, both_themes
from browsing import browser, opened  # noqa: F401 (a fixture)
from dashboard.conftest import analyze
from dashboard.made_up_run import make_run
from dashboard.talking import get, request
from mumoe.dashboard.server import serving
from mumoe.dashboard.session import open_session
from mumoe.reports.expert_views import read_study
from mumoe.training.opening import StoredRun

SIZES = (6, 4)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    torch.manual_seed(0)
    path = make_run(tmp_path_factory.mktemp("pairs"), "CPMuMoE-r8-e6x4")
    analyze(path)
    return path


@pytest.fixture(scope="module")
def serving_pairs(pairs):
    session = open_session(StoredRun(pairs, progress=False))
    with serving(lambda report: session) as running:
        yield running, session


def test_the_combinations_that_occur_are_those_of_the_analysis(pairs, serving_pairs):
    running, session = serving_pairs
    assert get(running, "/api/state")["run"]["combinations"] is True
    found, joint = get(running, "/api/combinations", split="val"), read_study(pairs).units("combinations")
    assert (found["total"], found["occurring"]) == (24, len(joint.load))
    assert (found["least"], found["most"]) == (min(joint.load), max(joint.load))
    assert found["control_with_effect"] == joint.load_control.with_effect
    assert found["shown"]
    split = session.split("val")
    tables = [level.dense(torch.arange(len(split.images))).numpy() for level in split.levels]
    effects = {effect.unit: effect for effect in joint.modes["zero"].effects}
    for item in found["shown"]:
        n, m = item["experts"]
        unit = n * SIZES[1] + m
        product = tables[0][:, n] * tables[1][:, m]
        rows = np.lexsort((np.arange(len(product)), -product))[: min(5, int((product > 0).sum()))]
        assert item["pictures"] == split.images[rows].tolist()
        assert np.allclose(item["products"], product[rows])
        assert item["load"] == joint.load_of(unit)
        effect = effects.get(unit)
        assert item["polysemanticity"] == (effect.polysemanticity if effect else None)
        assert (item["worst"] or {}).get("position") == (effect.top_class if effect and effect.top_loss > 0 else None)


def test_a_run_of_one_level_has_none(running):
    assert get(running, "/api/state")["run"]["combinations"] is False
    status, _, content = request(running, "GET", "/api/combinations?split=val")
    assert status == 400
    assert b"expected an analysis with combinations" in content


def test_combinations_open_their_experts_and_images(browser, serving_pairs):  # noqa: F811
    running, _ = serving_pairs
    first = get(running, "/api/combinations", split="val")["shown"][0]
    with opened(browser, running.url) as watched:
        page = watched.still()
        page.get_by_text("Combinations of experts that occur").click()
        page.wait_for_selector(".combos li")
        assert page.locator(".combos li").count() == len(get(running, "/api/combinations", split="val")["shown"])
        assert both_themes(watched) == CLEAN
        page.locator(".combos li").first.locator("button.link").nth(1).click()
        watched.still().get_by_role("heading", name=f"Expert {first['experts'][1]} of level 1").wait_for()
    with opened(browser, running.url) as watched:
        page = watched.still()
        page.get_by_text("Combinations of experts that occur").click()
        page.locator(".combos li").first.locator(".strip button").first.click()
        watched.still()
        assert (
            page.url.split("?")[0].endswith(f"image/{first['pictures'][0]}")
            or f"image/{first['pictures'][0]}" in page.url
        )
