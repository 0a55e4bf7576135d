"""Experts on several levels: what adds up, what an ablation removes, which combinations are counted, and files."""

import itertools
import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mumoe
from mumoe import cli
from mumoe.coefficients import DenseCoefficients
from mumoe.dashboard.token_view import open_decomposed
from mumoe.decomposition import fitting, levels
from mumoe.decomposition.findings import Analysis, Evaluation
from mumoe.decomposition.levels import joined, occurring, split
from mumoe.decomposition.looking import changed, coefficient_entries, expert_parts
from mumoe.decomposition.replacements import build, shape_for
from mumoe.errors import UserError
from mumoe.functional import cp_contract
from mumoe.models.surgery.parts import read_parts
from tiny_llama import sentences

SIZES = (16, 12)


@pytest.fixture
def make(model_folder, small, tmp_path):
    def made(experts=SIZES, **others):
        given = {**small, "width": 12, "out": tmp_path / "out", "experts": experts, **others}
        return mumoe.decompose(model_folder, kind="cp-linear", **given)

    return made


@pytest.fixture(scope="module")
def looked(model_folder, documents, tmp_path_factory):
    """A decomposition of two levels with what was found of it."""
    place = tmp_path_factory.mktemp("levels")
    given = {"k": 4, "width": 12, "tokens": 3000, "context": 17, "lr": (4e-3,), "batch_size": 64, "val_contexts": 8}
    held = {"precision": "float32", "device": "cpu", "cache_dir": place / "cache", "progress": False}
    dec = mumoe.decompose(
        model_folder, 1, "cp-linear", experts=SIZES, text=documents, out=place / "dec", **given, **held
    )
    dec.measured = dec.evaluate(8, jacobians=4)
    dec.found = dec.analyze(8, ablations=4, least=5, ablated_contexts=8)
    return dec


def gates(dec, x):
    """(rows, experts) of each level, from the gate itself."""
    with torch.no_grad():
        return [level.to_dense() for level in dec.replacement.gate(x / dec.replacement.in_scale)]


def by_definition(dec, x, weights):
    """Output of the replacement from its factors, written out over all combinations; `weights` (rows, N_1, N_2)."""
    one = dec.replacement
    part = one.mixture.factorization
    z = (x / one.in_scale) @ part.in_factor
    vectors = torch.einsum("nr,mr->nmr", part.expert_factor_0, part.expert_factor_1)
    y = (torch.einsum("bnm,nmr->br", weights, vectors) * z) @ part.out_factor.mT
    return (y + one.skip(x / one.in_scale) + one.bias) * one.out_scale


# Matrices of several levels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [True, False])
def test_joined_levels_are_split_again(sparse):
    dense = [torch.randn(7, size).relu() for size in (5, 3, 4)]
    given = [DenseCoefficients(one) for one in dense]
    a = joined([one.at_least() for one in given] if sparse else given)
    torch.testing.assert_close(a.to_dense(), torch.cat(dense, dim=1), rtol=0, atol=0)
    for found, one in zip(split(a, (5, 3, 4)), dense, strict=True):
        torch.testing.assert_close(found.to_dense(), one, rtol=0, atol=0)
        factor = torch.randn(one.shape[1], 6)
        torch.testing.assert_close(found @ factor, one @ factor)


