"""``hf:NAME``: a set of the Hugging Face hub, or a folder that `datasets` wrote or can read.

NAME is a folder made by ``save_to_disk``, a folder of parquet (or other) files, or a name on the hub. Names
on the hub are looked for in the local cache of `datasets` and fetched only when downloading was allowed.
Columns mean what `mumoe.data.columns` says; the image column is the first of type ``Image``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mumoe.data.base import ImageData
from mumoe.data.build import UNDECIDED, build
from mumoe.data.columns import choose_roles, find_column, read_rows
from mumoe.data.decode import ImageError, damage, read_image
from mumoe.data.layout import SPLIT_WORDS
from mumoe.data.registry import Request, register
from mumoe.data.verify import Checked, check_blobs, is_full
from mumoe.errors import JobError, UserError, require
from mumoe.files import cache_root

__all__ = ["RowImages"]


@dataclass(frozen=True, eq=False)
class RowImages:
    """Encoded images in the rows of tables.

    Attributes:
        tables: Tables of `datasets`, with the image column not decoded.
        column: Name of the image column.
        where: (num_images, 2) int64: the table and the row of each image.
        names: What to call each image.
    """

    tables: tuple[Any, ...]
    column: str
    where: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.where)

    def __call__(self, index: int) -> Image.Image:
        try:
            return read_image(self.encoded(index), name=self.names[index])
        except OSError as error:
            raise ImageError(f"hf: expected an image in {self.names[index]!r}, got: {damage(error)}.") from error

    def encoded(self, index: int) -> bytes:
        """The bytes of the image file, which may lie beside the table; empty when the row has none."""
        table, row = self.where[index].tolist()
        cell = self.tables[table][row][self.column] or {}
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        return Path(cell["path"]).read_bytes() if cell.get("path") else b""

    def subset(self, kept: npt.NDArray[np.int64]) -> RowImages:
        return RowImages(self.tables, self.column, self.where[kept], tuple(self.names[i] for i in kept))

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
        request: What was asked for.
        config: Name of a configuration of the set.
        revision: Commit, branch or tag on the hub.
        image_column: As in `mumoe.data.table`, and likewise the rest.

    Raises:
        UserError: If `datasets` is not installed, the set is not there, or a column is not.
        JobError: If a download fails.
    """
    library = require("datasets", "data", request.name)
    splits, problems = _known_splits(_open(library, request, config, revision))
    tables = list(splits.values())
    image = _image_column(request.name, tables[0], image_column)
    tables = [table.cast_column(image, library.Image(decode=False)) for table in tables]
    sizes = [len(table) for table in tables]
    columns = _columns(tables, image)
    where = np.array([(table, row) for table, size in enumerate(sizes) for row in range(size)], np.int64)
    names = [f"{name}/{row}" for name, size in zip(splits, sizes, strict=True) for row in range(size)]
    roles = choose_roles(
        request.name,
        columns,
        label_column=label_column,
        target_columns=target_columns,
        group_columns=group_columns,
    )
    known = classes or _names(tables[0], roles.label)
    rows = read_rows(request.name, columns, roles, names.__getitem__, classes=known)
    if not roles.split:
        parts = np.repeat([SPLIT_WORDS.get(name.lower(), UNDECIDED) for name in splits], sizes)
        rows.split = parts[rows.kept]
    ids = tuple(names[row] for row in rows.kept)
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
    """The set as `datasets` has it: a table, or tables by split."""
    path = request.path()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return library.load_from_disk(str(path))
        if path.is_dir():
            cache = str(cache_root(request.cache_dir) / "datasets")
            return library.load_dataset(str(path), config or None, cache_dir=cache)
        with contextlib.nullcontext() if request.download else _offline(library):
            return library.load_dataset(request.argument, config or None, revision=revision or None)
    except Exception as error:
        words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if request.download:
            raise JobError(f"{request.name}: expected to load the set, got: {words}. Try again.") from error
        raise UserError(
            f"{request.name}: expected a folder, or a set that was fetched before, got: {words}. "
            "Check the name, or allow the download (--download)."
        ) from error


@contextlib.contextmanager
def _offline(library: Any) -> Iterator[None]:
    """Keep `datasets` from asking the hub; it then looks into its cache."""
    before = library.config.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = before


def _known_splits(opened: Any) -> tuple[dict[str, Any], list[str]]:
    """Tables by split, and a line for each split that is none of train, val and test."""
    if not isinstance(opened, dict):
        return {"all": opened}, []
    known = {name: table for name, table in opened.items() if name.lower() in SPLIT_WORDS}
    if not known:
        return dict(opened), []
    return known, [f"split {name!r} was left out" for name in opened if name not in known]


def _image_column(who: str, table: Any, asked: str) -> str:
    images = [name for name, feature in table.features.items() if type(feature).__name__ == "Image"]
    found = find_column(who, table.features, asked, [name.lower() for name in images])
    if found not in images:
        raise UserError(
            f"{who}: expected a column of images, got {', '.join(table.features)}. "
            "Name one of type Image with image_column."
        )
    return found


def _columns(tables: Sequence[Any], image: str) -> dict[str, list[str]]:
    """The columns of single values as text, all tables one after the other."""
    columns: dict[str, list[str]] = {}
    for name, feature in tables[0].features.items():
        if name != image and type(feature).__name__ in ("Value", "ClassLabel"):
            columns[name] = [text for table in tables for text in _texts(table, name)]
    return columns


def _texts(table: Any, name: str) -> list[str]:
    names = dict(enumerate(_names(table, name)))
    values = table.select_columns([name])[:][name]
    return ["" if value is None else names.get(value, str(value)) for value in values]


def _names(table: Any, column: str) -> list[str]:
    """The class names of a column, if it has any."""
    return list(getattr(table.features.get(column), "names", None) or [])
