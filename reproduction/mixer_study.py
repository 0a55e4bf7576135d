"""A reduced MLP-Mixer from scratch on embedded images: MLP, CP and TR at equal parameters.

    python -m reproduction.mixer_study --out docs/results/mixer

Runs are kept in ``--work``: a second call resumes stopped runs and trains nothing twice. The full
recipe of the paper is ``mixer-imagenet.toml``, for `accelerate launch`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from mumoe.parsing import parse
from reproduction.networks import RECIPES, train_recipe, write_results

__all__ = ["Options", "main"]

COLUMNS = {
    "test accuracy": ("test", "accuracy"),
    "validation accuracy": ("val", "accuracy"),
    "test loss": ("test", "loss"),
}


@dataclass(frozen=True)
class Options:
    """Train small Mixers and compare them."""

    out: str = "docs/results/mixer"
    """folder of the table, the figure and the numbers"""
    work: str = "runs/mixer"
    """folder of the runs"""
    config: str = str(RECIPES / "mixer-small.toml")
    """settings"""
    quiet: bool = False
    """show no progress"""


def main(options: Options) -> None:
    """Run the study."""
    result = train_recipe(options.config, options.work, progress=not options.quiet)
    out, title = Path(options.out), "Mixers from scratch on emoji, at equal parameters"
    write_results(out, result, COLUMNS, title=title, value="training loss (Mixup)", config=Path(options.config))
    sys.stdout.write((out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    options = parse(Options, sys.argv[1:], "python -m reproduction.mixer_study")
    if options is not None:
        main(options)
