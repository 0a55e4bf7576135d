"""`mumoe demo`: the main job on embedded data."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar

from mumoe.errors import UserError
from mumoe.parsing import Argument


@dataclass(frozen=True)
class Options:
    """Train, evaluate, ablate and rewrite experts on embedded images; writes a report. About three minutes."""

    COMMON: ClassVar = {"out": "demo", "seeds": "1"}

    out: Annotated[str, Argument(("-o", "--out"))] = "runs/demo"
    """folder to write; that of an earlier demo is replaced"""
    seeds: int = 3
    """seeds of every head"""
    least_lost: int = 5
    """an expert is strong if a class loses at least this many right answers, and at least half of them"""
    text: bool = False
    """instead decompose one MLP of a small language model that a package carries"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    quiet: bool = False
    """show no progress"""


def run(options: Options) -> None:
    """Run the demo; print what was done, what came out and what to open."""
    if options.text:
        _run_text(options)
        return
    from mumoe.demo.demo_job import DemoSettings, run_demo

    if options.seeds < 1:
        raise UserError(f"mumoe demo: expected --seeds of at least 1, got {options.seeds}. Leave it out for 3.")
    if options.least_lost < 1:
        raise UserError(f"mumoe demo: expected --least-lost of at least 1, got {options.least_lost}. 5 is the default.")
    settings = DemoSettings(seeds=options.seeds, least_lost=options.least_lost, device=options.device)
    demo = run_demo(options.out, settings=settings, progress=not options.quiet)
    sys.stdout.write("".join(f"{line}\n" for line in demo.lines()))


def _run_text(options: Options) -> None:
    from mumoe.demo.text_demo import run_text_demo

    out = "runs/demo-text" if options.out == Options.out else options.out
    for line in run_text_demo(out, device=options.device, progress=not options.quiet):
        sys.stdout.write(f"{line}\n")
