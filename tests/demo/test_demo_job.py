"""The demo on made-up images of the emoji set's form: runs that are ordinary, numbers of the JSON, honest sentences."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import mumoe
from browsing import browser, opened
from mumoe import cli
from mumoe.analysis.hints import REMEDY
from mumoe.analysis.study import Study
from mumoe.dashboard.image_panel import add_upload, explain_upload
from mumoe.dashboard.session import open_session
from mumoe.demo import demo_findings as findings
from mumoe.demo import demo_job as demo
from mumoe.demo.demo_job import DemoSettings, run_demo
from mumoe.demo.strips import CONTROL, PUREST, TYPICAL, Strip
from mumoe.errors import UserError
from mumoe.models.backbones import create_backbone
from soak.small import demo_images, one_colour

__all__ = ["browser"]


SMALL = DemoSettings(few=2, many=12, rank=8, seeds=2, epochs=4)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A demo with the embedded backbone; its features are made up, so that classes can be separated."""
    out = tmp_path_factory.mktemp("demo") / "out"
    data = demo_images(width=1280, backbone=create_backbone("efficientnet-lite0", image_size=96))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_load", lambda settings, progress: data)
        torch.manual_seed(0)
        found = run_demo(out, settings=SMALL, progress=False)
    return found, data, json.loads((out / "metrics.json").read_text())


# Ordinary runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(ran):
    """The run that the demo says to open, as any run is opened: it finds its backbone by the name in its settings."""
    found, data, _ = ran
    return mumoe.load(
        found.out / "many" / "seed-0", data=data.data, features=data.features, device="cpu", progress=False
    )


def test_its_runs_name_their_backbone(ran):
    found, data, _ = ran
    for name in ("linear", "accurate", "few", "many"):
        folder = found.out / name / "seed-1"
        assert json.loads((folder / "run.json").read_text())["backbone"] == data.backbone.fingerprint
        assert 'backbone = "efficientnet-lite0"' in (folder / "config.toml").read_text()


def test_a_run_of_it_is_evaluated_and_predicts_a_picture(ran, run):
    _, _, numbers = ran
    assert run.evaluate("test").accuracy == pytest.approx(numbers["accuracy"]["many"][0])
    (one,) = run.predict([one_colour(40)], top=1, experts=2)
    assert not one.error
    assert one.labels[0].label in run.classes


def test_a_run_of_it_is_exported_with_its_backbone(run, tmp_path):
    report = run.export(tmp_path / "model", to="safetensors")
    assert report.headline()
    model, transform = mumoe.load(tmp_path / "model", device="cpu")
    with torch.no_grad():
        logits = model(transform(one_colour(40))[None])
    assert logits.shape == (1, 9)


def test_the_dashboard_takes_a_picture_of_ones_own(run):
    session = open_session(run._stored, split="test")
    buffer = io.BytesIO()
    one_colour(40).save(buffer, "PNG")
    found = add_upload(session, buffer.getvalue())
    apart = explain_upload(session, found["upload"], labels=[], operations=[])
    assert apart["experts"]
    assert set(apart["decided"]) <= set(range(9))


def test_the_run_to_open_next_is_analyzed(ran, run):
    _, _, numbers = ran
    study = Study.load(run.path)
    assert study.units().modes["zero"].strong == numbers["polysemanticity"]["many"][0]["strong"]


# Page, card and terminal ----------------------------------------------------------------------------------------


def test_the_terminal_says_what_was_done_what_came_out_and_what_to_open(ran):
    found, _, numbers = ran
    lines = found.lines()
    text = "\n".join(lines)
    assert max(map(len, lines[: lines.index("What to open")])) <= 100
    assert lines[0] == "What was done"
    for value in (
        np.mean(numbers["accuracy"]["linear"]),
        np.mean([e["experts"]["target"] for e in numbers["rewriting"]]),
    ):
        assert f"{value:.3f} ±" in text
    for part in found.found.sections:
        assert part.title in lines
    after = text[text.index("What to open") :]
    assert str(found.page) in after
    assert f"mumoe dashboard {found.out / 'many' / 'seed-0'} --split test" in after
    assert f"open expert {numbers['strips'][0]['unit']}" in after
    assert numbers["found"] == found.found.sentences()


