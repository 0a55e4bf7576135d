"""``csv:PATH``: a table with a row per image.

    image,label,studio,split
    pictures/1.png,cat,noto,train
    pictures/2.png,dog,openmoji,test

Paths start from the folder of the table. The roles of the columns follow the rules of `mumoe.data.roles`,
or are given by the options ``image_column``, ``label_column``, ``target_columns``, ``group_columns``,
``split_column`` and ``classes``; ``image_folder`` is put before every path. The delimiter is the one of comma,
semicolon and tab that occurs most often in the first line. The text is UTF-8.
"""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mumoe.data.base import ImageData
from mumoe.data.build import FileImages, build
from mumoe.data.layout import existing
from mumoe.data.registry import Request, register
from mumoe.data.roles import IMAGE_WORDS, choose_roles, find_column, read_rows
from mumoe.errors import UserError

__all__ = ["CsvTable", "read_table"]


@dataclass(frozen=True)
class CsvTable:
    """A delimited file.

    Attributes:
        columns: Name to values.
        lines: Number of the line on which each row ends, from 1.
        problems: Lines with too few or too many fields, which were left out.
    """

    columns: dict[str, list[str]]
    lines: list[int]
    problems: list[str]


@register("csv", "a table of image paths with labels or 0/1 targets, subgroups, split", argument="PATH")
def load_csv(
    request: Request,
    *,
    image_column: str = "",
    image_folder: str = "",
    label_column: str = "",
    target_columns: str | Sequence[str] = (),
    group_columns: str | Sequence[str] | None = None,
    split_column: str = "",
    classes: str | Sequence[str] = (),
) -> ImageData:
    """Load ``csv:PATH``; see the top of the module for the options.

    Raises:
        UserError: If the file is missing or not a table, or a column does not exist.
    """
    path = existing(request.name, request.path(), folder=False)
    table = read_table(request.name, path)
    image = find_column(request.name, table.columns, image_column, IMAGE_WORDS)
    if not image:
        raise UserError(
            f"{request.name}: expected a column called one of {', '.join(IMAGE_WORDS)}, got "
            f"{', '.join(table.columns)}. Name it with image_column."
        )
    others = {name: values for name, values in table.columns.items() if name != image}
    roles = choose_roles(
        request.name,
        others,
        label_column=label_column,
        target_columns=target_columns,
        group_columns=group_columns,
        split_column=split_column,
    )
    rows = read_rows(request.name, others, roles, lambda row: f"line {table.lines[row]}", classes=classes)
    values = table.columns[image]
    paths = [posixpath.normpath(posixpath.join(image_folder, values[row].strip())) for row in rows.kept]
    return build(
        request,
        FileImages(path.parent, tuple(paths)),
        classes=rows.classes,
        labels=rows.labels,
        ids=paths,
        split=rows.split,
        attributes=rows.attributes,
        problems=table.problems + rows.problems,
    )


def read_table(who: str, path: Path) -> CsvTable:
    """Read a delimited file whose first line names the columns.

    Raises:
        UserError: If it is not UTF-8, has no header or no row, repeats a column, or breaks CSV's rules.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
            try:
                return _columns(who, path, reader)
            except csv.Error as error:
                raise UserError(
                    f"{who}: expected a table, got line {reader.line_num}: {error}. Repair that line."
                ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{who}: expected text in UTF-8 in {str(path)!r}, got byte {error.object[error.start]:#04x}. "
            "Save the table as UTF-8."
        ) from error


def _columns(who: str, path: Path, reader: Any) -> CsvTable:
    header = [name.strip() for name in next(reader, [])]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if not any(header) or repeated:
        got = f"{repeated[0]!r} twice" if repeated else "none"
        raise UserError(f"{who}: expected column names in line 1 of {str(path)!r}, got {got}. Add them.")
    rows, numbers, problems = [], [], []
    for row in reader:
        if len(row) == len(header):
            rows.append(row)
            numbers.append(reader.line_num)
        elif row:
            problems.append(f"line {reader.line_num}: {len(row)} fields for {len(header)} columns, left out")
    if not rows:
        reason = f" that can be read ({problems[0]})" if problems else ""
        raise UserError(f"{who}: expected rows below the header of {str(path)!r}, got none{reason}. Add them.")
    values = [list(column) for column in zip(*rows, strict=True)]
    return CsvTable(dict(zip(header, values, strict=True)), numbers, problems)
