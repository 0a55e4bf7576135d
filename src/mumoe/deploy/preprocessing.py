"""The preprocessing of an exported model in words that another program can follow, without timm or torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["FORMAT", "preprocessing"]

FORMAT = 1
"""Version of the description; raised when a reader of an older one would go wrong."""

_DEFAULT_CROP = 0.875
"""timm's, where a model states none."""

_RESIZES = {"squash": "stretch", "border": "longer side, then pad with the mean"}


def preprocessing(data_config: Mapping[str, Any], classes: Sequence[str], *, multi_label: bool) -> dict[str, Any]:
    """What an image goes through before the model, and what its logits mean, as plain JSON.

    In order: decode to RGB (upright, transparency on white), `resize`, centre `crop`, multiply by `scale`,
    subtract `mean` and divide by `std` for each channel, lay out as `layout`.

    Args:
        data_config: timm's: input_size, interpolation, mean, std, crop_pct, crop_mode.
        classes: Names of the logits, in order.
        multi_label: Whether each logit stands for itself (sigmoid) or they compete (softmax).
    """
    height, width = (int(side) for side in data_config["input_size"][-2:])
    share = data_config.get("crop_pct") or _DEFAULT_CROP
    return {
        "format": FORMAT,
        "color": "RGB",
        "resize": {
            "to": _RESIZES.get(data_config.get("crop_mode") or "center", "shorter side"),
            "height": math.floor(height / share),
            "width": math.floor(width / share),
            "interpolation": data_config["interpolation"],
            "antialias": True,
        },
        "crop": {"from": "center", "height": height, "width": width},
        "scale": 1 / 255,
        "mean": [float(value) for value in data_config["mean"]],
        "std": [float(value) for value in data_config["std"]],
        "layout": "NCHW",
        "dtype": "float32",
        "classes": list(classes),
        "multi_label": multi_label,
        "probabilities": "sigmoid" if multi_label else "softmax",
    }
