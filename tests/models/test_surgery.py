"""Every architecture of the presets: converted, equal under upcycling, trained, undone, to the bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mumoe
from models.tiny_networks import NETWORKS, network, output, relative
from mumoe import MuMoE, MuMoEBlock, MuMoEGatedBlock
from mumoe.errors import UserError
from mumoe.models.surgery import PRESETS, is_causal, named_targets, plan, replace_head, replace_modules


class Toy(nn.Module):
    """Shared and sequential modules, in a network of no known architecture."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 10), nn.PReLU(), nn.Dropout(0.3), nn.Linear(10, 6), nn.Dropout(0.1))
        self.again = self.first
        self.norm = nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.again(self.first(x))))


@pytest.mark.parametrize("name", NETWORKS)
def test_upcycled_trained_and_undone(name):
    model, x = network(name)
    before, state = output(model, x), copy.deepcopy(model.state_dict())
    modules = dict(model.named_modules())
    surgery = replace_modules(model, num_experts=4, init="upcycle")
    assert len(surgery.replaced) >= 2
    assert all(isinstance(module, MuMoEBlock) for module in surgery.replaced.values())
    assert relative(output(model, x), before) < 1e-4

    model.train()
    optimizer = torch.optim.SGD(surgery.parameters(), lr=0.1)
    y = model(x)
    (y if isinstance(y, Tensor) else y[0]).square().mean().backward()
    optimizer.step()
    model.zero_grad(set_to_none=True)
    model.eval()
    assert relative(output(model, x), before) > 1e-3

    surgery.undo()
    assert dict(model.named_modules()) == modules  # the very same objects, under the same names
    assert list(model.state_dict()) == list(state)
    for key, value in model.state_dict().items():  # BatchNorm statistics too: none of these networks has any
        assert torch.equal(value, state[key]), key
    assert torch.equal(output(model, x), before)


@pytest.mark.parametrize("factorization", ["cp", "tucker", "tt", "tr", "dense"])
@pytest.mark.parametrize("name", ["vit", "llama"])
def test_every_factorization_keeps_the_function(name, factorization):
    model, x = network(name)
    before = output(model, x)
    replace_modules(model, num_experts=(3, 2), factorization=factorization, init="upcycle")
    assert relative(output(model, x), before) < 1e-4


def test_linear_layers_conv1d_and_tied_heads():
    model, x = network("gpt2")
    before = output(model, x)
    planned = plan(model, "transformer.h.*.attn.c_*", "lm_head", num_experts=4, init="upcycle")
    notes = {target.name: target.notes for target in planned.targets}
    assert notes.pop("lm_head") == ("no longer tied to transformer.wte.weight",)
    assert set(notes) == {f"transformer.h.{n}.attn.c_{part}" for n in (0, 1) for part in ("attn", "proj")}
    predicted = planned.parameters
    with planned.apply() as surgery:
        assert all(type(module) is MuMoE for module in surgery.replaced.values())
        assert relative(output(model, x), before) < 1e-4
        assert sum(parameter.numel() for parameter in model.parameters()) == predicted[1]
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(output(model, x), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_of_the_plan_are_those_of_the_modules(name):
    model, x = network(name)
    before = sum(parameter.numel() for parameter in model.parameters())
    planned = plan(model, num_experts=2, example=x)
    assert planned.parameters[0] == before
    surgery = planned.apply()
    assert sum(parameter.numel() for parameter in model.parameters()) == planned.parameters[1]
    for target in planned.targets:
        module = surgery.replaced[target.name]
        assert sum(parameter.numel() for parameter in module.parameters()) == target.parameters_after
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    expected = planned.flops + sum(target.flops_after - target.flops_before for target in planned.targets)
    assert counter.get_total_flops() // 2 == expected


def test_a_plan_is_drawn_with_every_row(capsys):
    planned = plan(network("vit")[0], num_experts=2)
    planned.show()
    drawn = capsys.readouterr().out
    for row in planned.rows():
        assert row["parameters"] in drawn
    assert "FLOPs: multiply-adds of" in drawn


def test_parameters_are_matched_at_ordinary_sizes():
    model = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512))})
    for factorization in ("cp", "tr"):
        (target,) = plan(model, "mlp", num_experts=128, factorization=factorization).targets
        assert abs(target.parameters_after / target.parameters_before - 1) < 0.005
    (exact,) = plan(model, "mlp", num_experts=8, init="upcycle").targets
    assert exact.parameters_after > 1.2 * exact.parameters_before
    assert exact.layer == "CPMuMoE-r513/512-e8"


