"""Folders of saved models: which kind one is, and what is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mumoe.errors import require
from mumoe.files import read_json

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

__all__ = ["is_converted", "is_saved", "load_saved"]


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a saved model: a config.json, and no run."""
    return (folder / "config.json").is_file() and not (folder / "run.json").is_file()


def is_converted(folder: Path) -> bool:
    """Whether `save_converted` wrote a folder; what cannot be read is left to those who say why."""
    if not is_saved(folder):
        return False
    try:
        config = read_json(folder / "config.json")
    except ValueError:
        return False
    return isinstance(config, dict) and "source" in config


def load_saved(
    folder: Path, *, device: str | torch.device = "auto"
) -> tuple[nn.Module, Callable[[Image.Image], Tensor] | None]:
    """The model of a saved folder, in eval mode, and the preprocessing of its images (None for a converted network).

    Raises:
        UserError: If the device is not there.
        JobError: If the files are damaged.
    """
    from mumoe.devices import resolve

    place = resolve(device)
    if is_converted(folder):
        from mumoe.deploy.converted import load_converted

        return load_converted(folder).to(place), None
    require("timm", "vision", "mumoe.load")
    from mumoe.deploy.model import ImageClassifier

    model = ImageClassifier.from_pretrained(folder).to(place)
    return model, model.transform
