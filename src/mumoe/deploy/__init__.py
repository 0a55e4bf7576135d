"""What comes out of a run: a model that loads anywhere, predictions with their experts, files for other runtimes.

Names are imported when they are first used; `mumoe.load` is the way in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mumoe.lazy import attach

if TYPE_CHECKING:
    from mumoe.deploy.formats import (
        ExportReport,
        export_onnx,
        export_safetensors,
        export_torch,
        preprocessing,
    )
    from mumoe.deploy.model import ImageClassifier
    from mumoe.deploy.predictions import Prediction, explain, predict_files

__all__ = [
    "ExportReport",
    "ImageClassifier",
    "Prediction",
    "explain",
    "export_onnx",
    "export_safetensors",
    "export_torch",
    "predict_files",
    "preprocessing",
]

_HOMES = {
    "formats": ("ExportReport", "export_onnx", "export_safetensors", "export_torch", "preprocessing"),
    "model": ("ImageClassifier",),
    "predictions": ("Prediction", "explain", "predict_files"),
}

__getattr__, __dir__ = attach("mumoe.deploy", {name: home for home, names in _HOMES.items() for name in names})
