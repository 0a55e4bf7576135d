"""Features that were computed elsewhere, read from a file as a labelled set without images.

Three formats, each holding one row per image in one order:

- ``FEATURES.npy``, (n, d) floats, with files beside it: ``labels.npy`` and, if there are such,
  ``split.npy`` and ``group_NAME.npy`` for every subgroup column.
- ``FILE.safetensors`` with the tensors ``features``, ``labels``, ``split``, ``group_NAME``; names of the
  classes, and of a column's values, as JSON lists in the metadata ``classes`` and ``group_NAME``.
- ``FILE.parquet`` with the columns ``features`` (lists of floats), ``labels``, ``split``, ``group_NAME`` and
  ``id``.

Labels are numbers from 0, names, or one 0/1 row per image. A split is given by name (train, val, test) or by
position (0, 1, 2); without one, a seeded split stratified by class is made. Pickled arrays are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mumoe.data.base import SPLITS, Attribute, ImageData
from mumoe.data.splits import stratified_split
from mumoe.errors import JobError, UserError, require, unknown_name
from mumoe.files import digest_file
from mumoe.models.features import Features

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["load_feature_data", "load_features"]

WHO = "features"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Table:
    """A feature file's content: the features, columns by name, and names of coded values."""

    features: Array
    columns: Mapping[str, Array]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class NoImages:
    """Stands in for the images of a set that has features only."""

    path: str

    def __call__(self, index: int) -> Image.Image:
        raise JobError(
            f"{WHO}: expected an image, got a set with features only ({self.path}). "
            "Give the image set itself to show, augment or fine-tune on images."
        )


def load_features(path: str | Path) -> Features:
    """The features of a ``.npy``, ``.safetensors`` or ``.parquet`` file, without labels.

    Raises:
        UserError: If the file is missing, of another kind, damaged, or holds no finite 2-d floats.
    """
    table = _read(Path(path).expanduser())
    return _features(table, Path(path).expanduser())


def load_feature_data(
    path: str | Path, *, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), split_seed: int = 0
) -> tuple[ImageData, Features]:
    """A feature file as a labelled set and its features; opening an image of it is a JobError.

    Args:
        path: The file; this module's description says what it and the files beside it hold.
        fractions: Shares of train, val and test where the file has no split.
        split_seed: Seed of that split.

    Raises:
        UserError: As `load_features`; also for missing labels, columns of another length, and labels or
            splits out of range.
    """
    path = Path(path).expanduser()
    table = _read(path)
    features = _features(table, path)
    count = len(features.x)
    for name, column in table.columns.items():
        if len(column) != count:
            raise UserError(f"{WHO}: expected {count} rows of {name!r} in {path}, got {len(column)}. Give one a row.")
    if "labels" not in table.columns:
        raise UserError(f"{WHO}: expected labels with {path}, got none. {_where_labels(path)}")
    labels, classes, multi_label = _labels(table, path)
    if "split" in table.columns:
        split = _split(table.columns["split"], path)
    else:
        split = stratified_split(labels, fractions=fractions, seed=split_seed)
    data = ImageData(
        name=f"features:{path}",
        classes=classes,
        multi_label=multi_label,
        labels=labels,
        split=split,
        ids=_ids(table, path, count),
        open_image=NoImages(str(path)),
        fingerprint=hashlib.sha256(features.key.encode() + labels.tobytes() + split.tobytes()).hexdigest(),
        attributes=_attributes(table, path),
    )
    return data, features


# Reading --------------------------------------------------------------------------------------------------


def _read(path: Path) -> Table:
    readers: dict[str, Callable[[Path], Table]] = {
        ".npy": _read_npy,
        ".safetensors": _read_safetensors,
        ".parquet": _read_parquet,
    }
    if not path.is_file():
        raise UserError(f"{WHO}: expected a file of features, got no file {path}. Check the path.")
    if path.suffix not in readers:
        raise unknown_name(WHO, "kind of file", path.suffix, readers)
    return readers[path.suffix](path)


def _read_npy(path: Path) -> Table:
    beside = [
        path.with_name("labels.npy"),
        path.with_name("split.npy"),
        *sorted(path.parent.glob("group_*.npy")),
    ]
    found = [file for file in beside if file.is_file() and file != path]
    columns = {file.stem: _array(file) for file in found}
    return Table(_array(path, memory_map=True), columns, files=(path, *found))


def _array(path: Path, memory_map: bool = False) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, "an array of numbers or names", error) from error
    return array


def _read_safetensors(path: Path) -> Table:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        names = {key: tuple(map(str, json.loads(text))) for key, text in metadata.items() if _is_named(key)}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _damaged(path, "a whole safetensors file", error) from error
    arrays = {k: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for k, t in tensors.items()}
    features = arrays.pop("features", None)
    if features is None:
        raise UserError(f"{WHO}: expected a tensor 'features' in {path}, got {sorted(arrays)}. Rename it.")
    return Table(features, arrays, names, (path,))


def _is_named(key: str) -> bool:
    return key == "classes" or key.startswith("group_")


def _read_parquet(path: Path) -> Table:
    pyarrow = require("pyarrow", "data", WHO)
    parquet = require("pyarrow.parquet", "data", WHO)
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, "a whole parquet file", error) from error
    if "features" not in table.column_names:
        raise UserError(f"{WHO}: expected a column 'features' in {path}, got {table.column_names}. Rename it.")
    arrays = {name: _column(table.column(name), name, path) for name in table.column_names}
    features = arrays.pop("features")
    return Table(features, arrays, files=(path,))


