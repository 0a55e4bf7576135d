"""Data with a bias to correct: features, 0/1 attributes, and a sensitive value whose support is too small.

Two on emoji, made from real drawings: one planted (animals drawn by one studio are nearly absent from training) and
one natural (women with dark skin among people), and the paper's two on CelebA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mumoe.data.base import SPLITS, Attribute, ImageData
from mumoe.data.columns import require_value
from mumoe.editing.splits import Splits
from mumoe.errors import UserError, unknown_name

__all__ = ["CELEBA_EXPERIMENTS", "BiasSet", "celeba_bias", "natural_skin_tone", "planted_style", "without_cut"]

CELEBA_EXPERIMENTS = {
    "old-females-age": ("Young", 0, "Male", 0),
    "blond-males-hair": ("Blond_Hair", 1, "Male", 1),
}
"""The paper's experiments: attribute predicted, its value in the target subgroup, sensitive attribute, its value."""


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
    group, studio, subgroup = (_attribute(data, name) for name in ("group", "studio", "subgroup"))
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
        sensitive=np.where(studio.codes == _value(studio, "openmoji", "studio"), "openmoji", "other studios"),
        head=_value(group, "Animals & Nature", "group"),
        target=(1, "openmoji"),
        splits=_splits(data),
        support=support,
        facts=data.credits,
    )


def natural_skin_tone(data: ImageData, features: npt.NDArray[np.float32]) -> BiasSet:
    """Emoji of people: is it a woman? The two darker skin tones are the sensitive value; nothing is planted.

    Gender and tone are what Unicode gives the character, not anybody's identity.

    Args:
        data: The emoji set drawn with skin tones, in the splits to use.
        features: (images, num_features) of these images.
    """
    gender, tone = _attribute(data, "gender"), _attribute(data, "skin_tone")
    subgroup = _attribute(data, "subgroup")
    rows = np.flatnonzero((gender.codes >= 0) & (tone.codes >= 0))
    dark = np.isin(tone.codes, [code for code, value in enumerate(tone.values) if "dark" in value])
    woman = gender.codes == _value(gender, "woman", "gender")
    kinds = np.unique(subgroup.codes[rows])
    labels = np.column_stack([woman, subgroup.codes[:, None] == kinds])[rows].astype(np.int64)
    return BiasSet(
        name="emoji-skin-tone-natural",
        features=features[rows],
        labels=labels,
        heads=("woman", *(subgroup.values[kind] for kind in kinds)),
        sensitive=np.where(dark, "dark", "other tones")[rows],
        head=0,
        target=(1, "dark"),
        splits=_splits(data, rows),
        facts=data.credits,
    )


def celeba_bias(data: ImageData, features: npt.NDArray[np.float32], experiment: str) -> BiasSet:
    """One of the paper's experiments on CelebA in its official split; see `CELEBA_EXPERIMENTS`.

    The attributes are annotators' guesses from photographs: see `mumoe.editing.fairness`.

    Raises:
        UserError: If the experiment is unknown, or the data is not multi-label or lacks an attribute.
    """
    if experiment not in CELEBA_EXPERIMENTS:
        raise unknown_name("celeba_bias", "experiment", experiment, CELEBA_EXPERIMENTS)
    if not data.multi_label:
        raise UserError(
            f"celeba_bias: expected 0/1 attributes, got single labels in {data.name}. Use a multi-label set."
        )
    predicted, label, attribute, value = CELEBA_EXPERIMENTS[experiment]
    for name in (predicted, attribute):
        if name not in data.classes:
            raise unknown_name("celeba_bias", "attribute", name, data.classes)
    labels = data.labels.astype(np.int64)
    names = np.array([f"{attribute}=0", f"{attribute}=1"])
    return BiasSet(
        name=f"celeba-{experiment}",
        features=features,
        labels=labels,
        heads=data.classes,
        sensitive=names[labels[:, data.classes.index(attribute)]],
        head=data.classes.index(predicted),
        target=(label, f"{attribute}={value}"),
        splits=_splits(data),
        facts=data.credits,
    )


def without_cut(bias: BiasSet) -> BiasSet:
    """The same set with the target's full support in training: what is to be had at best."""
    return replace(bias, name=f"{bias.name}-uncut", support=None)


def _splits(data: ImageData, rows: npt.NDArray[np.int64] | None = None) -> Splits:
    """The data's own splits, as positions among `rows`."""
    kept = np.arange(len(data)) if rows is None else rows
    train, val, test = (np.flatnonzero(data.split[kept] == position) for position in range(len(SPLITS)))
    return Splits(train.astype(np.int64), val.astype(np.int64), test.astype(np.int64))


def _attribute(data: ImageData, name: str) -> Attribute:
    if name not in data.attributes:
        raise unknown_name("bias_sets", "attribute", name, data.attributes)
    return data.attributes[name]


def _value(attribute: Attribute, value: str, name: str) -> int:
    return attribute.values.index(require_value("bias_sets", f"value of {name}", attribute.values, value))
