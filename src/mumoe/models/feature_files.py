"""Features that were computed elsewhere, read from a file as a labelled set without images.

Three formats, each holding one row per image in one order:

- ``FEATURES.npy``, (n, d) floats, with files beside it: ``labels.npy`` and, optionally, ``split.npy``, ``id.npy``
  and ``group_NAME.npy`` for every subgroup column.
- ``FILE.safetensors`` with the tensors ``features``, ``labels``, ``split``, ``group_NAME`` and ``id``.
- ``FILE.parquet`` with the columns ``features`` (lists of floats), ``labels``, ``split``, ``group_NAME`` and
  ``id``.

The first two are mapped, not read into memory, except for bfloat16 and floats of 8 bits. Batches are float32,
regardless of the floats that a file holds.

Labels are positions from 0, names (text or UTF-8 bytes), or one 0/1 row per image. The metadata of safetensors and
parquet files may name the classes, as ``classes``, ``id2label`` or ``label2id``, and a column's values, as
``group_NAME``: a JSON list in order, or an object from name to position or from position to name. What `datasets`
records of a ClassLabel is read too. What a column's values mean, and which are missing, is decided by
`mumoe.data.columns`: a missing group is unknown, a missing label is an error. A split is given by name (train, val,
test) or by position (0, 1, 2); without one, a seeded split stratified by class is made. Pickled arrays are refused.
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

from mumoe.data.archives import parquet_batches
from mumoe.data.base import SPLITS, Attribute, ImageData, NoImages
from mumoe.data.columns import (
    UNKNOWN,
    Column,
    distinct_texts,
    is_missing,
    object_array,
    plain_number,
    read_column,
    texts_of,
)
from mumoe.data.layout import SPLIT_WORDS
from mumoe.data.splits import stratified_split
from mumoe.errors import UserError, reason_of, require, unknown_name
from mumoe.files import digest_file, read_array
from mumoe.models.features import Features

if TYPE_CHECKING:
    pass

__all__ = ["load_feature_data"]

WHO = "features"
Array = npt.NDArray[Any]

MOST_NUMBERS = 1_000_000
"""Numbers without names are positions; numbers from this one on are codes that need names."""

_CLASS_KEYS = ("classes", "id2label", "label2id")


@dataclass(frozen=True)
class Table:
    """A feature file's content: the features, columns by name, and names of coded values."""

    features: Array
    columns: Mapping[str, Array]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


def load_feature_data(
    path: str | Path, *, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), split_seed: int = 0
) -> tuple[ImageData, Features]:
    """A feature file as a labelled set and its features; opening one of its images raises JobError.

    Args:
        path: The file; see the module for what it and the files beside it hold.
        fractions: Shares of train, val and test, if the file has no split.
        split_seed: Seed of that split.

    Raises:
        UserError: If the file is missing, of another kind, damaged, or holds no finite 2-d floats; for missing
            labels, columns of another length, and labels or splits out of range.
    """
    path = Path(path).expanduser()
    table = _read(path)
    features = _features(table, path)
    count = len(features.x)
    for name, column in table.columns.items():
        rows = len(column) if column.ndim else 0
        if rows != count:
            raise UserError(f"{WHO}: expected {count} rows of {name!r} in {path}, got {rows}. Give one per row.")
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
        split_by="as given" if "split" in table.columns else f"at random by class (seed {split_seed})",
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
        path.with_name("id.npy"),
        *sorted(path.parent.glob("group_*.npy")),
    ]
    found = [file for file in beside if file.is_file() and file != path]
    columns = {file.stem: _array(file) for file in found}
    return Table(_array(path, memory_map=True), columns, files=(path, *found))


def _array(path: Path, memory_map: bool = False) -> Array:
    try:
        array: Array = read_array(path, mapped=memory_map)
    except ValueError as error:
        raise _damaged(path, "an array of numbers or names", error) from error
    return array


def _read_safetensors(path: Path) -> Table:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _damaged(path, "an intact safetensors file", error) from error
    arrays = {key: _as_array(tensor) for key, tensor in tensors.items()}
    features = arrays.pop("features", None)
    if features is None:
        raise UserError(f"{WHO}: expected a tensor 'features' in {path}, got {sorted(arrays)}. Rename it.")
    return Table(features, arrays, _all_names(metadata, path), (path,))


def _as_array(tensor: Any) -> Array:
    """A tensor as an array; one of floats that numpy does not have becomes float32."""
    try:
        array: Array = tensor.numpy()
    except TypeError:  # bfloat16, float8
        array = tensor.float().numpy()
    return array


def _all_names(metadata: Mapping[str, str], path: Path) -> dict[str, tuple[str, ...]]:
    """Names of the classes (under ``labels``) and of columns' values, out of a file's metadata."""
    names: dict[str, tuple[str, ...]] = {}
    for key, text in metadata.items():
        if key in _CLASS_KEYS or key.startswith("group_"):
            column = "labels" if key in _CLASS_KEYS else key
            found = _names(text, key, path)
            if names.setdefault(column, found) != found:
                raise UserError(f"{WHO}: expected one order of the classes in {path}, got another in {key!r}.")
    return names


