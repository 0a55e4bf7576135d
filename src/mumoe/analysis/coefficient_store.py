"""Which experts process which images: coefficients captured in a stream and kept sparse on disk.

An entmax gate gives each row (an image, or a token of one) a coefficient for a handful of experts and exactly
0 for all others. Kept as (expert, value) pairs, the coefficients of a data set take a few bytes per row regardless of
the number of experts, and they are written batch by batch, so memory does not grow with the data.

One folder holds ``index.json`` and, for each layer and level, three arrays in row order: ``experts`` (int32),
``values`` (float32) and ``offsets`` (int64; row i owns the pairs from offsets[i] to offsets[i + 1]).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mumoe.analysis.findings import Usage
from mumoe.coefficients import SparseCoefficients
from mumoe.errors import UserError, require, shown, unknown_name
from mumoe.files import new_file, new_folder, read_array, read_json, recovered, write_json
from mumoe.records import read_typed

__all__ = ["CoefficientLevel", "CoefficientStore", "CoefficientWriter", "Pairs", "sparse_rows"]

FORMAT = 1
MOST_EXPERTS = 1 << 28
"""Experts of a level that a store may have: what is counted for each of them takes 32 bytes."""
_PARTS: dict[str, np.dtype[Any]] = {
    "experts": np.dtype("<i4"),
    "values": np.dtype("<f4"),
    "offsets": np.dtype("<i8"),
}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pairs:
    """The non-zero coefficients of some rows.

    Attributes:
        row: (pairs,) int64 row of each pair, ascending.
        expert: (pairs,) int64.
        value: (pairs,) float32.
    """

    row: npt.NDArray[np.int64]
    expert: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]


def sparse_rows(coefficients: Array) -> tuple[Array, Array, Array]:
    """Experts, values and pairs per row of a dense (rows, experts) block; only exact zeros are dropped."""
    rows, experts = np.nonzero(coefficients)
    counts = np.bincount(rows, minlength=len(coefficients))
    return experts.astype(np.int32), coefficients[rows, experts].astype(np.float32), counts.astype(np.int64)


class _Appender:
    """A one-dimensional .npy file that grows; its header is filled in when it is closed."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype, self.length = dtype, 0
        self._header()

    def _header(self) -> None:
        kind = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": kind, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: Array) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).tobytes())
        self.length += len(values)

    def close(self, complete: bool) -> None:
        """Close; of a complete file write the length into the header, whose size numpy keeps for any length."""
        with self._file:
            if complete:
                self._file.seek(0)
                self._header()


