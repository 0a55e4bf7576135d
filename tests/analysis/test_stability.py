"""Experts of different seeds matched by what they do, beside random gates."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import mumoe
from analysis.planted_experts import permute, plant
from commands.made_up_analysis import make_data, make_features
from mumoe.analysis.matching import agreement, column_correlations, match_experts
from mumoe.analysis.purity import measure_purity
from mumoe.analysis.stability import Stability, measure_stability
from mumoe.cli import main
from mumoe.errors import UserError

SETTINGS = {"epochs": 6, "batch_size": 30, "lr": 0.02, "progress": False}


def trained(out, **settings):
    data = make_data(400)
    given = {"data": data, "features": make_features(data), "head": "CPMuMoE-r6-e12", "seeds": 3}
    return mumoe.train(**{**given, **SETTINGS, **settings}, out=str(out))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    job = trained(tmp_path_factory.mktemp("stability") / "job", against=["linear"])
    for run in job.runs:
        if run.config.head != "linear":
            plant(run)
    return job


@pytest.fixture
def planted(tmp_path):
    """Two runs of one head; the second has the experts of the first in another order."""
    one, other = (run._stored for run in trained(tmp_path / "planted", seeds=2).runs)
    plant(one)
    other.head.layer.load_state_dict(one.head.layer.state_dict())
    other.head.mean.copy_(one.head.mean)
    other.head.scale.copy_(one.head.scale)
    order = torch.from_numpy(np.random.default_rng(0).permutation(12))
    permute(other.head, order)
    return one, other, order.numpy()


def test_experts_in_another_order_all_reappear_and_random_gates_do_not(planted):
    one, other, order = planted
    found = measure_stability([one, other], least_lost=2, draws=4)
    (pair,) = found.pairs
    assert found.purity[0].strong >= 3
    assert pair.agreement.share == pair.agreement.same_class == 1
    assert pair.agreement.similarity == pytest.approx(1)
    assert pair.agreement.similarity_all == pytest.approx(1)
    used = [match for match in pair.matches if match.similarity]
    assert len(used) == 5
    assert [order[match.other] for match in used] == [match.expert for match in used]
    assert sum(match.reappears for match in pair.matches) == found.purity[0].strong
    assert pair.control.share < 0.35
    assert pair.control.similarity_all < 0.8


def test_strong_experts_of_a_pair_are_those_of_each_run(planted):
    one, other, _ = planted
    found = measure_stability([one, other], least_lost=2)
    rows = one.inputs.data.indices("test")
    strong = measure_purity(one.head, one.inputs, rows, least_lost=2).strong
    assert [match.lost for match in found.pairs[0].matches] == [one.classes[c] if c >= 0 else "" for c in strong]


def test_correlations_are_those_of_numpy_and_a_constant_column_has_none():
    rng = np.random.default_rng(0)
    one, other = rng.random((50, 4)).astype(np.float32), rng.random((50, 3)).astype(np.float32)
    other[:, 1] = 0.3
    blocks = [(one[start : start + 7], other[start : start + 7]) for start in range(0, 50, 7)]
    found = column_correlations(blocks)
    expected = np.corrcoef(one, other[:, [0, 2]], rowvar=False)[:4, 4:]
    np.testing.assert_allclose(found[:, [0, 2]], expected, atol=1e-12)
    assert (found[:, 1] == 0).all()
    with pytest.raises(UserError, match="expected images to compare experts on, got none"):
        column_correlations([])


def test_matches_have_the_largest_sum_not_the_largest_entries():
    assert match_experts(np.array([[0.9, 0.8], [0.8, 0.1]])).tolist() == [1, 0]


def test_a_strong_expert_reappears_only_with_its_class_and_similar_enough():
    similarity = np.diag([0.9, 0.4, 0.8, 0.7])
    strong = (np.array([0, 1, 2, -1]), np.array([0, 1, 3, -1]))
    found, matched = agreement(similarity, strong, 0.5)
    assert matched.tolist() == [0, 1, 2, 3]
    assert found.share == pytest.approx(2 / 6)
    assert found.same_class == pytest.approx(4 / 6)
    assert found.similarity == pytest.approx((0.9 + 0.4 + 0.8) / 3)
    assert found.similarity_all == pytest.approx(0.7)
    none = np.full(4, -1)
    assert agreement(similarity, (none, none), 0.5)[0].share is None
    assert agreement(similarity, (strong[0], none), 0.5)[0].share == 0


def test_seeds_with_one_split_are_compared_on_its_images(job):
    found = job.stability(least_lost=2, draws=2)
    assert found.seeds == (0, 1, 2)
    assert [pair.seeds for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    tests = len(make_data(400).indices("test"))
    assert {pair.images for pair in found.pairs} == {tests} == {part.images for part in found.purity}
    assert found.compared == "the images of the test split"
    run = job.runs[0]
    assert found.purity[0].accuracy == pytest.approx(run.evaluate("test").accuracy)


def test_the_record_reads_back_and_is_shown(job):
    found = job.stability(least_lost=2, draws=2)
    assert Stability.load(job.runs[0].path.parent / "stability.json") == found
    frame = found.to_frame()
    assert len(frame) == 3
    for name in ("share", "same_class", "similarity", "similarity_all"):
        trained, random = found.spreads()[name]
        assert frame[name].mean() == pytest.approx(trained.mean)
        assert frame[f"control_{name}"].mean() == pytest.approx(random.mean)
    experts = found.to_frame(experts=True)
    assert len(experts) == 3 * 12
    assert "random gates" in found.headline()
    assert found.sentences()[0] == found.headline()
    assert found.plot()._repr_png_().startswith(b"\x89PNG")


def feature_file(folder):
    """A file of features that brings no split, so that seeds may vary it."""
    data = make_data(500)
    np.save(folder / "x.npy", make_features(data))
    np.save(folder / "labels.npy", data.labels)
    return f"features:{folder / 'x.npy'}"


def test_seeds_with_splits_of_their_own_are_compared_on_images_that_neither_was_trained_on(tmp_path):
    name = feature_file(tmp_path)
    job = trained(tmp_path / "job", data=name, features=None, vary_split=True, seeds=2)
    found = job.stability(least_lost=2, draws=1)
    one, other = (run.data for run in job.runs)
    assert (one.split != other.split).any()
    untouched = {n for n, row in zip(one.ids, one.split, strict=True) if row} & {
        n for n, row in zip(other.ids, other.split, strict=True) if row
    }
    assert found.pairs[0].images == len(untouched)
    assert found.purity[0].images == (one.split == 2).sum()
    assert "outside both training splits" in found.compared


def test_images_are_known_by_their_id_whatever_their_order(planted):
    one, other, _ = planted
    data = other.inputs.data
    order = np.random.default_rng(3).permutation(len(data))
    vars(other)["inputs"] = dataclasses.replace(
        other.inputs,
        data=dataclasses.replace(
            data, labels=data.labels[order], split=data.split[order], ids=tuple(data.ids[k] for k in order)
        ),
        features=other.inputs.features[order],
    )
    (pair,) = measure_stability([one, other], least_lost=2, draws=1).pairs
    assert pair.agreement.share == 1
    assert pair.images == (data.split != 0).sum()


def test_wrong_calls_are_told_in_one_line(job, tmp_path):
    runs = [run._stored for run in job.runs]
    experts = [run for run in runs if run.config.head != "linear"]
    for call, text in (
        (lambda: measure_stability(experts[:1]), "expected at least two finished seeds of one head, got 1"),
        (
            lambda: measure_stability([run for run in runs if run.config.head == "linear"]),
            "expected a head with a gate",
        ),
        (lambda: measure_stability(experts, level=1), r"expected `level` in 0\.\.0, got 1"),
        (lambda: measure_stability(experts, threshold=0.0), "expected `threshold` above 0"),
        (lambda: measure_stability(experts, draws=0), "expected `draws` >= 1, got 0"),
        (lambda: measure_stability(experts, split="tests"), "`split`"),
        (lambda: job.stability(head="CPMuMoE-r6-e13"), "head of this job .*CPMuMoE-r6-e12"),
    ):
        with pytest.raises(UserError, match=text):
            call()


def test_a_hierarchy_is_matched_level_by_level(tmp_path):
    job = trained(tmp_path / "two", head="CPMuMoE-r6-e6x4", seeds=2)
    assert [len(job.stability(level=level, draws=1).pairs[0].matches) for level in (0, 1)] == [6, 4]


def test_the_command_prints_what_the_record_says(tmp_path, capsys):
    name = feature_file(tmp_path)
    trained(tmp_path / "job", data=name, features=None, seeds=2)
    assert main(["stability", str(tmp_path / "job"), "--least-lost", "2", "--draws", "1", "--quiet"]) == 0
    found = Stability.load(tmp_path / "job" / "stability.json")
    assert capsys.readouterr().out == "\n".join(found.sentences()) + "\n"
    assert main(["stability", str(tmp_path / "job"), "--draws", "1", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"] == [0, 1]
    assert main(["stability", str(tmp_path / "job"), "--draws", "0", "--quiet"]) == 2
    assert "expected --draws >= 1" in capsys.readouterr().err
    assert main(["stability", str(tmp_path / "job" / "seed-0"), "--quiet"]) == 2
    assert "expected at least two finished seeds" in capsys.readouterr().err
