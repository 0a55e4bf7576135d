"""What a reader sees first: the strongest experts with their names, what is lost without them, and the linear layer."""

import dataclasses
import re
import sys
from html import unescape
from pathlib import Path

import pytest

from browsing import browser, opened
from mumoe.analysis.expert_notes import ExpertNotes
from mumoe.analysis.highlights import interest_order
from mumoe.reports import site as pages
from mumoe.reports.views import ClassLoss

sys.path.insert(0, str(Path(__file__).parent))

from made_up_results import gathered, made_up_data, write_run

__all__ = ["browser"]

NAME, NOTE = "hearts <b>of any colour</b>", "Also the exclamation mark.\n<script>alert(3)</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of a run, one of whose experts has a name and a note, beside a linear head on the same images."""
    folder = tmp_path_factory.mktemp("named")
    data = made_up_data(400, ["cat", "dog", "hen", "cow"])
    run = write_run(folder / "mixture", data, experts=8, focused=0.9)
    linear = write_run(folder / "plain", data, experts=8, head="linear")
    ExpertNotes().with_note(2, name=NAME, note=NOTE).save_to(run)
    (view,), others = gathered(run, data, 4), gathered(linear, data, 4)
    views = [with_a_gain(view), *others]
    shown = dict.fromkeys((view.name for view in views), data)
    pages.write_pages(views, folder / "out", data=shown)
    return folder / "out", views


def with_a_gain(view):
    """The view, in which ablating expert 1 also gains answers of a class."""
    (level,) = view.levels
    gaining = dataclasses.replace(
        level.experts[1], losses=(*level.experts[1].losses, ClassLoss(3, "cow", -0.4, None, 20))
    )
    experts = (level.experts[0], gaining, *level.experts[2:])
    return dataclasses.replace(view, levels=(dataclasses.replace(level, experts=experts),))


def text(page):
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page.read_text())).split())