def test_combinations_that_occur_are_counted(monkeypatch):
    sizes, rows = (4, 3, 5), 40
    dense = torch.randn(rows, sum(sizes)).relu()
    row, expert = dense.nonzero(as_tuple=True)
    given = (row.numpy(), expert.numpy(), dense[row, expert].double().numpy(), rows, sizes)
    expected, values = Counter(), {}
    for number, line in enumerate(dense.double().split(list(sizes), dim=1)[0].new_tensor(dense.tolist())):
        parts = line.split(list(sizes))
        for key in itertools.product(*(range(size) for size in sizes)):
            product = float(np.prod([float(part[n]) for part, n in zip(parts, key, strict=True)]))
            if product > 0:
                expected[key] += 1
                values[number, key] = product
    found = occurring(*given)
    keys, counts = found.counted()
    assert {found.experts(key): count for key, count in zip(keys.tolist(), counts.tolist(), strict=True)} == expected
    for key in keys[:10].tolist():
        where, value = found.of(key)
        for number, one in zip(where.tolist(), value.tolist(), strict=True):
            assert one == pytest.approx(values[number, found.experts(key)])
    # Of too many, the first rows are counted.
    monkeypatch.setattr(levels, "MOST_ENTRIES", len(found.key) // 2)
    few = occurring(*given)
    assert 0 < few.rows < rows
    assert len(few.key) == sum(number < few.rows for number, _ in values)


# Exact ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experts", [SIZES, (16, 12, 10), (600, 8)])
def test_parts_and_error_add_up_to_the_original(make, experts):
    dec, text = make(experts, width=60), "the old cat"
    parts = dec.parts(text)
    ids = torch.tensor([[dec.language.tokenizer.start, *dec.language.tokenizer.encode([text])[0][0]]])
    with torch.no_grad():
        x = dec.language.mlp_input(ids, 1)[0, 1:].float()
        mixed = dec.replacement(x) - dec.replacement.rest(x)
    assert max(len(part.experts) for part in parts) > 4 ** (len(experts) - 1)
    for part, one in zip(parts, mixed, strict=True):
        assert part.experts.shape == (len(part.coefficients), len(experts))
        torch.testing.assert_close(part.parts.sum(0), one, rtol=0, atol=1e-5)
        whole = part.parts.sum(0) + part.rest + part.error
        torch.testing.assert_close(whole, part.original, rtol=0, atol=1e-5)


def test_the_output_is_that_of_all_combinations(looked):
    x = looked.bench(8).x
    first, second = gates(looked, x)
    with torch.no_grad():
        y = by_definition(looked, x, torch.einsum("bn,bm->bnm", first, second))
        torch.testing.assert_close(looked.replacement(x), y, rtol=1e-4, atol=1e-6)
        a = looked.replacement.coefficients(x)
        torch.testing.assert_close(looked.replacement.contract(x, a), y, rtol=1e-4, atol=1e-6)
        vectors = looked.replacement.mixture
        part = vectors.factorization
        mixed = cp_contract(x / looked.replacement.in_scale, [first, second], part.factors)
        rest = looked.replacement.rest(x)
        torch.testing.assert_close(mixed * looked.replacement.out_scale + rest, y, rtol=1e-4, atol=1e-6)


def test_ablating_an_expert_zeroes_its_coefficient_at_its_level(looked):
    x = looked.bench(8).x
    first, second = gates(looked, x)
    for level, one in enumerate((first, second)):
        expert = int(one.sum(0).argmax())
        kept = [first.clone(), second.clone()]
        kept[level][:, expert] = 0
        with torch.no_grad():
            y = by_definition(looked, x, torch.einsum("bn,bm->bnm", *kept))
            with looked.scaled({(level, expert): 0.0}):
                torch.testing.assert_close(looked._placed.module(x), y, rtol=1e-4, atol=1e-6)
            with looked.replacement.mixture.ablate([expert], level=level):
                torch.testing.assert_close(looked.replacement(x), y, rtol=1e-4, atol=1e-6)
            # An expert's part is what the output loses with it.
            rows = one[:, expert].nonzero()[:, 0]
            column = torch.full_like(rows, looked.replacement.shape.column((level, expert)))
            parts = expert_parts(looked.replacement, x[rows], column, one[rows, expert])
            torch.testing.assert_close(parts, (looked.replacement(x) - y)[rows], rtol=1e-4, atol=1e-6)
    looked.undo()


def test_ablating_a_combination_zeroes_its_weight(looked):
    x = looked.bench(8).x
    first, second = gates(looked, x)
    weights = torch.einsum("bn,bm->bnm", first, second)
    best = np.unravel_index(int(weights.sum(0).argmax()), SIZES)
    other = next(pair for pair in itertools.product(*map(range, SIZES)) if weights[:, pair[0], pair[1]].any())
    without = weights.clone()
    without[:, best[0], best[1]] = 0
    without[:, other[0], other[1]] = 0
    with torch.no_grad():
        y, module = by_definition(looked, x, without), looked.model.get_submodule("model.layers.1.mlp")
        with looked.without((int(best[0]), int(best[1])), other, other):
            torch.testing.assert_close(module(x), y, rtol=1e-4, atol=1e-6)
        assert torch.equal(module(x), looked.replacement(x))
        # Beside a scaled expert, whose factor the combination's weight has as well.
        with looked.scaled({(0, int(best[0])): 3.0}), looked.without((int(best[0]), int(best[1])), other):
            without[:, best[0]] *= 3
            torch.testing.assert_close(module(x), by_definition(looked, x, without), rtol=1e-4, atol=1e-6)
    looked.undo()


def test_the_replacement_is_undone_to_the_bit(looked):
    tokens = torch.tensor([[0, *looked.language.tokenizer.encode(["the red dog"])[0][0]]])
    model, module = looked.language.model, looked.mlp.module
    with torch.no_grad():
        before = model(tokens).logits
        replaced = looked.model(tokens).logits
        with looked.without((0, 0)), looked.scaled({(1, 3): 4.0}):
            looked.generate("the old", 3)
        assert torch.equal(model(tokens).logits, replaced)
        looked.undo()
        assert torch.equal(model(tokens).logits, before)
    assert model.get_submodule("model.layers.1.mlp") is module


def test_a_stopped_training_resumes_with_the_same_bits_and_is_loaded(make, monkeypatch, tmp_path, documents):
    whole = make(out=tmp_path / "whole")
    real = fitting._Loop._step

    def step(loop):
        if loop.step == 11 and not (tmp_path / "stopped").exists():
            loop.save()
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        real(loop)

    monkeypatch.setattr(fitting._Loop, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        make(out=tmp_path / "part")
    part = make(list(SIZES), out=tmp_path / "part")  # a list stands for the same levels
    first, second = (load_file(dec.path / "replacement.safetensors") for dec in (whole, part))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    loaded = mumoe.load(tmp_path / "part", data=documents, device="cpu", progress=False)
    assert loaded.settings == part.settings
    assert loaded.settings.experts == SIZES
    x = torch.randn(5, 16)
    with torch.no_grad():
        assert torch.equal(loaded.replacement(x), whole.replacement(x))


def test_one_level_is_as_before(make, tmp_path):
    """A tuple of one is a number, and files do not mention levels."""
    one, other = make((20,), out=tmp_path / "a"), make(20, out=tmp_path / "b")
    for dec in (one, other):
        dec.evaluate(8, jacobians=0)
        dec.analyze(8, ablations=2, least=5)
    for name in ("replacement.safetensors", "settings.json", "evaluation.json", "analysis.json"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name
    for name in ("evaluation.json", "analysis.json", "decomposition.json"):
        assert '"level' not in (one.path / name).read_text(), name
        assert "combinations" not in (one.path / name).read_text(), name
    assert json.loads((one.path / "settings.json").read_text())["experts"] == 20
    assert Analysis.load(one.path / "analysis.json").combinations is None


def test_training_starts_at_the_linear_path_and_no_level_dies(looked):
    started = build(looked._shape, torch.nn.SiLU())
    x = torch.randn(9, 16)
    assert torch.equal(started(x), torch.zeros(9, 16))
    never = [level.experts - level.live for level in looked.measured.levels]
    assert never[0] < SIZES[0] / 2
    assert never[1] < SIZES[1] / 2
    assert looked.fitted[0].error < 0.7


# Measured ---------------------------------------------------------------------------------------------------


def test_controls_and_use_of_levels_and_combinations(looked):
    found, bench = looked.measured, looked.bench(8)
    names = ["cp-linear", "constant gate", "shuffled coefficients", "level 0 constant", "level 1 constant"]
    assert [one.name for one in found.measures] == [*names, "zero ablation", "mean ablation"]
    each, mean = gates(looked, bench.x), looked.replacement.mean_coefficients.split(list(SIZES))
    outputs, increases = bench.outputs(), {one.name: one.increase for one in found.measures}
    for level in range(2):
        held = list(each)
        held[level] = mean[level].expand(len(bench.x), -1)
        with torch.no_grad():
            wrong = (by_definition(looked, bench.x, torch.einsum("bn,bm->bnm", *held)) - outputs).square().sum()
        spread = (outputs - outputs.mean(0)).square().sum()
        assert found.measure(f"level {level} constant").error == pytest.approx(float(wrong / spread), rel=1e-3)
        use, used = found.levels[level], each[level] > 0
        assert use.experts == SIZES[level]
        assert use.active == pytest.approx(float(used.sum(1).float().mean()))
        assert use.live == int(used.any(0).sum())
        assert use.most == pytest.approx(float(used.float().mean(0).max()))
        lost = increases[f"level {level} constant"] - increases["cp-linear"]
        assert use.share == pytest.approx(lost / (increases["zero ablation"] - increases["cp-linear"]))
    pairs = torch.einsum("bn,bm->bnm", *((one > 0).float() for one in each))
    assert found.combinations.possible == 192
    assert found.combinations.occurring == int(pairs.any(0).sum())
    assert found.combinations.most == pytest.approx(float(pairs.mean(0).max()))
    assert found.combinations.active == pytest.approx(float(pairs.sum((1, 2)).mean()))
    assert (found.experts, found.active) == (28, pytest.approx(sum(one.active for one in found.levels)))
    assert Evaluation.load(looked.path / "evaluation.json") == found
    assert "192 combinations" in found.headline()


def test_experts_and_combinations_are_described(looked):
    found, bench = looked.found, looked.bench(8)
    each = gates(looked, bench.x)
    assert found.levels == SIZES
    for one in found.found:
        column = each[one.level][:, one.expert]
        assert one.rate == pytest.approx(float((column > 0).float().mean()))
        assert one.top[0].coefficient == pytest.approx(float(column.max()), abs=1e-4)
    assert {one.level for one in found.found} == {0, 1}
    weights = torch.einsum("bn,bm->bnm", *each)
    pairs, used = found.combinations, (weights > 0)
    assert pairs.occurring == int(used.any(0).sum())
    assert pairs.live == int((used.sum(0) >= 5).sum())
    first = pairs.found[0]
    assert first.rate == pytest.approx(float(used.float().mean(0).max()))
    values = weights[:, first.experts[0], first.experts[1]]
    assert first.mean == pytest.approx(float(values[values > 0].mean()), rel=1e-4)
    assert first.top[0].coefficient == pytest.approx(float(values.max()), rel=1e-4)
    for level, expert in enumerate(first.experts):
        assert first.alone[level] == pytest.approx(float((each[level][:, expert] > 0).float().mean()))
    assert sum(one.loss is not None for one in pairs.found) == 4
    before = bench.run(lambda x, _: looked.replacement(x))
    gate = looked.replacement.coefficients
    after = bench.run(lambda x, _: changed(looked.replacement, x, gate(x), None, [first.experts]))
    assert first.loss == pytest.approx(1000 * float((after - before).mean()), abs=1e-2)
    assert len(pairs.purity.top_alone) == len(pairs.purity.any_alone) == 2
    assert Analysis.load(looked.path / "analysis.json") == found
    assert set(found.to_frame()["level"]) == {0, 1}
    assert "192 combinations" in found.headline()


def test_estimates_agree_with_ablations(make):
    dec = make(lr=(2e-3,))
    assert dec.analyze(8, least=2, ablations=8, ablated_contexts=8).ablation_correlation > 0.9


def test_coefficients_become_a_table_with_levels(looked, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    count = looked.save_coefficients(tmp_path / "a.parquet", 8)
    table = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    each = [one.reshape(8, 16, -1) for one in gates(looked, looked.bench(8).x)]
    assert count == sum(int((one > 0).sum()) for one in each)
    order = looked.contexts.order("test")[:8].tolist()
    for row in range(0, count, 7):
        place = (order.index(table["context"][row]), table["position"][row] - 1, table["expert"][row])
        assert table["coefficient"][row] == pytest.approx(float(each[table["level"][row]][place]))


# Pages ------------------------------------------------------------------------------------------------------


def test_report_and_dashboard_show_each_level(looked, tmp_path):
    study = looked.study()
    assert [layer.layer for layer in study.layers] == [f"model.layers.1.mlp, level {level}" for level in (0, 1)]
    assert tuple(layer.num_experts for layer in study.layers) == SIZES
    assert study.bits_per_byte == pytest.approx(study.loss / math.log(2), rel=1e-6)  # every token is a byte
    entries = coefficient_entries(looked.replacement, looked.bench(8).x)
    for level, layer in enumerate(study.layers):
        assert [one.expert for one in layer.experts] == sorted(
            one.expert for one in looked.found.found if one.level == level
        )
        for one in layer.experts:
            column = looked.replacement.shape.column((level, one.expert))
            assert one.largest == pytest.approx(float(entries.value[entries.expert == column].max()))
    page = looked.report(tmp_path / "report").read_text()
    assert page.count("<h2>") == 2
    marks, links = re.findall(r'<h3 id="([^"]+)"', page), re.findall(r'href="#([^"]+)"', page)
    assert len(set(marks)) == len(marks) == len(looked.found.found)
    assert sorted(marks) == sorted(links)
    assert "192 combinations" in page
    session = open_decomposed(looked)
    assert len(session.describe()["layers"]) == 2
    last = study.layers[1].experts[0].expert
    found = session.write().write("the old", 4, last, 20.0, lambda *_: None, level=1)
    assert "the old" + found["steered"] == looked.generate("the old", 4, scale={(1, last): 20.0})
    rates = {one.expert: one.used for one in study.layers[1].experts if one.expert != last}
    assert found["control"] in rates


# Sizes and wrong calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("experts", [(64, 64), (400, 30), (8, 8, 8)])
def test_sizes_meet_the_budget(experts):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = pytest.importorskip("transformers").LlamaConfig(hidden_size=64, intermediate_size=96)
    shape, budget = shape_for("cp-linear", read_parts(llama.LlamaMLP(config)), width=24, k=8, experts=experts)
    assert shape.levels == experts
    assert abs(build(shape, torch.nn.SiLU()).parameters_count - budget) < 0.01 * budget


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "hadamard"}, "expected one number of experts for kind 'hadamard'"),
        ({"experts": (16, 0)}, "num_experts"),
        ({"experts": (16, 3)}, "at least as many experts as k == 4, got 3"),
        ({"experts": (2**31, 2**32)}, "at most 2\\^62 combinations"),
        ({"init": "weights"}, "expected init='random' for experts on 2 levels"),
    ],
)
def test_wrong_sizes_are_refused(model_folder, small, tmp_path, given, words):
    with pytest.raises(UserError, match=words):
        mumoe.decompose(model_folder, out=tmp_path / "x", **{**small, "experts": SIZES, "width": 12, **given})
    assert not (tmp_path / "x").exists()


