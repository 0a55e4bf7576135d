"""timm's MLP-Mixer, with a mixture of experts in place of every token and channel MLP.

The sizes of S/16 are the defaults: 8 layers of width 512, a token MLP of 256 and a channel MLP of 2048, 16-pixel
patches of 224-pixel images, 18,528,264 parameters with 1,000 classes. Ranks are matched to each MLP separately, so
that the networks of a comparison have equally many parameters layer by layer.

Wirings. The first version of the paper replaces a two-layer MLP by one mixture without a nonlinearity. With 128
experts and a CP rank of 3.25 times the width, this gives 19,652,880 parameters, the paper's "19M"; a two-layer block
of that rank would have 79 million. This is ``wiring="layer"``. The later version has two layers under one gate with
64 experts: ``wiring="block"``, the default.

Source: Tolstikhin et al. 2021; Oldfield et al. 2024, appendix F, and the later version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from mumoe.errors import UserError
from mumoe.models.block_specs import BlockSpec, build_block, check_sizes, named_shape

__all__ = ["MIXERS", "MixerShape", "create_mixer"]


@dataclass(frozen=True)
class MixerShape:
    """Sizes of a Mixer.

    Attributes:
        image_size: Side of the images in pixels.
        patch_size: Side of a patch in pixels.
        depth: Layers, each with a token and a channel MLP.
        width: Channels.
        token_hidden: Hidden width of the token MLPs.
        channel_hidden: Hidden width of the channel MLPs.
    """

    image_size: int = 224
    patch_size: int = 16
    depth: int = 8
    width: int = 512
    token_hidden: int = 256
    channel_hidden: int = 2048

    def check(self) -> MixerShape:
        """Return the shape, or raise a one-line `UserError`."""
        check_sizes(vars(self), "mixer")
        if self.image_size % self.patch_size:
            raise UserError(
                f"mixer: expected an image_size that is a multiple of patch_size={self.patch_size}, "
                f"got {self.image_size}. Change one of them."
            )
        return self


MIXERS = {
    "mixer-s16": MixerShape(),
    "mixer-s32": MixerShape(patch_size=32),
    "mixer-b16": MixerShape(depth=12, width=768, token_hidden=384, channel_hidden=3072),
}
"""Sizes by name (Tolstikhin et al. 2021, Table 1)."""


def create_mixer(
    mlp: str = "CPMuMoE-e64",
    *,
    num_classes: int = 1000,
    shape: MixerShape | str = "mixer-s16",
    wiring: str = "block",
    gate: str = "entmax15",
    norm: str = "batch",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    device: Any = None,
    dtype: Any = None,
) -> MlpMixer:
    """An MLP-Mixer whose MLPs are ordinary ones or mixtures of experts.

    Args:
        mlp: ``mlp``, or a mixture such as ``CPMuMoE-e64``; see `models.block_specs`.
        num_classes: Number of classes; 0 gives pooled features.
        shape: Sizes, or a name of `MIXERS`.
        wiring: ``block`` or ``layer``; see the module.
        gate: Activation of the gates.
        norm: Normalization of the gates' logits; ``batch``, over images and tokens, in the paper.
        dropout: Dropout in the MLPs, or after the mixtures.
        drop_path: Stochastic depth of the last layer; it grows linearly from 0 in the first.
        device: Where the parameters are made.
        dtype: Their type.

    Shape:
        images (B, 3, image_size, image_size) -> (B, num_classes).

    Raises:
        UserError: For an unknown specification, name or wiring, or sizes that do not fit.
    """
    sizes = named_shape(shape, MIXERS, "mixer").check()
    spec = BlockSpec.parse(mlp, wiring)
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    model = MlpMixer(
        num_classes=num_classes,
        img_size=sizes.image_size,
        patch_size=sizes.patch_size,
        num_blocks=sizes.depth,
        embed_dim=sizes.width,
        mlp_ratio=(sizes.token_hidden / sizes.width, sizes.channel_hidden / sizes.width),
        mlp_layer=_maker(spec, gate, norm),  # type: ignore[arg-type]
        proj_drop_rate=dropout,
        **options,
    )
    _set_drop_path(model, drop_path)
    return model


def _maker(spec: BlockSpec, gate: str, norm: str) -> Callable[..., nn.Module]:
    """timm's `mlp_layer`: called with the width, the hidden width and keywords."""
    if spec.factorization is None:
        return Mlp

    def make(in_features: int, hidden_features: int, *, drop: float = 0.0, act_layer: Any, **where: Any) -> nn.Module:
        sizes = (in_features, hidden_features, in_features)
        return build_block(spec, *sizes, gate=gate, norm=norm, act_layer=act_layer, dropout=drop, **where)

    return make


def _set_drop_path(model: MlpMixer, most: float) -> None:
    """Stochastic depth that grows linearly from 0 in the first layer."""
    depth = len(model.blocks)
    for position, block in enumerate(model.blocks):
        rate = most * position / max(depth - 1, 1)
        if rate:
            block.drop_path = DropPath(rate)
