"""The networks to train: a head on cached features, a backbone with a head, or a whole network from random weights.

Whole networks are MLP-Mixers on images and GPT-2 on text, with the MLPs that `head` names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import mumoe.models
from mumoe.errors import UserError, unknown_name
from mumoe.factorizations import FACTORIZATIONS
from mumoe.functional import mutual_information
from mumoe.layers import MuMoE
from mumoe.models.block_specs import MLP
from mumoe.models.heads import Head, build_head, matched_spec
from mumoe.training.config import TrainConfig, parse_options

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Network",
    "Trained",
    "WholeNetwork",
    "column_statistics",
    "context_of",
    "gate_options",
    "image_side",
    "image_transform",
    "make_gpt2",
    "make_head",
    "make_mixer",
    "parameter_count",
    "partner_block",
    "partner_spec",
]

_COMMON = {"wiring": "block", "dropout": 0.0}
_DEFAULTS = {"scratch": "mixer-s16", "text": "gpt2"}
_MEAN = _STD = (0.5, 0.5, 0.5)


def column_statistics(x: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column over some rows, in float64 and by blocks of rows.

    Shape:
        x (num_images, num_features); returns two (num_features,) float32.
    """
    blocks = np.array_split(rows, max(1, len(rows) // 4096))
    mean = sum(np.asarray(x[block], dtype=np.float64).sum(0) for block in blocks) / len(rows)
    squares = sum(((np.asarray(x[block], dtype=np.float64) - mean) ** 2).sum(0) for block in blocks)
    return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(squares / len(rows))).float()


def make_head(config: TrainConfig, num_features: int, num_classes: int) -> Head:
    """Build the head that a config specifies.

    Raises:
        UserError: If the specification, the gate or the norm is not known.
    """
    options: dict[str, Any] = {
        "position": config.position,
        "drop": config.dropout,
        "gate": config.gate,
        "gate_options": gate_options(config),
        "norm": config.norm,
        "init": config.init,
    }
    return build_head(config.head, num_features, num_classes, **options)


def gate_options(config: TrainConfig) -> dict[str, float]:
    """Options of a head's gate besides its name and norm; those that are not given are left out."""
    given = {"scale": (config.gate_scale, 1.0), "dropout": (config.gate_dropout, 0.0)}
    return {name: value for name, (value, default) in given.items() if value != default}


def parameter_count(module: nn.Module) -> int:
    """Number of parameters that are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


class Network(nn.Module):
    """Backbone (when it is trained) and head as one module, as the loop trains it.

    Shape:
        Images (B, 3, H, W), or features (B, num_features) without a backbone -> logits (B, num_classes) and
        the scalar load-balancing loss; with labels the mutual information of them and the experts instead.
    """

    def __init__(self, head: Head, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.head = head
        self.backbone = backbone

    @property
    def on_features(self) -> bool:
        """Whether it reads features, so that evaluation can use large batches."""
        return self.backbone is None

    @property
    def has_experts(self) -> bool:
        """Whether the head is a mixture of experts of this package."""
        return isinstance(self.head.layer, MuMoE)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = inputs if self.backbone is None else self.backbone(inputs)
        if labels is None or not self.has_experts:
            return self.head.forward_with_loss(features)
        logits, coefficients = self.head.forward_with_coefficients(features)
        return logits, mutual_information(coefficients, labels, logits.shape[1])


def partner_spec(config: TrainConfig, partner: str, num_features: int, num_classes: int) -> str:
    """A partner's full specification: as given, or of the size whose parameters match the head's.

    Args:
        config: The job whose head sets the budget.
        partner: A full specification, ``linear``, or one without its size: ``highrank-linear``,
            ``sparse-moe`` or a factorization's title such as ``TRMuMoE``.
        num_features: Width of the features.
        num_classes: Number of classes.
    """
    sizeless = {"highrank-linear", "sparse-moe", *(kind.title for kind in FACTORIZATIONS.values())}
    if partner not in sizeless:
        return partner
    width = num_features if config.position == "penultimate" else num_classes
    return matched_spec(partner, config.head, num_features, width)


# Whole networks -------------------------------------------------------------------------------------------


class WholeNetwork(nn.Module):
    """A network as the loop trains it.

    Shape:
        Images (B, 3, H, W) -> logits (B, num_classes); tokens (B, T) -> logits (B, T, vocabulary). Both with a
        scalar 0 in the place of a load-balancing loss.
    """

    on_features = has_experts = False

    def __init__(self, model: nn.Module, *, text: bool) -> None:
        super().__init__()
        self.model, self.text = model, text

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(inputs, use_cache=False).logits if self.text else self.model(inputs)
        return logits, logits.new_zeros(())


def make_mixer(config: TrainConfig, num_classes: int) -> WholeNetwork:
    """The MLP-Mixer that a config of mode scratch specifies.

    Raises:
        UserError: If the network, an option or the specification is not known, or sizes do not fit.
    """
    shape = _named(config, mumoe.models.MIXERS)
    sizes, options = _options(config, asdict(shape), {**_COMMON, "drop_path": 0.0})
    if config.image_size:
        sizes["image_size"] = config.image_size
    spec = {"shape": replace(shape, **sizes), "gate": config.gate, "norm": config.norm}
    return WholeNetwork(mumoe.models.create_mixer(config.head, num_classes=num_classes, **spec, **options), text=False)


def make_gpt2(config: TrainConfig, vocabulary: int) -> WholeNetwork:
    """The GPT-2 that a config of mode text specifies, with a vocabulary of this size.

    Raises:
        UserError: As `make_mixer`.
    """
    shape = _named(config, mumoe.models.GPT2S)
    sizes, options = _options(config, asdict(shape), {**_COMMON, "bias": False})
    spec = {"shape": replace(shape, **{**sizes, "vocabulary": vocabulary}), "gate": config.gate, "norm": config.norm}
    if config.head == MLP:
        spec["norm"] = "layer"
    return WholeNetwork(mumoe.models.create_gpt2(config.head, **spec, **options), text=True)


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
    """The given network options, split into sizes and others, with names and types checked."""
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


Trained = Network | WholeNetwork
"""What the loop trains."""


def context_of(config: TrainConfig) -> int:
    """Tokens of a window of text: the context of the network."""
    shape = _named(config, mumoe.models.GPT2S)
    sizes, _ = _options(config, asdict(shape), {**_COMMON, "bias": False})
    return int(replace(shape, **sizes).check().context)


def partner_block(config: TrainConfig, partner: str) -> str:
    """A partner's specification: as given; a factorization's title alone gets the head's experts."""
    experts = config.head.rpartition("-e")[2]
    return partner if partner == MLP or "-e" in partner or config.head == MLP else f"{partner}-e{experts}"


def image_side(config: TrainConfig) -> int:
    """Side of the images in pixels, in mode scratch."""
    with torch.device("meta"):
        return int(make_mixer(config.replace(head=MLP), 1).model.stem.img_size[0])  # type: ignore[index, union-attr]


def image_transform(config: TrainConfig, train: bool) -> Callable[[Image.Image], Tensor]:
    """The preprocessing of images in mode scratch: inception crop, flip and the configured augmentation; without
    training, a centre crop.

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
