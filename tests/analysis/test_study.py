"""Studies: one object for a run's analysis, read back from its file, as a frame, figures and single experts."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mumoe
from mumoe.analysis import CoefficientStore, Study, intervene
from mumoe.errors import UserError
from mumoe.files import digest_files
from mumoe.layers import MuMoE, MuMoEBlock

sys.path.insert(0, str(Path(__file__).parents[1] / "commands"))

from made_up_analysis import CLASSES, make_data, make_features, make_run


def opened(folder):
    return mumoe.load(folder, data=make_data(), features=make_features(make_data()), progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    make_run(path)
    return path


@pytest.fixture(scope="module")
def study(folder):
    return opened(folder).analyze(resamples=30, images=2, least_lost=2)


def test_a_study_reads_back_typed_from_run_folder_and_file(study, folder):
    for place in (folder, folder / "analysis", folder / "analysis" / "analysis.json"):
        assert Study.load(place) == study
    assert Study.from_json(study.to_json()) == study


def test_an_analysis_that_fails_leaves_the_earlier_one_whole(study, folder, monkeypatch):
    place = folder / "analysis"
    before = digest_files(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Study, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            opened(folder).analyze(split="val", resamples=0, images=1)
    assert digest_files(place) == before
    assert study.source.store.folder == place / "coefficients"


def test_the_file_has_the_keys_that_it_always_had(study, folder):
    found = json.loads((folder / "analysis" / "analysis.json").read_text())
    known = ["classes", "seed", "folder", "split", "head", "study", "experts_skipped", "no_images"]
    assert [key for key in found if key != "schema_version"] == known
    old = {key: found[key] for key in ("classes", "seed", "split", "head", "study")}
    for part in old["study"]["units"]:
        for effect in part["load_control"]["effects"]:
            del effect["loss_intervals"], effect["images"]
        del part["silent"], part["load_control"]["least_lost"]
    assert Study.from_dict(old).study.units[0].modes == study.study.units[0].modes


def test_a_frame_has_one_row_per_expert_with_its_numbers(study):
    frame, zero = study.to_frame(), study.study.units[0].modes["zero"]
    assert list(frame["expert"]) == list(range(12))
    assert list(frame["load"]) == list(study.study.units[0].load)
    assert list(frame["mean_coefficient"]) == list(study.study.usage[0].mean_coefficient)
    assert frame["effect"].sum() == zero.with_effect
    assert frame["strong"].sum() == zero.strong > 0
    effect = zero.effects[0]
    row = frame.iloc[effect.unit]
    assert (row["polysemanticity"], row["low"], row["high"]) == (effect.polysemanticity, *effect.interval)
    assert row["top_classes"] == tuple(CLASSES[c] for c, _ in effect.losses[:5])
    assert row["losses"] == tuple(d for _, d in effect.losses[:5])
    assert row["images"] == effect.images > 0 or not effect.strong
    control = study.study.units[0].load_control
    assert frame["control_strong"].sum() == control.strong
    assert frame["control_polysemanticity"].mean() == pytest.approx(control.mean_polysemanticity)
    missing = frame[~frame["effect"]]
    assert missing["polysemanticity"].isna().all()


def test_the_control_is_a_frame_of_the_same_columns(study):
    frame, control = study.to_frame(), study.to_frame(control=True)
    assert list(control.columns) == list(frame.columns)
    assert control["effect"].sum() == study.study.units[0].load_control.with_effect
    assert not control["polysemanticity"].equals(frame["polysemanticity"])


def test_modes_and_levels_that_were_not_measured_are_named(study):
    for call, text in (
        (lambda: study.to_frame("mean"), "expected a mode that was measured out of zero, got 'mean'"),
        (lambda: study.expert(12), r"expected an expert in 0\.\.11, got 12"),
        (lambda: study.expert(0, level=1), "level out of experts, got '1'"),
        (lambda: Study.load("nowhere"), "does not exist"),
    ):
        with pytest.raises(UserError, match=text):
            call()


def test_an_expert_shows_its_largest_coefficients_and_what_it_loses(study, folder):
    effect = next(each for each in study.study.units[0].modes["zero"].effects if each.strong)
    facts = study.expert(effect.unit, images=3)
    level = CoefficientStore(folder / "analysis" / "coefficients").level()
    table = level.dense(0, level.rows)[:, effect.unit]
    assert [value for _, _, value in facts.images] == pytest.approx(np.sort(table)[::-1][:3])
    rows = make_data().indices("test")
    assert {image for image, _, _ in facts.images} <= set(rows[table > 0].tolist())
    assert all(label == CLASSES[image % 5] for image, label, _ in facts.images)
    assert facts.used_by == (table > 0).sum()
    assert facts.classes_lost == tuple((CLASSES[c], d) for c, d in effect.losses)
    control = next((each for each in study.study.units[0].load_control.effects if each.unit == effect.unit), None)
    assert facts.control == control
    assert facts.headline().endswith(f"strong by {effect.images} images")


def test_effects_on_logits_are_those_of_ablation(study, folder):
    run = opened(folder)
    x = torch.from_numpy(make_features(make_data())[make_data().indices("test")])
    facts = study.expert(3)
    with torch.no_grad():
        before = run.head(x)
        with run.head.layer.ablate([3]):
            change = (run.head(x) - before).double().sum(0) / facts.used_by
    assert dict(facts.logits) == pytest.approx(dict(zip(CLASSES, change.tolist(), strict=True)), abs=1e-6)
    assert [abs(d) for _, d in facts.logits] == sorted((abs(d) for _, d in facts.logits), reverse=True)


def test_names_given_later_are_in_the_frame_and_in_the_facts(study, folder):
    effect = study.study.units[0].modes["zero"].effects[0]
    assert set(study.to_frame()["name"]) == {""}
    opened(folder).name_expert(effect.unit, "round ones", note="Also squares.")
    try:
        for found in (study, Study.load(folder)):
            assert found.to_frame()["name"][effect.unit] == "round ones"
            facts = found.expert(effect.unit)
            assert (facts.name, facts.note) == ("round ones", "Also squares.")
            assert f"number {effect.unit} (round ones): contributes to" in facts.headline()
        moved = Study.from_json(study.to_json())
        assert moved.to_frame()["name"][effect.unit] == "round ones"
    finally:
        (folder / "expert-notes.json").unlink()


def test_an_older_analysis_lists_every_combination_with_its_load(tmp_path):
    make_run(tmp_path / "run", "CPMuMoE-r6-e6x2")
    study = opened(tmp_path / "run").analyze(resamples=0, images=0)
    old = study.to_dict()
    units = old["study"]["units"][2]
    load = dict(zip(units.pop("occurring"), units["load"], strict=True))
    units["load"] = [load.get(unit, 0) for unit in range(12)]
    found = Study.from_dict(old)
    assert [row["load"] for row in found.rows() if row["level"] == "combinations"] == units["load"]
    for unit in range(12):
        assert found.expert(unit, level=2).used_by == study.expert(unit, level=2).used_by == load.get(unit, 0)


@pytest.mark.parametrize("occurring", [[3, 1], [1, 12], [-1, 4], [1, 1], [1]])
def test_combinations_out_of_order_are_refused(tmp_path, occurring):
    make_run(tmp_path / "run", "CPMuMoE-r6-e6x2")
    study = opened(tmp_path / "run").analyze(resamples=0, images=0)
    path = tmp_path / "run" / "analysis" / "analysis.json"
    found = json.loads(path.read_text())
    found["study"]["units"][2] |= {"occurring": occurring, "load": [4, 5]}
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match="combinations that occur out of order"):
        Study.load(study.folder)


def test_figures_are_drawn_without_a_window(study, folder):
    for figure in (study.plot(), study.expert(3).show(), Study.load(folder).expert(3).show()):
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert not Study.load(folder).expert(3).logits
    assert "polysemanticity" in repr(study)
    assert study._repr_html_().startswith("<p>CPMuMoE-r6-e12: accuracy")


def test_a_hierarchy_names_its_levels(tmp_path):
    make_run(tmp_path / "run", "CPMuMoE-r6-e6x2")
    study = opened(tmp_path / "run").analyze(resamples=0, images=0)
    frame = study.to_frame()
    occurring = study.units("combinations").occurring
    assert dict(frame["level"].value_counts()) == {"level 0": 6, "level 1": 2, "combinations": len(occurring)}
    joint = frame[frame["level"] == "combinations"]
    assert list(joint["experts"]) == [divmod(unit, 2) for unit in joint["expert"]]
    assert joint["load"].min() > 0
    assert any(
        line.startswith(f"combinations: {len(occurring)} of 12 occur, each in between") for line in study.sentences()
    )
    assert Study.load(tmp_path / "run") == study
    assert frame[frame["level"] == "combinations"]["mean_coefficient"].isna().all()
    tables = [study.source.store.level(level=level).dense(0, len(study.source.rows)) for level in (0, 1)]
    for unit in range(12):
        product = tables[0][:, unit // 2] * tables[1][:, unit % 2]
        images = study.expert(unit, level="combinations").images
        assert [value for *_, value in images] == sorted(product[product > 0].tolist(), reverse=True)[:6]
        assert all(product[list(study.source.rows).index(image)] == value for image, _, value in images)
    assert study.expert(1, level=1) == study.expert(1, level="level 1")


# Any model ---------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A block over tokens between residuals, and a linear head."""

    def __init__(self, experts):
        super().__init__()
        self.block = MuMoEBlock(6, 8, 6, num_experts=experts, rank=4)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        tokens = torch.stack([x, x.roll(1, dims=-1)], dim=1)
        return self.head((tokens + self.block(tokens)).mean(1))


