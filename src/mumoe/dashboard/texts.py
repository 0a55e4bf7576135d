"""The token view of a language model: what `mumoe analyze` found of its experts, expert by expert, text by text.

Everything comes from ``RUN/analysis/experts.json`` (`mumoe.analysis.findings` describes it); the model is not loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mumoe.errors import UserError
from mumoe.files import read_json

__all__ = ["TextSession", "has_text", "open_text"]

WHO = "mumoe dashboard"
SCHEMA = 1


@dataclass
class TextSession:
    """The token view of one run.

    Attributes:
        folder: The run's folder.
        study: The content of experts.json.
    """

    folder: Path
    study: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """What a page needs to know before it asks for anything."""
        study = self.study
        kept = ("split", "step", "tokenizer", "windows", "tokens", "loss", "bits_per_byte", "classes", "by_class")
        return {
            "kind": "text",
            "path": str(self.folder),
            "name": "/".join(self.folder.resolve().parts[-2:]),
            **{name: study[name] for name in kept},
            "layers": [
                {name: layer[name] for name in ("layer", "num_experts", "ablated_windows")} for layer in study["layers"]
            ],
            "excerpts": len(study["excerpts"]),
        }

    def columns(self, layer: int) -> dict[str, Any]:
        """All measured experts of a layer, column by column."""
        experts = self._layer(layer)["experts"]
        found: dict[str, Any] = {name: [item[name] for item in experts] for name in ("expert", "mean", "used", "half")}
        found["effect"] = [item["effect"]["all"] if item["effect"] else None for item in experts]
        found["most"] = [_most(item["by_class"]) for item in experts]
        found["example"] = [
            item["top"][0]["pieces"][item["top"][0]["center"]] if item["top"] else "" for item in experts
        ]
        return found

    def expert(self, layer: int, expert: int) -> dict[str, Any]:
        """One expert with its tokens."""
        found = [item for item in self._layer(layer)["experts"] if item["expert"] == expert]
        if not found:
            raise UserError(
                f"{WHO}: expected an expert of {self._layer(layer)['layer']}, got {expert}. Choose another."
            )
        return dict(found[0])

    def excerpt(self, number: int) -> dict[str, Any]:
        """One window of text with every layer's coefficients."""
        if not 0 <= number < len(self.study["excerpts"]):
            raise UserError(f"{WHO}: expected a text in 0..{len(self.study['excerpts']) - 1}, got {number}.")
        return dict(self.study["excerpts"][number])

    def _layer(self, layer: int) -> Mapping[str, Any]:
        layers = self.study["layers"]
        if not 0 <= layer < len(layers):
            raise UserError(f"{WHO}: expected a layer in 0..{len(layers) - 1}, got {layer}. Count from 0.")
        found: Mapping[str, Any] = layers[layer]
        return found


def _first(top: Sequence[Mapping[str, Any]]) -> str:
    """The token with the largest coefficient."""
    return str(top[0]["pieces"][top[0]["center"]]) if top else ""


def _most(by_class: Mapping[str, float | None]) -> str:
    """The kind of token that an expert has the largest mean coefficient on."""
    known = {name: value for name, value in by_class.items() if value}
    return max(known, key=lambda name: known[name]) if known else ""


def has_text(run: Path) -> bool:
    """Whether a run has a token view."""
    return (run / "analysis" / "experts.json").is_file()


def open_text(run: Path) -> TextSession:
    """The token view of a run.

    Raises:
        UserError: If the file is damaged, or of another version.
    """
    path = run / "analysis" / "experts.json"
    study = read_json(path, WHO)
    if not isinstance(study, dict) or study.get("schema") != SCHEMA or "excerpts" not in study:
        found = study.get("schema") if isinstance(study, dict) else type(study).__name__
        raise UserError(f"{WHO}: expected schema {SCHEMA} in {path}, got {found!r}. Run: mumoe analyze {run}")
    return TextSession(run, study)
