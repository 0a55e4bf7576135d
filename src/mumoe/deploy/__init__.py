"""What comes out of a run: a model that loads anywhere, predictions with their experts, files for other runtimes.

Names are imported when they are first used; `mumoe.load` is the way in.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mumoe.deploy.export import ExportReport, export_onnx, export_safetensors, export_torch
    from mumoe.deploy.model import ImageClassifier
    from mumoe.deploy.predict import Prediction, explain, predict_files
    from mumoe.deploy.preprocessing import preprocessing

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
    "ExportReport": "export",
    "ImageClassifier": "model",
    "Prediction": "predict",
    "explain": "predict",
    "export_onnx": "export",
    "export_safetensors": "export",
    "export_torch": "export",
    "predict_files": "predict",
    "preprocessing": "preprocessing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mumoe.deploy.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
