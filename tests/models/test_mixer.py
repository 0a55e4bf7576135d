"""MLP-Mixer: the sizes of the paper by formula and by module, and the blocks where they belong."""

import dataclasses

import pytest
import torch

from mumoe.analysis import expert_layers
from mumoe.errors import UserError
from mumoe.models.block_specs import MLP, BlockSpec
from mumoe.models.mixer import MixerShape, create_mixer

SMALL = MixerShape(image_size=16, patch_size=4, depth=2, width=24, token_hidden=12, channel_hidden=96)
S16 = 18_528_264
PAIRS = [("CPMuMoE-e128", "layer"), ("CPMuMoE-e128", "block"), ("CPMuMoE-e64", "block"), ("TRMuMoE-e64", "block")]
PAIRS += [("TRMuMoE-e128", "layer"), ("TTMuMoE-e64", "block")]


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_paper(mlp: str, **options) -> int:
    with torch.device("meta"):
        return size(create_mixer(mlp, **options))


def test_the_ordinary_mixer_is_timms():
    import timm

    with torch.device("meta"):
        assert on_paper("mlp") == size(timm.create_model("mixer_s16_224")) == S16


@pytest.mark.parametrize(("mlp", "wiring"), PAIRS)
def test_a_pair_has_equally_many_parameters(mlp, wiring):
    """By module, and by the formulas of the blocks."""
    found = on_paper(mlp, wiring=wiring)
    assert abs(found / S16 - 1) < 0.01
    count, plain = BlockSpec.parse(mlp, wiring).parameters, BlockSpec.parse(MLP).parameters
    blocks = [(196, 256, 196), (512, 2048, 512)]
    assert found - S16 == 8 * sum(count(*sizes) - plain(*sizes) for sizes in blocks)


def test_the_first_version_replaced_an_mlp_by_one_mixture():
    """Rank 3.25 times the width, tokens (637) and channels (1664): 19M; two layers of it would have 79M."""
    mlp = BlockSpec.parse(MLP).parameters
    fixed = S16 - 8 * (mlp(196, 256, 196) + mlp(512, 2048, 512))
    token = 637 * (196 + 197 + 128) + 128 * 196
    channel = 1664 * (512 + 513 + 128) + 128 * 512
    assert fixed + 8 * (token + channel) == 19_652_880
    spec = BlockSpec.parse("CPMuMoE-r1664-e128", "layer")
    assert sum(p.numel() for p in _block(spec, 512, 2048).parameters()) == channel


def _block(spec: BlockSpec, width: int, hidden: int) -> torch.nn.Module:
    from mumoe.models.block_specs import build_block

    with torch.device("meta"):
        return build_block(spec, width, hidden, width)


def test_ranks_of_the_later_version_are_close_to_the_matched_ones():
    """0.75 x 512 = 384 (CP) and 0.19 x 512 = 97 (TR) for the channel MLP."""
    ranks = [BlockSpec.parse(f"{name}MuMoE-e64").matched(512, 2048, 512) for name in ("CP", "TR")]
    assert ranks == [394, 101]


@pytest.mark.parametrize("wiring", ["block", "layer"])
@pytest.mark.parametrize("mlp", ["CPMuMoE-e4", "TRMuMoE-r2-e4x2", "DenseMuMoE-e3"])
def test_every_mlp_is_a_mixture_and_learns(mlp, wiring):
    torch.manual_seed(0)
    model = create_mixer(mlp, num_classes=5, shape=SMALL, wiring=wiring, dropout=0.1)
    layers = expert_layers(model)
    assert len(layers) == 4
    assert {layer.in_features for layer in layers.values()} == {16, 24}
    torch.nn.init.normal_(model.head.weight)  # timm's starts at zero
    logits = model(torch.randn(3, 3, 16, 16))
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    gates = [layer.gate.weights[0].grad for layer in layers.values()]
    assert all(bool(grad.abs().sum() > 0) for grad in gates)


def test_stochastic_depth_grows_with_depth():
    model = create_mixer("mlp", shape=dataclasses.replace(SMALL, depth=3), drop_path=0.1)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == [0.0, 0.05, 0.1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mlp": "mpl"}, "block: expected a text like CPMuMoE-r512-e128.* Or use 'mlp'"),
        ({"mlp": "CQMuMoE-e4"}, "Did you mean 'CPMuMoE'"),
        ({"wiring": "blok"}, "expected a wiring out of block, layer, got 'blok'. Did you mean 'block'?"),
        ({"shape": "mixer-s61"}, "Did you mean 'mixer-s16'?"),
        ({"shape": MixerShape(image_size=30)}, "expected an image_size that is a multiple of patch_size=16, got 30"),
        ({"shape": MixerShape(depth=0)}, "expected depth as a whole number >= 1, got 0"),
        ({"mlp": "CPMuMoE-e100000"}, "expected a budget of at least .* got 100,804. Use fewer experts"),
    ],
)
def test_wrong_calls_say_what_was_wrong(options, words):
    with pytest.raises(UserError, match=words), torch.device("meta"):
        create_mixer(**options)