def test_wrong_experts_are_refused(looked, make, tmp_path):
    for experts, words in (
        ({3: 0.0}, r"an expert as \(level, number\), got 3"),
        ({(2, 0): 0.0}, r"a level in 0\.\.1, got 2"),
        ({(1, 12): 0.0}, r"an expert of level 1 in 0\.\.11, got 12"),
    ):
        with pytest.raises(UserError, match=words), looked.scaled(experts):
            pass
    with pytest.raises(UserError, match="one expert for each of 2 levels"), looked.without((1, 2, 3)):
        pass
    with pytest.raises(UserError, match=r"level 1 in 0\.\.11"), looked.without((1, 12)):
        pass
    looked.undo()


def test_the_command_takes_levels(model_folder, tmp_path, capsys):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(30):
        (text / f"{number}.txt").write_text(sentences(number, 20).text)
    call = [
        "decompose",
        "--model",
        model_folder,
        "--layer",
        "1",
        "--text",
        f"folder:{text}",
        "--k",
        "4",
        "--width",
        "12",
    ]
    call += ["--tokens", "600", "--context", "17", "--lr", "0.004", "--batch-size", "64", "--contexts", "4", "--quiet"]
    assert cli.main([*call, "--experts", "16x12", "-o", str(tmp_path / "dec"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "16 x 12 experts" in out
    assert "level 1 constant" in out
    assert "combination " in out
    for flags, words in (
        (["--experts", "16x"], "expected --experts as a number, or one for each level"),
        (["--experts", "16x12", "--kind", "hadamard"], "expected --experts as one number for --kind hadamard"),
    ):
        assert cli.main([*call, *flags, "-o", str(tmp_path / "no")]) == 2
        assert words in capsys.readouterr().err
