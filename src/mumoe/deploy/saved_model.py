"""Common to both kinds of saved model: loading from a folder or the hub, checked before anything is built.

A saved model is a folder with ``config.json`` (how to build it), ``model.safetensors`` (weights; several files with an
index when they are large) and ``README.md`` (its model card). Only names and numbers are read: no pickle, and no code
from the folder or the hub.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import ModelCardData, PyTorchModelHubMixin, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from mumoe.errors import JobError, UserError, nearest, reason_of
from mumoe.files import read_json, recovered

__all__ = ["CONFIG", "WEIGHTS", "SavedModel", "building", "read_shapes", "reading_weights"]

CONFIG = constants.CONFIG_NAME
WEIGHTS = constants.SAFETENSORS_SINGLE_FILE
INDEX = constants.SAFETENSORS_INDEX_FILE

_DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")


class SavedModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="mumoe",
    tags=["mumoe", "mixture-of-experts", "interpretability"],
    paper_url="https://arxiv.org/abs/2402.12550",
):
    """A network that is built from plain values and filled from safetensors, local or on the hub.

    Attributes:
        NOUN: What it is, in errors.
        LOADER, WRITER: Functions that load and write it, in errors.
        FILES: What its folder must have.
        REQUIRED: Keys of config.json without which it cannot be built.
    """

    NOUN: ClassVar[str]
    LOADER: ClassVar[str]
    WRITER: ClassVar[str]
    FILES: ClassVar[tuple[str, ...]] = (CONFIG,)
    REQUIRED: ClassVar[tuple[str, ...]]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """A saved model in evaluation mode: from a folder (offline), or by its name on the hub.

        Options are those of huggingface-hub's mixin, such as ``revision`` and ``local_files_only``.

        Raises:
            UserError: If there is no such model.
            JobError: If its files are damaged or do not fit together.
        """
        name = str(pretrained_model_name_or_path)
        if (found := recovered(Path(name))).is_dir():
            name = str(found)
        if os.path.isdir(name):
            _check_folder(Path(name), cls.FILES, cls.LOADER, cls.WRITER)
        try:
            return super().from_pretrained(name, **options)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise UserError(
                f"{cls.LOADER}: expected a saved model, got {name!r}, which is not a folder and cannot be "
                f"loaded from the hub ({reason_of(error, 160)}). Give the folder that {cls.WRITER} wrote."
            ) from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **values: Any) -> Self:
        """Compare names and shapes with the files' headers, then build, then fill."""
        download = {key: values.pop(key) for key in _DOWNLOAD if key in values}
        if missing := [key for key in cls.REQUIRED if key not in values]:
            raise JobError(f"{model_id}: expected {cls.NOUN}, got a config.json without {', '.join(missing)}.")
        folder = model_id
        if not os.path.isdir(model_id):
            folder = snapshot_download(model_id, allow_patterns=["*.safetensors", "*.json"], **download)
        files = _weight_files(Path(folder))
        cls._check(model_id, values, files)
        with building(model_id, cls.NOUN):
            model = cls(**values)
        for file in files:
            with reading_weights(file):
                model._fill(file)
        return model.to(torch.device(map_location)).eval()

    @classmethod
    def _check(cls, name: str, values: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Raise `JobError` unless the weights fit the config; nothing large is allocated."""
        raise NotImplementedError

    def _fill(self, file: Path) -> None:
        """Load the tensors of one file."""
        raise NotImplementedError

    def _card_data(self, fields: Mapping[str, Any]) -> ModelCardData:
        """Metadata of the model card, with these fields set."""
        data = copy.deepcopy(self._hub_mixin_info.model_card_data)
        for key, value in fields.items():
            setattr(data, key, value)
        return data


# Files ----------------------------------------------------------------------------------------------------


def _weight_files(folder: Path) -> list[Path]:
    """The one file of weights, or those that the index names."""
    if not (folder / INDEX).is_file():
        return [_existing(folder / WEIGHTS)]
    try:
        names = set(read_json(folder / INDEX)["weight_map"].values())
        plain = all(isinstance(name, str) and Path(name).name == name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(f"{folder}: expected a list of weights in {INDEX}, got: {error}. Get it again.") from None
    if not names or not plain:
        raise JobError(f"{folder}: expected names of files in the same folder in {INDEX}, got others. Get it again.")
    return [_existing(folder / name) for name in sorted(names)]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise JobError(f"{path.parent}: expected weights in {path.name}, got no such file. Get it again.")
    return path


def read_shapes(files: Sequence[Path]) -> dict[str, list[int]]:
    """Name -> shape of every tensor, from the files' headers.

    Raises:
        JobError: If a file is damaged.
    """
    shapes: dict[str, list[int]] = {}
    for path in files:
        with reading_weights(path), safe_open(path, framework="pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def _check_folder(folder: Path, files: Sequence[str], who: str, writer: str) -> None:
    """Raise unless a folder has these files and its config.json is a table."""
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
        raise JobError(f"{folder}: expected a saved model, got a config.json that is not a table. Save it again.")


# Errors ---------------------------------------------------------------------------------------------------


@contextmanager
def building(name: str, what: str) -> Iterator[None]:
    """Turn the errors of building a model from a malformed config.json into a `JobError`."""
    try:
        yield
    except JobError:
        raise
    except UserError as error:
        if isinstance(error.__cause__, _UNFIT):  # of `calling`, since the file holds a value of a wrong type
            raise _builds_none(name, what, error.__cause__) from error
        raise UserError(f"{name}: {error}") from error
    except (ValueError, *_UNFIT) as error:
        raise _builds_none(name, what, error) from error


_UNFIT = (TypeError, KeyError, AttributeError, RuntimeError, AssertionError)


def _builds_none(name: str, what: str, error: BaseException) -> JobError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return JobError(f"{name}: expected {what}, got a config.json that builds none ({reason}).")


@contextmanager
def reading_weights(path: str | Path) -> Iterator[None]:
    """Turn the errors of reading weights that are damaged or of another model into a `JobError`."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise JobError(
            f"{path}: expected an intact safetensors file, got: {reason_of(error, 160)}. Get it again."
        ) from error
    except (UserError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise JobError(
            f"{path}: expected the weights of its config.json, got: {reason_of(error, 240)}. Get it again."
        ) from error