def _column(column: Any, name: str, path: Path) -> Array:
    """A parquet column as an array, 2-d where it holds lists."""
    if column.null_count:
        raise UserError(f"{WHO}: expected a value in every row of {name!r} in {path}, got {column.null_count} empty.")
    kinds = require("pyarrow.types", "data", WHO)

    if not (kinds.is_list(column.type) or kinds.is_fixed_size_list(column.type) or kinds.is_large_list(column.type)):
        array: Array = column.to_numpy()
        return array.astype(str) if array.dtype == object else array
    flat: Array = np.concatenate(
        [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks] or [np.zeros(0)]
    )
    width = len(flat) // max(len(column), 1)
    lengths = {len(row) for row in column} if len(column) else {0}
    if lengths != {width}:
        raise UserError(f"{WHO}: expected lists of one length in {name!r} of {path}, got {sorted(lengths)[:4]}.")
    return flat.reshape(len(column), width)


def _damaged(path: Path, expected: str, error: Exception) -> UserError:
    said = " ".join(str(error).split())[:120]
    return UserError(f"{WHO}: expected {expected}, got {path} ({said}). Write it again, without pickle.")


# Checking -------------------------------------------------------------------------------------------------


def _features(table: Table, path: Path) -> Features:
    raw = table.features
    if raw.ndim != 2 or not np.issubdtype(raw.dtype, np.floating):
        raise UserError(f"{WHO}: expected (images, features) floats in {path}, got {raw.dtype} of shape {raw.shape}.")
    x: npt.NDArray[np.float32] = raw if raw.dtype == np.float32 else raw.astype(np.float32)
    for start in range(0, len(x), 8192):
        bad = np.flatnonzero(~np.isfinite(x[start : start + 8192]).all(1))
        if bad.size:
            raise UserError(f"{WHO}: expected finite features in {path}, got nan or inf in row {start + bad[0]}.")
    x.flags.writeable = False
    key = hashlib.sha256("".join(digest_file(file) for file in table.files).encode()).hexdigest()
    return Features(x, key, path, extracted=0, reused=len(x))


def _where_labels(path: Path) -> str:
    return {".npy": f"Put them into {path.with_name('labels.npy')}."}.get(path.suffix, "Add them under 'labels'.")


def _labels(table: Table, path: Path) -> tuple[Any, tuple[str, ...], bool]:
    """The labels, the names of the classes, and whether they are 0/1 rows."""
    raw = table.columns["labels"]
    given = table.names.get("classes")
    if raw.ndim == 2:
        if not np.isin(raw, (0, 1)).all():
            raise UserError(f"{WHO}: expected rows of 0 and 1 as labels in {path}, got other values.")
        classes = given or tuple(map(str, range(raw.shape[1])))
        if len(classes) != raw.shape[1]:
            raise UserError(f"{WHO}: expected {raw.shape[1]} names of classes in {path}, got {len(classes)}.")
        return raw.astype(np.uint8), classes, True
    column = _coded(raw, given, "labels", path)
    if column.codes.min(initial=0) < 0:
        raise UserError(f"{WHO}: expected labels from 0 in {path}, got {column.codes.min()}. Leave such rows out.")
    return column.codes, column.values, False


def _coded(raw: Array, names: tuple[str, ...] | None, what: str, path: Path) -> Attribute:
    """Numbers (with the names that were given for them) or names as codes and values."""
    if raw.ndim != 1:
        raise UserError(f"{WHO}: expected one value a row in {what!r} of {path}, got shape {raw.shape}.")
    if raw.dtype.kind in "US":
        values, codes = np.unique(raw.astype(str), return_inverse=True)
        return Attribute(codes.astype(np.int64), tuple(map(str, values)))
    if raw.dtype.kind not in "iub":
        raise UserError(f"{WHO}: expected whole numbers or names in {what!r} of {path}, got {raw.dtype}.")
    codes = raw.astype(np.int64)
    known = names or tuple(map(str, range(int(codes.max(initial=-1)) + 1)))
    if codes.max(initial=-1) >= len(known) or codes.min(initial=0) < -1:
        raise UserError(
            f"{WHO}: expected numbers from 0 to {len(known) - 1} in {what!r} of {path}, "
            f"got {codes.min()} to {codes.max()}. Check the names that go with them."
        )
    return Attribute(codes, known)


def _split(raw: Array, path: Path) -> npt.NDArray[np.int8]:
    texts = [str(value).lower() for value in raw.tolist()] if raw.ndim == 1 else [""]
    places = {**{name: k for k, name in enumerate(SPLITS)}, **{str(k): k for k in range(len(SPLITS))}}
    wrong = next((text for text in texts if text not in places), None)
    if wrong is not None:
        raise unknown_name(WHO, f"split in {path.name}", wrong, SPLITS)
    return np.array([places[text] for text in texts], np.int8)


def _attributes(table: Table, path: Path) -> dict[str, Attribute]:
    return {
        name.removeprefix("group_"): _coded(column, table.names.get(name), name, path)
        for name, column in table.columns.items()
        if name.startswith("group_")
    }


def _ids(table: Table, path: Path, count: int) -> tuple[str, ...]:
    if "id" not in table.columns:
        name = path.stem
        return tuple(f"{name}/{row}" for row in range(count))
    ids = tuple(map(str, table.columns["id"].tolist()))
    if len(set(ids)) != count:
        raise UserError(f"{WHO}: expected another 'id' in every row of {path}, got {count - len(set(ids))} repeated.")
    return ids
