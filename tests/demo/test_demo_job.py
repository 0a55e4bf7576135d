"""The demo on made-up images of the emoji set's form: every number of the page is in the JSON, lines are honest."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mumoe import cli
from mumoe.analysis.hints import REMEDY
from mumoe.data.base import Attribute, ImageData
from mumoe.demo import demo_job as demo
from mumoe.demo.demo_job import DemoSettings, run_demo
from mumoe.errors import UserError

GROUPS = ("Animals & Nature", "Objects", "Food & Drink")
STUDIOS = ("noto", "openmoji", "twemoji")


def a_picture(index: int) -> Image.Image:
    return Image.new("RGB", (96, 96), (index % 256, 90, 120))


def made_up(size: int = 1500) -> demo._Set:
    """Nine classes in three groups, drawn by three studios; features say which class and, weakly, which studio."""
    rng = np.random.default_rng(0)
    labels, studio = rng.integers(0, 9, size), rng.integers(0, 3, size)
    centres, styles = rng.normal(size=(9, 20)), rng.normal(size=(3, 20))
    features = (centres[labels] + 0.5 * styles[studio] + 0.8 * rng.normal(size=(size, 20))).astype(np.float32)
    subgroup = {"subgroup": Attribute(labels, tuple(f"class-{i}" for i in range(9)))}
    data = ImageData(
        name="emoji",
        classes=tuple(f"class-{i}" for i in range(9)),
        multi_label=False,
        labels=labels,
        split=np.array([0, 0, 0, 1, 2], dtype=np.int8)[np.arange(size) % 5],
        ids=tuple(map(str, range(size))),
        open_image=a_picture,
        fingerprint="made-up",
        attributes={"group": Attribute(labels // 3, GROUPS), "studio": Attribute(studio, STUDIOS), **subgroup},
        credits=("Images & more <made up>, CC0",),
    )
    return demo._Set(data, data, features, Known())


class Known:
    """Stands for the backbone that made the features."""

    num_features, fingerprint = 20, "known weights"


SMALL = DemoSettings(few=2, many=12, rank=8, seeds=2, epochs=4)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_load", lambda settings, progress: made_up())
        torch.manual_seed(0)
        lines, page = run_demo(out, settings=SMALL, progress=False)
    return out, lines, page, json.loads((out / "metrics.json").read_text())


def test_its_runs_know_their_backbone(ran):
    for name in ("linear", "accurate", "few", "many"):
        facts = json.loads((ran[0] / name / "seed-1" / "run.json").read_text())
        assert facts["backbone"] == Known.fingerprint


def test_it_says_a_dozen_lines_at_most_whose_numbers_are_in_the_json(ran):
    out, lines, page, numbers = ran
    assert 11 <= len(lines) <= 12
    many = numbers["polysemanticity"]["many"]
    controls = np.mean([entry["control"]["strong"] for entry in many])
    assert f"{controls:.1f} ±" in next(line for line in lines if line.startswith("Control"))
    assert lines == numbers["found"]
    assert page == out / "report.html"
    mean = np.mean(numbers["accuracy"]["linear"])
    assert f"linear {mean:.3f}" in lines[2]
    target = np.mean([entry["experts"]["target"] for entry in numbers["rewriting"]])
    assert f"{target:.3f}" in next(line for line in lines if line.startswith("Rewriting its experts"))


def test_the_page_shows_the_numbers_and_finds_its_pictures(ran):
    out, _, page, numbers = ran
    html = page.read_text()
    for values in numbers["accuracy"].values():
        for value in values:
            assert f"<td>{value:.3f}</td>" in html
    for name in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert (out / name).is_file(), name
    assert "&lt;made up&gt;" in html
    assert "http" not in html


def test_every_seed_is_trained_and_ablated(ran):
    out, _, _, numbers = ran
    assert {name: len(values) for name, values in numbers["accuracy"].items()} == {
        "linear": 2,
        "accurate": 2,
        "few": 2,
        "many": 2,
    }
    assert [entry["units"] for entry in numbers["polysemanticity"]["many"]] == [12, 12]
    assert (out / "many" / "seed-1" / "run.json").is_file()
    for entry in numbers["rewriting"]:
        assert entry["experts"]["target"] >= entry["before"]["target"]


@pytest.mark.parametrize(
    ("few", "many", "word"),
    [([1.5, 1.4], [0.9, 1.0], "purer, as the paper says"), ([1.0, 0.8], [0.9, 0.7], "not clearly purer here")],
)
def test_it_is_honest_about_the_trend(few, many, word):
    def entries(values):
        shared = {"mean_polysemanticity_strong": None, "strong_images": 9}
        control = {"mean_polysemanticity": 1.2, "strong": 1}
        return [{**shared, "mean_polysemanticity": p, "strong": 3, "control": control} for p in values]

    numbers = {"polysemanticity": {"few": entries(few), "many": entries(many)}}
    lines = demo._about_experts(SMALL, numbers)
    assert word in lines[0]
    assert "mean p 1.20, 1.0 ± 0.0 strong" in lines[2]
    assert len(lines) == 3


def test_it_names_the_option_to_try_where_the_control_is_no_worse():
    entry = {"mean_polysemanticity": 0.85, "strong": 6, "mean_polysemanticity_strong": 0.8, "strong_images": 40}
    numbers = {"polysemanticity": {"few": [{**entry, "control": entry}], "many": [{**entry, "control": entry}]}}
    assert REMEDY in demo._about_experts(SMALL, numbers)[-1]


def test_it_is_honest_about_accuracy_and_bias():
    def accuracy(head, linear):
        numbers = {
            "accuracy": {"accurate": head, "linear": linear, "many": head, "few": head},
            "images": 5,
            "classes": 2,
        }
        return demo._about_accuracy(SMALL, numbers)[2]

    assert "is better than linear" in accuracy([0.80, 0.81], [0.70, 0.71])
    assert "is worse than linear" in accuracy([0.60, 0.61], [0.70, 0.71])
    assert "is as good as linear" in accuracy([0.70, 0.71], [0.71, 0.70])

    def bias(score):
        side = {"target": 0.5, "minimum": 0.5, "accuracy": 0.5}
        one = {"before": side, "experts": {**side, "score": score}, "blind": {**side, "score": 0.1}, "support": 3}
        return demo._about_bias({"rewriting": [one], "seconds": 1.0})[2]

    assert "rewriting experts is more precise in every seed (+0.100)" in bias(0.2)
    assert "no clear gain from experts here (better in 0 of 1 seeds)" in bias(0.1)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"expected a new folder or that of an earlier demo, got .* Give another `out`"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_earlier_demo_is_replaced(tmp_path, monkeypatch):
    (tmp_path / demo.MARK).write_text("{}")
    (tmp_path / "old.txt").write_text("old")
    demo._clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [demo.MARK]


def test_seeds_below_one(capsys):
    assert cli.main(["demo", "--seeds", "0"]) == 2
    assert "expected --seeds of at least 1, got 0" in capsys.readouterr().err