def _names(text: str, key: str, path: Path) -> tuple[str, ...]:
    """The names in order: of a JSON list, or of an object from name to position or from position to name."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _bad_names(key, path, f"no JSON ({error})") from error
    if isinstance(content, dict):
        by_name = key != "id2label" and all(type(value) is int for value in content.values())
        pairs = [(place, name) if by_name else (name, place) for name, place in content.items()]
        places = {str(place): name for place, name in pairs}
        if len(places) < len(pairs) or set(places) != {str(place) for place in range(len(pairs))}:
            raise _bad_names(key, path, f"the positions {', '.join(sorted(str(place) for place, _ in pairs)[:5])}")
        content = [places[str(place)] for place in range(len(pairs))]
    if not isinstance(content, list) or not all(isinstance(name, str | int) for name in content):
        raise _bad_names(key, path, f"{text[:60]}")
    names = tuple(str(name).strip() for name in content)
    wrong = next((name for name in names if is_missing(name) or names.count(name) > 1), None)
    if wrong is not None:
        raise _bad_names(key, path, f"{wrong!r} {'twice' if names.count(wrong) > 1 else 'as a name'}")
    return names


def _bad_names(key: str, path: Path, got: str) -> UserError:
    return UserError(
        f"{WHO}: expected different names in the order of their positions from 0 in the metadata {key!r} of {path}, "
        f"got {got}. Write a JSON list."
    )


def _read_parquet(path: Path) -> Table:
    pyarrow = require("pyarrow", "data", WHO)
    parquet = require("pyarrow.parquet", "data", WHO)
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
        table = pyarrow.Table.from_batches(parquet_batches(path, WHO), schema)
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, "an intact parquet file", error) from error
    if "features" not in table.column_names:
        raise UserError(f"{WHO}: expected a column 'features' in {path}, got {table.column_names}. Rename it.")
    arrays = {name: _column(table.column(name), name, path) for name in table.column_names}
    features = arrays.pop("features")
    return Table(features, arrays, _all_names(_parquet_metadata(table.schema.metadata or {}), path), (path,))


def _parquet_metadata(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """The metadata as text, with the class names that `datasets` records under a key of its own."""
    texts = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in metadata.items()}
    try:
        features = json.loads(texts.get("huggingface", "{}"))["info"]["features"]
        known = {name: feature["names"] for name, feature in features.items() if "names" in feature}
    except (ValueError, KeyError, TypeError, AttributeError):
        return texts
    return texts | {"classes" if name == "labels" else name: json.dumps(names) for name, names in known.items()}


def _column(column: Any, name: str, path: Path) -> Array:
    """A parquet column as an array: objects, with None for empty rows, or 2-d numbers if it holds lists."""
    kinds = require("pyarrow.types", "data", WHO)
    if not (kinds.is_list(column.type) or kinds.is_fixed_size_list(column.type) or kinds.is_large_list(column.type)):
        simple = kinds.is_integer(column.type) or kinds.is_floating(column.type)
        if simple and not column.null_count:
            array: Array = column.to_numpy()
            return array
        return object_array(column.to_pylist())
    if column.null_count:
        raise UserError(f"{WHO}: expected a value in every row of {name!r} in {path}, got {column.null_count} empty.")
    flat: Array = np.concatenate(
        [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks] or [np.zeros(0)]
    )
    width = len(flat) // max(len(column), 1)
    compute = require("pyarrow.compute", "data", WHO)
    lengths = sorted(compute.unique(compute.list_value_length(column)).to_pylist()) if len(column) else [0]
    if lengths != [width]:
        raise UserError(f"{WHO}: expected lists of one length in {name!r} of {path}, got {lengths[:4]}.")
    return flat.reshape(len(column), width)


def _damaged(path: Path, expected: str, error: Exception) -> UserError:
    return UserError(
        f"{WHO}: expected {expected}, got {path} ({reason_of(error, 120)}). Write it again, without pickle."
    )


# Checking -------------------------------------------------------------------------------------------------


def _features(table: Table, path: Path) -> Features:
    raw = table.features
    if raw.ndim != 2 or not np.issubdtype(raw.dtype, np.floating):
        raise UserError(f"{WHO}: expected (images, features) floats in {path}, got {raw.dtype} of shape {raw.shape}.")
    for start in range(0, len(raw), 8192):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, which is refused
            part = raw[start : start + 8192].astype(np.float32, copy=False)
        bad = np.flatnonzero(~np.isfinite(part).all(1))
        if bad.size:
            raise UserError(f"{WHO}: expected finite features in {path}, got nan or inf in row {start + bad[0]}.")
    raw.flags.writeable = False
    key = hashlib.sha256("".join(digest_file(file) for file in table.files).encode()).hexdigest()
    return Features(raw, key, path, extracted=0, reused=len(raw))


def _where_labels(path: Path) -> str:
    return {".npy": f"Put them into {path.with_name('labels.npy')}."}.get(path.suffix, "Add them under 'labels'.")


def _labels(table: Table, path: Path) -> tuple[Any, tuple[str, ...], bool]:
    """The labels, the names of the classes, and whether they are 0/1 rows."""
    raw = table.columns["labels"]
    given = table.names.get("labels")
    if raw.ndim == 2:
        if not np.isin(raw, (0, 1)).all():
            raise UserError(f"{WHO}: expected rows of 0 and 1 as labels in {path}, got other values.")
        classes = given or tuple(map(str, range(raw.shape[1])))
        if len(classes) != raw.shape[1]:
            raise UserError(f"{WHO}: expected {raw.shape[1]} names of classes in {path}, got {len(classes)}.")
        return raw.astype(np.uint8), classes, True
    column = _read_column(raw, "labels", path)
    if column.unknown:
        raise UserError(
            f"{WHO}: expected labels from 0 or names in every row of {path}, got none in "
            f"{column.describe_unknown()}. Leave such rows out."
        )
    found = _positions(column, given, "labels", path) if _are_numbers(raw) else _by_name(column, given, path)
    if found.codes.min(initial=0) < 0:
        raise UserError(f"{WHO}: expected labels from 0 in {path}, got {found.codes.min()}. Leave such rows out.")
    return found.codes, found.values, False


def _read_column(raw: Array, what: str, path: Path) -> Column:
    if raw.ndim != 1:
        raise UserError(f"{WHO}: expected one value per row in {what!r} of {path}, got shape {raw.shape}.")
    if raw.dtype.kind not in "iufbUSO":
        raise UserError(f"{WHO}: expected whole numbers or names in {what!r} of {path}, got {raw.dtype}.")
    return read_column(raw, who=WHO, name=f"{what} of {path}")


def _are_numbers(raw: Array) -> bool:
    if raw.dtype.kind == "O":
        known = [value for value in raw.tolist() if value is not None]
        return bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    return raw.dtype.kind in "iuf"


def _positions(column: Column, names: tuple[str, ...] | None, what: str, path: Path) -> Attribute:
    """A column of numbers: positions among the given names, or, without names, names themselves."""
    fraction = next((value for value in column.values if not value.lstrip("-").isdigit()), None)
    if fraction is not None:
        raise UserError(f"{WHO}: expected whole numbers or names in {what!r} of {path}, got {fraction}.")
    numbers = [int(value) for value in column.values]
    most = len(names) if names else MOST_NUMBERS
    if numbers and (max(numbers) >= most or min(numbers) < UNKNOWN):
        raise UserError(
            f"{WHO}: expected numbers from 0 to {most - 1} in {what!r} of {path}, "
            f"got {min(numbers)} to {max(numbers)}. Check the names that go with them."
        )
    codes = np.array([*numbers, UNKNOWN], np.int64)[column.codes]
    return Attribute(codes, names or tuple(map(str, range(int(codes.max(initial=-1)) + 1))))


def _by_name(column: Column, names: tuple[str, ...] | None, path: Path) -> Attribute:
    """A column of names, in the order of the given classes."""
    if names is None:
        return Attribute(column.codes, column.values)
    strange = next((value for value in column.values if value not in names), None)
    if strange is not None:
        raise unknown_name(WHO, f"class of {path.name}", strange, names)
    return Attribute(np.array([names.index(value) for value in column.values], np.int64)[column.codes], names)


def _split(raw: Array, path: Path) -> npt.NDArray[np.int8]:
    different, rows = distinct_texts(raw, who=WHO, name="split") if raw.ndim == 1 else ([""], np.zeros(1, np.int64))
    texts = [plain_number(text.lower()) for text in different]
    places = {**SPLIT_WORDS, **{str(k): k for k in range(len(SPLITS))}}
    wrong = next((text for text in texts if text not in places), None)
    if wrong is not None:
        raise unknown_name(WHO, f"split in {path.name}", wrong, SPLITS)
    return np.array([places[text] for text in texts], np.int8)[rows]


def _attributes(table: Table, path: Path) -> dict[str, Attribute]:
    return {
        name.removeprefix("group_"): _group(column, table.names.get(name), name, path)
        for name, column in table.columns.items()
        if name.startswith("group_")
    }


def _group(raw: Array, names: tuple[str, ...] | None, what: str, path: Path) -> Attribute:
    """Subgroups: unknown for missing values, no and yes for 0 and 1 without names."""
    column = _read_column(raw, what, path)
    if _are_numbers(raw) and (names or column.kind != "binary"):
        return _positions(column, names, what, path)
    return column.attribute() if names is None else _by_name(column, names, path)


def _ids(table: Table, path: Path, count: int) -> tuple[str, ...]:
    if "id" not in table.columns:
        name = path.stem
        return tuple(f"{name}/{row}" for row in range(count))
    ids = tuple(texts_of(table.columns["id"], who=WHO, name="id"))
    empty = sum(map(is_missing, ids))
    if empty or len(set(ids)) != count:
        got = f"{empty} empty" if empty else f"{count - len(set(ids))} repeated"
        raise UserError(f"{WHO}: expected a different 'id' in every row of {path}, got {got}.")
    return ids
