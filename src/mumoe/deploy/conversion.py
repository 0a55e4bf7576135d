"""Convert a network: open it by name or folder, replace modules, save the result, load it again and compare.

>>> network = open_network("vit_tiny_patch16_224")
>>> convert(network, plan(network.model, num_experts=64), "converted").difference
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mumoe.deploy.converted import ConvertedModel, load_converted, save_converted
from mumoe.deploy.source import CLASSES, quiet
from mumoe.errors import JobError, UserError, nearest, reason_of, require, unknown_name
from mumoe.files import read_json
from mumoe.models.surgery import Plan
from mumoe.models.surgery.planning import output_of
from mumoe.records import Record, record

__all__ = ["Conversion", "OpenedNetwork", "convert", "open_network"]

TOKENS = 128
"""Positions of the example for a text model."""


@dataclass(frozen=True)
class OpenedNetwork:
    """A network in evaluation mode.

    Attributes:
        model: The network.
        arguments: Arguments of timm.create_model besides the name; None if unknown or for a model of another library.
        example: One random input; None if its form is not known.
    """

    model: nn.Module
    arguments: Mapping[str, Any] | None
    example: Tensor | None


@record
class Conversion(Record):
    """The result of `convert`.

    Attributes:
        folder: The folder.
        files: Its files, with their sizes in bytes.
        difference: Largest change of the network's output on a random input, divided by its largest output; None if
            the form of its inputs is not known, so that nothing was compared.
    """

    folder: str
    files: Mapping[str, int]
    difference: float | None

    def headline(self) -> str:
        if self.difference is None:
            return "Not checked: no example of this network's inputs is known."
        return (
            "Loaded again: bit-identical output on a random input.\n"
            f"Largest difference from the original network, relative to its largest output: {self.difference:.2g}."
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row per file."""
        return [{"file": file, "bytes": size} for file, size in self.files.items()]


def convert(
    network: OpenedNetwork,
    planned: Plan,
    folder: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    device: str | torch.device = "cpu",
) -> Conversion:
    """Apply a plan to a network, save it with `save_converted`, load it again and compare outputs.

    Args:
        network: The network of the plan; it is changed in place and left on the CPU.
        planned: What `mumoe.models.surgery.plan` returned.
        folder: Where to save.
        max_shard_size: As in `save_converted`.
        device: Where outputs are computed.

    Raises:
        UserError: As `save_converted`.
        JobError: If the folder cannot be written, or the loaded network gives another output.
    """
    place = torch.device(device)
    before = _output(network.model, network.example, place)
    planned.apply()
    after = _output(network.model, network.example, place)
    path = save_converted(network.model, folder, arguments=network.arguments, max_shard_size=max_shard_size)
    loaded = _output(load_converted(path), network.example, place)
    files = {str(file): file.stat().st_size for file in sorted(path.iterdir())}
    if before is None or after is None or loaded is None:
        return Conversion(str(path), files, None)
    if not torch.equal(after, loaded):
        raise JobError(f"{path}: expected the same output from the loaded model, got another. Please report this.")
    return Conversion(str(path), files, float((after - before).abs().max() / before.abs().max().clamp(min=1e-30)))


def _output(model: nn.Module, example: Tensor | None, device: torch.device) -> Tensor | None:
    """The output on the example, computed on a device; output and model are on the CPU afterwards."""
    if example is None:
        return None
    with torch.no_grad():
        result: Any = model.eval().to(device)(example.to(device))
    model.cpu()
    found = output_of(result)
    return None if found is None else found.cpu()


def open_network(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> OpenedNetwork:
    """A network to convert.

    Args:
        name: A timm model, a folder of a Hugging Face model (safetensors), or one that `save_converted` wrote.
        pretrained: timm's published weights instead of random ones.
        num_classes: Number of classes of a timm model; None for its own.

    Raises:
        UserError: If it is none of these, or its weights are not available.
        JobError: If a folder's files are damaged.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return _open_timm(name, pretrained, num_classes)
    if pretrained or num_classes is not None:
        raise UserError(f"convert: expected no `pretrained` or `num_classes` for the folder {name!r}. Leave them out.")
    try:
        config = read_json(folder / "config.json")
    except ValueError as error:
        raise UserError(f"convert: expected a saved model in {name!r}, got: {error}. Give a model's folder.") from None
    if isinstance(config, dict) and "source" in config:
        model = ConvertedModel.from_pretrained(folder).model
        return OpenedNetwork(model, config["source"].get("arguments"), _example(model))
    return _open_transformers(folder, config)


def _open_timm(name: str, pretrained: bool, num_classes: int | None) -> OpenedNetwork:
    timm = require("timm", "vision", "convert")
    if not timm.is_model(name.partition(".")[0]):
        close = nearest(name, timm.list_models())
        remedy = f"Did you mean {close!r}?" if close else "timm.list_models() names the models."
        raise UserError(f"convert: expected a timm model or a folder, got {name!r}. {remedy}")
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model = timm.create_model(name, pretrained=pretrained, **arguments).eval()
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"convert: expected a model timm can make, got {name!r} ({reason_of(error, 120)}). "
            "Leave `pretrained` out, or check `num_classes`."
        ) from error
    return OpenedNetwork(model, arguments, _example(model))


def _open_transformers(folder: Path, config: Any) -> OpenedNetwork:
    transformers = require("transformers", "text", "convert")
    known = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(known, list) or not known:
        raise UserError(
            f"convert: expected a config.json that names its class in 'architectures', got {str(folder)!r} without. "
            "Save the model with save_pretrained."
        )
    if known[0] not in CLASSES:
        raise unknown_name("convert", "class of transformers", str(known[0]), CLASSES)
    try:
        kind = getattr(transformers, known[0])
        with quiet(transformers):
            model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:
        raise JobError(
            f"{folder}: expected an intact model with safetensors, got: {reason_of(error, 160)}. Save it again."
        ) from error
    return OpenedNetwork(model.eval(), None, _example(model))


def _example(model: Any) -> Tensor | None:
    """One image or text of random content, from a separate generator."""
    generator = torch.Generator().manual_seed(0)
    if shape := _image_shape(model):
        return torch.randn(1, *shape, generator=generator)
    config = getattr(model, "config", None)
    if not hasattr(config, "vocab_size"):
        return None
    length = min(TOKENS, getattr(config, "max_position_embeddings", TOKENS))
    return torch.randint(config.vocab_size, (1, length), generator=generator)  # type: ignore[union-attr]


def _image_shape(model: Any) -> tuple[int, ...] | None:
    if getattr(model, "pretrained_cfg", None):
        channels, *size = model.pretrained_cfg["input_size"]
        patches = getattr(model, "patch_embed", None)
        return (channels, *(getattr(patches, "img_size", None) or size))
    config = getattr(model, "config", None)
    size = getattr(config, "image_size", None)
    if not isinstance(size, int):
        return None
    return (getattr(config, "num_channels", 3), size, size)
