"""A reduced GPT-2 on the text in every Python installation: MLP, CP and TR at equal parameters, and a look inside.

    python -m reproduction.gpt2_study --out docs/results/gpt2

Trains (or resumes: runs are kept in ``--work``), then writes the table and curves, samples of every network, the text
view of the first CP network's experts, and what scaling an expert does to the text. The full recipe is
``gpt2-openwebtext.toml``, for `accelerate launch`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mumoe
from mumoe.analysis import TextStudy, expert_layers, steer, study_text
from mumoe.analysis.text_pages import write_text_view
from mumoe.data.text import TOKEN_CLASSES, TextData, classify
from mumoe.files import write_json, write_text
from mumoe.models.gpt2 import generate_text
from mumoe.parsing import parse
from mumoe.results import TrainResult
from reproduction.networks import RECIPES, train_recipe, write_results

__all__ = ["Options", "Steered", "main", "steered_classes", "steering", "worth_most"]

COLUMNS = {
    "test bits per byte": ("test", "bits_per_byte"),
    "validation bits per byte": ("val", "bits_per_byte"),
    "next byte right (test)": ("test", "accuracy"),
}
PROMPTS = ("The ", "def ", "Return ", "class ", "This module ", "If ", "A ", "    ")
STEERED = ("space", "newline", "bracket", "upper case", "punctuation")
FACTORS = (0.0, 0.5, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Options:
    """Train small language models, compare them and look inside."""

    out: str = "docs/results/gpt2"
    """folder of the tables, figures and numbers"""
    work: str = "runs/gpt2"
    """folder of the runs"""
    config: str = str(RECIPES / "gpt2-small.toml")
    """settings"""
    windows: int = 256
    """windows of the test split that are read"""
    ablated_windows: int = 64
    """windows on which each expert is ablated"""
    tokens: int = 96
    """tokens of each sample"""
    quiet: bool = False
    """show no progress"""


def main(options: Options) -> None:
    """Run the study."""
    result = train_recipe(options.config, options.work, progress=not options.quiet)
    out, title = Path(options.out), "Language models on the standard library's text, at equal parameters"
    write_results(out, result, COLUMNS, title=title, value="training loss (nats per byte)", config=Path(options.config))
    look_inside(result, options, out)
    sys.stdout.write((out / "table.md").read_text(encoding="utf-8"))


def look_inside(result: TrainResult, options: Options, out: Path) -> None:
    """Samples of every network, and the experts of the first one."""
    firsts = {run.head: run.run for run in reversed(result.runs)}
    runs = {head: mumoe.load(run, progress=False, device="cpu") for head, run in firsts.items()}
    samples = {head: _samples(run, options.tokens) for head, run in runs.items()}
    write_text(out / "samples.md", _sample_page(samples))
    opened = runs[result.head]
    model, data = opened.network, opened.data
    study = study_text(
        model,
        data,
        windows=options.windows,
        ablated_windows=options.ablated_windows,
        run=f"{result.head}, seed {opened.facts['seed']}",
        step=opened.step,
    )
    write_text_view(study, out, data.credits)
    write_json(out / "steering.json", steering(model, data, study, tokens=min(options.tokens, 64)))


def _samples(run: mumoe.Run, tokens: int) -> list[str]:
    return [run.generate(prompt, tokens, temperature=0.7, seed=0) for prompt in PROMPTS[:3]]


def _sample_page(samples: dict[str, list[str]]) -> str:
    parts = ["# Samples\n\nFirst seed of each network, temperature 0.7, seed 0; the first word is the prompt.\n"]
    for head, texts in samples.items():
        quoted = "\n\n".join(f"```text\n{text.replace(chr(0), '').strip()}\n```" for text in texts)
        parts.append(f"## {head}\n\n{quoted}\n")
    return "\n".join(parts)


def worth_most(study: TextStudy, kind: str) -> tuple[str, int, float]:
    """Layer, expert and effect of the expert whose ablation costs tokens of a kind most."""
    effects = [
        (expert.effect.by_class[kind] or 0.0, layer.layer, expert.expert)
        for layer in study.layers
        for expert in layer.experts
        if expert.effect is not None
    ]
    effect, layer, expert = max(effects)
    return layer, expert, effect


def steering(
    model: Any, data: TextData, study: TextStudy, *, tokens: int = 64, kinds: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """For each kind of token, the expert worth most to it scaled by several factors while text is generated."""
    found = []
    for kind in STEERED if kinds is None else kinds:
        layer, expert, effect = worth_most(study, kind)
        steered = steered_classes(model, data, layer, expert, factors=FACTORS, prompts=PROMPTS, new_tokens=tokens)
        row = {"kind": kind, "layer": layer, "expert": expert, "effect": effect}
        found.append({**row, "steered": [asdict(one) for one in steered]})
    return found


@dataclass(frozen=True)
class Steered:
    """Text generated with an expert's coefficient multiplied.

    Attributes:
        factor: The factor.
        classes: Share of the generated tokens of each kind.
        samples: The generated texts.
    """

    factor: float
    classes: Mapping[str, float]
    samples: tuple[str, ...]


def steered_classes(
    model: Any,
    data: TextData,
    layer: str,
    expert: int,
    *,
    factors: Sequence[float] = (0.0, 1.0, 4.0),
    prompts: Sequence[str] = ("The ",),
    new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Steered]:
    """Generate with one expert scaled by several factors, from the same prompts and seed.

    Args:
        model: A GPT-2 with MuMoE layers.
        data: The text whose tokenizer it has.
        layer: Name of the layer.
        expert: The expert.
        factors: See `steer`.
        prompts: Beginnings, each generated from once.
        new_tokens: Tokens to generate for each.
        temperature: Of the sampling; 0 picks the likeliest.
        seed: Of the sampling.

    Raises:
        KeyError: If there is no such layer.
        UserError: If there is no such expert, or a text would be longer than the context.
    """
    part = expert_layers(model)[layer]
    found = []
    for factor in factors:
        with steer(part, {expert: factor}):
            texts = [
                generate_text(model, data.tokenizer, prompt, new_tokens, temperature=temperature, seed=seed + k)
                for k, prompt in enumerate(prompts)
            ]
        ends = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
        kinds = np.concatenate([classify(list(end)) for end in ends])
        shares = np.bincount(kinds, minlength=len(TOKEN_CLASSES)) / max(len(kinds), 1)
        found.append(Steered(factor, dict(zip(TOKEN_CLASSES, shares.tolist(), strict=True)), tuple(texts)))
    return found


if __name__ == "__main__":
    options = parse(Options, sys.argv[1:], "python -m reproduction.gpt2_study")
    if options is not None:
        main(options)
