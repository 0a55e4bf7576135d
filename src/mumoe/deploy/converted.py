"""A timm or Hugging Face model with MuMoE layers as files; a loaded model gives bit-identical logits.

A saved model is a folder: ``config.json`` (the architecture and its MuMoE layers), ``model.safetensors`` (weights;
several files with an index when they are large) and ``README.md`` (its model card). Loading reads names and numbers
only: no pickle, and no code from the folder or the hub.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, save_torch_state_dict
from safetensors.torch import load_file
from torch import nn

from mumoe.deploy.saved_model import SavedModel, building, read_shapes
from mumoe.deploy.source import build_source, describe_source
from mumoe.errors import JobError, UserError
from mumoe.files import new_folder
from mumoe.models.surgery.describe import describe_layers, rebuild_layers

__all__ = ["ConvertedModel", "load_converted", "save_converted"]

_OURS = re.compile(r"config\.json|README\.md|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


class ConvertedModel(SavedModel):
    """A network with MuMoE layers, built from plain values, with random weights until trained ones are loaded.

    `from_model` wraps a network after surgery; `from_pretrained` loads a folder that `save_pretrained` wrote
    (offline) or a name on the hub; `push_to_hub` uploads the same files.

    Args:
        source: The architecture, as from `describe_source`.
        layers: Its MuMoE layers, as from `describe_layers`.

    Attributes:
        model: The network itself, a timm or transformers model.
        max_shard_size: Largest file of weights that `save_pretrained` writes.
    """

    NOUN, LOADER, WRITER = "a converted model", "load_converted", "save_converted"
    REQUIRED = ("source", "layers")

    def __init__(self, source: Mapping[str, Any], layers: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        self.model = build_source(source)
        rebuild_layers(self.model, layers)
        self.max_shard_size: int | str = "5GB"
        self._hub_mixin_config = {"source": copy.deepcopy(dict(source)), "layers": copy.deepcopy(dict(layers))}
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the network."""
        return self.model(*args, **kwargs)

    @classmethod
    def from_model(cls, model: nn.Module, *, arguments: Mapping[str, Any] | None = None) -> Self:
        """Wrap a network, which is not copied.

        Args:
            model: A timm or transformers model, after surgery or before.
            arguments: Arguments of timm.create_model besides the name, as JSON values. None records the number
                of classes and the image size.

        Raises:
            UserError: If it cannot be rebuilt from plain values, and so could not be loaded.
        """
        layers = json.loads(json.dumps(describe_layers(model)))
        source = _plain(describe_source(model, arguments, "save_converted"))
        with building("save_converted", "a converted model"), torch.device("meta"):
            wrapped = cls(source, layers)
        wrong = _misfits(_shapes(model), wrapped.model)
        if wrong:
            raise UserError(
                f"save_converted: expected a model that {_short(source)} rebuilds, got {wrong}. "
                "Give arguments={...} as they were given to timm.create_model."
            )
        wrapped.model = model
        return wrapped

    def _save_pretrained(self, save_directory: Path) -> None:
        save_torch_state_dict(self.model.state_dict(), save_directory, max_shard_size=self.max_shard_size)

    @classmethod
    def _check(cls, name: str, values: Mapping[str, Any], files: Sequence[Path]) -> None:
        if missing := [key for key in cls.REQUIRED if not isinstance(values[key], dict)]:
            raise JobError(f"{name}: expected {cls.NOUN}, got a config.json without {', '.join(missing)}.")
        with building(name, cls.NOUN), torch.device("meta"):
            empty = cls(values["source"], values["layers"])
        if wrong := _misfits(read_shapes(files), empty.model):
            raise JobError(f"{name}: expected the weights of its config.json, got {wrong}. Get it again.")

    def _fill(self, file: Path) -> None:
        """The tensors have the dtypes of the file afterwards."""
        state, places = load_file(file), self.model.state_dict(keep_vars=True)
        for name, tensor in state.items():
            if places[name].dtype != tensor.dtype:
                places[name].data = places[name].data.to(tensor.dtype)
        self.model.load_state_dict(state, strict=False)

    def generate_model_card(self, *args: Any, **fields: Any) -> ModelCard:
        """The model card; `fields` set its metadata, such as ``license="apache-2.0"``."""
        return ModelCard(f"---\n{self._card_data(fields).to_yaml()}\n---\n\n{_card(self)}\n")


