"""The study of a million experts: heads of equal parameters, training as the library does it, and controls by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

import mumoe
from mumoe.analysis.analyzing import layer_batches
from mumoe.errors import UserError
from mumoe.training import StoredRun, train
from mumoe.training.networks import Network
from reproduction import million_choices as choices
from reproduction import million_heads as heads
from reproduction.million_costs import names
from reproduction.million_pages import write_pages
from reproduction.million_study import SETTINGS, Cell, Options, compare, inputs_of, main

HEAD = "CPMuMoE-r16-e6x6"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Two seeds on a small file of features."""
    folder = tmp_path_factory.mktemp("million")
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    features = np.eye(4)[labels] @ rng.normal(size=(4, 12)) + 0.7 * rng.normal(size=(400, 12))
    np.save(folder / "features.npy", features.astype("f4"))
    np.save(folder / "labels.npy", labels)
    small = {"base": HEAD, "few": (2, 2), "deep": (2, 2, 6), "flat": 6, "peer": False, "costs": False}
    small |= {"seeds": 2, "epochs": 2}
    where = {"data": (f"features:{folder}/features.npy",), "out": str(folder / "out"), "work": str(folder / "work")}
    return Options(**small, **where, quiet=True)


@pytest.fixture(scope="module")
def results(options: Options) -> dict:
    main(options)
    return json.loads((Path(options.out) / "heads.json").read_text())


# Heads


@pytest.mark.parametrize("base", ["CPMuMoE-r256-e1024x1024", "CPMuMoE-r64-e512x512"])
def test_heads_have_equal_parameters(base):
    found = heads.of_equal_parameters(heads.Sizes(base=base, peer=False), 1280, 70)
    assert found[0] == "linear"
    assert base in found
    counts = {}
    for name in found[1:]:
        counts[name] = heads.parameters_of(made(name, 1280, 70))
    budget = counts[base]
    assert max(abs(count - budget) for count in counts.values()) < 0.01 * budget, counts


def made(name: str, width: int, classes: int) -> torch.nn.Module:
    match = heads.FORMS["mlp"].fullmatch(name)
    if match or heads.FORMS["peer"].fullmatch(name):
        return heads._layer(name, width, classes)
    return mumoe.MuMoE.from_spec(name, width, classes)


def test_peer_has_the_parameters_of_its_name_and_starts_as_its_linear_path():
    pytest.importorskip("PEER_pytorch")
    for width in (16, 32):
        head = heads.PEERHead(32, 5, 16, width)
        assert heads.parameters_of(head) == heads._peer_parameters(16, width, 32, 5)
        x = torch.randn(3, 32)
        torch.testing.assert_close(head(x), head.direct(x))
        assert head.retrieved(x).shape == (3, heads.RETRIEVALS * 4)
    name = heads._matched_peer(32, 5000, 32, 5)
    experts = int(heads.FORMS["peer"].fullmatch(name)[1])
    more = (int(experts**0.5) + 1) ** 2
    assert heads._peer_parameters(experts, 32, 32, 5) <= 5000 < heads._peer_parameters(more, 32, 32, 5)


def test_a_missing_package_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PEER_pytorch", None)
    with pytest.raises(UserError, match=r"peer-pytorch.*pip install peer-pytorch.*--no-peer") as caught:
        main(Options(out=str(tmp_path / "out"), quiet=True))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("head", [HEAD, "linear"])
def test_training_is_that_of_the_library_bit_by_bit(options, head, tmp_path):
    cell = Cell(options.data[0], head, SETTINGS[1], 1)
    config = cell.config(options)
    inputs = inputs_of(cell.data, options.split_seed, cell.seed)
    ours = heads.fit(heads.make_network(config, inputs), inputs, config)
    train(config.replace(out=str(tmp_path / "run")), progress=False)
    theirs = StoredRun(tmp_path / "run").head
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.head.state_dict()[name], value, rtol=0, atol=0)


# The study


def test_the_setting_is_the_best_on_validation_and_the_test_split_is_read_once_per_seed(options, results):
    for entry in results["grid"]:
        assert set(entry["val"]) == {str(setting) for setting in SETTINGS}
        assert entry["chosen"] == max(entry["val"], key=entry["val"].get)
    (found,) = results["sets"].values()
    assert list(found["heads"]) == [*(entry["head"] for entry in results["grid"]), f"{HEAD}-frozen"]
    assert all(len(entry["seeds"]) == options.seeds for entry in found["heads"].values())
    read = list(Path(options.work).rglob("*.test.json"))
    assert len(read) == options.seeds * len(found["heads"])


def test_nothing_is_computed_twice(options, results, monkeypatch):
    monkeypatch.setattr("reproduction.million_study.fit", None)
    monkeypatch.setattr("reproduction.million_study.measure_choices", None)
    assert json.loads(json.dumps(compare(options))) == results


def test_a_gate_frozen_at_random_stays_as_it_is_initialized(options, results):
    cell = Cell(options.data[0], f"{HEAD}-frozen", SETTINGS[1], 0)
    config = cell.config(options)
    inputs = inputs_of(cell.data, options.split_seed, cell.seed)
    network = heads.make_network(config, inputs)
    before = [router.weight.clone() for router in network.head.layer.gate.routers]
    heads.fit(network, inputs, config)
    after = [router.weight for router in network.head.layer.gate.routers]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_page_is_written_again_from_the_numbers(options, results):
    page = Path(options.out) / "README.md"
    before = page.read_text()
    page.unlink()
    write_pages(Path(options.out))
    assert page.read_text() == before
    assert f"| {HEAD}" in before
    assert (Path(options.out) / "million.png").is_file()


