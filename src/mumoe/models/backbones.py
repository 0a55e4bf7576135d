"""Backbones: any timm model by name, as a module from images to one feature vector each.

A backbone has its own preprocessing (timm's data config) and a fingerprint of its weights, so that
the cache of features can tell what computed them. Presets name the backbones of the paper and the embedded one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from mumoe.errors import UserError, nearest, reason_of, unknown_name
from mumoe.models.embedded import TIMM_NAME, embedded_weights

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PRESETS", "Backbone", "create_backbone"]

PRESETS = {
    "clip-b32": "vit_base_patch32_clip_224.openai",
    "dino-s16": "vit_small_patch16_224.dino",
    "efficientnet-lite0": TIMM_NAME,
}
"""Short name -> timm's name. The weights of ``efficientnet-lite0`` come from a Python package."""

EMBEDDED = "efficientnet-lite0"


class Backbone(nn.Module):
    """A timm model without its classifier, its preprocessing and its fingerprint.

    Attributes:
        name: The name it was created by: a preset or timm's name.
        model: The timm model; its output is pooled, before the logits.
        num_features: Length of the feature vectors.
        data_config: timm's preprocessing: input_size, interpolation, mean, std, crop_pct, crop_mode.

    Shape:
        images (B, 3, H, W), preprocessed -> (B, num_features).
    """

    def __init__(self, name: str, model: nn.Module, data_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.num_features = int(getattr(model, "head_hidden_size", None) or model.num_features)  # type: ignore[arg-type]
        self.data_config = dict(data_config)

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return int(self.data_config["input_size"][-1])

    @property
    def fingerprint(self) -> str:
        """Hex digest of the weights, the architecture's name and the preprocessing, as they are now."""
        digest = hashlib.sha256(json.dumps([PRESETS.get(self.name, self.name), self.data_config]).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(images)
        return features

    def transform(self, train: bool = False) -> Callable[[Image.Image], Tensor]:
        """The preprocessing of one RGB PIL image, picklable.

        Evaluation resizes and crops the centre as timm does for this model. Training takes a random crop of 8
        to 100% of the area, resized bicubically, and a random flip, as the paper does.

        Shape:
            returns (3, image_size, image_size), normalized as the backbone expects.
        """
        config = self.data_config
        if train:
            chosen = {"input_size": config["input_size"], "mean": config["mean"], "std": config["std"]}
            transform = create_transform(
                **chosen,
                is_training=True,
                interpolation="bicubic",
                color_jitter=None,  # type: ignore[arg-type]
            )
        else:
            transform = create_transform(**config, is_training=False)
        preprocessing: Callable[[Image.Image], Tensor] = transform
        return preprocessing

    def extra_repr(self) -> str:
        return f"name={self.name!r}, num_features={self.num_features}, image_size={self.image_size}"


def create_backbone(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    pretrained: bool = True,
    seed: int = 0,
    image_size: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Backbone:
    """A backbone by its preset or timm name, in eval mode.

    Args:
        name: A preset (`PRESETS`) or any name that timm knows, with or without a pretrained tag.
        weights: A local safetensors file with timm's tensor names, instead of a download. A classifier in it
            is left out; everything else must fit.
        pretrained: False starts from random weights.
        seed: Seed of the random weights; the same seed gives the same backbone.
        image_size: Side of the input in pixels. None uses the backbone's own size and crop. With another size the
            crop spans the whole shorter side (crop_pct 1), and a transformer's position embeddings are
            resampled. A forward at this size is run before the model is returned.
        cache_dir: Where the embedded backbone's converted weights are kept.

    Raises:
        UserError: For an unknown name, weights that cannot be downloaded, read, or do not fit, and for an
            image size that the model cannot take.
    """
    full_name = PRESETS.get(name, name)
    _check_name(name, full_name)
    if name == EMBEDDED and weights is None and pretrained:
        weights = embedded_weights(cache_dir)
    model = _download(full_name) if pretrained and weights is None else _plain(full_name, seed)
    if weights is not None:
        _load_weights(model, Path(weights).expanduser(), full_name)
    config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    if image_size is not None:
        trained = pretrained or weights is not None
        model = _at_size(model, image_size, full_name, None if trained else seed)
        config.update(input_size=(3, image_size, image_size), crop_pct=1.0)
    return Backbone(name, model, config).eval()


def _check_name(name: str, full_name: str) -> None:
    architecture, _, tag = full_name.partition(".")
    if not timm.is_model(architecture):
        close = nearest(name, [*PRESETS, *timm.list_models()])
        remedy = f"Did you mean {close!r}?" if close else "timm.list_models() lists them all."
        raise UserError(f"backbone: expected {', '.join(PRESETS)} or a timm model, got {name!r}. {remedy}")
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and full_name not in tagged:
        raise unknown_name("backbone", f"pretrained tag of {architecture}", full_name, tagged)


def _plain(full_name: str, seed: int, **options: Any) -> nn.Module:
    """The model with random weights, a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: nn.Module = timm.create_model(full_name, pretrained=False, num_classes=0, **options)
    return model


def _download(full_name: str) -> nn.Module:
    """The model with timm's published weights: from the hub's cache, or downloaded."""
    try:
        overlay = _hub_file(full_name)
        model: nn.Module = timm.create_model(full_name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    except Exception as error:
        raise UserError(
            f"backbone: expected the pretrained weights of {full_name!r}, got no download ({reason_of(error, 120)}). "
            "Give a local safetensors file as `weights`, or use the embedded efficientnet-lite0."
        ) from error
    return model


def _hub_file(full_name: str) -> dict[str, Any] | None:
    """The weights' file in the hub's cache; None to download them, after a check that the hub can be reached.

    timm would retry an unreachable hub for most of a minute; this function contacts it once.
    """
    from huggingface_hub import constants, get_session, try_to_load_from_cache

    config = timm.get_pretrained_cfg(full_name)
    if config is None or not config.hf_hub_id or config.source == "url":
        return None
    repository = config.hf_hub_id + full_name if config.hf_hub_id.endswith("/") else config.hf_hub_id
    cached = try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(cached, str):
        return {"file": cached, "custom_load": False}
    get_session().head(f"{constants.ENDPOINT}/{repository}", timeout=15, follow_redirects=True)
    return None


_REFUSALS = (RuntimeError, TypeError, ValueError, AssertionError, IndexError, AttributeError, KeyError)


def _at_size(model: nn.Module, size: int, full_name: str, seed: int | None) -> nn.Module:
    """The model for another input size: resized by timm, unchanged, or rebuilt for the size; each is tried.

    `seed` is that of the random weights; None keeps the model's weights.
    """
    if size < 8:
        raise UserError(f"backbone: expected image_size of at least 8 pixels, got {size}. Leave it out.")
    own = int(model.pretrained_cfg["input_size"][-1])  # type: ignore[index]
    if size == own:
        return model
    resize: Any = getattr(model, "set_input_size", None)
    reasons = []
    for way in ("resized",) if resize else ("as it is", "anew"):
        try:
            if resize:
                resize(img_size=(size, size))
            found = _built_for(model, size, full_name, seed) if way == "anew" else model
            _try_forward(found, size)
            return found
        except _REFUSALS as error:
            reasons.append(reason_of(error, 160))
    raise UserError(
        f"backbone: expected an image_size that {full_name!r} takes, got {size} ({reasons[-1]}). "
        f"{_other_size(model, size)}Its own is {own}."
    )


def _try_forward(model: nn.Module, size: int) -> None:
    with torch.no_grad():
        y = model.eval()(torch.zeros(1, 3, size, size))
    if not isinstance(y, Tensor) or y.ndim != 2:
        raise ValueError(f"its features are {tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__}")


def _built_for(model: nn.Module, size: int, full_name: str, seed: int | None) -> nn.Module:
    """A model that timm builds for an input size, with the trained weights if they fit."""
    found = _plain(full_name, 0 if seed is None else seed, img_size=size)
    if seed is None:
        expected, state = found.state_dict(), model.state_dict()
        if _misfits(state, expected):
            state = _translated(state, found)
        if problems := _misfits(state, expected):
            raise ValueError(f"its weights are for another size: {problems}")
        found.load_state_dict(state)
    return found


def _other_size(model: nn.Module, size: int) -> str:
    """A hint with the nearest multiple of the patch size, if the size is not one; else empty."""
    patch: Any = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    patch = patch[0] if isinstance(patch, tuple | list) else patch
    return f"A multiple of {patch} is {max(round(size / patch), 1) * patch}. " if size % patch else ""


# Local weights --------------------------------------------------------------------------------------------


def _load_weights(model: nn.Module, path: Path, full_name: str) -> None:
    state = _without_classifier(_read_weights(path), model)
    expected = model.state_dict()
    if state.keys() != expected.keys():
        state = _translated(state, model)
    problems = _misfits(state, expected)
    if problems:
        raise UserError(
            f"backbone: expected the {len(expected)} tensors of {full_name!r}, got {path} with {problems}. "
            "Give the weights of this model under timm's names."
        )
    model.load_state_dict(state, strict=True)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"backbone: expected weights in a file, got no file {path}. Check the path.")
    if path.suffix != ".safetensors":
        raise UserError(
            f"backbone: expected weights as .safetensors, got {path.name}. Convert it with: "
            'python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path.name}', weights_only=True), '{path.stem}.safetensors')\""
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"backbone: expected an intact safetensors file, got {path} ({error}). Get it again."
        ) from error


def _without_classifier(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    named = model.pretrained_cfg.get("classifier") or ()  # type: ignore[operator, union-attr]
    heads = tuple(f"{head}." for head in ([named] if isinstance(named, str) else named))
    expected = model.state_dict().keys()
    return {key: value for key, value in state.items() if key in expected or not key.startswith(heads or ("\0",))}


def _translated(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors as timm's filter of published checkpoints renames them, if the family has one."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return state
    try:
        return _without_classifier(translate(dict(state), model), model)
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError, AssertionError):
        return state


def _misfits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What does not fit, in words; empty when all does."""
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    kinds = [(missing, "missing"), (extra, "unexpected"), (shapes, "of another shape")]
    return ", ".join(f"{len(found)} {kind} ({_few(found)})" for found, kind in kinds if found)


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
