"""A bias to correct, planted in emoji: the animals of one studio are nearly absent from training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mumoe.data.base import SPLITS, Attribute, ImageData
from mumoe.data.columns import require_value
from mumoe.errors import unknown_name

__all__ = ["BiasSet", "Splits", "attribute_of", "code_of", "own_splits", "planted_style"]


@dataclass(frozen=True)
class Splits:
    """Positions of the rows to train on, to choose strengths on, and to report on."""

    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


@dataclass(frozen=True)
class BiasSet:
    """Rows of cached features with 0/1 attributes and one sensitive value each.

    Attributes:
        name: Of the experiment.
        features: (rows, num_features).
        labels: (rows, heads) of 0 and 1.
        heads: Names of the heads.
        sensitive: (rows,) sensitive value.
        head: The head that the bias concerns.
        target: (label, sensitive value) of the subgroup with too little support.
        splits: Rows to train on, to choose on, to report on.
        support: The target's share of the training rows is cut to this; None leaves it.
        facts: What a reader should know about the data: source, counts, licences.
    """

    name: str
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    heads: tuple[str, ...]
    sensitive: npt.NDArray[np.str_]
    head: int
    target: tuple[int, str]
    splits: Splits
    support: float | None = None
    facts: tuple[str, ...] = ()

    def training_rows(self, seed: int) -> npt.NDArray[np.int64]:
        """Positions of the training rows, the target subgroup cut to its support (at least one row)."""
        rows = self.splits.train
        if self.support is None:
            return rows
        inside = (self.labels[rows, self.head] == self.target[0]) & (self.sensitive[rows] == self.target[1])
        keep = min(int(inside.sum()), max(1, round(self.support * len(rows))))
        chosen = np.random.default_rng(seed).permutation(rows[inside])[:keep]
        return np.sort(np.concatenate([rows[~inside], chosen]))


def planted_style(
    data: ImageData,
    features: npt.NDArray[np.float32],
    *,
    support: float | None = 0.003,
    min_per_head: int = 40,
) -> BiasSet:
    """Emoji: is it an animal or plant? Those drawn by OpenMoji are cut to 0.3% of the training rows.

    Args:
        data: The emoji set, every Unicode group, in the splits to use.
        features: (images, num_features) of these images.
        support: Share of the training rows that the target subgroup keeps.
        min_per_head: Subgroups with as many images become heads beside the groups, trained jointly like
            CelebA's 40 attributes.
    """
    group, studio, subgroup = (attribute_of(data, name) for name in ("group", "studio", "subgroup"))
    counts = np.bincount(subgroup.codes[subgroup.codes >= 0], minlength=len(subgroup.values))
    large = np.flatnonzero(counts >= min_per_head)
    labels = np.column_stack(
        [group.codes[:, None] == np.arange(len(group.values)), subgroup.codes[:, None] == large]
    ).astype(np.int64)
    return BiasSet(
        name="emoji-style-planted",
        features=features,
        labels=labels,
        heads=(*group.values, *(subgroup.values[code] for code in large)),
        sensitive=np.where(studio.codes == code_of(studio, "openmoji", "studio"), "openmoji", "other studios"),
        head=code_of(group, "Animals & Nature", "group"),
        target=(1, "openmoji"),
        splits=own_splits(data),
        support=support,
        facts=data.credits,
    )


def own_splits(data: ImageData, rows: npt.NDArray[np.int64] | None = None) -> Splits:
    """The data's own splits, as positions among `rows`."""
    kept = np.arange(len(data)) if rows is None else rows
    train, val, test = (np.flatnonzero(data.split[kept] == position) for position in range(len(SPLITS)))
    return Splits(train.astype(np.int64), val.astype(np.int64), test.astype(np.int64))


def attribute_of(data: ImageData, name: str) -> Attribute:
    """A column of the data by its name."""
    if name not in data.attributes:
        raise unknown_name("bias_sets", "attribute", name, data.attributes)
    return data.attributes[name]


def code_of(attribute: Attribute, value: str, name: str) -> int:
    """The code of an attribute's value."""
    return attribute.values.index(require_value("bias_sets", f"value of {name}", attribute.values, value))
