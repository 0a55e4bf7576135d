"""Every table and figure of the paper, as a list and as a command.

python -m reproduction list
python -m reproduction run table-6 --scale small
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mumoe import JobError, UserError
from mumoe.cli import guarded
from mumoe.parsing import Argument, parse

if TYPE_CHECKING:
    from reproduction.recipe import Recipe

__all__ = ["Options", "main", "run"]


@dataclass(frozen=True)
class Options:
    """List the paper's 8 tables and 16 figures, or make some of them.

    python -m reproduction list
    python -m reproduction run table-6 --scale small
    python -m reproduction run all --scale full --dry-run
    torchrun --standalone --nproc-per-node 4 -m reproduction run table-6 --scale full --root DATA
    """

    action: Annotated[Literal["list", "run"], Argument(positional=True)]
    """list: the items, their state, hardware and time; run: make items"""
    items: Annotated[tuple[str, ...], Argument(positional=True, metavar="[ITEM ...]")] = ()
    """of run: table-1 .. table-8, figure-1 .. figure-16, or all"""
    scale: Literal["small", "full"] = "small"
    """small: embedded data on two cores; full: the paper's setting"""
    output: Annotated[str, Argument(("-o", "--out"))] = "runs/paper"
    """folder of the pages, figures and numbers"""
    work: str = "runs/paper/work"
    """folder of the runs, which items share; a job that was stopped resumes in it"""
    results: str = "docs/results"
    """folder of what this repository measured, for list and --render"""
    render: bool = False
    """draw from existing results and run nothing"""
    dry_run: bool = False
    """full: try every part once on a dozen pictures and random weights, and estimate the cost"""
    seeds: int = 0
    """number of seeds (0: the recipe's)"""
    root: str = ""
    """folder that holds the data sets in their official layouts"""
    backbone: str = ""
    """a backbone instead of the recipe's"""
    set: tuple[str, ...] = ()
    """further settings of mumoe train as KEY=VALUE, e.g. workers=16"""
    quiet: bool = False
    """show no progress"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, as `mumoe.cli.main` does."""
    return guarded(_dispatch, list(sys.argv[1:] if argv is None else argv))


def _dispatch(arguments: list[str]) -> int:
    options = parse(Options, arguments or ["--help"], "python -m reproduction")
    if options is not None:
        run(options)
    return 0


def run(options: Options) -> None:
    """List or make."""
    from reproduction.recipe import ITEMS

    if options.action == "list":
        from reproduction.listing import listing

        sys.stdout.write(listing(Path(options.output), Path(options.results) / "paper"))
        return
    if not options.items:
        raise UserError("reproduction run: expected a table or figure, got none. Name one, such as table-6, or all.")
    if options.seeds < 0:
        raise UserError(f"reproduction run: expected seeds >= 0, got {options.seeds}.")
    names = tuple(ITEMS) if options.items == ("all",) else options.items
    failed: list[str] = []
    seen: dict[str, str] = {}
    for name in names:
        try:
            if options.dry_run:
                _try(name, options, seen)
            else:
                _make(name, options)
        except (UserError, JobError) as error:
            if len(names) == 1:
                raise
            failed.append(name)
            sys.stderr.write(f"{name}: {error}\n")
    if failed:
        raise JobError(
            f"reproduction run: expected {len(names)} items, got {len(failed)} failures: {', '.join(failed)}."
        )


def _recipe(name: str, options: Options) -> Recipe:
    from reproduction.recipe import load_recipe

    recipe = load_recipe(name, options.scale)  # a wrong name is refused before torch is imported
    from reproduction.cells import replaced

    backbones = (options.backbone,) if options.backbone else ()
    return replaced(recipe, seeds=options.seeds, backbones=backbones)


def _changes(options: Options) -> tuple[str, ...]:
    """Settings over the recipe's; a path is quoted as in TOML."""
    return (*((f"root={json.dumps(options.root)}",) if options.root else ()), *options.set)


def _make(name: str, options: Options) -> None:
    recipe = _recipe(name, options)
    from reproduction.make import Places, make

    places = Places(Path(options.output), Path(options.work), Path(options.results))
    made = make(
        recipe,
        places,
        changes=_changes(options),
        run=not options.render,
        progress=not options.quiet,
    )
    if made is not None:
        sys.stdout.write(f"{made.text}\n{made.done} of {made.planned} runs. Written to {made.page}\n")


def _try(name: str, options: Options, seen: dict[str, str]) -> None:
    from reproduction.recipe import load_recipe

    recipe = load_recipe(name, options.scale)
    from reproduction.dry import dry_run

    if recipe.scale == "exact":
        sys.stdout.write(f"{name}: needs no training; made in seconds by: python -m reproduction run {name}\n")
        return
    start = time.monotonic()
    lines = dry_run(recipe, changes=_changes(options), backbone=options.backbone, seen=seen)
    sys.stdout.write("\n  ".join([f"{name}:", *lines]) + f"\n  dry run passed in {time.monotonic() - start:.0f} s\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
