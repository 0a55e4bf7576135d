"""Target bounds beside the measured ratios."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A bound on a ratio. `least` means at least, otherwise at most."""

    what: str
    bound: float
    measured: float
    least: bool = True

    @property
    def met(self) -> bool:
        """Whether the measured ratio is within the bound."""
        compare: Callable[[float, float], bool] = operator.ge if self.least else operator.le
        return compare(self.measured, self.bound)


# (batch, experts) -> forward PyTorch, forward + backward PyTorch, forward native, forward + backward native,
# and how many times less peak memory; ratios to the plain layer
SPEED: dict[tuple[int, int], tuple[float | None, ...]] = {
    (256, 128): (1.2, 1.0, 1.25, 1.1, 1.0),
    (256, 1024): (2.4, 1.4, 2.6, 1.6, 1.0),
    (256, 8192): (5.0, 2.7, 5.8, 3.1, 17.0),
    (4096, 8192): (5.8, 5.0, 7.4, 6.0, 20.0),
    (256, 65536): (8.5, 5.0, 11.0, 6.0, 90.0),
    (1, 1024): (1.0, None, 1.0, None, None),
}
# experts -> how many times as fast as `route="dense"` a block is: forward, forward + backward
BLOCK = {64: (0.97, 0.97), 1024: (1.1, 1.3), 8192: (2.4, 3.5)}
# experts -> at most how many times as slow as the dense MLP that it replaces: forward, forward + backward
BLOCK_TO_MLP = {1024: (1.5, 1.35)}


def _over(row: Row, above: str, below: str) -> float | None:
    found = [row["seconds"].get(name, {}).get("median") for name in (above, below)]
    return None if None in found else found[0] / found[1]


def _speed(rows: list[Row]) -> Iterator[Target]:
    for row in rows:
        bounds = SPEED.get((row["batch"], row["experts"]))
        if row["part"] != "sizes" or row["threads"] != 1 or bounds is None:
            continue
        backward = row["kind"] == "both"
        size = f"{row['batch']:,} x {row['experts']:,}, {'forward + backward' if backward else 'forward'}"
        for path, bound in zip(("torch", "native"), (bounds[backward], bounds[2 + backward]), strict=True):
            measured = _over(row, "plain", path)
            if bound is not None and measured is not None:
                label = "PyTorch" if path == "torch" else "native"
                yield Target(f"{size}, {label}: times as fast as plain", bound, measured)
        peaks = row.get("peak_bytes", {})
        if backward and bounds[4] is not None and {"plain", "torch"} <= set(peaks):
            for path in [name for name in ("torch", "native") if name in peaks]:
                label = "PyTorch" if path == "torch" else "native"
                fold = peaks["plain"] / max(1, peaks[path])
                yield Target(f"{size}, {label}: times less peak memory than plain", bounds[4], fold)


def _ratios(rows: list[Row]) -> Iterator[Target]:
    for row in rows:
        if row["threads"] != 1:
            continue
        size = f"{row['batch']:,} x {row['experts']:,}"
        for path in ("torch", "native"):
            label = "PyTorch" if path == "torch" else "native"
            if row["part"] == "factorizations" and row["kind"] == "forward":
                what, bound, measured = f"{row['factorization']}, {size}, forward", 1.15, _over(row, path, "floor")
                text = "over its floor"
            elif row["part"] == "zero":
                kind = "forward" if row["kind"] == "forward" else "forward + backward"
                what, bound, measured = f"zero gate, {size}, {kind}", 1.05, _over(row, path, "plain")
                text = "over plain"
            else:
                continue
            if measured is not None:
                yield Target(f"{what}, {label}: times {text}", bound, measured, least=False)


def _blocks(rows: list[Row]) -> Iterator[Target]:
    for row in rows:
        if row["part"] != "block" or row["threads"] != 1:
            continue
        backward = row["kind"] == "both"
        for path, label in (("torch", "PyTorch"), ("native", "native")):
            what = f"block of {row['experts']:,}, {'forward + backward' if backward else 'forward'}, {label}"
            found, bounds = _over(row, "dense", path), BLOCK.get(row["experts"])
            if found is not None and bounds is not None:
                yield Target(f"{what}: times as fast as its dense route", bounds[backward], found)
            found, bounds = _over(row, path, "mlp"), BLOCK_TO_MLP.get(row["experts"])
            if found is not None and bounds is not None:
                yield Target(f"{what}: times the dense MLP", bounds[backward], found, least=False)


def _features(record: Row) -> Iterator[Target]:
    for row in record.get("extraction", ()):
        speed = row["images_per_second"]
        what = f"features, {row['backbone']}, {row['threads']} threads, {row['workers']} workers"
        yield Target(f"{what}: times the images/s of a bare loop", 1.0, speed["ours"] / speed["bare"])


def targets(records: Mapping[str, Row]) -> list[Target]:
    """Every target that was measured."""
    rows = list(records.get("layer", {}).get("rows", ()))
    return [*_speed(rows), *_ratios(rows), *_blocks(rows), *_features(records.get("features", {}))]


def render(records: Mapping[str, Row]) -> str:
    """The table of targets, the missed ones marked."""
    lines = ["| target, one thread | bound | measured | |", "| --- | --: | --: | --- |"]
    for target in targets(records):
        sign = ">=" if target.least else "<="
        said = "" if target.met else "**missed**"
        lines.append(f"| {target.what} | {sign} {target.bound:g} | {target.measured:.2f} | {said} |")
    return "\n".join(lines)
