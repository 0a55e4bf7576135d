"""What a network reads, computes or hooks beyond calling its modules: replaced exactly, or refused in one line."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from models.tiny_networks import network, output, relative
from mumoe import MuMoE
from mumoe.errors import UserError
from mumoe.models.surgery import named_targets, plan, replace_modules

IMAGE = (2, 3, 32, 32)


def t5() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 30}
    tokens = torch.randint(2, 30, (2, 5))
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))
    return model.eval(), {"input_ids": tokens, "decoder_input_ids": tokens}


VIT = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32, "num_classes": 3}
READERS = {
    "beit_base_patch16_224": (VIT, "blocks.0.attn.qkv", "Attention, which reads qkv.weight"),
    "eva02_tiny_patch14_224": ({**VIT, "patch_size": 8, "qkv_fused": True}, "blocks.0.attn.qkv", "reads qkv.weight"),
    "swinv2_tiny_window8_256": (
        {"img_size": 32, "embed_dim": 8, "depths": (1,), "num_heads": (2,), "window_size": 4, "num_classes": 3},
        "layers.0.blocks.0.attn.qkv",
        "WindowAttention, which reads qkv.weight",
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_timm_parents_that_read_a_weight_are_refused(name: str) -> None:
    arguments, target, message = READERS[name]
    model = timm.create_model(name, **arguments).eval()
    assert target not in named_targets(model)
    with pytest.raises(UserError) as error:
        plan(model, target, num_experts=2)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", READERS)
def test_all_that_timm_is_offered_runs(name: str) -> None:
    model = timm.create_model(name, **READERS[name][0]).eval()
    offered = list(named_targets(model))
    assert len(offered) > 2
    before = output(model, torch.ones(IMAGE))
    for target in offered:
        with replace_modules(model, target, num_experts=2, init="upcycle"):
            assert relative(output(model, torch.ones(IMAGE)), before) < 1e-3, target


def test_all_that_t5_is_offered_runs() -> None:
    model, tokens = t5()
    offered = named_targets(model)
    assert not [name for name in offered if name.endswith(".wo")]
    assert {name.rpartition(".")[2] for name in offered} == {"q", "k", "v", "o", "wi", "lm_head"}
    with pytest.raises(UserError, match=r"DenseReluDense.wo', which is within T5DenseActDense, which reads wo.weight"):
        plan(model, "encoder.*.wo", num_experts=2)
    with torch.no_grad():
        before = model(**tokens).logits
        for target in offered:
            with replace_modules(model, target, num_experts=2, init="upcycle"):
                assert relative(model(**tokens).logits, before) < 1e-3, target


class Reader(nn.Module):
    """Reads its children in ways that are harder to see."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.fc, self.plain = nn.Linear(4, 4), nn.Linear(4, 4)
        self.layers = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(4, 4)})])

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.how)(x)

    def hidden(self, x: Tensor) -> Tensor:
        return self.plain(x) @ vars(self)["_modules"]["fc"].weight


class Alias(Reader):
    def forward(self, x: Tensor) -> Tensor:
        layer = self.fc
        return self.plain(x) @ layer.weight


class Method(Reader):
    def forward(self, x: Tensor) -> Tensor:
        return self.helper(x)

    def helper(self, x: Tensor) -> Tensor:
        return self.plain(x) @ self.matrix

    @property
    def matrix(self) -> Tensor:
        return self.fc.weight


class Child(Method):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Loop(Reader):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.plain(x) @ layer["fc"].weight
        return x


@pytest.mark.parametrize(
    ("kind", "target"), [(Alias, "0.fc"), (Method, "0.fc"), (Child, "0.fc"), (Loop, "0.layers.0.fc")]
)
def test_reads_are_found_without_an_example(kind: type[Reader], target: str) -> None:
    model = nn.Sequential(kind(""))
    offered = set(named_targets(model))
    assert target not in offered
    assert "0.plain" in offered


def test_a_read_that_no_source_shows_is_found_with_an_example() -> None:
    model, x = nn.Sequential(Reader("hidden")), torch.ones(2, 4)
    before = model(x)
    message = "plan: expected modules that are only called, got '0.fc', whose 'weight' the model reads. Leave it out."
    with pytest.raises(UserError) as error:
        plan(model, "0.fc", num_experts=2, example=x)
    assert str(error.value) == message
    assert torch.equal(model(x), before)
    assert plan(model, "0.plain", num_experts=2, example=x).targets[0].rows == 2


# Computed weights

