"""Distilling replaced modules: what is learnt, what is measured, what is left as it was."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from models.tiny_networks import network, output
from mumoe.errors import JobError, UserError
from mumoe.models.surgery import FitReport, fit, replace_modules


def images(count: int = 12) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(4, 3, 32, 32), torch.randint(5, (4,))) for _ in range(count)]


def test_a_block_learns_what_the_old_one_computed():
    model, x = network("vit")
    model.train()
    before, state = output(model, x), {key: value.clone() for key, value in model.state_dict().items()}
    surgery = replace_modules(model, num_experts=2, rank=24)
    report = fit(surgery, images(40), held_out=2, lr=1e-2, progress=False)
    assert report.steps == 38
    assert [block.name for block in report.blocks] == ["blocks.0.mlp", "blocks.1.mlp"]
    for block in report.blocks:
        assert block.before > 0.9
        assert block.after < 0.7 * block.before
    assert report.after.difference < 0.85 * report.before.difference
    assert report.after.divergence < report.before.divergence
    assert "whole network, agreement" in report.table()
    assert list(report.to_frame()["name"]) == ["blocks.0.mlp", "blocks.1.mlp"]
    assert FitReport.from_json(report.to_json()) == report
    assert surgery.active
    assert model.training
    assert surgery.replaced["blocks.0.mlp"].training
    surgery.undo()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(output(model, x), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_exact_copies_have_nothing_left_and_the_measures_agree_with_the_definition():
    model, x = network("hf-vit")
    labels = torch.tensor([1, 3])
    surgery = replace_modules(model, num_experts=3, init="upcycle")
    report = fit(
        surgery, [{"pixel_values": x}], held_out=[{"pixel_values": x, "labels": labels}], lr=0.0, progress=False
    )
    assert all(block.before < 1e-8 and block.after < 1e-8 for block in report.blocks)
    assert report.before.difference < 1e-5
    assert report.before.agreement == 1
    assert report.original_loss == pytest.approx(float(F.cross_entropy(output(model, x), labels)), rel=1e-5)

    surgery.undo()
    old = output(model, x).double()
    (name,) = replaced = ["vit.layers.1.mlp"]
    surgery = replace_modules(model, *replaced, num_experts=3, rank=2, norm="layer")
    seen: list[torch.Tensor] = []
    handle = surgery.replaced[name].register_forward_hook(lambda module, args, y: seen.extend((args[0], y)))
    new = output(model, x).double()
    handle.remove()
    with torch.no_grad():
        target = surgery.originals[name](seen[0])
    report = fit(surgery, [x], held_out=[x], lr=0.0, progress=False)
    assert report.before.difference == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-6)
    divergence = F.kl_div(new.log_softmax(-1), old.log_softmax(-1), log_target=True, reduction="batchmean")
    assert report.before.divergence == pytest.approx(float(divergence), rel=1e-6)
    rows = target.flatten(0, -2).double()
    expected = (seen[1] - target).double().square().sum() / (rows - rows.mean(0)).square().sum()
    assert report.blocks[0].before == pytest.approx(float(expected), rel=1e-5)
    assert report.before.loss is None


def test_a_causal_model_and_features_without_logits():
    model, _ = network("gpt2")
    tokens = torch.randint(2, 50, (3, 10))
    surgery = replace_modules(model, num_experts=2, rank=8)
    report = fit(surgery, [{"input_ids": tokens, "labels": tokens}] * 3, progress=False)
    surgery.undo()
    with torch.no_grad():
        assert report.original_loss == pytest.approx(float(model(tokens, labels=tokens).loss), rel=1e-5)
    model, x = network("clip-vision")
    report = fit(replace_modules(model, num_experts=2, rank=8), [x] * 3, progress=False)
    assert report.before.divergence is None
    assert report.before.difference > 0


def test_convolutional_blocks_and_several_epochs():
    model, _ = network("convnext-conv")
    report = fit(replace_modules(model, num_experts=2, rank=8), images(3), epochs=4, progress=False)
    assert report.steps == 8
    assert all(math.isfinite(block.after) and block.after < block.before for block in report.blocks)


def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = network("vit")
    surgery = replace_modules(model, "blocks.0.mlp", num_experts=2, rank=4)
    with pytest.raises(UserError, match="expected batches besides the held-out ones, got none"):
        fit(surgery, [x])
    with pytest.raises(UserError, match="expected at least one batch in batches, got none"):
        fit(surgery, [])
    with pytest.raises(UserError, match="expected re-iterable batches for several epochs, got an iterator"):
        fit(surgery, iter([x, x]), epochs=2)
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32)), batch_size=4, shuffle=True)
    with pytest.raises(UserError, match="with a loader that shuffles, got a number"):
        fit(surgery, loader, epochs=2)
    with pytest.raises(JobError, match=r"expected a finite loss of 'blocks.0.mlp', got (nan|inf). Lower lr"):
        fit(surgery, [x] * 4, lr=1e30, progress=False)
    assert model.blocks[0].mlp is surgery.replaced["blocks.0.mlp"]
    assert not [hook for module in model.modules() for hook in module._forward_hooks]
    surgery.undo()
    with pytest.raises(UserError, match="got one that was undone"):
        fit(surgery, [x, x])
    assert isinstance(model.blocks[0].mlp.fc1, nn.Linear)
