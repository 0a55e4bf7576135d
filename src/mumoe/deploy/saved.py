"""Detect which kind of saved model a folder holds, without torch, so that a wrong call fails early."""

from __future__ import annotations

from pathlib import Path

from mumoe.files import read_json

__all__ = ["is_converted", "is_saved"]


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a saved model: a config.json, and no run."""
    return (folder / "config.json").is_file() and not (folder / "run.json").is_file()


def is_converted(folder: Path) -> bool:
    """Whether `save_converted` wrote a folder; a damaged one is left to its reader, which raises."""
    if not is_saved(folder):
        return False
    try:
        config = read_json(folder / "config.json")
    except ValueError:
        return False
    return isinstance(config, dict) and "source" in config
