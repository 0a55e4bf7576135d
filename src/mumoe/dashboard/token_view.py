"""The token view of a language model: what was measured of its experts, expert by expert, text by text.

Everything comes from the study in ``analysis/experts.json`` of a run or a decomposition. A model is loaded only to
write texts with the experts of a decomposition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mumoe.analysis.expert_notes import suggest_name
from mumoe.analysis.findings import ExpertText, LayerText, TextStudy
from mumoe.dashboard import WHO
from mumoe.dashboard.steering import MOST_FACTOR, MOST_TOKENS, Steering
from mumoe.errors import UserError
from mumoe.records import to_plain

if TYPE_CHECKING:
    from mumoe.decomposition.opened import Decomposition

__all__ = ["TokenSession", "has_tokens", "open_decomposed", "open_tokens"]

KEPT = (
    "split",
    "step",
    "tokenizer",
    "windows",
    "tokens",
    "loss",
    "bits_per_byte",
    "classes",
    "by_class",
    "remarks",
    "per",
)
"""Fields of a study that a page needs before it asks for anything."""


@dataclass
class TokenSession:
    """The token view of the run or decomposition in a folder.

    Attributes:
        folder: Where names and notes are kept.
        study: What is shown.
        steering: Writes texts with scaled experts; None for a run.
    """

    folder: Path
    study: TextStudy
    steering: Steering | None = None

    def describe(self) -> dict[str, Any]:
        """What a page needs to know before it asks for anything."""
        return {
            "kind": "text",
            "path": str(self.folder),
            "name": "/".join(self.folder.resolve().parts[-2:]),
            **{name: to_plain(getattr(self.study, name)) for name in KEPT},
            "layers": [
                {name: getattr(layer, name) for name in ("layer", "num_experts", "ablated_windows", "least")}
                for layer in self.study.layers
            ],
            "excerpts": len(self.study.excerpts),
            "estimated": any(one.estimate is not None for layer in self.study.layers for one in layer.experts),
            "steers": self.steering and {"most_factor": MOST_FACTOR, "most_tokens": MOST_TOKENS},
        }

    def columns(self, layer: int) -> dict[str, Any]:
        """All measured experts of a layer, column by column."""
        experts = self._layer(layer).experts
        found: dict[str, Any] = {
            name: [getattr(expert, name) for expert in experts] for name in ("expert", "mean", "used", "half")
        }
        found["estimate"] = [expert.estimate for expert in experts]
        found["purity"] = [_above_base(expert) for expert in experts]
        found["effect"] = [expert.effect.all if expert.effect else None for expert in experts]
        found["most"] = [_reads(expert) for expert in experts]
        found["example"] = [expert.top[0].pieces[expert.top[0].center] if expert.top else "" for expert in experts]
        return found

    def expert(self, layer: int, expert: int) -> Any:
        """One expert with its tokens."""
        part = self._layer(layer)
        for found in part.experts:
            if found.expert == expert:
                return {**to_plain(found), "suggestion": self._suggestion(found)}
        used = f" that at least {part.least} tokens use" if part.least else ""
        raise UserError(f"{WHO}: expected an expert of {part.layer}{used}, got {expert}. Choose another.")

    def _suggestion(self, expert: ExpertText) -> str:
        """A name from the kinds of token that get most of the expert's coefficients; empty if they are spread."""
        weights = {
            kind: mean * (self.study.by_class[kind]["tokens"] or 0) for kind, mean in expert.by_class.items() if mean
        }
        total = sum(weights.values())
        seen = sorted(((kind, weight / total) for kind, weight in weights.items() if total), key=lambda item: -item[1])
        return suggest_name((), seen)

    def write(self) -> Steering:
        """What writes texts.

        Raises:
            UserError: If this is no decomposition.
        """
        if self.steering is None:
            raise UserError(f"{WHO}: expected a decomposition, got a run. It has no texts to write.")
        return self.steering

    def excerpt(self, number: int) -> Any:
        """One window of text with every layer's coefficients."""
        if not 0 <= number < len(self.study.excerpts):
            raise UserError(f"{WHO}: expected a text in 0..{len(self.study.excerpts) - 1}, got {number}.")
        return to_plain(self.study.excerpts[number])

    def _layer(self, layer: int) -> LayerText:
        layers = self.study.layers
        if not 0 <= layer < len(layers):
            raise UserError(f"{WHO}: expected a layer in 0..{len(layers) - 1}, got {layer}. Count from 0.")
        return layers[layer]


def _reads(expert: ExpertText) -> str:
    """The most frequent label of its top tokens; without labels the kind of token that it reads most."""
    return expert.purity[0].label if expert.purity else _most(expert.by_class)


def _most(by_class: Mapping[str, float | None]) -> str:
    """The kind of token that an expert has the largest mean coefficient on; empty for one that reads nothing."""
    known = {name: value for name, value in by_class.items() if value}
    return max(known, key=lambda name: known[name]) if known else ""


def _above_base(expert: ExpertText) -> float | None:
    """Share of the most frequent first label among its top tokens, above the base rate."""
    return expert.purity[0].share - expert.purity[0].base if expert.purity else None


def has_tokens(run: Path) -> bool:
    """Whether a run has a token view."""
    return (run / "analysis" / "experts.json").is_file()


def open_tokens(run: Path) -> TokenSession:
    """The token view of a run.

    Raises:
        UserError: If the file is damaged, or of another version.
    """
    return TokenSession(run, TextStudy.load(run / "analysis"))


def open_decomposed(decomposition: Decomposition) -> TokenSession:
    """The token view of a decomposition that was analyzed.

    Raises:
        UserError: If it was not, or a file is damaged.
    """
    study = decomposition.study()
    used = {(level, one.expert): one.used for level, layer in enumerate(study.layers) for one in layer.experts}
    return TokenSession(decomposition.path, study, Steering(decomposition, used))