def test_shared_modules_are_replaced_once_and_dropout_is_kept():
    model = Toy()
    x = torch.randn(5, 6)
    before = output(model, x)
    surgery = replace_modules(model, "again", num_experts=3, init="upcycle")
    assert set(surgery.replaced) == {"first", "again"}
    assert model.first is model.again
    assert isinstance(model.first, MuMoEBlock)
    assert [m.p for m in model.first.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.1]
    assert relative(output(model, x), before) < 1e-5
    assert "used 2 times" in surgery.table()
    with torch.no_grad():
        model.first.drop2.p = 1.0
        assert not model.first.train()(x).any()
    model.first.eval()
    with torch.no_grad():  # a nonlinearity that learns is a copy, too
        for parameter in surgery.parameters():
            parameter.add_(1)
    surgery.undo()
    assert torch.equal(output(model, x), before)
    assert model.first is model.again
    assert type(model.first) is nn.Sequential


def test_undo_follows_the_training_mode_and_order():
    model = Toy().train()
    first = replace_modules(model, "fc", num_experts=3, rank=2)
    model.eval()
    second = replace_modules(model, "first", num_experts=3)
    with pytest.raises(UserError, match="which is a MuMoE already: undo the surgery that made it first"):
        plan(model, "fc", num_experts=3)
    model.fc = nn.Identity()
    with pytest.raises(UserError, match="undo: expected 'fc' to be as this surgery left it, got another module"):
        first.undo()
    model.fc = first.replaced["fc"]
    second.undo()
    first.undo()
    first.undo()
    assert not any(module.training for module in model.modules())


def test_a_failed_plan_changes_nothing_and_an_exception_undoes():
    model = Toy()
    modules = dict(model.named_modules())
    with pytest.raises(UserError, match=r"^fc: rank_for_budget: expected a budget of at least"):
        replace_modules(model, "first", "fc", num_experts=8)
    assert dict(model.named_modules()) == modules
    with pytest.raises(KeyError), replace_modules(model, "first", num_experts=2):
        raise KeyError
    assert dict(model.named_modules()) == modules


def test_heads():
    model, x = network("vit")
    before = output(model, x)
    with replace_head(model, num_experts=4, init="upcycle") as surgery:
        assert list(surgery.replaced) == ["head"]
        assert relative(output(model, x), before) < 1e-4
    with replace_head(model, num_experts=4, rank=2, num_classes=7):
        assert output(model, x).shape == (2, 7)
        assert model.num_classes == 7
    assert model.num_classes == 5
    assert torch.equal(output(model, x), before)
    other, x = network("hf-vit")
    with replace_head(other, num_experts=4, rank=2, num_classes=7):
        assert other.config.num_labels == 7
        loss = other(x, labels=torch.tensor([6, 0])).loss
        assert loss.isfinite()
    assert other.config.num_labels == 5
    with pytest.raises(UserError, match="expected a model with a linear classifier, got Sequential without one"):
        replace_head(nn.Sequential(nn.ReLU()), num_experts=2)


