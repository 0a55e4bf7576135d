"""`mumoe sweep`: train and analyze a grid of heads, and draw Figures 3, 6 and 9."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from mumoe.parsing import Argument

if TYPE_CHECKING:
    from mumoe.analysis.sweeping import Sweep

__all__ = ["Options", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train and analyze heads of many experts, gates and seeds; draws Figures 3 and 9 into OUT."""

    COMMON: ClassVar = {
        "heads": "CPMuMoE-r256 TRMuMoE-r64",
        "experts": "32 128 512",
        "gates": "entmax15 softmax",
        "seeds": "5",
        "out": "runs/sweep",
    }

    out: Annotated[str, Argument(("-o", "--out"))] = "runs/sweep"
    """folder of the sweep; called again, it goes on where it was stopped"""
    config: str = ""
    """TOML file with the settings of every cell (head, gate, seed and out are the sweep's)"""
    set: tuple[str, ...] = ()
    """further settings as KEY=VALUE, e.g. weight_decay=3.0"""
    heads: Annotated[tuple[str, ...], Argument(("--spec",))] = ("CPMuMoE-r256",)
    """heads without their experts, e.g. CPMuMoE-r256 TRMuMoE-r64"""
    experts: tuple[int, ...] = (8, 32, 128, 512, 1024)
    """numbers of experts"""
    gates: tuple[str, ...] = ("entmax15", "softmax", "entmax15-frozen")
    """gates; one that ends in -frozen keeps the projection it was drawn with: the control"""
    seeds: int = 3
    """seeds of every cell, each with its own split and initial weights"""
    split: str = "test"
    """split that is analyzed; choose settings on val"""
    least_lost: int = 5
    """right answers that a class must lose, besides half of its own, for an expert to count as strong"""
    limit: int = 0
    """stop after this many newly trained cells (0: do all)"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    quiet: bool = False
    """show no progress"""


def run(options: Options) -> None:
    """Sweep, print means over seeds, and where the figures are."""
    from mumoe.training.config import TrainConfig, from_mapping, parse_options, read_config

    base = read_config(options.config) if options.config else TrainConfig()
    config = from_mapping({**dataclasses.asdict(base), **parse_options(options.set)}, "mumoe sweep")
    from mumoe.analysis.sweeping import sweep  # torch is imported only for settings that are right

    chosen = dataclasses.asdict(options)
    same = ("out", "heads", "experts", "gates", "seeds", "split", "least_lost", "limit", "device")
    done = sweep(config, progress=not options.quiet, **{name: chosen[name] for name in same})
    sys.stdout.write("\n".join(_table(done)) + f"\nWritten to {options.out}\n")


def _table(done: Sweep) -> list[str]:
    """One line for each series and number of experts, means over seeds."""
    lines = [f"{'':<44} {'experts':>7} {'accuracy':>9} {'mean p':>15} {'effect':>7} {'strong':>7} {'their p':>8}"]
    for row in done.means():
        mean, theirs = row["mean_polysemanticity"], row["mean_polysemanticity_strong"]
        shown = "none" if mean is None else f"{mean:.3f} (sd {row['sd_polysemanticity']:.3f})"
        strong = "none" if theirs is None else f"{theirs:.3f}"
        lines.append(
            f"{row['series']:<44} {row['experts']:>7,} {row['accuracy']:>9.4f} {shown:>15} "
            f"{row['with_effect']:>7.1f} {row['strong']:>7.1f} {strong:>8}"
        )
    return lines
