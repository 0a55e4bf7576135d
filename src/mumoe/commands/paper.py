"""`mumoe paper`: every table and figure of the paper, as a list and as a command."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mumoe.errors import UserError

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """List the paper's 8 tables and 16 figures, or make some of them.

    mumoe paper list
    mumoe paper run table-6 --scale small
    mumoe paper run all --scale full --dry-run
    """

    action: Annotated[Literal["list", "run"], tyro.conf.Positional]
    """list: what there is, its state, hardware and time; run: make items"""
    items: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """of run: table-1 .. table-8, figure-1 .. figure-16, or all"""
    scale: Literal["small", "full"] = "small"
    """small: embedded data on two cores; full: the paper's setting"""
    output: str = "runs/paper"
    """folder of the pages, figures and numbers"""
    quiet: bool = False
    """show no progress"""


def run(options: Options) -> None:
    """List or make."""
    from mumoe.recipes.paper.recipe import ITEMS

    if options.action == "list":
        from mumoe.recipes.paper.listing import listing

        sys.stdout.write(listing(Path(options.output)))
        return
    if not options.items:
        raise UserError("mumoe paper run: expected a table or figure, got none. Name one, such as table-6, or all.")
    for name in ITEMS if options.items == ("all",) else options.items:
        _make(name, options)


def _make(name: str, options: Options) -> None:
    from mumoe.recipes.paper.make import make
    from mumoe.recipes.paper.recipe import load_recipe

    made = make(load_recipe(name, options.scale), Path(options.output))
    sys.stdout.write(f"{made.text}\nWritten to {made.page}\n")
