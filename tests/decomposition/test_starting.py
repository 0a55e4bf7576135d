"""Replacements that start at the weights of the MLP: exact where they can be, and refused where they cannot."""

import numpy as np
import pytest
import torch
from torch import nn

import mumoe
from mumoe.coefficients import DenseCoefficients
from mumoe.decomposition.activations import Activations
from mumoe.decomposition.replacements import Shape, build
from mumoe.decomposition.starting import fresh, resolve_init, start_at_weights
from mumoe.errors import UserError
from mumoe.models.surgery.parts import read_parts

IN, HIDDEN = 6, 10


class Gated(nn.Module):
    """A gated MLP by the names of Llama's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(IN, HIDDEN), nn.Linear(IN, HIDDEN, bias=False)
        self.down_proj, self.act_fn = nn.Linear(HIDDEN, IN), nn.ReLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(IN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, IN))


@torch.no_grad()
def started(mlp, kind, **sizes):
    torch.manual_seed(0)
    x = 3 * torch.randn(400, IN) + 1
    rows = Activations(*(values.numpy().astype(np.float16) for values in (x, mlp(x))), np.arange(4), 100)
    x, y = rows.first(400)
    parts = read_parts(mlp)
    shape = Shape(kind, IN, HIDDEN, IN, parts.kind == "gated mlp", **sizes)
    replacement = start_at_weights(fresh(build(shape, parts.act), rows), parts, rows)
    error = float((replacement(x) - y).square().sum() / (y - y.mean(0)).square().sum())
    return replacement, error, x, y


@pytest.mark.parametrize("kind", ["cp-linear", "transcoder", "skip-transcoder"])
def test_with_all_experts_a_relu_mlp_is_computed_exactly(kind):
    torch.manual_seed(1)
    mlp, rank = (Gated(), HIDDEN) if kind == "cp-linear" else (plain(), 0)
    assert started(mlp, kind, experts=HIDDEN, rank=rank, k=HIDDEN)[1] < 1e-5
    # With more of them than hidden units, those beyond add nothing at first.
    assert started(mlp, kind, experts=HIDDEN + 3, rank=rank and rank + 2, k=HIDDEN + 3)[1] < (
        1e-5 if kind != "transcoder" else 0.2
    )


def test_experts_are_the_hidden_units_that_add_most():
    torch.manual_seed(1)
    mlp = Gated()
    with torch.no_grad():
        mlp.down_proj.weight[:, [2, 5]] *= 0.01
    replacement, error, *_ = started(mlp, "cp-linear", experts=HIDDEN - 2, rank=HIDDEN, k=HIDDEN - 2)
    rows = replacement.gate.routers[0].weight / replacement.in_scale
    kept = [n for n in range(HIDDEN) if n not in (2, 5)]
    torch.testing.assert_close(rows, mlp.gate_proj.weight[kept])
    assert error < 1e-3
    assert started(mlp, "cp-linear", experts=HIDDEN - 2, rank=HIDDEN, k=2)[1] > error


@torch.no_grad()
def test_the_copy_needs_no_gate():
    torch.manual_seed(1)
    replacement, error, x, y = started(Gated(), "hadamard", experts=40, k=4)
    mean = replacement.coefficients(x).to_dense().mean(0)
    flat = replacement.contract(x, DenseCoefficients(mean.expand(len(x), -1)))
    assert float((flat - y).square().sum() / (y - y.mean(0)).square().sum()) < 0.02
    assert error < 0.5


def test_auto_is_the_weights_for_linear_experts_of_a_gated_mlp():
    gated, two = read_parts(Gated()), read_parts(plain())
    assert resolve_init("auto", "cp-linear", gated) == "weights"
    assert resolve_init("auto", "cp-linear", two) == "random"
    assert resolve_init("auto", "transcoder", two) == "random"
    for kind, parts in (("cp-linear", two), ("dense", gated), ("cp", gated)):
        with pytest.raises(UserError, match="Use init='random'"):
            resolve_init("weights", kind, parts)


def test_decompose_starts_there_and_says_so(model_folder, small, tmp_path):
    found = {}
    for init in ("random", "weights", "auto"):
        dec = mumoe.decompose(model_folder, **{**small, "init": init, "width": 12}, out=tmp_path / init)
        assert dec._facts["init"] == ("random" if init == "random" else "weights")
        found[init] = dec.fitted[0].error
    assert found["weights"] == found["auto"]
    assert found["weights"] != found["random"]
    with pytest.raises(UserError, match="init"):
        mumoe.decompose(model_folder, **{**small, "init": "weigths"}, out=tmp_path / "x")
