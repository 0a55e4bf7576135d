"""`mumoe analyze` on small trained runs: its files, its numbers, its errors."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mumoe.commands.analyze import Options, analyze_run
from mumoe.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))

from made_up_analysis import make_data, make_features, make_run


def analyze(run, **options):
    data = options.pop("data", None) or make_data()
    settings = {"resamples": 20, "images": 2, "quiet": True, **options}
    return analyze_run(Options(str(run), **settings), data=data, features=make_features(make_data()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cp"
    make_run(folder)
    return folder


def test_files_and_numbers(run):
    found = analyze(run, modes=("zero", "mean", "resampled"))
    folder = run / "analysis"
    described = json.loads((folder / "analysis.json").read_text())
    (units,) = described["study"]["units"]
    assert set(units["modes"]) == {"zero", "mean", "resampled"}
    assert units["modes"]["zero"]["units"] == 12
    assert units["modes"]["zero"]["classes_without_images"] == 1
    assert units["modes"]["zero"]["mean_interval"] is not None
    assert described["classes"][0] == "red"
    for name in ("effects", "load"):
        assert {path.suffix for path in folder.glob(f"{name}.*")} == {".png", ".svg", ".json"}
    images = json.loads((folder / "images" / "grid.json").read_text())
    assert images["credits"] == ["Made up by nobody, CC0."]
    assert images["experts_skipped"] == found.experts_skipped
    assert "experts, zero ablation:" in "\n".join(found.sentences())


def test_the_minimum_of_a_strong_expert_is_an_option_and_in_the_json(run):
    parts = {}
    for least in (1, 2, 1000):
        said = "\n".join(analyze(run, least_lost=least).sentences())
        units = json.loads((run / "analysis" / "analysis.json").read_text())["study"]["units"][0]
        parts[least] = [units["modes"]["zero"], units["load_control"]]
        for part in parts[least]:
            assert part["least_lost"] == least
            if part["strong"]:
                assert f"{part['strong']} strong (by {part['strong_images']} images)" in said
    assert parts[1][0]["strong"] > parts[2][0]["strong"] > 0
    assert parts[1][1]["strong"] > parts[2][1]["strong"]  # the control, by the same rule
    assert parts[2][0]["strong_images"] >= 2
    assert [part["strong"] for part in parts[1000]] == [0, 0]
    assert parts[1][1]["mean_polysemanticity"] == parts[1000][1]["mean_polysemanticity"]


@pytest.mark.parametrize(
    "changed",
    [{"split": "val"}, {"modes": ("zero", "mean")}, {"experts": (0, 3)}, {"images": 1}, {"threshold": 0.9},
     {"resamples": 40}, {"seed": 1}, {"least_lost": 40}],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_every_option_changes_what_is_written(run, changed):
    def written(**options):
        analyze(run, **options)
        return [(run / "analysis" / name).read_text() for name in ("analysis.json", "images/grid.json")]

    first = written()
    assert first == written()
    second = written(**changed)
    assert second != first
    if "threshold" in changed:  # it counts for the images shown and for the load
        shown = [json.loads(grid)["shown"] for _, grid in (first, second)]
        load = [json.loads(text)["study"]["usage"][0]["load"] for text, _ in (first, second)]
        assert shown[0] != shown[1]
        assert sum(load[1]) < sum(load[0])


def test_counts_are_those_of_the_plain_method(run):
    """Accuracies per class with each expert ablated, by the trained head itself."""
    from mumoe.training import StoredRun

    data = make_data()
    rows = data.indices("test")
    head = StoredRun(run, device="cpu").head
    x, labels = torch.from_numpy(make_features(data)[rows]), data.labels[rows]
    found = analyze(run, images=0, resamples=0).study.units[0].modes["zero"]
    effects = {effect.unit: dict(effect.losses) for effect in found.effects}
    with torch.no_grad():
        before = np.bincount(labels[head(x).argmax(1).numpy() == labels], minlength=6)
        for expert in range(12):
            with head.layer.ablate([expert]):
                after = np.bincount(labels[head(x).argmax(1).numpy() == labels], minlength=6)
            lost = {c: (before[c] - after[c]) / before[c] for c in range(6) if before[c] and before[c] != after[c]}
            assert effects.get(expert, {}) == pytest.approx(lost)
    assert found.accuracy == pytest.approx(before.sum() / len(rows))


def test_a_hierarchy_gets_its_levels_combinations_and_their_and(tmp_path):
    make_run(tmp_path / "run", "CPMuMoE-r6-e6x2")
    found = analyze(tmp_path / "run").study
    assert [units.units for units in found.units] == ["level 0", "level 1", "combinations"]
    assert [units.modes["zero"].units for units in found.units] == [6, 2, 12]
    assert [usage.experts for usage in found.usage] == [6, 2]
    for combination in found.combinations:
        assert len(combination.experts) == 2
        assert set(combination.classes_of_all) == set.intersection(*map(set, combination.classes_by_level))


@pytest.mark.parametrize(("head", "kind"), [("sparse-moe-e8-k2", "experts"), ("highrank-linear-r6", "neurons")])
def test_baselines_are_measured_alike(tmp_path, head, kind):
    make_run(tmp_path / "run", head)
    found = analyze(tmp_path / "run")
    assert found.study.units[0].units == kind
    assert found.study.units[0].modes["zero"].units == int(head.split("-")[2][1:])


def test_a_penultimate_layer_is_analyzed_through_the_rest(tmp_path):
    make_run(tmp_path / "run", position="penultimate")
    assert analyze(tmp_path / "run").study.units[0].modes["zero"].units == 12


def test_a_head_without_experts_is_one_clear_error(tmp_path):
    make_run(tmp_path / "run", "linear")
    with pytest.raises(UserError, match=r"expected a run with experts, got the head 'linear', which has none\."):
        analyze(tmp_path / "run")


def test_other_images_are_refused(run):
    with pytest.raises(UserError, match=r"expected the data that it was trained on .* got other content"):
        analyze(run, data=make_data(seed=5))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"split": "tset"}, r"got 'tset'\. Did you mean 'test'\?"),
        ({"modes": ("zreo",)}, r"got 'zreo'\. Did you mean 'zero'\?"),
        ({"experts": (12,)}, r"Run\.analyze: expected `experts` in 0..11, got 12\."),
        ({"batch_size": 0}, r"expected `batch_size` >= 1, got 0\."),
    ],
)
def test_mistakes_are_one_clear_error(run, options, text):
    with pytest.raises(UserError, match=text):
        analyze(run, **options)
