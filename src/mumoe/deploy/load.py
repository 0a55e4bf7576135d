"""`mumoe.load`: a trained run as a model and the preprocessing of its images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mumoe.errors import UserError, require
from mumoe.files import read_json
from mumoe.training.run import RunFolder, find_run

if TYPE_CHECKING:
    from PIL import Image

    from mumoe.deploy.model import ImageClassifier

__all__ = ["load", "load_classifier"]


def load(run: str | Path) -> tuple[nn.Module, Callable[[Image.Image], Tensor] | None]:
    """The trained model of a run, in eval mode, and the preprocessing of its images.

    Args:
        run: The folder of a run, or one that `ImageClassifier.save_pretrained` or `save_converted` wrote.

    Returns:
        An `ImageClassifier` and its transform (RGB PIL image to (3, H, W)); for a run on ready features the
        `Head` (features to logits) and None, as no images are known; for a network that `save_converted` wrote the
        network and None.

    Raises:
        UserError: If the path is no run, or holds several.
        JobError: If the run has no whole checkpoint, or its files are damaged.

    >>> model, transform = mumoe.load("runs/demo")
    >>> model(transform(image)[None]).softmax(-1)
    """
    folder = Path(run)
    if not _is_saved(folder) and _single(folder).facts().get("backbone") is None:
        from mumoe.training.jobs import load_head

        return load_head(_single(folder).path)[0], None
    if _is_converted(folder):
        from mumoe.deploy.converted import load_converted

        return load_converted(folder), None
    model = load_classifier(folder)
    return model, model.transform


def load_classifier(run: str | Path) -> ImageClassifier:
    """As `load`, for images only.

    Raises:
        UserError: As `load`, and for a run on ready features.
        JobError: As `load`.
    """
    folder = Path(run)
    if not _is_saved(folder):
        opened = _single(folder)
        if opened.config().mode in ("scratch", "text"):
            raise UserError(
                f"{run}: expected a run that trained a head, got one of mode {opened.config().mode}, which trained a "
                "whole network. Take mumoe.training.load_run."
            )
        if opened.facts().get("backbone") is None:
            raise UserError(
                f"{run}: expected a run that knows its backbone, got one trained on ready features. "
                "Load its head with mumoe.load, or train on images."
            )
    require("timm", "vision", "mumoe.load")
    from mumoe.deploy.model import ImageClassifier

    return ImageClassifier.from_pretrained(folder) if _is_saved(folder) else ImageClassifier.from_run(opened.path)


def _is_saved(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / "run.json").is_file()


def _is_converted(folder: Path) -> bool:
    """Whether `save_converted` wrote a folder; what cannot be read is left to those who say why."""
    if not _is_saved(folder):
        return False
    try:
        config = read_json(folder / "config.json")
    except ValueError:
        return False
    return isinstance(config, dict) and "source" in config


def _single(folder: Path) -> RunFolder:
    """The one run at a path.

    Raises:
        UserError: If there is none, or the path is a job of several.
    """
    found = find_run(folder)
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(run.path.relative_to(folder)) for run in found[:6]) + (", ..." if len(found) > 6 else "")
    raise UserError(
        f"run: expected one run, got {str(folder)!r}, which holds {len(found)} ({names}). Give e.g. {found[0].path}."
    )
