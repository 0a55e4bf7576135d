"""`mumoe export`: a trained run as files for other runtimes, checked against the model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from mumoe.deploy.export import ExportReport
    from mumoe.deploy.model import ImageClassifier

__all__ = ["Options", "run"]

_NAMES = {"onnx": "model.onnx", "safetensors": "safetensors", "torch-export": "model.pt2"}
_MOST_IMAGES = 32


@dataclass(frozen=True)
class Options:
    """Write a trained model for other runtimes, with its preprocessing, and check what was written."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folder of the run, or of a saved model"""
    to: Literal["onnx", "safetensors", "torch-export"]
    """onnx: one file and its preprocessing as JSON; safetensors: a folder with weights, config and model card;
    torch-export: a .pt2 archive"""
    out: str = ""
    """file or folder to write (empty: RUN/export/model.onnx and so on)"""
    images: tuple[str, ...] = ()
    """images, or folders of them, to check the file on besides random ones (the first 32)"""
    edits: str = ""
    """file of edits to fold in first; then the empty --out is RUN/export/edited/model.onnx and so on"""
    overwrite: bool = False
    """replace what exists"""


def run(options: Options) -> None:
    """Export, and say what was written and how close it is."""
    from mumoe.deploy import export
    from mumoe.deploy.load import load_classifier

    write = {
        "onnx": export.export_onnx,
        "safetensors": export.export_safetensors,
        "torch-export": export.export_torch,
    }[options.to]
    folder = Path(options.run) / "export" / ("edited" if options.edits else "")
    target = Path(options.out) if options.out else folder / _NAMES[options.to]
    export.check_ready(options.to, target, options.overwrite)
    model = load_classifier(options.run)
    if options.edits:
        model = model.with_edits(options.edits)
    if options.to != "safetensors":
        sys.stderr.write(f"Tracing {model.spec} on {model.backbone.name}; this may take a minute or two.\n")
    report = write(model, target, images=_images(model, options.images), overwrite=options.overwrite)
    sys.stdout.write("\n".join(_lines(report)) + "\n")


def _images(model: ImageClassifier, paths: tuple[str, ...]) -> Tensor | None:
    """The images to check on, preprocessed."""
    if not paths:
        return None
    import torch

    from mumoe.data.decode import read_image
    from mumoe.deploy.predict import find_images

    transform = model.transform
    return torch.stack([transform(read_image(path)) for path in find_images(paths)[:_MOST_IMAGES]])


def _lines(report: ExportReport) -> list[str]:
    lines = [f"{path}  {size:,} bytes" for path, size in report.files.items()]
    checked = f"Checked on {report.checked} images: logits differ by at most {report.max_difference:.2g}"
    return [*lines, f"{checked}; the largest is {report.max_logit:.3g}."]