COMPUTED = {
    "weight_norm": lambda layer: weight_norm(layer),
    "spectral_norm": lambda layer: spectral_norm(layer),
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "prune twice": lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.3),
    "prune bias": lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
    "parametrized weight_norm": lambda layer: parametrizations.weight_norm(layer),
    "parametrized spectral_norm": lambda layer: parametrizations.spectral_norm(layer),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer),
}


def changed(layer: nn.Module) -> nn.Module:
    """Its own parameters changed since the hook last ran, as after an optimizer step or a loaded checkpoint."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(3).add_(0.5 * torch.randn_like(parameter))
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_computed_weight_is_copied_as_the_layer_computes_it(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    layer = changed(COMPUTED[kind](nn.Linear(6, 6)))
    model = nn.Sequential(layer, nn.Linear(6, 2)).train(training)
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(5, 6)
    surgery = plan(model, "0", num_experts=3, init="upcycle").apply()
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict(prefix="0.").items())
    with torch.no_grad():
        model.eval()
        found = model(x)
        surgery.undo()
        model.eval()
        expected = model(x)
    assert float(expected.abs().max()) > 0.1
    assert relative(found, expected) < 1e-4
    assert model[0] is layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_inside_an_mlp(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"mlp": nn.Sequential(COMPUTED[kind](nn.Linear(6, 6)), nn.GELU(), nn.Linear(6, 2))})
    changed(model["mlp"][0])
    planned = plan(model, "mlp", num_experts=3, init="upcycle")
    changed(model["mlp"][0])  # also between the plan and its application
    x = torch.randn(5, 6)
    surgery = planned.apply()
    found = model["mlp"].eval()(x)
    surgery.undo()
    assert relative(found.detach(), model["mlp"](x).detach()) < 1e-4


def test_a_weight_that_an_unknown_hook_makes_is_refused_for_upcycling() -> None:
    layer = nn.Linear(4, 4)
    raw = layer.weight
    del layer._parameters["weight"]
    layer.raw, layer.weight = raw, raw.detach().clone()
    layer.register_forward_pre_hook(lambda module, args: setattr(module, "weight", 2 * module.raw))
    model = nn.Sequential(layer)
    with pytest.raises(UserError, match="expected a layer that computes with its own weight, got Linear whose"):
        replace_modules(model, "0", num_experts=2, init="upcycle")
    assert model[0] is layer
    replace_modules(model, "0", num_experts=2, rank=2)
    assert type(model[0]) is MuMoE


def test_a_layer_with_another_forward_is_refused() -> None:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x + 1  # as some libraries wrap layers in place
    assert named_targets(nn.Sequential(layer)) == {}
    with pytest.raises(UserError, match="Linear, which looks like linear 4 -> 4 but computes something else"):
        plan(nn.Sequential(layer), "0", num_experts=2)


# Hooks


def hooked() -> tuple[nn.Module, Tensor, list[str]]:
    model, x = network("vit")
    calls: list[str] = []
    mlp = model.blocks[0].mlp
    mlp.register_forward_hook(lambda *_: calls.append("forward"))
    mlp.register_forward_pre_hook(lambda *_: calls.append("pre"))
    mlp.act.register_forward_hook(lambda *_: calls.append("act"))
    mlp.fc2.register_full_backward_hook(lambda *_: calls.append("backward"))
    model.register_forward_hook(lambda *_: calls.append("model"))
    return model, x, calls


def test_nothing_that_is_tried_out_fires_hooks() -> None:
    model, x, calls = hooked()
    handle = register_module_forward_hook(lambda *_: calls.append("global"))
    try:
        named_targets(model)
        planned = plan(model, num_experts=2, init="upcycle", example=x)
        planned.apply()
        assert calls == []
        model(x)
        assert "global" in calls
        assert "model" in calls
    finally:
        handle.remove()


def test_hooks_rest_while_replaced_and_run_again_after_undo() -> None:
    model, x, calls = hooked()
    output(model, x)
    before = list(calls)
    assert sorted(before) == ["act", "forward", "model", "pre"]
    planned = plan(model, num_experts=2)
    assert planned.targets[0].notes == ("its 4 hooks do not run until undo",)
    assert planned.targets[1].notes == ()
    assert "its 4 hooks do not run until undo" in planned.table()
    surgery = planned.apply()
    calls.clear()
    output(model, x)
    assert calls == ["model"]
    surgery.undo()
    calls.clear()
    output(model, x)
    assert calls == before
    calls.clear()
    model(x).sum().backward()
    assert "backward" in calls
