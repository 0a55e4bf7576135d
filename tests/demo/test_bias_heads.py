"""Heads of the bias experiments: trained with the settings of a preset of `mumoe train`."""

from __future__ import annotations

import pytest
import torch

from mumoe.demo.bias_heads import BiasTask, Settings, head_factory, loss_of, make_head, train_plain
from mumoe.errors import UserError
from mumoe.functional import mutual_information
from mumoe.layers import MuMoE
from mumoe.models.heads import Head
from mumoe.training.config import PRESETS

SPEC, SIZES = "CPMuMoE-r4-e6", (12, 3)


def task(rows=96):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, SIZES[0], generator=generator)
    labels = (features[:, :3] > 0).long()
    return BiasTask(features, labels, (features[:, 5] > 0).long(), head=0, target=(1, 1))


def test_a_preset_decides_what_is_not_given():
    settings, preset = Settings(2, learning_rate=0.01, preset="specialized"), PRESETS["specialized"]
    config = settings.config(SPEC)
    assert (config.epochs, config.lr) == (2, 0.01)
    assert (config.init, config.dropout, config.decay) == (preset["init"], preset["dropout"], preset["decay"])
    assert Settings(init="scaled").config(SPEC).init == "scaled"
    assert settings.config("linear").dropout == preset["linear_dropout"]
    assert settings.config("linear").lr == 0.01  # the same rate for every head
    with pytest.raises(UserError, match="preset"):
        Settings(preset="best").config()


def test_heads_have_the_gate_and_weights_of_the_preset():
    layer = head_factory(SPEC, SIZES, Settings(preset="accurate"))()
    assert isinstance(layer, MuMoE)
    assert layer.gate.scale == PRESETS["accurate"]["gate_scale"]
    assert layer(torch.randn(4, 12)).abs().max() == 0  # init zero
    linear = head_factory("linear", SIZES, Settings(preset="accurate"))()
    assert isinstance(linear, Head)
    assert linear.drop == PRESETS["accurate"]["linear_dropout"]
    plain = head_factory("linear", SIZES, Settings())()
    assert isinstance(plain, torch.nn.Linear)


def test_the_loss_has_the_term_for_specialization():
    found, rows = task(), torch.arange(32)
    plain, special = (Settings(preset=name) for name in ("plain", "specialized"))
    layer = make_head(head_factory(SPEC, SIZES, plain), found, 0).eval()
    (coefficients,) = layer(found.features[rows], return_coefficients=True)[1]
    term = mutual_information(coefficients, found.labels[rows], 3)
    weight = PRESETS["specialized"]["specialize"]
    expected = loss_of(layer, found, plain)(rows) - weight * term
    torch.testing.assert_close(loss_of(layer, found, special)(rows), expected)
    linear = torch.nn.Linear(*SIZES)
    assert torch.equal(loss_of(linear, found, special)(rows), loss_of(linear, found, plain)(rows))


@pytest.mark.parametrize("preset", ["plain", "specialized"])
def test_training_repeats_to_the_bit_and_learns(preset):
    found = task()
    settings = Settings(30, 32, 0.02, preset=preset)
    heads = [train_plain(found, head_factory(SPEC, SIZES, settings), seed=1, settings=settings) for _ in range(2)]
    logits = [head(found.features) for head in heads]
    assert torch.equal(*logits)
    assert ((logits[0] > 0).long() == found.labels).float().mean() > 0.85
