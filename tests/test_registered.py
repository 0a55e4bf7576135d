"""A factorization and a gate from outside the package, one class each: contract, training, costs, export, fold."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mumoe
import test_contract as contract
from mumoe import cli, functional
from mumoe.costs import count_flops, count_parameters, rank_for_budget, spec_costs
from mumoe.deploy.formats import export
from mumoe.deploy.model import ImageClassifier
from mumoe.editing.expert_edits import Ablate, SetOutput
from mumoe.editing.rewriting import mean_coefficients, rewriting
from mumoe.editing.stack import EditStack
from mumoe.errors import UserError
from mumoe.factorizations import CP, FACTORIZATIONS, Factorization, register_factorization
from mumoe.gating import GATES, register_gate
from mumoe.training import TrainConfig, train
from tests_support import randomize
from training.made_up_training import make_data

SIZE = 2


class BlockTerm(Factorization):
    """Block-term decomposition: a sum of small Tucker blocks, all of whose ranks are 2. The rank is their number."""

    title = "BlockTermMuMoE"
    typical_rank = 64

    @classmethod
    def shapes(cls, inputs, outputs, num_experts, ranks):
        blocks = ranks["rank"]
        experts = {f"expert_factor_{level}": (blocks, size, SIZE) for level, size in enumerate(num_experts)}
        core = (blocks, SIZE, SIZE, *[SIZE] * len(num_experts))
        return {"core": core, "out_factor": (blocks, outputs, SIZE), "in_factor": (blocks, inputs, SIZE), **experts}

    @classmethod
    def count_flops(cls, inputs, outputs, num_experts, ranks, bias):
        mixing = SIZE * (inputs + outputs + sum(num_experts))
        return ranks["rank"] * (mixing + SIZE**2 * (SIZE ** len(num_experts) + 1))

    @classmethod
    def exact_rank(cls, outputs, inputs, num_experts):
        return math.ceil(min(outputs, inputs) / SIZE)

    def mode(self, level):
        return ("in_factor" if level is None else f"expert_factor_{level}"), 1

    def blocks(self):
        experts = [getattr(self, f"expert_factor_{level}") for level in range(len(self.num_experts))]
        factors = [self.out_factor, self.in_factor, *experts]
        return [(self.core[b], [factor[b] for factor in factors]) for b in range(len(self.core))]

    def forward(self, x, coefficients):
        return sum(functional.tucker_contract(x, coefficients, core, factors) for core, factors in self.blocks())

    def expert(self, index):
        mode = (slice(None), slice(None), *index)
        return self.to_dense()[mode]

    def to_dense(self):
        total = 0
        for core, factors in self.blocks():
            for place, factor in enumerate(factors):
                core = torch.tensordot(core, factor, dims=([place], [1])).movedim(-1, place)
            total = total + core
        return total

    def drawn(self):
        return [(self.core, SIZE, 2), (self.out_factor, SIZE, 1), (self.in_factor, self.in_factor.shape[1], 1)]

    @torch.no_grad()
    def copy_linear(self, weight, sigma):
        self.reset_parameters("paper", sigma)
        u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
        for parameter in (self.core, self.out_factor, self.in_factor):
            parameter.zero_()
        for k in range(min(len(s), SIZE * len(self.core))):
            block, place = divmod(k, SIZE)
            self.core[(block, place, place)] = s[k] / SIZE ** len(self.num_experts)
            self.out_factor[block, :, place], self.in_factor[block, :, place] = u[:, k], vt[k]

    def add_term(self, out, inputs, experts):
        count = experts[0].shape[1]
        state = {
            name: torch.cat([value, value.new_zeros(count, *value.shape[1:])]) for name, value in self.tensors().items()
        }
        state["core"][(slice(-count, None), *[0] * (state["core"].ndim - 1))] = 1
        state["out_factor"][-count:, :, 0], state["in_factor"][-count:, :, 0] = out, inputs
        for level, vectors in enumerate(experts):
            state[self.mode(level)[0]][-count:, :, 0] = vectors.mT
        return self.rebuilt(state, {"rank": len(state["core"])})


class Squared(nn.Module):
    """Squares, divided by their sum."""

    def __init__(self, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, logits):
        squares = logits.square() + self.floor
        return squares / squares.sum(-1, keepdim=True)


@pytest.fixture(autouse=True)
def _registered():
    register_factorization("block-term")(BlockTerm)
    register_gate("squared")(Squared)
    yield
    del FACTORIZATIONS["block-term"], GATES["squared"]


CHECKS = [
    contract.test_export_with_a_dynamic_batch,
    contract.test_deepcopy_after_a_forward,
    contract.test_state_dict_round_trip_through_safetensors,
    contract.test_meta_device,
    contract.test_batch_of_one,
    contract.test_vmap,
    contract.test_autocast_keeps_the_gate_in_float32,
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", [("block-term", "entmax15", "batch"), ("cp", "squared", "layer")])
def test_contract_suite(check, case):
    check(*case)


@pytest.mark.parametrize("training", [True, False])
def test_contract_suite_in_both_modes(training):
    contract.test_first_and_second_derivatives("block-term", "squared", "batch", training)
    contract.test_empty_batch("block-term", "squared", "batch", training)
    contract.test_compile_without_a_graph_break("block-term", "squared", "batch", training)


def test_costs_and_specifications(capsys):
    layer = mumoe.MuMoE(7, 6, (4, 3), "block-term", 5, gate="squared").eval()
    assert layer.spec == "BlockTermMuMoE-r5-e4x3"
    assert mumoe.MuMoE.from_spec(layer.spec, 7, 6).factorization.ranks == {"rank": 5}
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    assert count_parameters("block-term", 7, 6, (4, 3), 5) == parameters == spec_costs(layer.spec, 7, 6).parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.randn(11, 7))
    assert 2 * 11 * count_flops("block-term", 7, 6, (4, 3), 5, gate=True) == counter.get_total_flops()
    sizes = {"in_features": 7, "out_features": 6, "num_experts": (4, 3)}
    assert rank_for_budget(parameters=parameters, factorization="block-term", **sizes) == 5
    assert (
        cli.main(
            [
                "cost",
                "--in-features",
                "7",
                "--out-features",
                "6",
                "--experts",
                "4",
                "3",
                "--ranks",
                "block-term=5",
                "--bias",
                "--gate",
            ]
        )
        == 0
    )
    cells = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert cells["block-term"][1:3] == ["5", str(parameters)]
    block = mumoe.MuMoEBlock(24, 96, num_experts=4, factorization="block-term")
    assert abs(sum(p.numel() for p in block.parameters()) / (2 * 24 * 96 + 120) - 1) < 0.1


@pytest.mark.parametrize("experts", [(5,), (4, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_upcycling_editing_and_folding(experts, bias):
    linear = nn.Linear(6, 4, bias=bias)
    x = torch.randn(9, 6)
    torch.testing.assert_close(mumoe.MuMoE.from_linear(linear, experts, "block-term").eval()(x), linear(x))
    layer = mumoe.MuMoE(6, 4, experts, "block-term", 3, bias=bias, gate="squared", dtype=torch.float64, norm="layer")
    randomize(layer).eval()
    stack = EditStack(layer)
    stack.add(rewriting(layer, 1, mean_coefficients(layer, x.double())))
    stack.add(SetOutput(tuple(1 for _ in experts), 0, 0.75))
    stack.add(Ablate(2, level=0))
    folded = stack.fold()
    assert type(folded.factorization) is BlockTerm
    with stack:
        torch.testing.assert_close(folded(x.double()), layer(x.double()))
        torch.testing.assert_close(folded.to_dense(), layer.to_dense())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(folded(x.double()), layer(x.double()))


@pytest.mark.slow
def test_training_and_export(tmp_path):
    head = "BlockTermMuMoE-r3-e3"
    small = {"data": "made-up", "batch_size": 16, "epochs": 1, "image_size": 32, "lr": 0.01}
    config = TrainConfig(
        backbone="test_vit",
        pretrained=False,
        mode="finetune",
        head=head,
        gate="squared",
        out=str(tmp_path / "run"),
        **small,
    )
    result = train(config, data=make_data(60), progress=False)
    model = ImageClassifier.from_run(tmp_path / "run")
    assert isinstance(model.head.layer.factorization, BlockTerm)
    assert isinstance(model.head.layer.gate.activations[0], Squared)
    assert result.head == head
    report = export(model, tmp_path / "model.onnx")
    images = torch.randn(3, 3, 32, 32)
    got = onnxruntime.InferenceSession(report.path).run(["logits"], {"images": images.numpy()})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(got, model(images).numpy(), atol=1e-4)


def test_names_and_titles_are_taken_once():
    for name, kind, words in (
        ("cp", BlockTerm, "expected a new name, got 'cp'"),
        ("other", CP, "expected a new title"),
    ):
        with pytest.raises(UserError, match=words):
            register_factorization(name)(kind)