def test_the_committed_page_is_that_of_the_numbers(tmp_path):
    folder = Path(__file__).parents[2] / "docs/results/million"
    for name in ("heads.json", "costs.json", "README.md"):
        (tmp_path / name).write_text((folder / name).read_text())
    write_pages(tmp_path)
    for name in ("README.md", "million.json"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()


# Measures, by hand


def test_effective_number():
    assert choices.effective([1, 1, 1, 1]) == pytest.approx(4)
    assert choices.effective([5, 0, 0]) == pytest.approx(1)


def test_used_combinations_are_products_of_the_levels():
    a = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    b = np.array([[0.25, 0.75], [0.0, 1.0]])
    found = choices.used([a, b])
    dense = np.zeros((2, 6))
    dense[found.image, found.unit] = found.weight
    np.testing.assert_allclose(dense, np.einsum("in,im->inm", a, b).reshape(2, 6))
    counts = found.counts()
    assert counts["distinct"] == 4
    assert counts["per_image"] == 2.5
    assert choices.used([a]).counts()["effective_per_image"] == pytest.approx(1.5)


def test_shuffled_levels_keep_their_choices():
    a, b = np.arange(6).reshape(3, 2), np.arange(9).reshape(3, 3)
    one, other = choices.shuffled([a, b], np.random.default_rng(0))
    assert one is a
    assert sorted(map(tuple, other)) == sorted(map(tuple, b))


def test_agreement_and_information_of_a_choice_that_is_the_class_and_one_that_is_chance():
    labels = np.repeat(np.arange(4), 50)
    assert choices.agreement(labels, labels) == (1.0, 1.0)
    assert choices.mutual_information(labels, labels) == pytest.approx(np.log(4))
    chance = np.random.default_rng(0).integers(0, 60, 200)
    precision, _ = choices.agreement(chance, labels)
    assert precision == pytest.approx(49 / 199, abs=0.06)
    assert choices.mutual_information(chance, labels) > 0.4  # by chance: hence the shuffled control
    assert choices.agreement(np.arange(200), labels)[0] is None


def test_a_second_level_that_splits_is_purer_than_random_subsets_and_one_that_is_random_is_not():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 8
    first = np.eye(4)[labels // 2]
    splits, random = np.eye(2)[labels % 2], np.eye(2)[rng.integers(0, 2, 400)]
    both = choices.and_of_levels([first, splits], labels, rng)
    assert both["combinations"] == 8
    assert both["purity"] == 1
    assert both["alone"] == [0.5, 0.25]
    assert both["random_subset"][0] == pytest.approx(0.55, abs=0.05)
    assert (both["better"], both["different_class"]) == (1, 1)
    chance = choices.and_of_levels([first, random], labels, rng)
    assert chance["purity"] == pytest.approx(chance["random_subset"][0], abs=0.06)
    redundant = choices.and_of_levels([first, first], labels, rng)
    assert (redundant["combinations"], redundant["purity"], redundant["different_class"]) == (0, None, None)


def test_ablated_combinations_are_those_that_occur(options):
    """By brute force: each combination that an image uses is ablated with the layer's own method."""
    cell = Cell(options.data[0], "CPMuMoE-r4-e3x4", SETTINGS[0], 0)
    inputs = inputs_of(cell.data, options.split_seed, 0)
    config = cell.config(options)
    head = heads.fit(heads.make_network(config, inputs), inputs, config).eval().head
    rows = inputs.data.indices("test")
    found = choices._ablated(head, inputs, rows, None, 0)
    ((x, labels),) = layer_batches(head, inputs, rows, 256)
    layer = head.layer
    with torch.no_grad():
        first, second = layer.coefficients(x)
        load = ((first[:, :, None] * second[:, None, :]) > 0).sum(0)
        before = layer(x).argmax(1) == labels
        changed = 0
        for pair in (load > 0).nonzero().tolist():
            with layer.ablate([tuple(pair)]):
                after = layer(x).argmax(1) == labels
            counts = torch.bincount(labels[before], minlength=9) - torch.bincount(labels[after], minlength=9)
            changed += bool((counts[torch.bincount(labels[before], minlength=9) > 0] != 0).any())
    assert found["units"] == int((load > 0).sum())
    assert found["by_several"] == int((load >= choices.LEAST).sum())
    assert found["with_effect"] == changed > 0


def test_the_network_of_an_mlp_is_trained_too(options):
    cell = Cell(options.data[0], "mlp-h7", SETTINGS[0], 0)
    inputs = inputs_of(cell.data, options.split_seed, 0)
    network = heads.make_network(cell.config(options), inputs)
    assert isinstance(network, Network)
    before = network.head.layer[0].weight.clone()
    heads.fit(network, inputs, cell.config(options))
    assert not torch.equal(before, network.head.layer[0].weight)


def test_a_quick_look_leaves_the_largest_out():
    assert set(names(quick=True, peer=False)) < set(names(quick=False, peer=True))
    assert not any("65536" in name or "PEER" in name for name in names(quick=True, peer=False))
