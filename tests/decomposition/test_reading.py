"""The experts of a decomposition as a text study: numbers of the analysis, coefficients of the gate, the page."""

import math

import numpy as np
import pytest
import torch

import mumoe
from axe import CLEAN, both_themes
from browsing import browser, opened  # noqa: F401 (a fixture)
from mumoe.analysis.expert_notes import ExpertNotes, change_note
from mumoe.cli import main
from mumoe.data.text import TOKEN_CLASSES
from mumoe.errors import UserError

LAYER = "model.layers.1.mlp"


def test_the_study_has_the_numbers_of_the_analysis(analyzed):
    study, found = analyzed.study(), analyzed.found
    (layer,) = study.layers
    assert (layer.layer, layer.num_experts, layer.least) == (LAYER, found.experts, 5)
    assert [one.expert for one in layer.by_effect()] == [one.expert for one in found.found]
    for text in layer.experts:
        one = found.expert(text.expert)
        assert (text.raises, text.lowers) == (one.raises, one.lowers)
        assert text.used == pytest.approx(one.rate)
        assert text.mean == pytest.approx(one.rate * one.mean, rel=1e-4)
        assert text.estimate == pytest.approx(one.estimate / 1000)
        assert (text.effect is None) == (one.loss is None)
        assert [purity.of for purity in text.purity] == ["tag", "genre"]
        assert text.purity[0].share - text.purity[0].base == pytest.approx(one.tag_excess)
        assert [hit.pieces[hit.center] for hit in text.top] == [hit.token for hit in one.top]
        assert [hit.coefficient for hit in text.top] == pytest.approx([hit.coefficient for hit in one.top], abs=1e-4)
        assert sum(text.histogram) == round(text.used * found.tokens)
    measured = [one for one in layer.experts if one.effect]
    assert len(measured) == 4
    one = measured[0]
    assert one.effect.all == pytest.approx(found.expert(one.expert).loss / 1000)


def test_every_coefficient_is_the_gate_s(analyzed):
    study, bench = analyzed.study(), analyzed.bench(8)
    with torch.no_grad():
        dense = analyzed.replacement.coefficients(bench.x).to_dense().reshape(8, 16, -1)
    for text in study.layers[0].experts:
        for hit in text.top:
            start = hit.position - hit.center
            gate = dense[hit.row, start : start + len(hit.pieces), text.expert]
            assert hit.coefficients == pytest.approx(gate.tolist(), abs=1e-4)
    for window in study.excerpts:
        assert len(window.pieces) == len(window.losses) == 16
        for place, pairs in enumerate(window.layers[LAYER]):
            assert dict(pairs) == pytest.approx(
                {int(n): float(dense[window.row, place, n]) for n in dense[window.row, place].nonzero()[:, 0]}, abs=1e-4
            )


def test_losses_are_those_with_the_replacement(analyzed):
    analyzed.undo()  # other tests of this decomposition write texts
    study, bench = analyzed.study(), analyzed.bench(8)
    losses = bench.run(lambda x, _: analyzed.replacement(x)).double()
    assert study.loss == pytest.approx(float(losses.mean()))
    assert study.bits_per_byte == pytest.approx(study.loss / math.log(2), rel=1e-6)  # every token is a byte
    weighted = sum(kind["tokens"] * kind["loss"] for kind in study.by_class.values() if kind["tokens"])
    assert weighted / losses.numel() == pytest.approx(study.loss)
    assert study.classes[-1] == "other"
    assert set(study.classes[:-1]) == {"at", "nn", "vb", "jj", "rb"}


def test_a_mean_by_tag_is_that_of_its_tokens(analyzed):
    bench, contexts = analyzed.bench(8), analyzed.contexts
    tag = contexts.tag[contexts.order("test")[:8]][:, 1:].reshape(-1)
    with torch.no_grad():
        dense = analyzed.replacement.coefficients(bench.x).to_dense().numpy()
    for text in analyzed.study().layers[0].experts:
        for code, name in enumerate(contexts.tags):
            assert text.by_class[name] == pytest.approx(dense[tag == code, text.expert].mean(), abs=1e-4)
        assert text.by_class["other"] == pytest.approx(dense[tag < 0, text.expert].mean(), abs=1e-4)