def test_the_table_and_the_csv_begin_with_the_strongest(made):
    folder, (view, _) = made
    level = view.levels[0]
    order = interest_order(level.modes["zero"])
    assert order != sorted(order)
    page = (folder / "mixture" / "experts.html").read_text()
    assert [int(n) for n in re.findall(r'<th scope="row" data-value="(\d+)"', page)] == order
    lines = (folder / "mixture" / "data" / "experts-0.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in lines[1:]] == order
    gallery = (folder / "mixture" / "images.html").read_text()
    with_images = [n for n in order if level.experts[n].random]
    assert [int(n) for n in re.findall(r'<h2 id="e(\d+)"', gallery)] == with_images


def test_names_and_notes_are_shown_as_text_wherever_the_expert_is(made):
    folder, _ = made
    own = folder / "mixture" / "experts" / "0-2.html"
    assert f"Expert 2 : {NAME}" in text(own) or f"Expert 2: {NAME}" in text(own)
    assert " ".join(NOTE.split()) in text(own)
    for name in ("experts.html", "images.html", "index.html"):
        found = text(folder / "mixture" / name)
        assert (NAME in found) == ("Expert 2" in found or name == "experts.html"), name
    for page in folder.rglob("*.html"):
        assert "<script>alert(3)" not in page.read_text()
        assert "<b>of any" not in page.read_text()
    assert NAME in (folder / "mixture" / "data" / "experts-0.csv").read_text()


def test_an_expert_without_a_name_is_called_by_the_classes_that_it_answers_for(made):
    _, (view, _) = made
    strong = next(e for e in view.levels[0].experts if e.strong and not e.name)
    assert strong.known_as
    assert set(strong.known_as.split(" and ")) <= {loss.name for loss in strong.losses if loss.loss > 0}
    weak = next(e for e in view.levels[0].experts if not e.strong)
    assert weak.known_as == ""


def test_the_page_of_a_run_says_what_came_out_before_its_settings(made):
    folder, (view, _) = made
    page = (folder / "mixture" / "index.html").read_text()
    headings = [re.sub(r"<[^>]*>", "", h) for h in re.findall(r"<h2>(.*?)</h2>", page)]
    assert headings == ["Accuracy", "Strongest experts", "Costs", "Accuracy by class", "How it was trained"]
    found = text(folder / "mixture" / "index.html")
    level = view.levels[0]
    assert f"{level.modes['zero'].strong} of 8 experts matter individually" in found
    assert f"the control, {level.control.strong} do" in found
    purest = level.experts[interest_order(level.modes["zero"])[0]]
    assert purest.worst.in_words() in found
    images = re.findall(r"images/0-(\d+)-top.webp", page)
    assert {int(n) for n in images} >= set(level.highlights().purest)


def test_accuracy_stands_beside_that_of_the_linear_layer(made):
    folder, (view, linear) = made
    difference = view.accuracy["test"].mean - linear.accuracy["test"].mean
    page = (folder / "mixture" / "index.html").read_text()
    assert "difference from plain" in page
    assert f'value="{difference!r}"' in page
    assert "difference from" not in (folder / "plain" / "index.html").read_text()


def test_without_a_linear_layer_the_page_says_how_to_get_one(tmp_path):
    data = made_up_data(60, ["a", "b"])
    run = write_run(tmp_path / "run", data, experts=4)
    pages.write_pages(gathered(run), tmp_path / "out")
    assert "This report has no linear layer on the same images" in text(tmp_path / "out" / "index.html")


def test_gains_are_drawn_to_the_left_and_losses_to_the_right(browser, made):
    folder, (view, _) = made
    expert = next(e for e in view.levels[0].experts if min((loss.loss for loss in e.losses), default=0) < 0)
    with opened(browser, (folder / "mixture" / "experts" / f"0-{expert.expert}.html").as_uri()) as watched:
        boxes = watched.page.evaluate(
            """() => [...document.querySelectorAll('td.bars')].map(cell => {
                 const bar = cell.firstElementChild.getBoundingClientRect(), box = cell.getBoundingClientRect();
                 return [(bar.left - box.left) / box.width, (bar.right - box.left) / box.width];
               })"""
        )
    assert len(boxes) == len(expert.losses)
    for (left, right), loss in zip(boxes, expert.losses, strict=True):
        far = 0.5 + loss.loss / 2
        assert [left, right] == pytest.approx(sorted((0.5, far)), abs=0.02)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_table_that_scrolls_says_so(browser, made, width):
    with opened(browser, (made[0] / "mixture" / "experts.html").as_uri(), width=width) as watched:
        scrolls = watched.page.evaluate(
            "[...document.querySelectorAll('.wide')].map(place => place.scrollWidth > place.clientWidth + 1)"
        )
        said = watched.page.evaluate(
            "[...document.querySelectorAll('.wide')].map(p => !p.previousElementSibling.hidden)"
        )
        assert said == scrolls
        assert any(scrolls) == (width == 390)


def test_heads_are_named_in_words(made):
    head = made[1][0].head
    titles = {
        "CPMuMoE-r256-e128": ((128,), "128 experts (CP, rank 256)"),
        "CPMuMoE-r8-e64x2": ((64, 2), "64 × 2 experts (CP, rank 8)"),
        "DenseMuMoE-e4": ((4,), "4 experts (Dense)"),
    }
    for spec, (experts, title) in titles.items():
        assert dataclasses.replace(head, spec=spec, experts=experts).title == title
    assert dataclasses.replace(head, spec="linear", kind="linear", experts=()).title == "Linear layer"


def test_an_edit_that_is_no_better_than_its_control_says_so(site, made, tmp_path):
    """The edit of the site corrects everything; with its control in its place, the control is as good."""
    words = "The control is at least as good in both"
    folder, views = site
    assert words not in text(folder / "run" / "index.html")
    edit = next(edit for edit in views[0].edits if edit.fairness)
    before, blind, after = edit.fairness.models
    models = {before: edit.fairness.models[before], blind: edit.fairness.models[after]}
    fairness = dataclasses.replace(edit.fairness, models={**models, after: edit.fairness.models[blind]})
    view = dataclasses.replace(made[1][1], edits=(dataclasses.replace(edit, fairness=fairness, choice=None),))
    pages.write_pages([view], tmp_path / "out")
    assert words in text(tmp_path / "out" / "index.html")