def test_the_commands_that_it_names_exist(ran, capsys):
    found, _, _ = ran
    html = found.page.read_text()
    commands = re.findall(r"<code>mumoe (\w+) ", html) + [
        line.split()[1] for line in found.lines() if " mumoe " in line
    ]
    assert len(commands) >= 6
    for command in set(commands):
        assert cli.main([command, "--help"]) == 0
        capsys.readouterr()


def test_the_page_shows_the_numbers_and_finds_its_pictures(ran):
    found, _, numbers = ran
    html = found.page.read_text()
    for values in numbers["accuracy"].values():
        for value in (*values, float(np.mean(values))):
            assert f">{value:.3f}</data>" in html
    for entry in numbers["rewriting"]:
        for name in ("target", "same_label", "same_studio", "rest", "accuracy"):
            assert f">{entry['blind'][name]:.3f}</data>" in html
    for name in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert name == "data:," or (found.out / name).is_file(), name
    assert "&lt;made up&gt;" in html
    assert "http" not in html


def test_controls_stand_in_the_table_of_each_claim(ran):
    for part in ran[0].found.sections:
        assert any(line.control for line in part.lines), part.title
        assert all(len(line.cells) == len(part.columns) for line in part.lines)


def test_seeds_are_folded_away(browser, ran):
    with opened(browser, ran[0].page.as_uri()) as watched:
        folded = watched.page.locator("details")
        assert folded.count() == 4
        assert not watched.page.get_by_text("Seed 1").first.is_visible()
        folded.first.locator("summary").focus()
        watched.page.keyboard.press("Enter")
        assert watched.page.get_by_text("Seed 1").first.is_visible()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_the_page_is_readable_wide_and_narrow_light_and_dark(browser, ran, width, dark):
    with opened(browser, ran[0].page.as_uri(), width=width, dark=dark) as watched:
        assert watched.sideways() == 0
        assert watched.violations() == []
        hints = watched.page.locator("p.sideways:visible").count()
        assert hints > 0 if width == 390 else hints == 0


def test_the_card_is_a_picture_and_shows_images_that_are_lost(ran):
    """Without its expert, the answer to each image shown is no longer right."""
    found, data, numbers = ran
    with Image.open(found.out / "demo-card.png") as card:
        assert card.format == "PNG"
        assert card.width == 1200
        assert card.height > 700
    opened_run = data.opened(found.out / "many" / "seed-0")
    head = opened_run.head
    for strip in numbers["strips"]:
        assert (found.out / "card" / "thumbnails" / f"{strip['images'][0]}.png").is_file()
        if strip["kind"] == CONTROL:
            continue
        rows = np.array(strip["images"])
        x, truth = head.prepare(torch.from_numpy(data.features[rows])), torch.from_numpy(data.data.labels[rows])
        with torch.no_grad():
            assert (head.finish(head.layer(x)).argmax(1) == truth).all()
            with head.layer.ablate([strip["unit"]]):
                assert (head.finish(head.layer(x)).argmax(1) != truth).all()
    kinds = [strip["kind"] for strip in numbers["strips"]]
    assert kinds.count(TYPICAL) == kinds.count(CONTROL) == 1


def test_every_seed_is_trained_and_ablated(ran):
    found, _, numbers = ran
    names = ("linear", "accurate", "few", "many")
    assert {name: len(values) for name, values in numbers["accuracy"].items()} == dict.fromkeys(names, 2)
    assert [entry["units"] for entry in numbers["polysemanticity"]["many"]] == [12, 12]
    assert (found.out / "many" / "seed-1" / "run.json").is_file()
    for entry in numbers["rewriting"]:
        assert entry["experts"]["target"] >= entry["before"]["target"]