def batches(multi_label=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 6, generator=generator)
    labels = (x[:, :4] > 0).long() if multi_label else x[:, :4].argmax(1)
    return list(zip(x.split(40), labels.split(40), strict=True))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Linear(6, 6), MuMoE(6, 4, 8, rank=4)), lambda: Tokens(8)])
def test_any_model_and_loader(make, multi_label):
    torch.manual_seed(0)
    model, loader = make(), batches(multi_label)
    study = mumoe.analyze(model, loader, labels=["a", "b", "c", "d"], resamples=10, least_lost=1)
    found = intervene(model, loader, plainly=True).specialization(resamples=10, least_lost=1)
    assert study.study.units[0].modes["zero"] == found
    assert len(study.to_frame()) == 8
    facts = study.expert(2)
    assert set(dict(facts.logits)) == set("abcd")
    assert facts.images[0][1].startswith("image ")
    assert study.folder == ""


def test_a_model_is_analyzed_into_a_folder_and_levels_inside_have_no_combinations(tmp_path):
    torch.manual_seed(0)
    study = mumoe.analyze(Tokens((4, 2)), batches(), layer="block", resamples=0, out=tmp_path / "out")
    assert [units.units for units in study.study.units] == ["level 0", "level 1"]
    assert [usage.rows for usage in study.study.usage] == [180, 180]  # tokens
    assert Study.load(tmp_path / "out") == study
    assert (tmp_path / "out" / "effects.png").is_file()


def test_a_final_hierarchy_has_combinations(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), MuMoE(6, 4, (4, 2), rank=4))
    study = mumoe.analyze(model, batches(), resamples=0)
    assert [units.units for units in study.study.units] == ["level 0", "level 1", "combinations"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: mumoe.analyze(nn.Linear(6, 4), batches()), "expected a model with a MuMoE layer, got Linear"),
        (lambda: mumoe.analyze(MuMoE(6, 4, 8, rank=4), iter(batches())), "got an iterator. Give a list"),
        (lambda: mumoe.analyze(MuMoE(6, 4, 8, rank=4), batches(), ["a"]), "expected 4 labels, one per logit, got 1"),
        (lambda: mumoe.analyze(MuMoE(6, 4, 8, rank=4), batches(), modes=["men"]), "Did you mean 'mean'"),
    ],
)
def test_wrong_calls(call, text):
    with pytest.raises(UserError, match=text):
        call()
