"""A trained image classifier as one module that rebuilds itself from JSON: local folders, and the hub.

A saved model is three files: ``model.safetensors`` (weights), ``config.json`` (how to build it), ``README.md``
(its model card). Loading reads names and numbers only: no pickle, and no code from the folder or the hub.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import Tensor, nn

from mumoe.analysis.expert_notes import ExpertNotes
from mumoe.calling import checked_methods
from mumoe.data.emoji import CREDITS
from mumoe.deploy.card import model_card
from mumoe.deploy.saved_model import CONFIG, WEIGHTS, SavedModel, building, read_shapes
from mumoe.editing.edit_files import Edits, stack_on
from mumoe.errors import JobError, UserError
from mumoe.layers import MuMoE
from mumoe.local_paths import public_name
from mumoe.models.backbones import create_backbone
from mumoe.models.heads import Head, build_head
from mumoe.training.networks import gate_options
from mumoe.training.opening import StoredRun
from mumoe.training.state import current_names

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["HeadModel", "ImageClassifier"]


@checked_methods
class ImageClassifier(SavedModel, pipeline_tag="image-classification"):
    """Backbone and head, built from plain values, with random weights until trained ones are loaded.

    `from_run` takes a trained run, `from_pretrained` a folder that `save_pretrained` wrote (offline) or a
    name on the hub; `push_to_hub` uploads the same files.

    Args:
        backbone: Preset or timm name.
        head: Specification as in `build_head`.
        num_features: Width of the backbone's features.
        classes: Names of the logits, in order.
        data_config: timm's preprocessing, as recorded with the weights; it takes precedence over the installed timm's.
        image_size: Side of the input in pixels, if it is not the backbone's own.
        multi_label: Whether each class is a separate yes-or-no attribute.
        position: ``final`` or ``penultimate``.
        gate: Activation of a MuMoE head's gate.
        norm: Normalization of that gate.
        gate_options: Its further options, such as ``{"scale": 0.5}``.
        about: Facts for the model card: data, seed, accuracy, versions, names of experts. Not used in computing.

    Shape:
        images (B, 3, H, W), preprocessed by `transform` -> logits (B, len(classes)).

    Raises:
        UserError: If a name is not known, or `num_features` is not the backbone's.
    """

    NOUN, LOADER, WRITER = "a mumoe model", "ImageClassifier", "save_pretrained"
    FILES = (CONFIG, WEIGHTS)
    REQUIRED = ("backbone", "head", "num_features", "classes", "data_config")

    def __init__(
        self,
        backbone: str,
        head: str,
        num_features: int,
        classes: Sequence[str],
        data_config: Mapping[str, Any],
        *,
        image_size: int | None = None,
        multi_label: bool = False,
        position: str = "final",
        gate: str = "entmax15",
        norm: str = "batch",
        gate_options: Mapping[str, float] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = create_backbone(backbone, pretrained=False, image_size=image_size)
        if self.backbone.num_features != num_features:
            raise UserError(
                f"ImageClassifier: expected num_features == {self.backbone.num_features} of {backbone!r}, "
                f"got {num_features}. Install the timm version that the model was made with."
            )
        self.backbone.data_config = _with_tuples(data_config)
        self.backbone.transform(train=False)  # raises for a data_config that makes none
        options: dict[str, Any] = {"position": position, "gate": gate, "norm": norm}
        options |= {"gate_options": dict(gate_options)} if gate_options else {}
        self.head = build_head(head, num_features, len(classes), **options)
        self.classes, self.multi_label, self.position = tuple(classes), multi_label, position
        self.spec, self.about = head, copy.deepcopy(dict(about or {}))
        values = (backbone, head, num_features, list(classes), dict(data_config))
        self._hub_mixin_config = dict(zip(self.REQUIRED, values, strict=True)) | {
            "image_size": image_size,
            "multi_label": multi_label,
            **options,
            "about": self.about,
        }
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Preprocessing of one RGB PIL image to (3, H, W), as recorded with the weights."""
        return self.backbone.transform(train=False)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of one preprocessed image."""
        channels, height, width = self.backbone.data_config["input_size"]
        return int(channels), int(height), int(width)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax over the classes, or a sigmoid for each attribute when multi-label."""
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)

    def expert_name(self, index: Sequence[int]) -> str:
        """What an expert was named in its run, given as one number per level; empty if nothing.

        Of a hierarchy the names of the levels, joined by a comma.
        """
        return ", ".join(filter(None, (self._names.get((level, expert)) for level, expert in enumerate(index))))

    @functools.cached_property
    def _names(self) -> dict[tuple[int, int], str]:
        """(level, expert) -> name, as far as the config, which may come from elsewhere, states them soundly."""
        rows = self.about.get("experts")
        found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        return {
            (int(row["level"]), row["expert"]): row["name"]
            for row in found
            if str(row.get("level")).isdecimal()
            and isinstance(row.get("expert"), int)
            and isinstance(row.get("name"), str)
        }

    @classmethod
    def from_run(cls, run: str | Path | StoredRun) -> Self:
        """The trained model of a run's folder (on the CPU), or of an opened run (on its device).

        Raises:
            UserError: If the path is not a run, the run trained a whole network, or it does not know its backbone.
            JobError: If it has no intact checkpoint.
        """
        opened = run if isinstance(run, StoredRun) else StoredRun(run, device="cpu")
        config, facts = opened.config, {**opened.facts, "step": opened.step}
        if opened.trains_whole:
            raise UserError(
                f"{opened.path}: expected a run that trained a head, got one of mode {config.mode}, which trained a "
                "whole network. Use mumoe.load(...).model."
            )
        head, backbone = opened.head, opened.backbone
        model = cls(
            config.backbone,
            config.head,
            int(facts["num_features"]),
            facts["classes"],
            backbone.data_config,
            image_size=config.image_size or None,
            multi_label=bool(facts["multi_label"]),
            position=config.position,
            gate=config.gate,
            norm=config.norm,
            gate_options=gate_options(config),
            about=_about(opened, facts),
        )
        model.backbone, model.head = backbone, head
        return model.to(opened.device).eval()

    def with_edits(self, edits: Edits) -> Self:
        """This model with edits folded into its head: an ordinary model, whose config names the grown ranks.

        Measurements of this model are left out of the new model's card, which lists the edits instead. The backbone
        is shared.

        Args:
            edits: A file that `mumoe edit` wrote for this model, or a stack, or an object that holds one.

        Raises:
            UserError: If the head has no experts, or the edits cannot be read or were made for another model.
        """
        layer = self.head.layer
        if not isinstance(layer, MuMoE):
            raise UserError(
                f"export: expected a head with experts to edit, got {self.spec}. "
                "Leave the edits out, or use the run that they were made on."
            )
        stack = stack_on(layer, edits)
        folded = stack.fold()
        about = _edited(self.about, stack.describe())
        config: Any = self._hub_mixin_config
        model = type(self)(**{**config, "head": folded.spec, "about": about})
        head = {**self.head.state_dict(), **{f"layer.{name}": value for name, value in folded.state_dict().items()}}
        model.head.load_state_dict({name: head[name] for name in model.head.state_dict()})
        model.backbone = self.backbone
        return model.to(next(self.head.parameters()).device).eval()

    @classmethod
    def _check(cls, name: str, values: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Compare the head on the meta device with the header, so that no config allocates more than the file has."""
        options = {key: values[key] for key in ("position", "gate", "norm", "gate_options") if key in values}
        with building(name, cls.NOUN), torch.device("meta"):
            head = build_head(values["head"], values["num_features"], len(values["classes"]), **options)
        shapes = {key[5:]: shape for key, shape in read_shapes(files).items() if key.startswith("head.")}
        found = {key: shapes[old] for old, key in current_names(head, list(shapes)).items()}
        for key, tensor in head.state_dict().items():
            if found.get(key) != list(tensor.shape):
                got = f"{found[key]} instead of {list(tensor.shape)}" if key in found else "none"
                raise JobError(
                    f"{files[0]}: expected the weights of its config.json, got head.{key}: {got}. Get it again."
                )

    def _fill(self, file: Path) -> None:
        self.load_state_dict(load_file(file), strict=True)

    def generate_model_card(self, *args: Any, **fields: Any) -> ModelCard:
        """The model card; `fields` set its metadata, such as ``license="apache-2.0"``."""
        total = sum(parameter.numel() for parameter in self.parameters())
        head = sum(parameter.numel() for parameter in self.head.parameters())
        config: Any = self._hub_mixin_config
        return model_card(self._card_data({}), config, {"model": total, "head": head}, fields)


class HeadModel(nn.Module):
    """The head of a run whose backbone is unknown, to export: features in, logits out.

    Args:
        head: The head.
        spec: Its specification.
        num_features: Width of the features.
        classes: Names of the logits, in order.
        multi_label: Whether each class is a separate yes-or-no attribute.
        about: As in `ImageClassifier`.

    Shape:
        features (B, num_features), as the run was trained on -> logits (B, len(classes)).
    """

    def __init__(
        self,
        head: Head,
        spec: str,
        num_features: int,
        classes: Sequence[str],
        *,
        multi_label: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.head, self.spec, self.classes, self.multi_label = head, spec, tuple(classes), multi_label
        self.input_size, self.about = (num_features,), copy.deepcopy(dict(about or {}))
        self.eval()

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits

    @classmethod
    def from_run(cls, run: StoredRun) -> Self:
        """The head of an opened run.

        Raises:
            UserError: If it trained a whole network.
            JobError: If it has no intact checkpoint.
        """
        config, facts = run.config, {**run.facts, "step": run.step}
        values: dict[str, Any] = {"multi_label": bool(facts["multi_label"]), "about": _about(run, facts)}
        return cls(run.head, config.head, int(facts["num_features"]), run.classes, **values)


def _with_tuples(data_config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's preprocessing, with the lists from JSON turned back into tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data_config.items()}


def _about(run: StoredRun, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a run for its card: names and numbers, without paths of the machine it was trained on."""
    config, named = run.config, ExpertNotes.of_run(run.folder.path).rows()
    result = facts.get("result") or {}
    evaluations = result.get("evaluations") or {}
    kept = ("split", "accuracy", "loss", "count")
    about = {
        "data": public_name(str(facts["data"]["name"])),
        "images": facts["data"]["images"],
        "credits": _credits(facts),
        "mode": config.mode,
        "weights": "file" if config.weights else ("pretrained" if config.pretrained else "random"),
        "seed": config.seed,
        "step": facts["step"],
        "trained_parameters": facts.get("parameters"),
        "evaluations": [{key: found[key] for key in kept} for found in evaluations.values()],
        "versions": facts.get("versions") or {},
    }
    about |= {"experts": named} if named else {}
    return _edited(about, facts["edits"]) if "edits" in facts else about


def _edited(about: Mapping[str, Any], edits: Sequence[str]) -> dict[str, Any]:
    # Measurements of the model before its edits do not hold for the edited one.
    kept = {key: value for key, value in about.items() if key not in ("evaluations", "trained_parameters")}
    return {**kept, "edits": [*about.get("edits", []), *edits]}


def _credits(facts: Mapping[str, Any]) -> list[str]:
    """Licence lines of the images: as the run recorded them, or those of the embedded set."""
    if "credits" in facts:
        return [str(line) for line in facts["credits"]]
    if facts["data"]["name"] == "emoji":
        return list(CREDITS)
    return []
