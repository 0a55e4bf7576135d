"""Text from a trained language model, with experts scaled on request."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import nn

from mumoe.analysis.capturing import expert_layers
from mumoe.analysis.text_study import steer
from mumoe.errors import UserError
from mumoe.models.gpt2 import generate_text
from mumoe.training.opening import StoredRun

__all__ = ["generate", "scaled"]

WHO = "Run.generate"


def generate(
    run: StoredRun,
    prompt: str = "",
    tokens: int = 64,
    *,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 0,
    scale: Mapping[tuple[int, int], float] | None = None,
) -> str:
    """The prompt and what a run's language model writes after it.

    Args:
        run: A run of mode text.
        prompt: How the text begins; empty starts a document.
        tokens: Tokens to write.
        temperature: Of the sampling; 0 picks the likeliest token each time.
        top_k: Sample among so many of the likeliest tokens; 0 for all.
        seed: Of the sampling.
        scale: (layer, expert) -> factor of the expert's coefficient; 0 ablates it.

    Raises:
        UserError: If the run is of another mode, there is no such layer or expert, or a number is out of range.
    """
    if run.config.mode != "text":
        raise UserError(f"{WHO}: expected a run of mode text, got mode {run.config.mode!r}. Give another run.")
    options = {"temperature": temperature, "top_k": top_k, "seed": seed}
    model, tokenizer = run.model, run.data.tokenizer
    with scaled(model, scale or {}):
        return generate_text(model, tokenizer, prompt, tokens, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def scaled(model: nn.Module, scale: Mapping[tuple[int, int], float]) -> Iterator[nn.Module]:
    """The model with experts scaled, (layer, expert) -> factor; layers are numbered from 0.

    Raises:
        UserError: If there is no such layer or expert.
    """
    layers = list(expert_layers(model).values())
    with contextlib.ExitStack() as stack:
        for (layer, expert), factor in scale.items():
            if not 0 <= layer < len(layers):
                raise UserError(
                    f"{WHO}: expected a layer in 0..{len(layers) - 1}, got {layer}. Use one of these."
                    if layers
                    else f"{WHO}: expected a model with MuMoE layers, got one without. Leave `scale` out."
                )
            stack.enter_context(steer(layers[layer], {expert: factor}))
        yield model
