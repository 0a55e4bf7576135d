"""Blocks in the place of timm's MLPs, by timm's own argument."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.layers import GluMlp, Mlp
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mumoe
from mumoe.errors import UserError

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("options", [{}, {"factorization": "hadamard"}, {"factorization": "tr", "rank": 2}])
def test_a_vision_transformer_of_mixtures_learns_and_exports(options):
    mlp = partial(mumoe.MuMoEBlock, num_experts=8, **options)
    model = VisionTransformer(mlp_layer=mlp, proj_drop_rate=0.1, scale_mlp_norm=True, **SIZES)
    blocks = [block.mlp for block in model.blocks]
    assert all(type(block) is mumoe.MuMoEBlock for block in blocks)
    assert all(block.drop1.p == 0.1 and isinstance(block.norm, nn.LayerNorm) for block in blocks)
    images = torch.randn(4, 3, 32, 32)
    model(images).square().sum().backward()
    parts = [part for block in blocks for part in block.parts]
    gradients = [part.get_parameter(part.mode(0)[0]).grad for part in parts]
    assert all(bool(grad.isfinite().all()) and float(grad.abs().max()) > 0 for grad in gradients)
    model.eval()
    program = torch.export.export(model, (images,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    torch.testing.assert_close(program.module()(images[:3]), model(images[:3]), rtol=1e-4, atol=1e-5)


def test_by_default_a_block_has_the_parameters_of_the_mlp():
    for experts in (8, 64, (32, 4)):
        block = mumoe.MuMoEBlock(192, 768, num_experts=experts)
        assert abs(parameters(block) / parameters(Mlp(192, 768)) - 1) < 0.01
        gated = mumoe.MuMoEGatedBlock(192, 768, bias=True, num_experts=experts)
        assert abs(parameters(gated) / (3 * 192 * 768 + 2 * 768 + 192) - 1) < 0.01
    mixtures = VisionTransformer(mlp_layer=partial(mumoe.MuMoEBlock, num_experts=8), **SIZES)
    assert parameters(mixtures) == pytest.approx(parameters(VisionTransformer(**SIZES)), rel=0.01)


@pytest.mark.parametrize("kind", [mumoe.MuMoEBlock, mumoe.MuMoEGatedBlock])
def test_widths_norm_and_dropout_as_in_timm(kind):
    timms = Mlp(12) if kind is mumoe.MuMoEBlock else GluMlp(12)
    block = kind(12, num_experts=2)
    assert (block.in_features, block.hidden_features, block.out_features) == (12, 12, 12)
    assert timms(torch.randn(2, 12)).shape == block(torch.randn(2, 12)).shape
    block = kind(12, 16, 10, nn.ReLU, nn.LayerNorm, True, (0.25, nn.Dropout1d(0.5)), num_experts=2, rank=3)
    assert (type(block.act), block.norm.normalized_shape, block.drop1.p) == (nn.ReLU, (16,), 0.25)
    assert type(block.drop2) is nn.Dropout1d
    block.eval()
    x = torch.randn(3, 5, 12)
    y, (a,) = block(x, return_coefficients=True)
    assert (y.shape, a.shape) == ((3, 5, 10), (3, 5, 2))
    rows, shares = x.reshape(15, 12), a.reshape(15, 2)
    first, *second = [part(rows, [shares]) for part in block.parts[:-1]]
    hidden = first.relu() * second[0] if second else first.relu()
    torch.testing.assert_close(y.reshape(15, 10), block.fc2(block.norm(hidden), [shares]))


def test_mixer_takes_blocks_too():
    model = MlpMixer(
        mlp_layer=partial(mumoe.MuMoEBlock, num_experts=2),
        num_classes=5,
        img_size=32,
        patch_size=8,
        num_blocks=1,
        embed_dim=24,
    )
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_wrong_blocks():
    with pytest.raises(
        UserError, match=r"MuMoEBlock: expected a budget of at least .* Use fewer experts, or give a rank"
    ):
        mumoe.MuMoEBlock(8, 16, num_experts=4096)
    with pytest.raises(UserError, match="MuMoEGatedBlock: expected rank as one, or a list of 3, got"):
        mumoe.MuMoEGatedBlock(8, 16, num_experts=4, rank=[2, 3])
    with pytest.raises(UserError, match="MuMoEBlock: expected bias as True or False for all layers, got"):
        mumoe.MuMoEBlock(8, 16, num_experts=4, bias=(True, False))
    with pytest.raises(UserError, match="MuMoEBlock: expected hidden_features as an int >= 1, got 0"):
        mumoe.MuMoEBlock(8, 0, num_experts=4)
