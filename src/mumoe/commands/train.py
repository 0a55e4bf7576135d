"""`mumoe train`: train a head on a backbone, over seeds and against partners, or resume a stopped run."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mumoe.errors import UserError, require
from mumoe.parsing import flag_of
from mumoe.training.config import FOR_ALL_HEADS, TrainConfig, from_mapping, parse_options, read_config

__all__ = ["Options", "default", "run"]

_FILES = {"folder": "folder", "csv": "file", "features": "file or folder", "tokens": "folder"}
"""Kinds of data that are a path."""


@dataclass(frozen=True, kw_only=True)
class Options(TrainConfig):
    """Train a head on a backbone. Settings come from --preset, then --config, then the flags."""

    COMMON: ClassVar = {
        "data": "folder:birds",
        "head": "CPMuMoE-r256-e128",
        "against": "linear",
        "seeds": "3",
        "out": "runs/birds",
    }

    config: str = ""
    """TOML file with settings"""
    preset: str = ""
    """settings by name: accurate (the default in mode features), specialized (experts that matter more, a little less
    accurate), finetune (the default in mode finetune), paper (fine-tune everything as Oldfield et al. 2024), plain"""
    resume: str = ""
    """folder of a stopped run to resume; of the other options only --device and --data (the same data at another place)
    are used"""
    quiet: bool = False
    """show no progress"""


def default(arguments: Sequence[str]) -> Options:
    """The options before the flags: those of --preset and --config.

    Raises:
        UserError: If the preset is unknown or the file is wrong.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--config", "--mode"):
        first.add_argument(flag, nargs="?", default="", const="")
    preset, config, mode = vars(first.parse_known_args(list(arguments))[0]).values()
    values = {name: value for name, value in (("preset", preset), ("mode", mode)) if value}
    settings = read_config(config, values) if config else from_mapping(values, "mumoe train")
    flags = {argument.partition("=")[0] for argument in arguments}
    given = [name for name in FOR_ALL_HEADS if f"--{name.replace('_', '-')}" in flags]
    settings = settings.replace(**dict(FOR_ALL_HEADS[name] for name in given))
    return Options(**dataclasses.asdict(settings))


def run(options: Options) -> None:
    """Train or resume, then print the results."""
    if options.resume:
        _refuse_settings(options)
    else:
        _check(options)
    from mumoe import api  # torch: seconds
    from mumoe.training.compare import summary_lines
    from mumoe.training.distributed import leave

    common: dict[str, Any] = {"progress": not options.quiet, "announce": _announce}
    if options.resume:
        plain = Options()
        data = options.data if options.data != plain.data else ""
        device = options.device if options.device != plain.device else ""
        job = api.resume(options.resume, data=data, device=device, **common)
    else:
        job = api.train(**dataclasses.asdict(options.replace()), **common)
    if _is_main_process():
        sys.stdout.write("\n".join(summary_lines(job.result)) + "\n")
    leave()


def _announce(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _check(options: Options) -> None:
    """Refuse what can be checked without torch: the data's name, a missing path, a folder in use."""
    from mumoe.training.run import check_free

    options.replace().check()
    if options.out:
        check_free(options.out)
    kind, colon, path = options.data.partition(":")
    if kind != "features" and options.mode != "text":
        require("PIL", "vision", "mumoe train")
        from mumoe.data.named import find_entry

        find_entry(options.data, parse_options(options.data_options))
    if colon and kind in _FILES and not Path(path).expanduser().exists():
        raise UserError(f"{options.data}: expected a {_FILES[kind]} at {path!r}, got nothing there. Check the path.")


def _refuse_settings(options: Options) -> None:
    """A resumed run keeps the settings it was started with."""
    if not Path(options.resume).is_dir():
        from mumoe.training.run import RunFolder

        RunFolder.open(options.resume)
    untouched = (Options(), default(()))
    names = [item.name for item in dataclasses.fields(options)]
    for name in names:
        same = any(getattr(options, name) == getattr(start, name) for start in untouched)
        if name not in ("resume", "quiet", "device", "data") and not same:
            flag = flag_of(Options, name)
            raise UserError(
                f"mumoe train: expected --resume alone, since a run keeps its settings, got {flag} too. "
                f"Drop {flag}, or start a new run with --config {options.resume}/config.toml {flag} ..."
            )


def _is_main_process() -> bool:
    import torch.distributed as dist

    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
