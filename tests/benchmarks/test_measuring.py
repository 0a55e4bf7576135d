"""The benchmarks measure what they say, on toy sizes."""

import json
import os
import sys

import pytest
import torch
from torch import nn

from benchmarks import complexity, features, layer, measuring, pages, rivals, run
from mumoe import MuMoE, MuMoEBlock, costs


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(measuring, "SHORTEST", 1e-5)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["cp", "tucker", "tt", "tr"])
def test_the_plain_layer_is_the_layer(kind):
    torch.manual_seed(0)
    ours = MuMoE(12, 10, 7, kind, 3)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.5)
    plain, x = rivals.Plain(ours), torch.randn(9, 12)
    for mode in (True, False):
        torch.testing.assert_close(plain.train(mode)(x), ours.train(mode)(x), rtol=1e-4, atol=1e-5)
    if kind == "cp":
        literal, formed = rivals.Plain(ours, literal=True).eval(), rivals.Reconstructed(ours).eval()
        torch.testing.assert_close(literal(x), rivals.Plain(ours).eval()(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(formed(x), MuMoE.eval(ours)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "products"), [("cp", 3), ("tucker", 5), ("tt", 4), ("tr", 4)])
def test_the_floor_is_the_products(kind, products):
    ours, x = MuMoE(12, 10, 7, kind, 3), torch.randn(9, 12)
    floor = rivals.Floor(ours, x)
    floor.forward()
    floor.both()
    assert len(floor.products) == products
    for (left, right, result), (grad, grad_left, grad_right) in zip(floor.products, floor.grads, strict=True):
        torch.testing.assert_close(result, left @ right)
        torch.testing.assert_close(grad_left, grad @ right.mT)
        torch.testing.assert_close(grad_right, left.mT @ grad)
    counted = sum(result.numel() * left.shape[-1] for left, _, result in floor.products)
    formula = costs.count_flops(kind, 12, 10, 7, 3, gate=True)
    mixing = {"cp": 7 * 3, "tucker": 7 * 3, "tt": 7 * 4 * 1, "tr": 7 * 4 * 4}[kind]
    assert counted == 9 * (formula - mixing)


def test_matched_sizes():
    mlp = rivals.parameters(rivals.MLP(96, 384))
    for kind in ("cp", "tr", "tucker"):
        block = MuMoEBlock(96, 384, num_experts=32, factorization=kind, rank=rivals.matched_ranks(96, 384, 32, kind))
        assert abs(rivals.parameters(block) / mlp - 1) < 0.05
    ours = MuMoE(96, 80, 32, "cp", 40)
    assert abs(rivals.parameters(rivals.matched_linear(ours)) / rivals.parameters(ours) - 1) < 0.02


@pytest.mark.parametrize("package", rivals.PACKAGES)
def test_layers_of_packages(package):
    pytest.importorskip(rivals.PACKAGES[package])
    made = rivals.from_package(package, 64, 32, 200_000)
    assert abs(rivals.parameters(made) / 200_000 - 1) < 0.1
    assert made(torch.randn(32, 64)).shape == (32, 64)
    assert made.about


@pytest.mark.parametrize("part", layer.PARTS)
def test_every_part_is_timed(part, monkeypatch):
    monkeypatch.setattr(layer, "has_native", lambda: False)
    found = next(case for case in layer.quick_cases() if case.part == part)
    against = tuple(name for name in found.against if name not in rivals.PACKAGES or rivals.installed(name))
    chosen = {"rank": 3, "inputs": 32, "outputs": 32, "experts": 9, "batch": 16, "seconds": 0.0, "against": against}
    rows = layer.time_case(layer.Case(**{**vars(found), **chosen}), 1)
    assert [row["kind"] for row in rows] == list(found.kinds)
    for row in rows:
        assert set(row["seconds"]) == set(against) - {"native"}
        assert all(0 < times["median"] < 5 for times in row["seconds"].values())
        assert 1 <= row["support"] <= 9
        assert row["largest_difference"] < layer.SAME
        assert row["missing"] == {"native": "the extra native is not installed"}
        assert layer._line(row).startswith(part)
    assert json.dumps(rows)
    assert pages.TABLES[part]({"layer": {"rows": rows}}).count("\n") > 1


def test_unequal_paths_are_refused():
    x = torch.randn(5, 12)
    passes = {"plain": measuring.Pass(nn.Linear(12, 10), x), "torch": measuring.Pass(nn.Linear(12, 10), x)}
    with pytest.raises(ArithmeticError, match="expected equal outputs of torch"):
        layer.check_same(passes)


def test_rivals_are_called_in_turn():
    calls = []
    works = {name: measuring.Work(lambda name=name: calls.append(name), name == "a") for name in "ab"}
    found = measuring.in_turn(works, 0.0, least=4)
    assert {summary["rounds"] for summary in found.values()} == {4}
    assert all(summary["least"] <= summary["low"] <= summary["median"] <= summary["high"] for summary in found.values())


def test_kernels_are_turned_off_and_on(monkeypatch):
    monkeypatch.delenv(measuring.NATIVE, raising=False)
    with measuring.kernels(False):
        assert os.environ[measuring.NATIVE] == "0"
    assert measuring.NATIVE not in os.environ
    monkeypatch.setenv(measuring.NATIVE, "0")
    with measuring.kernels(True):
        assert os.environ[measuring.NATIVE] == "0"


@pytest.mark.skipif(not measuring.measures_memory(), reason="reads the peak from /proc")
def test_peak_memory_by_hand():
    case = layer.Case("block", 16384, 2, (), inputs=64)  # an MLP whose hidden layer takes 16 MiB
    forward, both = measuring.fresh(layer.memory_case, [(case, "mlp", "forward"), (case, "mlp", "both")], at_once=2)
    assert forward / 2**20 == pytest.approx(32, abs=2)  # both sides of the GELU
    assert 48 - 2 < both / 2**20 < 48 + 12  # these, the gradient of one, and the widths outside


def test_a_process_without_a_result_is_told():
    with pytest.raises(RuntimeError, match="ended with status 3 and no result"):
        list(measuring.fresh(os._exit, [(3,), (0,)]))


def test_complexity_of_a_small_study(tmp_path):
    values = {"experts": (4, 16), "width": (8,), "depth": (1, 2), "tokens": (16, 32)}
    study = complexity.Study(complexity.Point(4, 8, 1, 16), values, seconds=0.0, most_bytes=100_000)
    assert len(complexity.points(study)) == 4
    times = complexity.time_point(study.base, study)
    assert set(times) == set(complexity.KINDS)
    assert not complexity.fits("sparse-moe", complexity.Point(64, 8, 1, 16), study)
    for kind in complexity.KINDS:
        stack = complexity.build(kind, complexity.Point(16, 8, 2, 16), study.base)
        counted, _ = complexity.count(kind, complexity.Point(16, 8, 2, 16), study.base)
        assert counted == rivals.parameters(stack)


def test_exponents():
    x = [1, 2, 4, 8]
    assert complexity.exponent(x, [3 * v**1.5 for v in x]) == 1.5
    assert complexity.exponent([1], [1]) is None


def test_the_clock_of_a_stream():
    clock = features.Clock()
    assert list(clock.watch(iter("abc"))) == list("abc")
    assert clock.steps == 3
    assert clock.working > 0 < clock.waiting


def test_waiting_for_features():
    found = features.waiting("linear", 600, 8, 3, 1)
    assert found["steps"] == 3
    assert 0 < found["waiting_share"] < 1


def test_extraction_gives_the_same_features():
    found = features.extraction("test_resnet", 3, 0, 1, 0.0)
    assert found["largest_difference"] < 1e-4
    assert set(found["images_per_second"]) == {"bare", "ours"}


def test_the_command_line(tmp_path, capsys):
    asked = measuring.options("what", ["--full", "--out", str(tmp_path), "layer"], run.NAMES)
    assert (asked.full, asked.out, asked.only) == (True, tmp_path, ("layer",))
    assert run.command("layer", asked)[1:] == ["-m", "benchmarks.layer", "--full", "--out", str(tmp_path)]
    assert run.command("dashboard", asked)[1:] == ["-m", "benchmarks.dashboard"]
    modules = {path.stem for path in measuring.HERE.glob("*.py") if "\ndef main(" in path.read_text()}
    assert modules == {*run.NAMES, *run.LONG, "run", "pages"}
    path = measuring.write("layer", asked, {"rows": []})
    found = json.loads(path.read_text())
    assert found["mode"] == "full"
    assert found["machine"]["processor"]
    with pytest.raises(SystemExit):
        run.main(["lair"])
    assert "expected parts out of layer, complexity, features, interventions, startup" in capsys.readouterr().err


def test_a_failed_benchmark_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run, "command", lambda name, asked: [sys.executable, "-c", f"exit({name!r} == 'layer')"])
    assert run.main(["--out", str(tmp_path), "layer", "features"]) == 1
    assert capsys.readouterr().err == "bench: failed: layer\n"