# Honest sentences -----------------------------------------------------------------------------------------------


def entries(values, strong=3, control_strong=1, control_p=1.2):
    control = {"mean_polysemanticity": control_p, "strong": control_strong, "strong_images": 2}
    own = {"mean_polysemanticity_strong": None, "strong_images": 9, "strong": strong}
    control["mean_polysemanticity_strong"] = None
    return [{**own, "mean_polysemanticity": p, "control": control} for p in values]


def about_experts(few, many):
    return findings._experts(SMALL, {"polysemanticity": {"few": few, "many": many}}).sentences


@pytest.mark.parametrize(
    ("few", "many", "said"),
    [
        ([1.5, 1.4], [0.9, 1.0], "More experts are purer"),
        ([1.0, 0.8], [0.9, 0.7], "More experts are not clearly purer"),
    ],
)
def test_it_is_honest_about_the_trend(few, many, said):
    assert said in about_experts(entries(few), entries(many))[1]


def test_it_says_where_the_control_is_as_good():
    good = about_experts(entries([1.5, 1.4], control_p=1.1), entries([0.9, 1.0], control_p=1.1))
    assert "; of as many units made of random parts of experts, 1.0 ± 0.0 do" in good[0]
    assert "; the control: 1.10 and 1.10" in good[1]
    bad = about_experts(entries([1.5, 1.4]), entries([0.9, 1.0], control_strong=3, control_p=0.8))
    assert "but the control is as good: 3.0 ± 0.0 of its units do" in bad[0]
    assert ", but so is the control: 1.20 and 0.80" in bad[1]
    assert REMEDY in bad[2]


def test_it_is_honest_about_accuracy():
    def said(head, linear):
        numbers = {"accuracy": {"accurate": head, "linear": linear, "many": head, "few": head}}
        return findings._accuracy(SMALL, numbers).sentences[0]

    assert "are more accurate than a linear layer" in said([0.80, 0.81], [0.70, 0.71])
    assert "are less accurate than a linear layer" in said([0.60, 0.61], [0.70, 0.71])
    assert "are as accurate as a linear layer" in said([0.70, 0.71], [0.71, 0.70])


def test_it_is_honest_about_bias_and_says_who_pays():
    def said(score, rest):
        before = {"target": 0.5, "same_label": 0.6, "same_studio": 0.9, "rest": 0.9, "accuracy": 0.8}
        after = {**before, "target": 0.7, "rest": rest, "score": score}
        one = {"before": before, "experts": after, "blind": {**after, "score": 0.1}, "support": 3}
        numbers = {"rewriting": [one]}
        return " ".join([*findings._bias(numbers).sentences, findings._bias_headline(numbers)])

    assert "Experts move others less in every seed: score 0.200 against 0.100" in said(0.2, 0.8)
    assert "does about as well" not in said(0.2, 0.8)
    assert "the control, reaches 0.70, at 0.800 of all images" in said(0.2, 0.8)
    assert "Experts are no clear gain over it (better in 0 of 1 seeds)" in said(0.1, 0.8)
    assert "all images 0.800 to 0.800. Shifting all images alike, the control, does about as well." in said(0.1, 0.8)
    assert "Who pays: other emoji by other studios 0.900 to 0.800; all images 0.800 to 0.800" in said(0.2, 0.8)
    assert "No other group pays" in said(0.2, 0.9)


def test_the_headline_without_a_strong_expert_says_so():
    typical = Strip(TYPICAL, 3, "time", 1, 9, 0, (4,))
    assert findings._headline(SMALL, [typical]) == "No single one of 12 experts matters to any class here"
    purest = Strip(PUREST, 5, "heart", 21, 24, 2, (4,))
    assert "1 of 12 experts, and 21 of 24 right answers for “heart” are lost" in findings._headline(SMALL, [purest])
    assert findings.strip_text(purest) == "heart: 21 of 24 right answers lost; 2 of all other classes."


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
