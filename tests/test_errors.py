"""Every user mistake gets one clear line: who, expected, got, remedy."""

import copy

import pytest
import torch
from torch import nn

import mumoe
from mumoe.errors import UserError, nearest, require, unknown_name
from mumoe.factorizations import CP, register_factorization
from mumoe.gating import register_gate


def make(**options):
    return mumoe.MuMoE(8, 5, **{"num_experts": 4, "factorization": "cp", "rank": 3, **options})


def message(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    return text


def test_wrong_width():
    layer = mumoe.MuMoE(768, 5, 4, "cp", 3)
    assert message(lambda: layer(torch.randn(8, 197, 512))) == (
        "MuMoE: expected x.shape[-1] == in_features == 768, got 512 (x.shape=(8, 197, 512)). "
        "Set in_features=512 or project x first."
    )
    assert message(lambda: layer(torch.tensor(1.0))).startswith("MuMoE: expected x.shape[-1] == in_features == 768")
    assert message(lambda: layer.coefficients(torch.randn(2, 3))).startswith("MuMoE: expected x.shape[-1]")
    assert message(lambda: mumoe.SparseMoE(8, 5, 4)(torch.randn(2, 3))).startswith("SparseMoE: expected x.shape[-1]")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_wrong_dtype(dtype):
    text = message(lambda: make()(torch.ones(4, 8, dtype=dtype)))
    assert text == (
        f"MuMoE: expected x.dtype == torch.float32 as the weights have, got {dtype}. "
        f"Use x.to(torch.float32), layer.to({dtype}) or torch.autocast."
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"factorization": "tuker"}, "expected a factorization out of cp, dense, hadamard, tr, tt, tucker, got 'tuker'. Did you mean 'tucker'?"),
        ({"gate": "entmax-15"}, "got 'entmax-15'. Did you mean 'entmax15'?"),
        ({"gate": "zzz"}, "got 'zzz'. Use one of these."),
        ({"norm": "bach"}, "expected a norm out of batch, layer, none, got 'bach'. Did you mean 'batch'?"),
        ({"init": "papr"}, "expected a init out of paper, scaled, uniform, zero, got 'papr'. Did you mean 'paper'?"),
        ({"gate_init": "zero"}, "Did you mean 'zeros'?"),
        ({"rank": 0}, "MuMoE: expected rank as an int >= 1, got 0. Give a positive whole number."),
        ({"rank": 2.5}, "MuMoE: expected rank as an int >= 1, got 2.5."),
        ({"rank": None}, "expected a rank for factorization='cp', got none. Give rank=..., or solve it with mumoe.costs.rank_for_budget."),
        ({"rank": {"rnk": 3}}, "expected a rank name of 'cp' out of rank, got 'rnk'. Did you mean 'rank'?"),
        ({"factorization": "tucker", "rank": {"out": 3, "in": 3}}, "expected rank['experts'] for factorization='tucker'"),
        ({"factorization": "tucker", "rank": {"out": 3, "in": 3, "experts": (2, 2)}}, "expected rank['experts'] as an int, or 1 of them for 1 levels, got (2, 2)"),
        ({"factorization": "tr", "rank": {"in-expert": 3}}, "expected rank['out-in'] for factorization='tr'"),
        ({"factorization": "tr", "rank": {"out-in": 3, "expert-expert": (2, 2)}}, "expected rank['expert-expert'] as an int, or 0 of them for 1 levels, got (2, 2)"),
        ({"factorization": "tr", "rank": {"out-in": 3, "in-experts": 2}}, "Did you mean 'in-expert'?"),
        ({"factorization": "tt", "rank": {"out-in": 3, "expert-out": 2}}, "expected rank['expert-out'] == 1 for a tensor train, got 2."),
        ({"factorization": "dense", "rank": 3}, "expected no rank for factorization='dense', got 3. Leave it out."),
        ({"num_experts": 0}, "MuMoE: expected num_experts as an int >= 1, got 0. Give a positive whole number."),
        ({"num_experts": (4, -1)}, "MuMoE: expected num_experts as an int >= 1, got -1."),
        ({"num_experts": ()}, "expected num_experts of at least one level, got ()."),
        ({"num_experts": 2.5}, "expected num_experts as an int, or one int per level, got 2.5."),
        ({"sigma": (1.0, 0.0)}, "expected sigma with one value for each of 1 levels, got (1.0, 0.0)."),
        ({"gate": "topk", "gate_options": {"kk": 3}}, "expected gate_options of gate='topk', got 'kk'. Did you mean 'k'?"),
        ({"gate": "topk", "gate_options": {"k": 0}}, "TopK: expected k >= 1, got 0."),
        ({"gate": "entmax", "gate_options": {"alpha": 1}}, "Entmax: expected 1 < alpha <= 2, got 1."),
        ({"gate": "entmax", "gate_options": {"alpha": 2, "learnable": True}}, "Entmax: expected 1 < alpha < 2, got 2."),
        ({"gate": "softrank", "gate_options": {"regularization": 0}}, "SoftRank: expected regularization > 0, got 0."),
        ({"gate": nn.Softmax(-1), "gate_options": {"k": 0}}, "expected no gate_options beside a gate module"),
    ],
)  # fmt: skip
def test_wrong_constructor_arguments(options, expected):
    assert expected in message(lambda: make(**options))


