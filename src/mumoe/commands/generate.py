"""`mumoe generate`: text from a trained language model, with experts scaled on request."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from mumoe.commands.open_run import opened
from mumoe.errors import UserError
from mumoe.parsing import Argument

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Write text with a trained language model."""

    COMMON: ClassVar = {"prompt": "'def f('", "tokens": "200", "temperature": "0", "scale": "0:17=3"}

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of a run of mode text, or of the job that holds it"""
    prompt: str = ""
    """how the text begins (empty: a new document)"""
    tokens: int = 64
    """tokens to write"""
    samples: int = 1
    """texts to write, from seed, seed + 1, ..."""
    temperature: float = 0.8
    """of the sampling; 0 picks the likeliest token each time"""
    top_k: int = 0
    """sample among so many of the likeliest tokens (0: all)"""
    seed: int = 0
    """seed of the sampling"""
    scale: tuple[str, ...] = ()
    """experts to scale as LAYER:EXPERT=FACTOR (0:17=3: layer 0, expert 17, three times; 0 ablates it)"""
    data: str = ""
    """the data where they are now, e.g. folder:/new/place (empty: where the run found them)"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""


def run(options: Options) -> None:
    """Generate and print."""
    if options.samples < 1:
        raise UserError(f"mumoe generate: expected samples >= 1, got {options.samples}.")
    scale: dict[tuple[int, int], float] = {}
    for place, factor in map(_scaled, options.scale):
        scale[place] = scale.get(place, 1.0) * factor
    run = opened(options, "mumoe generate", experts=bool(scale))
    settings: dict[str, Any] = {"temperature": options.temperature, "top_k": options.top_k, "scale": scale}
    for number in range(options.samples):
        text = run.generate(options.prompt, options.tokens, seed=options.seed + number, **settings)
        sys.stdout.write(text.replace("\0", "\n") + "\n" + "---\n" * (number + 1 < options.samples))


def _scaled(text: str) -> tuple[tuple[int, int], float]:
    """``0:17=3`` as layer, expert and factor."""
    place, _, factor = text.partition("=")
    layer, _, expert = place.partition(":")
    try:
        return (int(layer), int(expert)), float(factor)
    except ValueError:
        raise UserError(
            f"mumoe generate: expected --scale LAYER:EXPERT=FACTOR, got {text!r}. Write e.g. 0:17=3."
        ) from None
