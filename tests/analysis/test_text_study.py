"""The text view: every number against its definition, on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from made_up_training import make_text

from mumoe.analysis import expert_layers
from mumoe.analysis.findings import TextStudy
from mumoe.analysis.text_pages import write_text_view
from mumoe.analysis.text_study import steer, study_text
from mumoe.data.text import TOKEN_CLASSES, classify, open_text
from mumoe.errors import UserError
from mumoe.models.gpt2 import GPT2Shape, create_gpt2, generate_text
from mumoe.plots.token_sheet import heat_map, one_line
from mumoe.records import to_plain

LAYER = "transformer.h.1.mlp"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_text(make_text(tmp_path_factory.mktemp("text")), context=16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = create_gpt2("CPMuMoE-e6", shape=GPT2Shape(2, 2, 16, 16, 256))
    for layer in expert_layers(made).values():
        layer.fc2.out_factor.data.mul_(20)  # so that ablations are seen
    return made.eval()


@pytest.fixture(scope="module")
def study(model, data):
    return study_text(model, data, split="val", windows=20, ablated_windows=18, top=3, radius=4, excerpts=2)


def windows_of(data, rows) -> torch.Tensor:
    return torch.from_numpy(np.stack([data.window(row) for row in rows]))


def all_rows(data) -> np.ndarray:
    rows = data.indices("val")
    rows = rows[np.linspace(0, len(rows) - 1, 20).astype(int)]
    return np.random.default_rng(0).permutation(rows)


def losses(model, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def coefficients(model, tokens: torch.Tensor) -> torch.Tensor:
    """(windows, T, experts) of LAYER, by asking the layer what it was given."""
    layer, seen = expert_layers(model)[LAYER], []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(tokens[:, :-1])
        handle.remove()
        return layer.coefficients(seen[0])[0]


def kinds(data, tokens: torch.Tensor) -> np.ndarray:
    return np.stack([classify(data.tokenizer.pieces(window.tolist())) for window in tokens])


def test_losses(study, model, data):
    tokens = windows_of(data, all_rows(data))
    plain = losses(model, tokens)
    assert study.windows == 20
    assert study.tokens == 20 * 16
    assert study.loss == pytest.approx(float(plain.mean()), abs=1e-5)
    predicted = kinds(data, tokens)[:, 1:]
    for code, name in enumerate(TOKEN_CLASSES):
        chosen = plain.numpy()[predicted == code]
        assert study.by_class[name]["tokens"] == len(chosen)
        if len(chosen):
            assert study.by_class[name]["loss"] == pytest.approx(float(chosen.mean()), abs=1e-5)


def test_what_each_expert_reads(study, model, data):
    rows = all_rows(data)
    tokens = windows_of(data, rows)
    a, read = coefficients(model, tokens).numpy(), kinds(data, tokens)[:, :-1]
    for expert in study.layers[1].experts:
        mine = a[:, :, expert.expert]
        assert expert.mean == pytest.approx(mine.mean(), abs=1e-6)
        assert expert.used == pytest.approx((mine > 0).mean())
        assert expert.half == pytest.approx((mine >= 0.5).mean())
        assert list(expert.histogram) == np.histogram(mine[mine > 0], bins=20, range=(0, 1))[0].tolist()
        for code, name in enumerate(TOKEN_CLASSES):
            chosen = mine[read == code]
            expected = float(chosen.mean()) if len(chosen) else None
            assert expert.by_class[name] == pytest.approx(expected, abs=1e-5)


def test_tokens_with_the_largest_coefficients(study, model, data):
    rows = all_rows(data)
    a = coefficients(model, windows_of(data, rows)).numpy()
    for expert in study.layers[1].experts:
        peaks = np.sort(a[:, :, expert.expert].max(1))[::-1][:3]
        found = [token.coefficient for token in expert.top]
        assert found == pytest.approx([peak for peak in peaks.tolist() if peak > 0], abs=1e-6)
        for token in expert.top:
            window = data.window(token.row)
            mine = a[list(rows).index(token.row), :, expert.expert]
            start = token.position - token.center
            assert mine[token.position] == pytest.approx(token.coefficient, abs=1e-6)
            assert token.pieces[token.center] == chr(window[token.position])
            assert list(token.coefficients) == pytest.approx(mine[start : start + len(token.pieces)].tolist(), abs=1e-4)
            assert len(token.pieces) <= 9


def test_what_is_lost_without_each_expert(study, model, data):
    tokens = windows_of(data, all_rows(data)[:18])
    before, predicted = losses(model, tokens), kinds(data, tokens)[:, 1:]
    layer = expert_layers(model)[LAYER]
    for expert in study.layers[1].experts:
        with layer.ablate([expert.expert]):
            change = (losses(model, tokens) - before).numpy()
        assert expert.effect.all == pytest.approx(change.mean(), abs=1e-5)
        for code, name in enumerate(TOKEN_CLASSES):
            chosen = change[predicted == code]
            assert expert.effect.by_class[name] == pytest.approx(chosen.mean() if len(chosen) else None, abs=1e-5)
    assert max(abs(expert.effect.all) for expert in study.layers[1].experts) > 1e-3


def test_whole_windows_are_quoted_with_every_coefficient(study, model, data):
    for found, row in zip(study.excerpts, all_rows(data)[:2], strict=True):
        a = coefficients(model, windows_of(data, [row]))[0]
        assert found.row == row
        assert "".join(found.pieces) == data.tokenizer.decode(data.window(row)[:-1])
        dense = torch.zeros_like(a)
        for place, pairs in enumerate(found.layers[LAYER]):
            for expert, value in pairs:
                dense[place, expert] = value
        torch.testing.assert_close(dense, a, atol=1e-4, rtol=0)
        plain = losses(model, windows_of(data, [row]))[0]
        assert found.losses[0] is None
        assert list(found.losses[1:]) == pytest.approx(plain[:-1].tolist(), abs=1e-4)


def test_steering_by_zero_is_the_ablation_and_by_one_nothing(model, data):
    layer, tokens = expert_layers(model)[LAYER], windows_of(data, all_rows(data)[:4])
    plain = losses(model, tokens)
    with steer(layer, {2: 0.0}):
        none = losses(model, tokens)
    with layer.ablate([2]):
        torch.testing.assert_close(none, losses(model, tokens))
    with steer(layer, {2: 1.0}):
        assert torch.equal(losses(model, tokens), plain)
    with pytest.raises(RuntimeError), steer(layer, {2: 3.0}):
        assert not torch.allclose(losses(model, tokens), plain)
        raise RuntimeError
    assert torch.equal(losses(model, tokens), plain)
    for wrong in ({6: 1.0}, {-1: 1.0}):
        with pytest.raises(UserError, match=r"steer: expected an expert in 0\.\.5"), steer(layer, wrong):
            pass


def test_generated_text_is_a_function_of_the_seed_and_fits_the_context(model, data):
    before = torch.get_rng_state()
    texts = [generate_text(model, data.tokenizer, "if", 12, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("if")
    with pytest.raises(UserError, match="expected at most 16 tokens, the model's context, got 2 of the prompt and 15"):
        generate_text(model, data.tokenizer, "if", 15)
    with pytest.raises(UserError, match="expected new_tokens >= 1"):
        generate_text(model, data.tokenizer, "if", 0)


def test_the_view_shows_every_expert_that_reads(study, tmp_path):
    page, picture = write_text_view(study, tmp_path, ["made up & free"])
    text = page.read_text(encoding="utf-8")
    for layer in study.layers:
        assert f"<h2>{layer.layer}</h2>" in text
        assert text.count("<h3>Expert ") == sum(bool(e.top) for part in study.layers for e in part.experts)
    assert "made up &amp; free" in text
    assert "http" not in text
    assert picture.read_bytes() == heat_map(study)
    assert picture.read_bytes()[1:4] == b"PNG"
    numbers = json.loads((tmp_path / "experts.json").read_text(encoding="utf-8"))
    assert numbers == json.loads(json.dumps(to_plain(study)))
    assert numbers["schema"] == 1
    assert one_line("a\n\0\x01") == "a¶§·"
    assert TextStudy.load(tmp_path / "experts.json") == study


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 2}, r"expected the numbers of mumoe analyze in .*experts\.json, got schema 2"),
        ({"layers": [{}]}, r"experts\.json: expected TextStudy, got values that do not fit: .*layers\[0\]"),
    ],
)
def test_numbers_of_another_kind_are_refused(study, tmp_path, change, text):
    (tmp_path / "experts.json").write_text(json.dumps({**to_plain(study), **change}))
    with pytest.raises(UserError, match=text):
        TextStudy.load(tmp_path / "experts.json")


def test_a_frame_has_one_row_per_layer_and_expert(study):
    frame = study.to_frame()
    assert len(frame) == sum(layer.num_experts for layer in study.layers)
    first = study.layers[0].experts[0]
    assert dict(frame.iloc[0]) == {
        "layer": study.layers[0].layer,
        "expert": 0,
        "used": first.used,
        "mean": first.mean,
        "reads": max(first.by_class, key=lambda kind: first.by_class[kind] or 0.0),
        "loss_without": first.effect.all,
    }


def test_wrong_calls(model, data):
    with pytest.raises(UserError, match="expected a MuMoE layer out of .* got 'transformer.h.7.mlp'"):
        study_text(model, data, layers=["transformer.h.7.mlp"])
    with pytest.raises(UserError, match="expected a model with a MuMoE layer"):
        study_text(create_gpt2("mlp", shape=GPT2Shape(1, 2, 16, 16, 256)), data)