class WithClassifier(nn.Module):
    """As torchvision's MobileNet: the classifier is the last layer of what would pass for an MLP."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(6, 8), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x):
        return self.classifier(x)


@pytest.mark.parametrize("name", ["vit", "hf-vit", "classifier"])
def test_a_head_by_specification(name):
    model, x = (WithClassifier(), torch.randn(4, 6)) if name == "classifier" else network(name)
    for spec in ("CPMuMoE-r3-e4", "TRMuMoE-r2-e4x2", "HadamardMuMoE-e4", "CPMuMoE-e2"):
        with mumoe.replace_head(model, spec, num_classes=7) as surgery:
            (head,) = surgery.replaced.values()
            assert list(surgery.replaced) == [{"vit": "head", "hf-vit": "classifier"}.get(name, "classifier.3")]
            assert isinstance(head, MuMoE)
            assert head.spec == spec or spec == "CPMuMoE-e2"
            assert output(model, x).shape == (len(x), 7)
    for wrong, words in (
        ("CPMuMoE", "replace_head: expected a text like"),
        ("linear", "expected a mixture, got 'linear'"),
    ):
        with pytest.raises(UserError, match=words):
            mumoe.replace_head(model, wrong)
    with pytest.raises(UserError, match="got one of these as well. Give the specification alone"):
        mumoe.replace_head(model, "CPMuMoE-r3-e4", rank=3)
    with pytest.raises(UserError, match="expected a specification or num_experts, got none"):
        mumoe.replace_head(model)


@pytest.mark.parametrize(("name", "causal"), [("gpt2", True), ("llama", True), ("hf-vit", False), ("vit", False)])
def test_batch_statistics_are_refused_in_causal_models(name, causal):
    model, _ = network(name)
    (target, *_) = plan(model, num_experts=2).targets
    assert is_causal(model, target.name) is causal
    assert target.options.norm == ("layer" if causal else "batch")
    if causal:
        with pytest.raises(UserError, match=f"expected norm='layer' or 'none' for '{target.name}' of a causal model"):
            plan(model, num_experts=2, norm="batch")
        assert plan(model, num_experts=2, norm="batch", causal=False).targets[0].options.norm == "batch"


def test_later_tokens_never_change_earlier_logits():
    for name in ("gpt2", "llama"):
        model, x = network(name)
        replace_modules(model, num_experts=4)
        changed = x.clone()
        changed[:, 6:] = (changed[:, 6:] + 7) % 50
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with torch.no_grad():
            a, b = model(x).logits, model(changed).logits
        assert torch.equal(a[:, :6], b[:, :6]), name
        assert not torch.equal(a[:, 6:], b[:, 6:])


def test_named_targets():
    model, _ = network("gpt2")
    targets = named_targets(model)
    assert targets["transformer.h.0.mlp"] == "mlp 32 -> 128 -> 32"
    assert targets["transformer.h.0.mlp.c_fc"] == "linear 32 -> 128"
    assert targets["lm_head"] == "linear 32 -> 50"
    assert named_targets(network("llama")[0])["model.layers.1.mlp"] == "gated mlp 32 -> 48 -> 32"
    assert "linear1" not in named_targets(nn.TransformerEncoderLayer(8, 2))


class Odd(nn.Module):
    """Has an MLP's children and does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.activation_fn = nn.Linear(4, 8), nn.Linear(8, 4), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.activation_fn(self.fc1(x)))


