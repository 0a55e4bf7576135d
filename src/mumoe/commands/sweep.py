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
    """folder of the sweep; a second call continues it"""
    config: str = ""
    """TOML file with the settings of every cell (head, gate, seed and out are the sweep's)"""
    set: tuple[str, ...] = ()
    """further settings as KEY=VALUE, e.g. preset=accurate specialize=0.5 (by default the preset is specialized)"""
    heads: Annotated[tuple[str, ...], Argument(("--spec",))] = ("CPMuMoE-r256",)
    """heads without their experts, e.g. CPMuMoE-r256 TRMuMoE-r64"""
    experts: tuple[int, ...] = (8, 32, 128, 512, 1024)
    """numbers of experts"""
    gates: tuple[str, ...] = ("entmax15", "softmax", "entmax15-frozen")
    """gates; one that ends in -frozen keeps its initial projection: the control"""
    seeds: int = 3
    """seeds of every cell, each with its own split and initial weights"""
    split: str = "test"
    """split that is analyzed; choose settings on val"""
    least_lost: int = 5
    """an expert is strong if a class loses at least this many right answers, and at least half of them"""
    limit: int = 0
    """stop after this many newly trained cells (0: do all)"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    quiet: bool = False
    """show no progress"""


def run(options: Options) -> None:
    """Sweep, print means over seeds, and where the figures are."""
    from mumoe.training.config import SWEPT, from_mapping, parse_options, read_config

    given = {"preset": SWEPT, **parse_options(options.set)}
    base = read_config(options.config, {"preset": given["preset"]}) if options.config else None
    config = from_mapping({**(dataclasses.asdict(base) if base else {}), **given}, "mumoe sweep")
    from mumoe.analysis.sweeping import sweep  # torch is imported only for valid settings

    chosen = dataclasses.asdict(options)
    same = ("out", "heads", "experts", "gates", "seeds", "split", "least_lost", "limit", "device")
    done = sweep(config, progress=not options.quiet, **{name: chosen[name] for name in same})
    sys.stdout.write("\n".join(_table(done)) + f"\nWritten to {options.out}\n")


def _table(done: Sweep) -> list[str]:
    """One line for each series and number of experts, means over seeds, beside units of the same load as control."""
    heads = ("experts", "accuracy", "mean p", "control", "effect", "strong", "control", "images", "their p")
    widths = (7, 9, 15, 8, 7, 7, 8, 7, 8)
    lines = [" ".join([f"{'':<44}", *(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))])]
    for row in done.means():
        mean = row["mean_polysemanticity"]
        cells = (
            f"{row['experts']:,}",
            f"{row['accuracy']:.4f}",
            "none" if mean is None else f"{mean:.3f} (sd {row['sd_polysemanticity']:.3f})",
            _number(row["control_polysemanticity"], 3),
            f"{row['with_effect']:.1f}",
            f"{row['strong']:.1f}",
            _number(row["control_strong"], 1),
            _number(row["strong_images"], 1),
            _number(row["mean_polysemanticity_strong"], 3),
        )
        parts = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
        lines.append(" ".join([f"{row['series']:<44}", *parts]))
    return lines


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"