def test_text_without_tags_has_kinds_of_letters(analyzed, model_folder, documents, tmp_path, small):
    plain = [mumoe.data.documents.Document(one.name, one.text, split=one.split) for one in documents]
    dec = mumoe.decompose(model_folder, out=tmp_path / "dec", **{**small, "text": plain})
    dec.analyze(4, ablations=0, least=5)
    study = dec.study()
    assert study.classes == TOKEN_CLASSES
    assert all(one.purity == () and one.effect is None for one in study.layers[0].experts)
    assert np.mean([one.estimate for one in study.layers[0].experts]) != 0
    assert "How faithful it is was not measured" in study.remarks[0]
    assert "<th>tag</th>" not in dec.report(tmp_path / "report").read_text()


def test_before_it_is_analyzed_nothing_is_shown(model_folder, tmp_path, small):
    dec = mumoe.decompose(model_folder, out=tmp_path / "dec", **small)
    with pytest.raises(UserError, match="expected a decomposition that was analyzed, got none"):
        dec.report(tmp_path / "report")


def test_the_command_writes_the_same_page(analyzed, tmp_path, capsys):
    assert main(["report", str(analyzed.path), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    page = tmp_path / "out" / "index.html"
    assert capsys.readouterr().out == f"Written to {page}. Open it in a browser.\n"
    assert page.read_bytes() == mumoe.load(analyzed.path, progress=False).report(tmp_path / "other").read_bytes()
    assert str(analyzed.path.parent) not in page.read_text()
    assert main(["report", str(analyzed.path), str(tmp_path)]) == 2
    assert "expected one decomposition alone, got 2 folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"before": "x"}, "expected `before` as int, got 'x'"),
        ({"after": -1}, "expected `after` >= 0, got -1"),
        ({"pure": 0}, "expected `pure` >= 1, got 0"),
        ({"ablated_contexts": 0}, "expected `ablated_contexts` >= 1, got 0"),
        ({"seed": None}, "expected `seed` as int, got None"),
    ],
)
def test_settings_that_an_analysis_cannot_have(analyzed, settings, text):
    with pytest.raises(UserError, match=f"^Decomposition.analyze: {text}"):
        analyzed.analyze(8, **settings)


def test_experts_that_cannot_be_scaled(analyzed):
    for wrong in (0, [[]], {0: "x"}):
        with pytest.raises(UserError, match="^Decomposition: expected `experts` as "), analyzed.scaled(wrong):
            pass
    with pytest.raises(UserError, match=r"^Decomposition.generate: transformers refused, .*unknown"):
        analyzed.generate("a", 2, unknown=1)
    with pytest.raises(UserError, match="expected texts in Unicode"):
        analyzed.parts("\ud800")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["wide", "phone"])
def test_the_page_of_a_decomposition(browser, analyzed, tmp_path, width, dark):  # noqa: F811
    analyzed.evaluate(8, jacobians=0, twin=False)
    first, second = (one.expert for one in analyzed.found.found[:2])
    change_note(analyzed.path, second, LAYER, name="<b>cats</b>", note="a few dogs")
    assert ExpertNotes.of_run(analyzed.path).name(second, LAYER) == "<b>cats</b>"
    page = mumoe.load(analyzed.path, progress=False).report(tmp_path / "report")
    with opened(browser, page.as_uri(), width=width, dark=dark) as watched:
        rows = watched.page.locator("table tr")
        assert rows.count() == 1 + analyzed.found.live
        assert rows.nth(1).inner_text().startswith(str(first))
        assert "<b>cats</b>" in rows.nth(2).inner_text()
        text = watched.page.locator("body").inner_text()
        share = analyzed.evaluate(8, jacobians=0, twin=False).expert_share
        for words in (f"expert share {share:.2f}", "of random tokens", "a few dogs", "nats per 1,000 tokens", "Raises"):
            assert words in text
        assert watched.sideways() == 0
        assert both_themes(watched) == CLEAN
