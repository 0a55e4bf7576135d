"""The architecture of a timm or Hugging Face model as plain values, and back, without its weights.

Building runs the code of the installed library alone, for names that it or the list here knows: nothing in a file can
name a module, a class of another package, or weights to fetch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from mumoe.errors import UserError, require, unknown_name
from mumoe.models.surgery.architectures import GATED

__all__ = ["CLASSES", "build_source", "describe_source", "quiet"]

CLASSES = (
    "GPT2Model",
    "GPT2LMHeadModel",
    "GPT2ForSequenceClassification",
    "ViTModel",
    "ViTForImageClassification",
    "CLIPModel",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "CLIPForImageClassification",
    *(f"{name}{kind}" for name in GATED for kind in ("Model", "ForCausalLM", "ForSequenceClassification")),
)
"""Classes of transformers that may be built from a file."""

REFUSED = {
    "pretrained",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
}
"""Arguments of timm.create_model that read files or change how modules are made."""

ATTENTION = ("eager", "sdpa")


def describe_source(model: nn.Module, arguments: Mapping[str, Any] | None = None, who: str = "save") -> dict[str, Any]:
    """How the architecture is built.

    Args:
        model: A model of timm or of transformers.
        arguments: Arguments of timm.create_model besides the name, as JSON values. None records the number of
            classes and the image size of the model.
        who: Prefix of errors.

    Raises:
        UserError: If it belongs to neither library, or its class is not in `CLASSES`.
    """
    package = type(model).__module__.partition(".")[0]
    if package == "transformers":
        return _describe_transformers(model, who)
    if package == "timm" and getattr(model, "pretrained_cfg", None):
        return _describe_timm(model, arguments)
    raise UserError(
        f"{who}: expected a model that timm.create_model made or a model class of transformers, "
        f"got {type(model).__name__}. Save its state_dict() with safetensors instead."
    )


def _describe_timm(model: Any, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    values = dict(arguments or {})
    if arguments is None:
        values["num_classes"] = model.num_classes
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        if size is not None and tuple(size) != tuple(model.pretrained_cfg["input_size"][1:]):
            values["img_size"] = list(size)
    return {"library": "timm", "name": model.pretrained_cfg["architecture"], "arguments": values}


def _describe_transformers(model: Any, who: str) -> dict[str, Any]:
    kind = type(model).__name__
    if kind not in CLASSES:
        raise unknown_name(who, "class of transformers", kind, CLASSES)
    config = json.loads(model.config.to_json_string())
    for key in ("_name_or_path", "auto_map", "architectures", "transformers_version"):
        config.pop(key, None)
    attention = model.config._attn_implementation
    return {
        "library": "transformers",
        "class": kind,
        "config": config,
        "attention": attention if attention in ATTENTION else "sdpa",
    }


def build_source(source: Mapping[str, Any]) -> nn.Module:
    """The architecture with random weights.

    Raises:
        UserError: If the library is missing, or a name in the description is not allowed.
        TypeError, KeyError, ValueError: If it is not a valid description.
    """
    if source["library"] == "timm":
        return _build_timm(str(source["name"]), source["arguments"])
    if source["library"] == "transformers":
        return _build_transformers(source)
    raise unknown_name("load", "library", str(source["library"]), ("timm", "transformers"))


def _build_timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    timm = require("timm", "vision", "load")
    if not timm.is_model(name):
        raise UserError(f"load: expected the name of a timm model, got {name!r}. A newer timm may know it.")
    for key in REFUSED & set(arguments):
        raise UserError(f"load: expected arguments that shape a timm model, got {key!r}. Remove it from config.json.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    model: nn.Module = timm.create_model(name, pretrained=False, **values)
    return model


def _build_transformers(source: Mapping[str, Any]) -> nn.Module:
    transformers = require("transformers", "text", "load")
    if source["class"] not in CLASSES:
        raise unknown_name("load", "class of transformers", str(source["class"]), CLASSES)
    kind = getattr(transformers, source["class"])
    config = {key: value for key, value in source["config"].items() if key not in ("auto_map", "quantization_config")}
    with quiet(transformers):
        built = kind.config_class.from_dict(config)
        built._attn_implementation = source["attention"] if source["attention"] in ATTENTION else "sdpa"
        model: nn.Module = kind(built)
    return model


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without the library's progress bars, and its remarks on a configuration that it has accepted before."""
    logging = transformers.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
