"""What both kinds of saved model share: checks of the folder, its config.json and its weights; one-line errors.

A saved model is a folder with ``config.json`` (how to build it), ``model.safetensors`` (weights; several files with an
index when they are large) and ``README.md`` (its model card). Only names and numbers are read: no pickle, and no code
from the folder or the hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError

from mumoe.errors import JobError, UserError, nearest
from mumoe.files import read_json

__all__ = ["CONFIG", "INDEX", "WEIGHTS", "building", "check_folder", "one_line", "reading_saved", "reading_weights"]

CONFIG = constants.CONFIG_NAME
WEIGHTS = constants.SAFETENSORS_SINGLE_FILE
INDEX = constants.SAFETENSORS_INDEX_FILE


def one_line(error: Exception, most: int = 160) -> str:
    """An error's message on one line, at most so many characters of it."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def check_folder(folder: Path, files: Sequence[str], who: str, writer: str) -> None:
    """Raise unless a folder has these files and its config.json is a table.

    Args:
        folder: An existing folder.
        files: Names that it must have.
        who: Named in errors.
        writer: The function that writes such folders, for the remedy.

    Raises:
        UserError: If a file is missing.
        JobError: If config.json is damaged.
    """
    for name in files:
        if not (folder / name).is_file():
            close = nearest(name, [entry.name for entry in folder.iterdir()])
            found = f"only {close}" if close else "none"
            raise UserError(
                f"{who}: expected {name} in {str(folder)!r}, got {found}. Give the folder that {writer} wrote."
            )
    try:
        config = read_json(folder / CONFIG)
    except ValueError as error:
        raise JobError(f"{folder}: expected a saved model, got: {error}. Save it again.") from None
    if not isinstance(config, dict):
        raise JobError(f"{folder}: expected a saved model, got a config.json that is no table. Save it again.")


@contextmanager
def reading_saved(name: str, who: str, writer: str) -> Iterator[None]:
    """Turn the hub's errors about a name that is not a folder into a `UserError`."""
    try:
        yield
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{who}: expected a saved model, got {name!r}, which is no folder and cannot be had "
            f"from the hub ({one_line(error)}). Give the folder that {writer} wrote."
        ) from error


@contextmanager
def building(name: str, what: str) -> Iterator[None]:
    """Turn what a config.json with any content may raise while a model is built from it into a `JobError`."""
    try:
        yield
    except JobError:
        raise
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise JobError(f"{name}: expected {what}, got a config.json that builds none ({reason}).") from error


@contextmanager
def reading_weights(path: str | Path) -> Iterator[None]:
    """Turn what a damaged file of weights, or one of another model, may raise into a `JobError`."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise JobError(f"{path}: expected a whole safetensors file, got: {one_line(error)}. Get it again.") from error
    except (UserError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise JobError(
            f"{path}: expected the weights of its config.json, got: {one_line(error, 240)}. Get it again."
        ) from error
