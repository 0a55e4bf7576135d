"""`mumoe convert`: a network of timm or Hugging Face with MuMoE layers, planned, converted, saved and checked."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mumoe.errors import UserError
from mumoe.files import holds_files
from mumoe.parsing import Argument

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Replace MLPs or layers of a network by MuMoE layers, show what changes, and save it."""

    COMMON: ClassVar = {
        "experts": "64",
        "pattern": "'blocks.*.mlp'",
        "rank": "matched",
        "output": "converted",
        "dry_run": "",
    }

    model: Annotated[str, Argument(positional=True, metavar="MODEL")]
    """timm model, folder of a Hugging Face model, or folder that this verb wrote"""
    experts: tuple[int, ...] = ()
    """number of experts, one for each level; must be given"""
    pattern: tuple[str, ...] = ()
    """modules to replace, such as 'blocks.*.mlp' (empty: those of the preset)"""
    preset: str = ""
    """architecture whose MLPs are meant: auto, vit, mixer, convnext, gpt2, hf-vit, clip-vision or llama
    (empty: auto where there is no pattern)"""
    factorization: str = "cp"
    """cp, tucker, tt, tr or dense"""
    rank: str = ""
    """matched (same parameters), exact (holds the old layers), or a number (empty: matched for random, exact for
    upcycle)"""
    init: Literal["random", "upcycle"] = "random"
    """random: new weights; upcycle: every expert starts as a copy of the old layers"""
    gate: str = "entmax15"
    """activation of the gate"""
    norm: str = ""
    """normalization of the gate: batch, layer or none (empty: batch, and layer in causal models)"""
    pretrained: bool = False
    """use timm's published weights (otherwise random ones)"""
    num_classes: int | None = None
    """classes of a timm model, where not its own"""
    output: Annotated[str, Argument(("-o", "--out"))] = ""
    """folder to write"""
    max_shard_size: str = "5GB"
    """largest file of weights"""
    overwrite: bool = False
    """replace what the folder has"""
    targets: bool = False
    """list what can be replaced, and stop"""
    dry_run: bool = False
    """show the table and stop"""
    seed: int = 0
    """of random weights"""
    device: str = "auto"
    """where outputs are compared: auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""


def run(options: Options) -> None:
    """Plan, show, convert, save, load again and compare."""
    if not options.targets:
        _check_output(options)
    import torch

    from mumoe.deploy.conversion import convert, open_network
    from mumoe.devices import resolve
    from mumoe.models.surgery import named_targets, plan

    device = resolve(options.device, who="mumoe convert")
    torch.manual_seed(options.seed)
    network = open_network(options.model, pretrained=options.pretrained, num_classes=options.num_classes)
    if options.targets:
        lines = [f"{name}  {kind}" for name, kind in named_targets(network.model).items()]
        sys.stdout.write("\n".join(lines) + "\n")
        return
    chosen = {name: getattr(options, name) for name in ("factorization", "init", "gate")}
    empty = {"preset": options.preset or None, "rank": _rank(options.rank), "norm": options.norm or None}
    planned = plan(
        network.model, *options.pattern, num_experts=options.experts, example=network.example, **chosen, **empty
    )
    if sys.stdout.isatty():
        planned.show()
    else:
        sys.stdout.write(planned.table() + "\n")
    if not options.dry_run:
        done = convert(network, planned, options.output, max_shard_size=options.max_shard_size, device=device)
        files = [f"{path}  {size:,} bytes" for path, size in done.files.items()]
        sys.stdout.write("\n".join([*files, done.headline()]) + "\n")


def _check_output(options: Options) -> None:
    if not options.experts:
        raise UserError("mumoe convert: expected --experts with a number, got none. Give --experts 64, say.")
    if options.dry_run:
        return
    if not options.output:
        raise UserError("mumoe convert: expected --out FOLDER, or --dry-run to look first, got neither. Give one.")
    path = Path(options.output)
    if path.exists() and not path.is_dir():
        raise UserError(f"mumoe convert: expected --out to be a folder, got the file {options.output!r}.")
    if holds_files(path) and not options.overwrite:
        raise UserError(
            f"mumoe convert: expected a new folder, got {options.output!r}, which has files. "
            "Name another, or --overwrite it."
        )


def _rank(text: str) -> Any:
    if text in ("", "matched", "exact"):
        return text or None
    if not text.isdecimal():
        raise UserError(f"mumoe convert: expected --rank matched, exact or a number, got {text!r}. Leave it out.")
    return int(text)