def save_converted(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    arguments: Mapping[str, Any] | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write a network with MuMoE layers as safetensors, ``config.json`` and a model card.

    Args:
        model: A timm or transformers model after surgery.
        folder: The folder to write. Files of an earlier save are replaced in one step, other files are kept.
        arguments: As in `ConvertedModel.from_model`.
        max_shard_size: Largest file of weights, in bytes or such as ``2GB``.

    Returns:
        The folder.

    Raises:
        UserError: If the model cannot be rebuilt from plain values, or the folder is a file.
        JobError: If the folder cannot be written or the disk is full; existing files are kept.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"save_converted: expected a folder, got the file {str(path)!r}. Give another name.")
    wrapped = ConvertedModel.from_model(model, arguments=arguments)
    wrapped.max_shard_size = max_shard_size
    with new_folder(path, who="save_converted") as part:
        wrapped.save_pretrained(part)
        for entry in path.iterdir() if path.is_dir() else ():
            if not _OURS.fullmatch(entry.name):
                (shutil.copytree if entry.is_dir() else shutil.copy2)(entry, part / entry.name)
    return path


def load_converted(folder: str | os.PathLike[str], **options: Any) -> nn.Module:
    """The network that `save_converted` wrote, in evaluation mode: a timm or transformers model with MuMoE layers.

    Args:
        folder: The folder, or a name on the hub.
        options: As in `ConvertedModel.from_pretrained`.

    Raises:
        UserError: If there is no such model.
        JobError: If its files are damaged or do not fit together.
    """
    return ConvertedModel.from_pretrained(os.fspath(folder), **options).model


# Names and shapes -----------------------------------------------------------------------------------------


def _plain(source: Mapping[str, Any]) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(json.dumps(source))
    except (TypeError, ValueError) as error:
        raise UserError(f"save_converted: expected arguments of plain values, got: {error}. Leave it out.") from error
    return values


def _short(source: Mapping[str, Any]) -> str:
    if source["library"] == "timm":
        given = "".join(f", {key}={value!r}" for key, value in source["arguments"].items())
        return f"timm.create_model({source['name']!r}{given})"
    return f"{source['class']}(config)"


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def _misfits(found: Mapping[str, list[int]], model: nn.Module) -> str:
    """The first tensor that does not fit, in words; empty when all do. One of several tied names is enough."""
    expected = model.state_dict(keep_vars=True)
    there = {id(expected[name]) for name in found if name in expected}
    for name, tensor in expected.items():
        if name not in found and id(tensor) not in there:
            return f"no {name}"
        if name in found and found[name] != list(tensor.shape):
            return f"{name} of shape {found[name]} instead of {list(tensor.shape)}"
    extra = next((name for name in found if name not in expected), None)
    return f"{extra} of shape {found[extra]}, which the model lacks" if extra else ""


# Model card -----------------------------------------------------------------------------------------------


def _card(wrapped: ConvertedModel) -> str:
    config: Any = wrapped._hub_mixin_config
    total = sum(parameter.numel() for parameter in wrapped.model.parameters())
    rows = [
        f"| `{name}` | {layer['factorization']} | {'x'.join(map(str, layer['num_experts']))} | {layer['gate']} |"
        for name, layer in config["layers"].items()
    ]
    return "\n".join(
        [
            f"# {_title(config['source'])} with MuMoE layers",
            "",
            f"`{_short(config['source'])}` with {len(rows)} of its modules replaced by "
            "[mumoe](https://arxiv.org/abs/2402.12550), multilinear mixtures of experts.",
            f"It has {total:,} parameters.",
            "",
            "| module | factorization | experts | gate |",
            "|---|---|---|---|",
            *rows,
            "",
            "## Use",
            "",
            "```python",
            "from mumoe.deploy.converted import load_converted",
            "",
            'model = load_converted("PATH OR NAME OF THIS MODEL")',
            "```",
        ]
    )


def _title(source: Mapping[str, Any]) -> str:
    return str(source["name"] if source["library"] == "timm" else source["class"])