ERRORS = {
    "nothing": (
        ("blocks.*.mpl",),
        {},
        "replace_modules: nothing matches 'blocks.*.mpl'. Closest: 'blocks.0.mlp'. All targets: named_targets(model).",
    ),
    "unsupported": (
        ("blocks.*.norm1",),
        {},
        "replace_modules: expected 'blocks.*.norm1' to match replaceable modules, got 'blocks.0.norm1', which is "
        "LayerNorm, which is not one of the supported modules: nn.Linear",
    ),
    "overlap": (
        ("blocks.*.mlp", "blocks.1.mlp.fc1"),
        {},
        "replace_modules: expected disjoint targets, got 'blocks.1.mlp.fc1' within 'blocks.1.mlp'.",
    ),
    "preset": (
        (),
        {"preset": "vitt"},
        "replace_modules: expected a preset out of auto, clip-vision, convnext, gpt2, hf-vit, llama, mixer, vit, got "
        "'vitt'. Did you mean 'vit'?",
    ),
    "architecture": (
        (),
        {"preset": "gpt2"},
        "replace_modules: expected a model of preset 'gpt2' (Hugging Face's GPT-2), got VisionTransformer.",
    ),
    "init": (
        ("head",),
        {"init": "upcycled"},
        "replace_modules: expected a init out of random, upcycle, got 'upcycled'. Did you mean 'upcycle'?",
    ),
    "rank": (
        ("blocks.*.mlp",),
        {"rank": [3]},
        "blocks.0.mlp: replace_modules: expected rank as one, or a list of 2 for a mlp, got [3].",
    ),
    "rank text": (("head",), {"rank": "half"}, "head: replace_modules: expected rank as a number, names, a list"),
    "factorization": (
        ("head",),
        {"factorization": "tuker"},
        "replace_modules: expected a factorization out of cp, dense, hadamard, tr, tt, tucker, got 'tuker'.",
    ),
    "sigma": (("head",), {"sigma": 0.1}, "replace_modules: expected sigma with init='upcycle' alone"),
    "example": (("head",), {"example": torch.zeros(2, 2)}, "plan: expected an example that VisionTransformer takes"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    patterns, options, message = ERRORS[case]
    model, _ = network("vit")
    with pytest.raises(UserError) as caught:
        plan(model, *patterns, num_experts=2, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_only_looks_like_an_mlp_is_refused():
    model = nn.ModuleDict({"odd": Odd()})
    with pytest.raises(UserError, match="which is Odd, which looks like mlp 4 -> 8 -> 4 but computes something else"):
        plan(model, "odd", num_experts=2)
    with pytest.raises(UserError, match="expected a model of preset 'auto'"):
        plan(model, num_experts=2)
    assert set(named_targets(model)) == {"odd.fc1", "odd.fc2"}


def test_a_rank_that_is_too_small_warns_with_the_module_and_the_error():
    model, _ = network("vit")
    with pytest.warns(UserWarning, match=r"^blocks.1.mlp: MuMoE.from_linear: .* with relative error 0\.\d+"):
        replace_modules(model, "blocks.1.mlp", num_experts=2, rank=3, init="upcycle")


def test_presets_find_their_architecture_within_another_model():
    model = nn.Sequential(network("vit")[0], nn.Linear(5, 2))
    names = [target.name for target in plan(model, num_experts=2).targets]
    assert names == ["0.blocks.0.mlp", "0.blocks.1.mlp"]
    assert set(NETWORKS) - {"convnext-conv"} == set(PRESETS)


def test_the_documentation_runs(tmp_path, monkeypatch, capsys):
    blocks = (Path(__file__).parents[2] / "docs" / "surgery.md").read_text().split("```python\n")[1:]
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names = {}
    with torch.no_grad():
        for block in blocks:
            exec(compile(block.partition("```")[0], "surgery.md", "exec"), names)
    assert type(names["vit"].blocks[0].mlp) is MuMoEBlock
    assert names["model"].num_classes == 7
    assert "whole network, divergence" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["gpt2", "llama", "convnext-conv"])
def test_blocks_compile_whole_copy_and_run_in_bfloat16(name):
    model, _ = network(name)
    (module, *_) = replace_modules(model, num_experts=3).replaced.values()
    width = module.in_features
    x = torch.randn(2, width, 3, 3) if name == "convnext-conv" else torch.randn(2, 9, width)
    with torch.no_grad():
        y = module(x)
        assert relative(torch.compile(module, backend="eager", fullgraph=True)(x), y) < 1e-5
        assert torch.equal(copy.deepcopy(module)(x), y)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative(module(x).float(), y) < 0.05
        y, (coefficients,) = module(x, return_coefficients=True)
    assert y.shape == x.shape
    assert coefficients.shape == ((2, 3, 3, 3) if name == "convnext-conv" else (2, 9, 3))


def test_gated_block_by_hand():
    block = MuMoEGatedBlock(3, 4, 2, num_experts=2, factorization="cp", rank=[2, 3, 4], bias=True).eval()
    x = torch.randn(5, 3)
    y, (a,) = block(x, return_coefficients=True)
    expected = torch.zeros(5, 2)
    for row in range(5):
        one = torch.cat([x[row], torch.ones(1)])
        mixed = [sum(a[row, n] * part.expert((n,)) for n in range(2)) for part in (block.fc_gate, block.fc1, block.fc2)]
        hidden = nn.functional.silu(mixed[0] @ one) * (mixed[1] @ one)
        expected[row] = mixed[2] @ torch.cat([hidden, torch.ones(1)])
    assert torch.allclose(y, expected, atol=1e-6)
    with block.ablate(1):
        assert not torch.allclose(block(x), y)
    with pytest.raises(UserError, match="expected rank as one, or a list of 3"):
        MuMoEGatedBlock(3, 4, 2, num_experts=2, rank=[2, 3])
