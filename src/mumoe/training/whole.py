"""Whole networks from random weights: MLP-Mixers on images, GPT-2 on text, with the MLPs that `head` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mumoe.errors import UserError, unknown_name
from mumoe.models.block_specs import MLP
from mumoe.training.config import TrainConfig, parse_options

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["WHOLE", "WholeNetwork", "context_of", "image_side", "image_transform", "make_whole", "partner_block"]

WHOLE = ("scratch", "text")
"""Modes in which a whole network is trained from random weights."""

_COMMON = {"wiring": "block", "dropout": 0.0}
_DEFAULTS = {"scratch": "mixer-s16", "text": "gpt2"}
_MEAN = _STD = (0.5, 0.5, 0.5)


class WholeNetwork(nn.Module):
    """A network as the loop trains it.

    Shape:
        Images (B, 3, H, W) -> logits (B, num_classes); tokens (B, T) -> logits (B, T, vocabulary). Both with a
        scalar 0 in the place of a load-balancing loss.
    """

    on_features = False

    def __init__(self, model: nn.Module, *, text: bool) -> None:
        super().__init__()
        self.model, self.text = model, text

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(inputs, use_cache=False).logits if self.text else self.model(inputs)
        return logits, logits.new_zeros(())


def make_whole(config: TrainConfig, *, num_classes: int = 0, vocabulary: int = 0) -> WholeNetwork:
    """The network that a config asks for.

    Args:
        config: A config of mode scratch or text.
        num_classes: Number of classes, for images.
        vocabulary: Number of tokens, for text.

    Raises:
        UserError: If the network, an option or the specification is not known, or sizes do not fit.
    """
    if config.mode == "text":
        return WholeNetwork(_gpt2(config, vocabulary), text=True)
    return WholeNetwork(_mixer(config, num_classes), text=False)


def _mixer(config: TrainConfig, num_classes: int) -> nn.Module:
    from mumoe.models.mixer import MIXERS, create_mixer

    shape = _named(config, MIXERS)
    sizes, options = _options(config, asdict(shape), {**_COMMON, "drop_path": 0.0})
    if config.image_size:
        sizes["image_size"] = config.image_size
    spec = {"shape": replace(shape, **sizes), "gate": config.gate, "norm": config.norm}
    return create_mixer(config.head, num_classes=num_classes, **spec, **options)


def _gpt2(config: TrainConfig, vocabulary: int) -> nn.Module:
    from mumoe.models.gpt2 import GPT2S, create_gpt2

    shape = _named(config, GPT2S)
    sizes, options = _options(config, asdict(shape), {**_COMMON, "bias": False})
    spec = {"shape": replace(shape, **{**sizes, "vocabulary": vocabulary}), "gate": config.gate, "norm": config.norm}
    if config.head == MLP:
        spec["norm"] = "layer"
    return create_gpt2(config.head, **spec, **options)


def _named(config: TrainConfig, shapes: Mapping[str, Any]) -> Any:
    name = config.backbone
    if name == TrainConfig.backbone:
        name = _DEFAULTS[config.mode]
    if name not in shapes:
        raise unknown_name("train", f"network in mode {config.mode}", name, shapes)
    return shapes[name]


def _options(
    config: TrainConfig, sizes: dict[str, Any], others: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The given network options, those that are sizes and the others, checked for name and type."""
    given = parse_options(config.network_options)
    for name, value in given.items():
        known = {**sizes, **others}
        if name not in known or name == "vocabulary":
            raise unknown_name("train", "network option", name, set(known) - {"vocabulary"})
        kind = type(known[name])
        if not (type(value) is kind or (kind is float and type(value) is int)):
            raise UserError(f"train: expected network option {name} like {known[name]!r}, got {value!r}.")
    return (
        {name: value for name, value in given.items() if name in sizes},
        {name: value for name, value in given.items() if name in others},
    )


def context_of(config: TrainConfig) -> int:
    """Tokens of a window of text: the context of the network."""
    from mumoe.models.gpt2 import GPT2S

    shape = _named(config, GPT2S)
    sizes, _ = _options(config, asdict(shape), {**_COMMON, "bias": False})
    return int(replace(shape, **sizes).check().context)


def partner_block(config: TrainConfig, partner: str) -> str:
    """A partner's specification: as given; a factorization's title alone gets the head's experts."""
    experts = config.head.rpartition("-e")[2]
    return partner if partner == MLP or "-e" in partner or config.head == MLP else f"{partner}-e{experts}"


def image_side(config: TrainConfig) -> int:
    """Side of the images in pixels, in mode scratch."""
    with torch.device("meta"):
        return int(_mixer(config.replace(head=MLP), 1).stem.img_size[0])  # type: ignore[index, union-attr]


def image_transform(config: TrainConfig, train: bool) -> Callable[[Image.Image], Tensor]:
    """The preprocessing of images in mode scratch: inception crop, flip and the augmentation asked for; or the
    centre.

    Shape:
        an RGB PIL image -> (3, image_size, image_size), scaled to [-1, 1].

    Raises:
        UserError: If timm does not know the augmentation.
    """
    from timm.data.transforms_factory import create_transform

    size = image_side(config)
    shape: dict[str, Any] = {"input_size": (3, size, size), "mean": _MEAN, "std": _STD, "interpolation": "bicubic"}
    if not train:
        return create_transform(**shape, is_training=False, crop_pct=1.0 if config.image_size else 0.875)
    try:
        augment = config.augment or None
        scale = (max(config.crop_area, 1e-3), 1.0)
        return create_transform(**shape, is_training=True, scale=scale, auto_augment=augment, color_jitter=None)  # type: ignore[arg-type]
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"train: expected augment as timm writes it, such as rand-n2-m10, got {config.augment!r} ({error})."
        ) from None
