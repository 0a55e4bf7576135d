"""Rewritings of hierarchies with many combinations: listed by combination that occurs, with the values of a tensor."""

import json
import subprocess
import sys

import pytest
import torch

from mumoe.editing import rewriting as rewritings
from mumoe.editing.edit_files import as_entry, from_entry, load_edits, save_edits
from mumoe.editing.expert_edits import Rewrite
from mumoe.editing.operations import Product, separate
from mumoe.editing.rewriting import joint_sum, mean_coefficients, moved_by, rewriting
from mumoe.editing.stack import EditStack
from mumoe.errors import UserError
from mumoe.layers import MuMoE


def make(experts, factorization="cp"):
    torch.manual_seed(0)
    options = {"gate": "topk", "gate_options": {"k": 2}}
    return MuMoE(6, 4, experts, factorization, rank=5, dtype=torch.float64, **options).eval()


@pytest.fixture
def listed(monkeypatch):
    """Means of every hierarchy are listed."""

    def switch(on):
        monkeypatch.setattr(rewritings, "DENSE", 0 if on else 65_536)

    return switch


@pytest.mark.parametrize("factorization", ["cp", "tr"])
@pytest.mark.parametrize("reading", ["joint", "levels"])
@pytest.mark.parametrize("experts", [(4, 5), (5, 4), (3, 4, 5)])
def test_listed_means_have_the_values_of_whole_tensors(tmp_path, listed, experts, reading, factorization):
    layer, x = make(experts, factorization), torch.randn(30, 6, dtype=torch.float64)
    group = [torch.randn(7, 6, dtype=torch.float64) for _ in range(3)]
    whole = mean_coefficients(layer, group, reading=reading)
    listed(True)
    mean = mean_coefficients(layer, group, reading=reading)
    assert isinstance(mean, Product) if reading == "levels" else mean.is_sparse
    assert mean.numel() == whole.numel()
    if reading == "joint":
        torch.testing.assert_close(mean.to_dense(), whole, rtol=1e-12, atol=1e-15)
        assert 0 < len(mean.values()) == int((whole != 0).sum())
    a = layer.coefficients(x)
    torch.testing.assert_close(moved_by(mean, a), moved_by(whole, a), rtol=1e-12, atol=1e-15)
    plain, edit = rewriting(layer, 1, whole), rewriting(layer, 1, mean)
    assert edit.strength == plain.strength == whole.numel()
    rebuilt = edit.mean.to_dense() if edit.mean.is_sparse else edit.mean
    torch.testing.assert_close(rebuilt, whole, rtol=1e-12, atol=1e-15)
    stacks = [EditStack(layer), EditStack(layer)]
    for stack, one in zip(stacks, (plain, edit), strict=True):
        stack.add(one, "bias")
    torch.testing.assert_close(stacks[1].preview(x)[1], stacks[0].preview(x)[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(stacks[1].fold()(x), stacks[0].fold()(x), rtol=1e-10, atol=1e-12)
    save_edits(tmp_path / "edit.json", stacks[1])
    assert load_edits(tmp_path / "edit.json", layer)["bias"] == edit
    assert from_entry(json.loads(json.dumps(as_entry("bias", edit)))) == edit


def test_pieces_of_the_sum_are_added(listed, monkeypatch):
    levels = make((4, 5)).coefficients(torch.randn(50, 6, dtype=torch.float64))
    whole = joint_sum(levels)
    listed(True)
    monkeypatch.setattr(rewritings.rows_of_pairs, "__defaults__", (7,))
    torch.testing.assert_close(joint_sum(levels).to_dense(), whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", [(4, 5), (5, 4), (3, 4, 5)])
def test_listed_tensors_separate_as_whole_ones(shape):
    whole = torch.randn(shape, dtype=torch.float64) * (torch.rand(shape) < 0.3)
    for one, other in zip(separate(whole), separate(whole.to_sparse()), strict=True):
        assert torch.equal(one, other)
    nothing = separate(torch.zeros(shape).to_sparse())
    assert [factor.shape[1] for factor in nothing] == [1] * len(shape)
    assert not nothing[shape.index(max(shape))].any()


def test_files_of_small_layers_have_the_fields_they_had():
    edit = Rewrite.of(1, torch.rand(4, 3), 2.0)
    assert list(as_entry("a", edit)) == ["name", "kind", "head", "factors", "strength"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"combinations": (3, 20)},
        {"combinations": (3, 3)},
        {"combinations": (-1, 3)},
        {"shares": (0.5,)},
        {"num_experts": ()},
        {"factors": (((1.0,),) * 4, ((1.0,),) * 5)},
    ],
)
def test_listed_means_that_do_not_fit_are_refused(wrong):
    fields = {"head": 1, "num_experts": (4, 5), "combinations": (3, 19), "shares": (0.5, 0.5)}
    Rewrite(**fields).check((4, 5), 4)
    with pytest.raises(UserError, match="Rewrite: expected"):
        Rewrite(**{**fields, **wrong}).check((4, 5), 4)


REWRITE = """
import os, sys, torch
from mumoe.editing.edit_files import save_edits
from mumoe.editing.rewriting import mean_coefficients, moved_by, rewriting
from mumoe.editing.stack import EditStack
from mumoe.layers import MuMoE

def memory(key):
    lines = open('/proc/self/status').read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

def work(experts, path):
    torch.manual_seed(0)
    layer = MuMoE(16, 3, experts, rank=8, gate='topk', gate_options={{'k': 4}}).eval()
    x = torch.randn(200, 16)
    mean = mean_coefficients(layer, x.split(50), reading='{reading}')
    moved_by(mean, [a.double() for a in layer.coefficients(x)])
    stack = EditStack(layer)
    stack.add(rewriting(layer, 1, mean), 'bias')
    stack.preview(x)
    save_edits(path, stack)
    return stack['bias'].strength

work((1024, 8), sys.argv[1])
open('/proc/self/clear_refs', 'w').write('5')
before = memory('VmRSS')
assert work((1024, 1024), sys.argv[1]) == 1 << 20
print(memory('VmHWM') - before, os.path.getsize(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("reading", ["joint", "levels"])
def test_a_rewriting_of_a_million_combinations_stays_small(tmp_path, reading):
    code = REWRITE.format(reading=reading)
    command = [sys.executable, "-c", code, str(tmp_path / "edit.json")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    peak, size = map(int, found.stdout.split())
    assert peak < 100e6
    assert size < 1e6