@pytest.mark.parametrize("size", [0, -3, 2.0, True])
def test_sizes_below_one(size):
    assert f"expected in_features as an int >= 1, got {size!r}" in message(lambda: mumoe.MuMoE(size, 5, 4, "cp", 3))
    assert f"expected out_features as an int >= 1, got {size!r}" in message(lambda: mumoe.MuMoE(5, size, 4, "cp", 3))


def test_training_a_batch_normalized_gate_on_one_row():
    layer = make()
    assert message(lambda: layer(torch.randn(1, 8))) == (
        "MuMoE: expected at least 2 rows to train a batch-normalized gate, got 1. "
        "Use a larger batch, norm='layer', or layer.eval()."
    )
    assert message(lambda: layer(torch.randn(8))).startswith("MuMoE: expected at least 2 rows")
    assert layer.eval()(torch.randn(8)).shape == (5,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_and_nothing_is_loaded(bad):
    model = nn.Sequential(nn.Linear(8, 8), make())
    state = copy.deepcopy(model.state_dict())
    state["1.factorization.in_factor"][2, 1] = bad
    before = model[1].factorization.in_factor.detach().clone()
    assert message(lambda: model.load_state_dict(state)) == (
        "MuMoE: expected finite weights, got 1 NaN or infinite values in '1.factorization.in_factor'. "
        "Load another checkpoint, or examine this one: with mumoe.layers.allow_non_finite()."
    )
    assert torch.equal(model[1].factorization.in_factor, before)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("CPMuMoE-512-e128", "expected a text like CPMuMoE-r512-e128 or TRMuMoE-r512-e128x4, got 'CPMuMoE-512-e128'"),
        ("CPMuMo-r512-e128", "got 'CPMuMo'. Did you mean 'CPMuMoE'?"),
        ("CPMuMoE-r5x6-e128", "expected one rank for 1 levels of 'cp', got 5x6"),
        (
            "TRMuMoE-r5x6-e128",
            "expected one rank or 3 (in order: out-in, in-expert, expert-expert, expert-out) for 1 levels of 'tr', got 5x6",
        ),
        ("CPMuMoE-e128", "expected a rank for factorization='cp'"),
        ("CPMuMoE-r0-e128", "expected rank as an int >= 1, got 0"),
    ],
)
def test_wrong_specifications(spec, expected):
    assert expected in message(lambda: mumoe.MuMoE.from_spec(spec, 8, 5))


def test_other_wrong_calls():
    linear = nn.Linear(8, 5)
    assert "expected bias=True" in message(lambda: mumoe.MuMoE.from_linear(linear, 4, bias=False))
    assert "rank as one, or a list of 2" in message(lambda: mumoe.MuMoEBlock(8, 9, 5, num_experts=4, rank=[3]))
    assert "1 <= k <= num_experts == 4, got 5" in message(lambda: mumoe.SparseMoE(8, 5, 4, 5))
    assert "HighRankLinear: expected rank as an int >= 1, got 0" in message(lambda: mumoe.HighRankLinear(8, 5, 0))
    assert "expected a new name, got 'cp'" in message(lambda: register_factorization("cp")(CP))
    assert "expected a new name, got 'entmax15'" in message(lambda: register_gate("entmax15")(nn.Softmax))


def test_a_registered_gate_is_available_by_name(monkeypatch):
    from mumoe import gating

    monkeypatch.setattr(gating, "GATES", dict(gating.GATES))
    gating.register_gate("hard")(lambda: nn.Softmax(-1))
    assert isinstance(make(gate="hard").gate.activations[0], nn.Softmax)
    assert isinstance(make(gate=nn.Softmax(-1)).gate.activations[0], nn.Softmax)


def test_words_that_help():
    assert nearest("TUKER", ["cp", "tucker"]) == "tucker"
    assert nearest("zzz", ["cp", "tucker"]) is None
    assert "and 8 more" in str(unknown_name("x", "y", "q", [f"a{i}" for i in range(20)]))
    assert "pip install 'mumoe[vision]'" in message(lambda: require("no_such_package", "vision", "train"))
