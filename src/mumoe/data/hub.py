"""``hf:NAME``: a set of the Hugging Face hub, or a folder that `datasets` wrote or can read.

NAME is a folder made by ``save_to_disk``, a folder of parquet (or other) files, or a name on the hub. Names
on the hub are looked up in the local cache of `datasets` and downloaded only if that is allowed.
Columns follow the rules of `mumoe.data.roles`; the image column is the first of type ``Image``. Splits may have
different columns: a column that a split lacks is reported, and has no value in its rows. Labels and targets must be
columns of train.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mumoe.data.archives import check_expanded
from mumoe.data.base import ImageData
from mumoe.data.build import UNDECIDED, build
from mumoe.data.columns import UNKNOWN, texts_of
from mumoe.data.decode import ImageError, damage, read_image
from mumoe.data.inside import require_inside
from mumoe.data.layout import SPLIT_WORDS, files_below
from mumoe.data.registry import Request, register
from mumoe.data.roles import choose_roles, find_column, read_rows
from mumoe.data.same import same_files
from mumoe.data.splits import TRAIN
from mumoe.data.verify import Checked, check_blobs, is_full
from mumoe.errors import JobError, UserError, reason_of, require
from mumoe.files import cache_root

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["RowImages"]


@dataclass(frozen=True, eq=False)
class RowImages:
    """Encoded images in the rows of tables.

    Attributes:
        tables: Tables of `datasets`, with the image column not decoded.
        column: Name of the image column.
        where: (num_images, 2) int64: the table and the row of each image.
        names: Name of each image, for messages.
    """

    tables: tuple[Any, ...]
    column: str
    where: npt.NDArray[np.int64]
    names: tuple[str, ...]
    side = 0

    def __len__(self) -> int:
        return len(self.where)

    def __call__(self, index: int) -> Image.Image:
        try:
            return read_image(self.encoded(index), name=self.names[index])
        except OSError as error:
            raise ImageError(f"hf: expected an image in {self.names[index]!r}, got: {damage(error)}.") from error

    def encoded(self, index: int) -> bytes:
        """The bytes of the image file, which may lie beside the table; empty when the row has none."""
        cell = self._cell(index)
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        return Path(cell["path"]).read_bytes() if cell.get("path") else b""

    def subset(self, kept: npt.NDArray[np.int64]) -> RowImages:
        return RowImages(self.tables, self.column, self.where[kept], tuple(self.names[i] for i in kept))

    def repeated(self) -> dict[int, int]:
        """Rows that refer to the same file; empty if the first row holds its image as bytes."""
        if not len(self) or (self._cell(0).get("bytes")):
            return {}
        paths = [self._cell(index).get("path") or "" for index in range(len(self))]
        named = [index for index, path in enumerate(paths) if path]
        same = same_files([paths[index] for index in named])
        return {named[again]: named[first] for again, first in same.items()}

    def _cell(self, index: int) -> dict[str, Any]:
        table, row = self.where[index].tolist()
        return dict(self.tables[table][row][self.column] or {})

    def check(self, request: Request) -> Checked:
        return check_blobs(
            len(self),
            self.encoded,
            full=is_full(request.verify, len(self)),
            progress=request.progress,
        )


@register("hf", "a set of the Hugging Face hub, or a folder of `datasets`", argument="NAME")
def load_hf(
    request: Request,
    *,
    config: str = "",
    revision: str = "",
    image_column: str = "",
    label_column: str = "",
    target_columns: str | Sequence[str] = (),
    group_columns: str | Sequence[str] | None = None,
    classes: str | Sequence[str] = (),
) -> ImageData:
    """Load ``hf:NAME``.

    Args:
        request: The call of `load_data`.
        config: Name of a configuration of the set.
        revision: Commit, branch or tag on the hub.
        image_column: As in `mumoe.data.table`, and so are the other options.

    Raises:
        UserError: If `datasets` is not installed, or the set or a column does not exist.
        JobError: If a download fails.
    """
    library = require("datasets", "data", request.name)
    splits, problems = _known_splits(_open(library, request, config, revision))
    image = _image_column(request.name, splits, image_column)
    splits, more = _with_images(splits, image)
    tables = [table.cast_column(image, library.Image(decode=False)) for table in splits.values()]
    sizes = [len(table) for table in tables]
    columns, lacking = _columns(splits, image)
    where = np.array([(table, row) for table, size in enumerate(sizes) for row in range(size)], np.int64)
    names = [f"{name}/{row}" for name, size in zip(splits, sizes, strict=True) for row in range(size)]
    learnt = next((name for name in splits if SPLIT_WORDS.get(name.lower()) == TRAIN), next(iter(splits)))
    roles = choose_roles(
        request.name,
        columns,
        label_column=label_column,
        target_columns=target_columns,
        group_columns=group_columns,
        learnable=[name for name in columns if name in splits[learnt].features],
    )
    used = {roles.label, *roles.targets, *roles.groups, roles.split}
    problems += more + [f"split {split!r} has no column {name!r}" for split, name in lacking if name in used]
    known = classes or _class_names(tables, roles.label)
    rows = read_rows(request.name, columns, roles, names.__getitem__, classes=known)
    if not roles.split:
        parts = np.repeat([SPLIT_WORDS.get(name.lower(), UNDECIDED) for name in splits], sizes)
        rows.split = parts[rows.kept]
    ids = tuple(names[row] for row in rows.kept)
    if not request.allow_outside:
        paths = [path for table in tables for path in _paths(table, image)]
        require_inside(request.name, _places(library, request), paths)
    return build(
        request,
        RowImages(tuple(table.select_columns([image]) for table in tables), image, where[rows.kept], ids),
        classes=rows.classes,
        labels=rows.labels,
        ids=ids,
        split=rows.split,
        attributes=rows.attributes,
        problems=problems + rows.problems,
    )


def _open(library: Any, request: Request, config: str, revision: str) -> Any:
    """The set as `datasets` opens it: a table, or tables by split."""
    path = request.path()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return library.load_from_disk(str(path))
        if path.is_dir():
            for file in files_below(path, []):
                check_expanded(file, request.name)
            cache = str(cache_root(request.cache_dir) / "datasets")
            return library.load_dataset(str(path), config or None, cache_dir=cache)
        with contextlib.nullcontext() if request.download else _offline(library):
            return library.load_dataset(request.argument, config or None, revision=revision or None)
    except UserError:
        raise
    except Exception as error:
        words = reason_of(error).rstrip(".")
        if request.download:
            raise JobError(f"{request.name}: expected to load the set, got: {words}. Try again.") from error
        raise UserError(
            f"{request.name}: expected a folder or a set that was downloaded before, got: {words}. "
            "Check the name, or allow the download with `download`."
        ) from error


def _places(library: Any, request: Request) -> list[Path]:
    """Where the images of a set may lie: in its folder, and where `datasets` unpacks archives and downloads."""
    hub, settings, folder = require("huggingface_hub.constants", "data", request.name), library.config, request.path()
    caches = (settings.HF_DATASETS_CACHE, settings.DOWNLOADED_DATASETS_PATH, hub.HF_HUB_CACHE)
    own = [cache_root(request.cache_dir) / "datasets", *map(Path, caches)]
    return [folder, *own] if folder.is_dir() else own


def _paths(table: Any, image: str) -> list[str]:
    """Paths of the rows that do not hold their image as bytes."""
    compute = require("pyarrow.compute", "data", "hf")
    cells = table.select_columns([image]).with_format("arrow")[:][image]
    without = compute.is_null(compute.struct_field(cells, "bytes"))
    found = compute.filter(compute.struct_field(cells, "path"), without).to_pylist()
    return [path for path in found if path]


@contextlib.contextmanager
def _offline(library: Any) -> Iterator[None]:
    """Keep `datasets` from contacting the hub, so that it reads only its cache."""
    before = library.config.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = before


def _known_splits(opened: Any) -> tuple[dict[str, Any], list[str]]:
    """Tables by split, and a line for each split other than train, val and test."""
    if not isinstance(opened, dict):
        return {"all": opened}, []
    known = {name: table for name, table in opened.items() if name.lower() in SPLIT_WORDS}
    if not known:
        return dict(opened), []
    return known, [f"split {name!r} was left out" for name in opened if name not in known]


def _image_column(who: str, splits: Mapping[str, Any], asked: str) -> str:
    """The column of images: the requested one, else the first of type ``Image`` in the first split that has one."""
    features = {name: feature for table in reversed(list(splits.values())) for name, feature in table.features.items()}
    images = [name for table in splits.values() for name, feature in table.features.items() if _is_image(feature)]
    found = find_column(who, features, asked, [name.lower() for name in images])
    if found not in images:
        raise UserError(
            f"{who}: expected a column of images, got {', '.join(features)}. Name one of type Image with image_column."
        )
    return found


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _with_images(splits: Mapping[str, Any], image: str) -> tuple[dict[str, Any], list[str]]:
    """The splits that have the image column, and a line for each that does not."""
    kept = {name: table for name, table in splits.items() if _is_image(table.features.get(image))}
    return kept, [f"split {name!r} has no images in {image!r}, left out" for name in splits if name not in kept]


def _columns(splits: Mapping[str, Any], image: str) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """The columns of single values as text, over all splits in order, and (split, column) for each one that is missing.

    A split that lacks a column has no value in its rows.
    """
    simple = ("Value", "ClassLabel")
    names = [
        name
        for table in splits.values()
        for name, feature in table.features.items()
        if name != image and type(feature).__name__ in simple
    ]
    columns: dict[str, list[str]] = {}
    lacking = []
    for name in dict.fromkeys(names):
        columns[name] = []
        for split, table in splits.items():
            there = type(table.features.get(name)).__name__ in simple
            columns[name] += _texts(table, name) if there else [""] * len(table)
            lacking += [] if there else [(split, name)]
    return columns, lacking


def _texts(table: Any, name: str) -> list[str]:
    """A column's values as text; -1, which `datasets` writes for an unknown class, is missing."""
    names = _names(table, name)
    values = table.select_columns([name])[:][name]
    if names:
        coded = dict(enumerate(names))
        values = ["" if value is None or value == UNKNOWN else coded.get(value, str(value)) for value in values]
    return texts_of(values, name=name)


def _names(table: Any, column: str) -> list[str]:
    """The class names of a column, if it has any."""
    return list(getattr(table.features.get(column), "names", None) or [])


def _class_names(tables: Sequence[Any], column: str) -> list[str]:
    """The class names of all splits in order; empty if the column has no class names in some split."""
    named = [_names(table, column) for table in tables if column in table.features]
    return list(dict.fromkeys(name for names in named for name in names)) if all(named) else []
