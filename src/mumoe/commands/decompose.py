"""`mumoe decompose`: one MLP of a trained language model as sparse experts, measured beside controls and looked at."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from mumoe.errors import UserError
from mumoe.parsing import Argument

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Replace one MLP of a trained language model by sparse experts, fitted to what it computes; measure and look at
    them. The same call again resumes what was stopped, and shows what is finished."""

    COMMON: ClassVar = {"model": "hf:gpt2", "layer": "10", "kind": "hadamard", "text": "folder:articles", "out": "dec"}

    model: str = "smollm2"
    """smollm2 (comes with a package), hf:NAME (of the Hugging Face hub), or a folder of transformers"""
    layer: int = 10
    """layer whose MLP is replaced, from 0"""
    kind: Literal["cp-linear", "hadamard", "cp", "tucker", "tr", "transcoder", "skip-transcoder", "linear", "dense"] = (
        "cp-linear"
    )
    """what takes its place"""
    text: str = "brown"
    """brown, stdlib, folder:PATH (text, JSON lines, parquet), or tokens:FOLDER (of mumoe tokenize)"""
    out: Annotated[str, Argument(("-o", "--out"))] = "runs/decompose"
    """folder of the result"""
    tokens: int = 500_000
    """tokens trained on; of a shorter text several passes"""
    width: float = 8.0
    """budget: parameters of a transcoder with so many features for each input of the MLP"""
    experts: str = "0"
    """number of experts, or of each of several levels as in 1024x1024 (cp-linear); 0: what meets the budget"""
    rank: int = 0
    """rank of the experts (0: for cp-linear the hidden units of the MLP, or twice its inputs with --init random; for
    cp, tucker and tr what meets the budget)"""
    k: int = 32
    """experts that the gate keeps for a token, of each level"""
    init: Literal["auto", "random", "weights"] = "auto"
    """start at random weights or at those of the MLP (auto: the latter for cp-linear of a gated MLP)"""
    lr: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    """learning rates to try; the best on validation with few dead experts is kept"""
    most_dead: float = 0.4
    """largest share of experts that no validation token uses, in that choice"""
    context: int = 128
    """tokens of a context"""
    batch_size: int = 1024
    """tokens of a training step"""
    contexts: int = 128
    """held-out contexts to measure on and to look at"""
    experts_shown: int = 5
    """experts to print (0: do not look at experts)"""
    coefficients: str = ""
    """parquet file to write with the coefficients on the held-out contexts"""
    transcoder: str = ""
    """folder to write a transcoder to, in the file layout of circuit-tracer"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the matrix products of the language model and in training"""
    seed: int = 0
    """seed of the weights and the order of the tokens"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    quiet: bool = False
    """show no progress"""


SETTINGS = (
    "width",
    "rank",
    "k",
    "init",
    "tokens",
    "context",
    "lr",
    "most_dead",
    "batch_size",
    "seed",
    "precision",
)


def run(options: Options) -> None:
    """Decompose, and print what was found."""
    _check(options)
    from mumoe.decomposition.opened import decompose
    from mumoe.decomposition.showing import expert_lines
    from mumoe.training.distributed import is_main, leave

    dec = decompose(
        options.model,
        options.layer,
        options.kind,
        text=options.text,
        out=options.out,
        device=options.device,
        progress=not options.quiet,
        announce=_say,
        experts=_experts(options.experts),
        **{name: getattr(options, name) for name in SETTINGS},
    )
    if not is_main():
        leave(wait=False)  # the first of several processes measures
    sys.stdout.write(f"{dec.evaluate(options.contexts)!r}\n")
    if options.experts_shown and dec.replacement.mixture is not None:
        found = dec.analyze(options.contexts)
        sys.stdout.write(
            "".join(f"{line}\n" for line in (found.headline(), *expert_lines(found, options.experts_shown)))
        )
    if options.coefficients:
        count = dec.save_coefficients(options.coefficients, options.contexts)
        sys.stdout.write(f"{count:,} coefficients written to {options.coefficients}\n")
    if options.transcoder:
        sys.stdout.write(f"Written to {dec.save_transcoder(options.transcoder)}\n")
    sys.stdout.write(f"Written to {options.out}. Open it with: mumoe.load({options.out!r})\n")
    leave(wait=False)


def _experts(text: str) -> int | tuple[int, ...]:
    """Number of experts, or of each level: ``512``, ``1024x1024``."""
    if not re.fullmatch(r"\d{1,18}(x\d{1,18})*", text):
        raise UserError(
            f"mumoe decompose: expected --experts as a number, or one for each level as in 1024x1024, got {text!r}."
        )
    sizes = tuple(int(size) for size in text.split("x"))
    return sizes[0] if len(sizes) == 1 else sizes


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _check(options: Options) -> None:
    """Refuse wrong sizes and paths before torch is imported."""
    if isinstance(_experts(options.experts), tuple) and options.kind != "cp-linear":
        raise UserError(
            f"mumoe decompose: expected --experts as one number for --kind {options.kind}, got {options.experts}. "
            "Experts on several levels are for cp-linear."
        )
    kind, _, place = options.text.partition(":")
    if options.text not in ("brown", "stdlib") and (kind not in ("folder", "tokens") or not place):
        raise UserError(
            f"mumoe decompose: expected --text brown, stdlib, folder:PATH or tokens:FOLDER, got {options.text!r}."
        )
    if place and not Path(place).expanduser().exists():
        raise UserError(f"mumoe decompose: expected a path in --text, got {place!r}, which does not exist.")
    local = options.model != "smollm2" and not options.model.startswith("hf:")
    if local and not (Path(options.model).expanduser() / "config.json").is_file():
        raise UserError(
            f"mumoe decompose: expected --model smollm2, hf:NAME or a folder with a config.json, got {options.model!r}."
        )
    if options.contexts < 1 or options.experts_shown < 0:
        raise UserError(
            f"mumoe decompose: expected --contexts above 0 and --experts-shown of at least 0, got {options.contexts} "
            f"and {options.experts_shown}."
        )