class CoefficientWriter:
    """Write the coefficients of one or more layers batch by batch; the folder appears when all is written.

    Args:
        folder: The folder of the store; an older one is replaced in one step at the end.
        layers: Number of experts of each level, by layer name.
        rows_per_image: Rows of one image by layer name: 1 (default), or the number of its tokens.
        images: Positions of the images in their data set, in the order in which they will be appended.

    >>> with CoefficientWriter(folder, {"head": (128,)}) as writer:          # doctest: +SKIP
    ...     for x in batches:
    ...         writer.append("head", [a.numpy() for a in layer.coefficients(x)])
    """

    def __init__(
        self,
        folder: str | Path,
        layers: Mapping[str, Sequence[int]],
        *,
        rows_per_image: Mapping[str, int] | None = None,
        images: Array | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.layers = {name: tuple(int(n) for n in experts) for name, experts in layers.items()}
        self._rows_per_image = dict(rows_per_image or {})
        self._images = images
        self._rows = dict.fromkeys(self.layers, 0)

    def __enter__(self) -> CoefficientWriter:
        self._place = new_folder(self.folder)
        self._scratch = self._place.__enter__()
        self._files = {
            (name, level, part): _Appender(self._scratch / _file(position, level, part), dtype)
            for position, (name, experts) in enumerate(self.layers.items())
            for level in range(len(experts))
            for part, dtype in _PARTS.items()
        }
        for (_, _, part), file in self._files.items():
            if part == "offsets":
                file.append(np.zeros(1, dtype=np.int64))
        self._ends = {(name, level): 0 for name, level, part in self._files if part == "offsets"}
        return self

    def set_rows_per_image(self, layer: str, rows: int) -> None:
        """Set the number of rows of each image in a layer inside a network, once it is known."""
        known = self._rows_per_image.setdefault(layer, rows)
        if known != rows:
            raise UserError(
                f"CoefficientWriter: expected {known} rows per image in {layer!r}, got {rows}. Use images of one size."
            )

    def append(self, layer: str, coefficients: Sequence[Array | SparseCoefficients]) -> None:
        """Add rows, one block per level: a dense (..., num_experts) array, whose leading dimensions are flattened, or
        coefficients by their support, which are written in steps proportional to it."""
        experts = self.layers[layer]
        if len(coefficients) != len(experts):
            raise UserError(
                f"CoefficientWriter: expected {len(experts)} levels for {layer!r}, got {len(coefficients)}. "
                "Give one array per level."
            )
        rows = {self._append_level(layer, level, block) for level, block in enumerate(coefficients)}
        if len(rows) != 1:
            raise UserError(
                f"CoefficientWriter: expected the same rows in every level of {layer!r}, got {sorted(rows)}. "
                "Give the levels of one batch."
            )
        self._rows[layer] += rows.pop()

    def _append_level(self, layer: str, level: int, block: Array | SparseCoefficients) -> int:
        width = self.layers[layer][level]
        if len(block.shape) < 1 or block.shape[-1] != width:
            raise UserError(
                f"CoefficientWriter: expected {width} experts in level {level} of {layer!r}, got shape "
                f"{tuple(block.shape)}. Pass the coefficients of this layer."
            )
        if isinstance(block, SparseCoefficients):
            kept = block.at_least().to("cpu")
            experts, values, counts = kept.indices.numpy(), kept.values.float().numpy(), kept.offsets.diff().numpy()
        else:
            experts, values, counts = sparse_rows(block.reshape(-1, width))
        ends = self._ends[layer, level] + np.cumsum(counts)
        self._files[layer, level, "experts"].append(experts)
        self._files[layer, level, "values"].append(values)
        self._files[layer, level, "offsets"].append(ends)
        self._ends[layer, level] = int(ends[-1]) if len(ends) else self._ends[layer, level]
        return len(counts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close(error is None)
        if error is None:
            if self._images is not None:
                np.save(self._scratch / "images.npy", np.asarray(self._images, dtype=np.int64), allow_pickle=False)
            write_json(self._scratch / "index.json", self._index())
        self._place.__exit__(kind, error, trace)

    def _index(self) -> dict[str, Any]:
        each = self._rows_per_image
        layers = [
            {"name": name, "num_experts": experts, "rows": self._rows[name], "rows_per_image": each.get(name, 1)}
            for name, experts in self.layers.items()
        ]
        return {"format": FORMAT, "layers": layers, "images": self._images is not None}


def _file(layer: int, level: int, part: str) -> str:
    return f"layer{layer}-level{level}-{part}.npy"


@dataclass(frozen=True)
class _Layer:
    """A layer in index.json."""

    name: str
    num_experts: tuple[int, ...]
    rows: int
    rows_per_image: int

    @property
    def is_sound(self) -> bool:
        sizes = (*self.num_experts, self.rows_per_image)
        return bool(self.num_experts) and min(sizes) >= 1 and max(sizes) <= MOST_EXPERTS and self.rows >= 0


@dataclass(frozen=True)
class _Index:
    """What index.json holds besides its format."""

    layers: tuple[_Layer, ...]
    images: bool


class CoefficientStore:
    """A folder of captured coefficients, read through memory maps.

    Attributes:
        layers: Names of the layers, in the order of the model.
        images: (images,) position of each image in its data set, or None if it was not recorded.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = recovered(Path(folder))
        index = read_json(self.folder / "index.json", "CoefficientStore")
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            found = index.get("format") if isinstance(index, dict) else index
            raise UserError(
                f"CoefficientStore: expected format {FORMAT} in {self.folder}, got {shown(found)}. "
                "Capture the coefficients again."
            )
        known = read_typed(_Index, index, f"CoefficientStore: {self.folder / 'index.json'}")
        self._layers = {entry.name: (position, entry) for position, entry in enumerate(known.layers)}
        self.layers = tuple(self._layers)
        if not self.layers or not all(entry.is_sound for entry in known.layers):
            raise _damaged(self.folder, "an index of layers without experts or rows")
        self.images = _load(self.folder / "images.npy") if known.images else None

    def num_levels(self, layer: str | None = None) -> int:
        """Levels of a layer; without a name those of the only layer, or of the first."""
        return len(self._layers[layer or self.layers[0]][1].num_experts)

    def level(self, layer: str | None = None, level: int = 0) -> CoefficientLevel:
        """The coefficients of one level; without a name those of the only layer.

        Raises:
            UserError: If the layer or level does not exist, or its files are damaged.
        """
        if layer is None and len(self.layers) == 1:
            layer = self.layers[0]
        if layer not in self._layers:
            raise unknown_name("CoefficientStore", "layer", str(layer), self.layers)
        position, entry = self._layers[layer]
        if not 0 <= level < len(entry.num_experts):
            raise UserError(
                f"CoefficientStore: expected a level from 0 to {len(entry.num_experts) - 1} of {layer!r}, "
                f"got {level}. Count levels from 0."
            )
        parts = {part: _load(self.folder / _file(position, level, part), kind) for part, kind in _PARTS.items()}
        return CoefficientLevel(
            num_experts=entry.num_experts[level],
            rows_per_image=entry.rows_per_image,
            folder=self.folder,
            rows=entry.rows,
            **parts,
        )

    def write_parquet(self, path: str | Path, layer: str | None = None) -> int:
        """Write the coefficients of one layer as parquet, one row for each above 0, and return the number of rows.

        Columns: image (its position in the data set, or in the store if that was not recorded), level, expert,
        coefficient; of tokens also row, the position within the image. Blocks are written as they are read.

        Raises:
            UserError: If there is no such layer, its files are damaged, or pyarrow is not installed.
            JobError: If the file cannot be written.
        """
        who = "CoefficientStore.write_parquet"
        arrow, parquet = require("pyarrow", "data", who), require("pyarrow.parquet", "data", who)
        fields = [("image", arrow.int64()), ("level", arrow.int8()), ("expert", arrow.int32())]
        tokens = self.level(layer).rows_per_image > 1
        fields += [*([("row", arrow.int32())] if tokens else []), ("coefficient", arrow.float32())]
        schema, total = arrow.schema(fields), 0
        with new_file(path, who=who) as part, parquet.ParquetWriter(part, schema) as writer:
            for number in range(self.num_levels(layer)):
                level = self.level(layer, number)
                for block in level.blocks():
                    image = block.row // level.rows_per_image
                    columns = {
                        "image": image if self.images is None else np.asarray(self.images)[image],
                        "level": np.full(len(image), number, np.int8),
                        "expert": block.expert.astype(np.int32),
                        "row": (block.row % level.rows_per_image).astype(np.int32),
                        "coefficient": block.value,
                    }
                    writer.write_table(arrow.table({name: columns[name] for name, _ in fields}, schema=schema))
                    total += len(image)
        return total


def _load(path: Path, kind: Any = np.int64) -> Array:
    """A one-dimensional array of this type, mapped from disk."""
    try:
        found: Array = read_array(path, mapped=True)
    except ValueError as error:
        raise _damaged(path.parent, str(error)) from error
    if found.ndim != 1 or found.dtype != kind:
        raise _damaged(path.parent, f"{found.dtype} of shape {found.shape} in {path.name}")
    return found


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(
        f"CoefficientStore: expected complete files in {folder}, got {what}. Capture the coefficients again."
    )


@dataclass(frozen=True)
class CoefficientLevel:
    """The non-zero coefficients of one level of one layer, row after row.

    Attributes:
        num_experts: Number of experts of the level.
        rows_per_image: Rows that belong to one image.
        rows: Number of rows.
        experts: (pairs,) int32 expert of each pair, mapped from disk.
        values: (pairs,) float32 coefficient of each pair, mapped from disk.
        offsets: (rows + 1,) int64 first pair of each row, mapped from disk.
    """

    num_experts: int
    rows_per_image: int
    rows: int
    experts: Array
    values: Array
    offsets: Array
    folder: Path

    def __post_init__(self) -> None:
        pairs = len(self.experts)
        ok = len(self.values) == pairs and len(self.offsets) == self.rows + 1
        if not ok or int(self.offsets[0]) != 0 or int(self.offsets[-1]) != pairs:
            raise _damaged(self.folder, f"{pairs} experts, {len(self.values)} values, {len(self.offsets)} offsets")

    def blocks(self, pairs: int = 100_000) -> Iterator[Pairs]:
        """All pairs in row order, whole images at a time, about `pairs` per block.

        Raises:
            UserError: If an expert or an offset is out of range.
        """
        start = 0
        while start < self.rows:
            target = int(self.offsets[start]) + pairs
            end = int(np.searchsorted(self.offsets, target, side="right")) - 1
            end = min(max(end, start + 1), start + pairs)
            end = min(-(-end // self.rows_per_image) * self.rows_per_image, self.rows)
            yield self._block(start, end)
            start = end

    def _block(self, start: int, end: int) -> Pairs:
        offsets = np.asarray(self.offsets[start : end + 1])
        counts = np.diff(offsets)
        if (counts < 0).any() or offsets[0] < 0 or offsets[-1] > len(self.experts):
            raise _damaged(self.folder, f"offsets out of order between rows {start} and {end}")
        expert = np.asarray(self.experts[offsets[0] : offsets[-1]], dtype=np.int64)
        if expert.size and (expert.min() < 0 or expert.max() >= self.num_experts):
            raise _damaged(self.folder, f"an expert outside 0 to {self.num_experts - 1}")
        value = np.asarray(self.values[offsets[0] : offsets[-1]])
        if not np.isfinite(value).all():
            raise _damaged(self.folder, f"a coefficient that is not finite between rows {start} and {end}")
        row = np.repeat(np.arange(start, end, dtype=np.int64), counts)
        return Pairs(row, expert, value)

    def dense(self, start: int, end: int) -> npt.NDArray[np.float32]:
        """Rows start to end as a dense (rows, num_experts) block."""
        block = self._block(start, end)
        table = np.zeros((end - start, self.num_experts), dtype=np.float32)
        table[block.row - start, block.expert] = block.value
        return table

    def usage(self, threshold: float = 0.5) -> Usage:
        """Expert load, support, entropy and dead experts over all rows, in one pass of bounded memory.

        Raises:
            UserError: If there are no rows.
        """
        if not self.rows:
            raise UserError("usage: expected at least one image, got none. Choose a split that has images.")
        tally = _Tally(self.num_experts, threshold)
        for block in self.blocks():
            tally.add(block)
        return tally.usage(self.rows)


class _Tally:
    """Running sums over blocks of pairs."""

    def __init__(self, experts: int, threshold: float) -> None:
        self.threshold = threshold
        self.load = np.zeros(experts, dtype=np.int64)
        self.touched = np.zeros(experts, dtype=np.int64)
        self.mass = np.zeros(experts)
        self.support = np.zeros(experts + 1, dtype=np.int64)
        self.entropy = self.largest = 0.0

    def add(self, block: Pairs) -> None:
        experts = len(self.load)
        value = block.value.astype(np.float64)
        used = value > 0
        self.load += np.bincount(block.expert[value >= self.threshold], minlength=experts)
        self.touched += np.bincount(block.expert[used], minlength=experts)
        self.mass += np.bincount(block.expert, weights=value, minlength=experts)
        self.entropy -= float((value[used] * np.log(value[used])).sum())
        if len(block.row):
            rows, first = np.unique(block.row, return_index=True)
            counts = np.bincount(np.searchsorted(rows, block.row[used]), minlength=len(rows))
            self.support += np.bincount(counts, minlength=experts + 1)
            self.largest += float(np.maximum.reduceat(value, first).sum())

    def usage(self, rows: int) -> Usage:
        support = self.support.copy()
        support[0] += rows - support.sum()
        sizes = np.arange(len(support))
        below = np.cumsum(support)
        ranks = [0, (rows - 1) // 4, (rows - 1) // 2, 3 * (rows - 1) // 4, rows - 1]
        quantiles = [int(np.searchsorted(below, rank, side="right")) for rank in ranks]
        return Usage(
            experts=len(self.load),
            rows=rows,
            load=tuple(map(int, self.load)),
            touched=tuple(map(int, self.touched)),
            mean_coefficient=tuple(map(float, self.mass / rows)),
            threshold=self.threshold,
            dead=int((self.touched == 0).sum()),
            experts_above_threshold=int((self.load > 0).sum()),
            support_mean=float((sizes * support).sum() / rows),
            support_quantiles=(quantiles[0], quantiles[1], quantiles[2], quantiles[3], quantiles[4]),
            entropy_mean=max(0.0, self.entropy / rows),
            largest_mean=self.largest / rows,
        )
