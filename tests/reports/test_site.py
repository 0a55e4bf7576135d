"""The report as files: links that hold wherever it is, text that stays text, numbers that are those of the JSON."""

import csv
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from mumoe.errors import UserError
from mumoe.files import write_text
from mumoe.plots import charts
from mumoe.plots.sheets import thumbnail
from mumoe.plots.sprites import SIDE, Sprites
from mumoe.reports import site as pages_of
from mumoe.reports.rendering import exact, fixed
from mumoe.reports.site import write_pages
from mumoe.training.compare import compare
from mumoe.training.opening import StoredRun

sys.path.insert(0, str(Path(__file__).parent))

from made_up_report import NAMES
from made_up_results import gathered, made_up_data, write_run


class Page(HTMLParser):
    """Links, numbers, scripts and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.numbers, self.tags, self.text = path, [], [], [], ""
        self.json, self.images, self.script, self._open = "", [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self._open.append(tag)
        self.links += [found[name] for name in ("href", "src", "srcset") if found.get(name)]
        self.json = found.get("data-json", self.json) if tag == "body" else self.json
        if tag == "img":
            self.images.append(found)
        if tag == "data":
            self.numbers.append([found, ""])

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text += data
        if "data" in self._open:
            self.numbers[-1][1] += data
        if "script" in self._open:
            self.script += data


def pages(folder):
    return [Page(path) for path in sorted(folder.rglob("*.html"))]


def test_every_link_stays_inside_and_leads_somewhere(site):
    folder, _ = site
    found = pages(folder)
    assert len(found) > 35
    for page in found:
        for link in page.links:
            parts = urlsplit(link)
            assert parts.scheme in ("", "data"), (page.path, link)
            if parts.scheme == "" and parts.path:
                target = (page.path.parent / unquote(parts.path)).resolve()
                assert target.is_relative_to(folder.resolve()), (page.path, link)
                assert target.is_file(), (page.path, link)


def test_names_with_html_in_them_are_shown_as_text(site):
    folder, _ = site
    found = pages(folder)
    for page in found:
        assert not {"b", "i", "u"} & set(page.tags), page.path
        assert page.script.strip() == "", page.path
    text = "".join(page.text for page in found)
    for name in (*NAMES, "<script>alert(2)</script>", "Made by <i>nobody</i>, CC0.", "old <u>"):
        assert name in text


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def at(content, path):
    """What a path such as ``levels.0.name`` names; a key with dots in it is taken whole."""
    while path:
        key, _, path = path.partition(".")
        content = content[int(key)] if isinstance(content, list) else content[key]
    return content


def test_every_number_is_that_of_the_json(site):
    folder, _ = site
    checked = 0
    for page in pages(folder):
        content = json.loads((page.path.parent / page.json).read_text())
        for attributes, text in page.numbers:
            value = float(attributes["value"])
            digits = len(text.partition(".")[2])
            written = text.replace(",", "")
            assert float(written) == pytest.approx(value, abs=0.51 * 10**-digits), (page.path, text)
            if path := attributes.get("data-at"):
                assert at(content, path) == value, (page.path, path)
                checked += 1
    assert checked > 500


def test_the_table_of_experts_is_the_json_and_the_csv(site):
    folder, _ = site
    run = folder / "other-i-run"
    experts = json.loads((run / "data" / "level-0.json").read_text())["experts"]
    rows = re.findall(r"<tr data-find=.*?</tr>", (run / "experts.html").read_text(), re.S)
    table = read_csv(run / "data" / "experts-0.csv")
    assert len(rows) == len(experts) == len(table) == 12
    for row, line in zip(rows, table, strict=True):
        values = re.findall(r'data-value="(.*?)"', row)
        expert = experts[int(values[0])]
        top = expert["losses"][0] if expert["losses"] else {"loss": None}
        shown = [expert["load"], expert["mean_coefficient"], expert["polysemanticity"]]
        assert [values[8], values[9], values[4]] == [exact(value) for value in shown]
        assert values[2] == (exact(top["loss"]) if (top["loss"] or 0) > 0 else "")
        assert [line["load"], line["mean_coefficient"], line["polysemanticity"]] == [values[8], values[9], values[4]]
        assert line["expert"] == values[0]


def test_every_expert_has_a_page_with_its_images(site):
    folder, views = site
    run = folder / "other-i-run"
    for expert in views[1].levels[0].experts:
        page = Page(run / "experts" / f"0-{expert.expert}.html")
        assert len(page.images) == (len(expert.top) if expert.load <= len(expert.top) else 2 * len(expert.top))
        assert all(image["loading"] == "lazy" and image["width"] == "96" for image in page.images)
        assert {image["alt"] for image in page.images} == {item.label for item in (*expert.top, *expert.random)}
    galleries = [Page(path) for path in run.glob("images*.html")]
    assert len(galleries) == 2
    assert sum(len(page.images) for page in galleries) == sum(len(e.random) for e in views[1].levels[0].experts)


def test_a_tile_shows_its_own_image(site):
    """The frame of each tile, cut out of the shared file, has the colours of the image that the page names."""
    folder, views = site
    run, data = folder / "other-i-run", made_up_data(200, NAMES)
    expert = max(views[1].levels[0].experts, key=lambda expert: expert.load)
    page = Page(run / "experts" / f"0-{expert.expert}.html")
    assert len(page.images) > 1
    for image, item in zip(page.images, expert.top, strict=False):
        left, top = map(int, re.findall(r"-(\d+)px", image["style"]))
        with Image.open(page.path.parent / image["src"]) as sheet:
            tile = np.asarray(sheet.convert("RGB").crop((left, top, left + SIDE, top + SIDE)), dtype=float)
        expected = np.asarray(thumbnail(data.open_image(item.image), SIDE), dtype=float)
        assert abs(tile - expected).mean() < 6
        nearby = range(item.image + 1, item.image + 8)
        others = [np.asarray(thumbnail(data.open_image(n), SIDE), dtype=float) for n in nearby]
        assert all(abs(tile - other).mean() > 6 for other in others)


def test_figures_have_their_numbers_beside_them(site):
    folder, views = site
    figures = folder / "other-i-run" / "figures"
    names = {path.name.partition(".")[0] for path in figures.iterdir()}
    assert {"curves", "load-0", "polysemanticity-0"} <= names
    for name in ("curves", "load-0", "polysemanticity-0"):
        rows = json.loads((figures / f"{name}.json").read_text())
        assert len(read_csv(figures / f"{name}.csv")) == len(rows)
        light, dark = ((figures / f"{name}{form}.svg").read_text() for form in ("", "-dark"))
        assert "#ffffff" in light
        assert "#ffffff" not in dark
        assert "#161c22" in dark
    loads = [row["load"] for row in json.loads((figures / "load-0.json").read_text())]
    assert loads == [expert.load for expert in views[1].levels[0].experts]


def test_several_numbers_of_experts_give_a_trend(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "rendered", lambda figure, kind, options: b"<svg/>")
    data = made_up_data(120, ["a", "b", "c"])
    views = [gathered(write_run(tmp_path / str(n), data, experts=n, seed=n))[0] for n in (4, 8)]
    assert pages_of._trend(tmp_path / "one", views[:1]) is None
    pages_of._trend(tmp_path / "two", views)
    rows = json.loads((tmp_path / "two" / "trend.json").read_text())
    found = {(row["experts"], row["control"]): (row["mean_polysemanticity"], row["strong"]) for row in rows}
    for view in views:
        for part, control in ((view.seed.specialized, False), (view.seed.control, True)):
            assert found[part.units, control] == (part.mean_polysemanticity, part.strong)


def test_runs_are_compared_in_pairs_of_seeds(tmp_path):
    data = made_up_data(120, ["a", "b", "c"])
    for name, seeds, head in (("mix", (0, 1, 2), ""), ("plain", (1, 2, 3), "linear")):
        for seed in seeds:
            write_run(tmp_path / name / f"seed-{seed}", data, experts=4, seed=seed + 10 * len(name), head=head)
    for run in tmp_path.rglob("run.json"):  # the seeds are those of the folders
        facts = json.loads(run.read_text())
        run.write_text(json.dumps({**facts, "seed": int(run.parent.name[-1])}))
        shutil.rmtree(run.parent / "analysis")
        (run.parent / "metrics.jsonl").unlink()
    views = [*gathered(tmp_path / "mix"), *gathered(tmp_path / "plain")]
    write_pages(views, tmp_path / "out")
    (found,) = json.loads((tmp_path / "out" / "data" / "comparison.json").read_text())["differences"]
    ours, theirs = ([seed.evaluations["test"].accuracy for seed in view.seeds] for view in views)
    expected = compare("mix", "plain", "test", ours[1:], theirs[:2])
    assert (found["mean"], tuple(found["interval"])) == (expected.mean, expected.interval)
    assert len(found["differences"]) == 2
    assert "Differences from plain" in Page(tmp_path / "out" / "index.html").text


def bare_run(folder):
    """A finished run without analysis or log: its report has no figures, so it is written quickly."""
    run = write_run(folder, made_up_data(60, ["a", "b"]), experts=4)
    shutil.rmtree(run / "analysis")
    (run / "metrics.jsonl").unlink()
    return run


def test_a_run_without_anything_is_shown_with_the_commands(tmp_path):
    run = bare_run(tmp_path / "run")
    page = Page(write_pages(gathered(run), tmp_path / "out"))
    assert f"mumoe analyze {run}" in page.text
    assert "Fewer than two steps were logged" in page.text
    assert f"mumoe edit {run} --do ablate:0" in Page(tmp_path / "out" / "edits.html").text
    assert f"mumoe audit {run}" in Page(tmp_path / "out" / "audit.html").text


def test_an_interrupted_report_leaves_the_older_one(tmp_path, monkeypatch):
    views = gathered(bare_run(tmp_path / "run"))
    write_pages(views, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def stopped(self, out, *, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sprites, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_pages(views, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_an_analysis_replaced_while_a_report_reads_it_is_read_again(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", made_up_data(60, ["a", "b"]), experts=4)
    place, calls, real = folder / "analysis" / "analysis.json", [], pages_of.gather

    def gather(*arguments, **options):
        calls.append(real(*arguments, **options))
        if len(calls) == 1:
            write_text(place, place.read_text().replace('"split": "test"', '"split": "val"'))
        return calls[-1]

    monkeypatch.setattr(pages_of, "gather", gather)
    runs = {folder: [StoredRun(folder, device="cpu", progress=False)]}
    pages_of.write_report(runs, tmp_path / "report", max_images=0)
    assert len(calls) == 2
    assert [view.split for (view,) in calls] == ["test", "val"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (view,) = gathered(bare_run(tmp_path / "run"))
    with pytest.raises(UserError, match=r"expected a new folder or that of an earlier report, got .*run\."):
        write_pages([view], tmp_path / "run")
    write_pages([view], tmp_path / "out")
    write_pages([view], tmp_path / "out")
    with pytest.raises(UserError, match=r"report: expected at least one run, got none\."):
        write_pages([], tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (None, 3, False, "–"),
        (0.83133, 3, False, "0.831"),
        (-0.0004, 3, True, "0.000"),
        (0.25, 3, True, "+0.250"),
        (12345.6, 0, False, "12,346"),
    ],
)
def test_numbers_are_rounded_for_reading(value, digits, sign, text):
    assert fixed(value, digits, sign) == text
