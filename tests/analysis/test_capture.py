"""Capture from any model: the right coefficients, nothing left behind, bounded memory; and the studies on top."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mumoe.analysis
from mumoe.analysis import CoefficientStore, capture, expert_layers, study_layer, write_coefficients
from mumoe.analysis.class_effects import Answers, Changes
from mumoe.analysis.layer_study import and_reading
from mumoe.analysis.outcomes import Interventions
from mumoe.baselines import HighRankLinear
from mumoe.errors import UserError
from mumoe.layers import MuMoE, MuMoEBlock


def model(experts=8):
    torch.manual_seed(0)
    linear = nn.Linear(6, 6)
    first = MuMoE(6, 5, (experts, 3), "cp", rank=4, init="paper")  # experts that differ enough to be strong
    second = MuMoE(5, 4, 16, "tr", rank=3, init="paper")
    return nn.Sequential(linear, nn.ReLU(), first, nn.GELU(), second).eval()


def test_captured_coefficients_are_those_of_the_layers(tmp_path):
    net, x = model(), torch.randn(50, 6)
    store = capture(net, x.split(20), tmp_path / "s", images=np.arange(50))
    assert store.layers == ("2", "4")
    hidden = net[:2](x)
    for level, expected in enumerate(net[2].coefficients(hidden)):
        assert np.allclose(store.level("2", level).dense(0, 50), expected.detach(), atol=1e-6)
    last = net[4].coefficients(net[:4](x))[0].detach()
    assert np.allclose(store.level("4").dense(0, 50), last, atol=1e-6)
    assert ((store.level("4").dense(0, 50) > 0) == (last > 0).numpy()).all()
    assert store.images.tolist() == list(range(50))


def test_tokens_are_rows_of_their_image(tmp_path):
    block = MuMoEBlock(6, 8, 6, num_experts=10, rank=3)
    tokens = torch.randn(7, 4, 6)
    level = capture(block, tokens.split(3), tmp_path / "s").level("")
    assert (level.rows, level.rows_per_image) == (28, 4)
    block.eval()
    expected = block.coefficients(tokens)[0].detach().reshape(28, 10)
    assert np.allclose(level.dense(0, 28), expected, atol=1e-6)


def test_nothing_is_left_on_the_model(tmp_path):
    net = model().train()
    net[1].eval()
    seen = []

    def note(module, args, output):
        seen.extend((weakref.ref(a.matrix), a.matrix.grad_fn is not None) for a in output)

    handles = [layer.gate.register_forward_hook(note) for layer in (net[2], net[4])]
    capture(net, torch.randn(30, 6).split(10), tmp_path / "s")
    for handle in handles:
        handle.remove()
    assert [part.training for part in net] == [True, False, True, True, True]
    for module in net.modules():
        assert not module._forward_hooks
        held = [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
        assert not held
    gc.collect()
    assert seen
    assert not any(graph for _, graph in seen)
    assert all(alive() is None for alive, _ in seen)


def test_an_exception_takes_the_hooks_off_and_leaves_no_store(tmp_path):
    net = model()
    with pytest.raises(RuntimeError):
        capture(net, [torch.randn(3, 6), torch.randn(3, 99)], tmp_path / "s")
    assert not any(module._forward_hooks for module in net.modules())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p: capture(nn.Linear(2, 2), [torch.zeros(1, 2)], p), r"capture: expected a model with a MuMoE layer"),
        (lambda p: capture(model(), [], p), r"capture: expected at least one image, got none\."),
        (lambda p: capture(model(), [], p, layers=["3"]), r"capture: expected a MuMoE layer out of 2, 4, got '3'"),
        (lambda p: study_layer(nn.Linear(2, 2), list), r"study_layer: expected a model with a MuMoE layer, got Linear"),
        (lambda p: study_layer(model()[4], list, modes=["men"]), r"Did you mean 'mean'\?"),
        (lambda p: study_layer(model()[4], list), r"expected at least one image, got none\."),
    ],
)
def test_mistakes_are_one_clear_error(tmp_path, call, text):
    with pytest.raises(UserError, match=text):
        call(tmp_path / "s")


def test_expert_layers_are_found_by_name():
    assert list(expert_layers(model())) == ["2", "4"]
    assert list(expert_layers(MuMoE(2, 2, 2, "cp", rank=1))) == [""]


def batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 5, generator=generator)
    yield from zip(x.split(30), (x[:, :4].argmax(1)).split(30), strict=True)


def test_a_study_holds_use_modes_control_and_intervals(tmp_path):
    layer = model()[4]
    store = write_coefficients(layer, batches, tmp_path / "s")
    found = study_layer(layer, batches, store=store, modes=("mean", "resampled"), resamples=30)
    (units,) = found.units
    assert list(units.modes) == ["zero", "mean", "resampled"]
    assert units.modes["zero"].units == units.load_control.units == 16
    assert units.load == found.usage[0].touched
    assert units.modes["zero"].mean_interval is not None
    assert found.combinations == ()
    assert CoefficientStore(tmp_path / "s").level().rows == 80


def test_controls_and_modes_count_strong_units_by_the_same_rule():
    layer = model()[4]
    found = {least: study_layer(layer, batches, modes=("mean",), resamples=20, least_lost=least) for least in (1, 3)}
    parts = {least: [*study.units[0].modes.values(), study.units[0].load_control] for least, study in found.items()}
    for least, several in parts.items():
        for part in several:
            assert part.least_lost == least
            lost = [dict(effect.losses) for effect in part.effects]
            assert part.strong == sum(effect.strong for effect in part.effects)
            assert part.strong <= sum(max(losses.values()) >= 0.5 for losses in lost)
    assert any(one.strong > three.strong > 0 for one, three in zip(parts[1], parts[3], strict=True))
    assert parts[1][2].strong > parts[3][2].strong


def test_a_study_of_neurons_has_no_use():
    found = study_layer(HighRankLinear(5, 4, 3), batches, resamples=0)
    assert found.usage == ()
    assert found.units[0].units == "neurons"


def test_and_reading_by_hand():
    """Levels of 2 and 3 experts, four classes of two images each, all right before.

    Expert 1 of the first level answers for classes 0 and 1, expert 2 of the second for 1 and 2. Their combination,
    unit 1 * 3 + 2 = 5, costs classes 1 and 3: of the shared class 1 it has all, class 3 is its own.
    """
    labels = np.repeat(np.arange(4), 2)
    answers = Answers(labels, np.ones(8, dtype=bool), 4)

    def lost(units, *pairs):
        image = np.array([i for _, images in pairs for i in images])
        unit = np.array([n for n, images in pairs for _ in images])
        changes = Changes(image, unit, labels[image], -np.ones_like(image), units)
        return Interventions(answers, changes, np.full(units, 8))

    first, second = lost(2, (1, [0, 1, 2])), lost(3, (2, [2, 3, 4]))
    joint = lost(6, (5, [2, 3, 6]))
    (found,) = and_reading([first, second], joint, least_lost=1)
    assert found.experts == (1, 2)
    assert found.classes_by_level == ((0, 1), (1, 2))
    assert found.classes_of_all == (1,)
    assert found.classes_of_combination == (1, 3)
    assert found.agreement == 0.5
    (more,) = and_reading([first, second], joint, least_lost=2)
    assert (more.classes_by_level, more.classes_of_combination) == (((0,), (1,)), (1,))
    assert and_reading([first, second], joint) == ()


def test_every_public_name_is_there():
    for name in mumoe.analysis.__all__:
        assert getattr(mumoe.analysis, name) is not None
    with pytest.raises(AttributeError):
        _ = mumoe.analysis.nothing


def test_results_and_figures_need_no_layer():
    """Reports read results; importing them must not import the layers."""
    code = "import sys, mumoe.analysis.findings; print('mumoe.analysis.interventions' in sys.modules)"
    source = str(Path(mumoe.analysis.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"
