"""Text that is generated while an expert is scaled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from made_up_training import make_text

from mumoe.analysis import expert_layers
from mumoe.data.text import open_text
from mumoe.models.gpt2 import GPT2Shape, create_gpt2, generate_text
from reproduction.gpt2_study import steered_classes

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


def test_steered_text_has_the_shares_of_its_tokens(model, data):
    found = steered_classes(model, data, LAYER, 1, factors=(1.0, 0.0), prompts=("if ", "a"), new_tokens=10, seed=3)
    assert [one.factor for one in found] == [1.0, 0.0]
    plain = [generate_text(model, data.tokenizer, prompt, 10, seed=3 + k) for k, prompt in enumerate(("if ", "a"))]
    assert found[0].samples == tuple(plain)
    assert all(sum(one.classes.values()) == pytest.approx(1) for one in found)
