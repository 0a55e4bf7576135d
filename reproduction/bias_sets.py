"""Data with a bias to correct, beside the planted one of `mumoe.demo.planted_bias`.

A natural one on emoji (women with dark skin among people), and the paper's two on CelebA.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mumoe.data import ImageData
from mumoe.demo.planted_bias import BiasSet, attribute_of, code_of, own_splits
from mumoe.errors import UserError, unknown_name

__all__ = ["CELEBA_EXPERIMENTS", "celeba_bias", "natural_skin_tone", "without_cut"]

CELEBA_EXPERIMENTS = {
    "old-females-age": ("Young", 0, "Male", 0),
    "blond-males-hair": ("Blond_Hair", 1, "Male", 1),
}
"""The paper's experiments: attribute predicted, its value in the target subgroup, sensitive attribute, its value."""


def natural_skin_tone(data: ImageData, features: npt.NDArray[np.float32]) -> BiasSet:
    """Emoji of people: is it a woman? The two darker skin tones are the sensitive value; nothing is planted.

    Gender and tone are the attributes that Unicode gives the character, not a person's identity.

    Args:
        data: The emoji set drawn with skin tones, in the splits to use.
        features: (images, num_features) of these images.
    """
    gender, tone = attribute_of(data, "gender"), attribute_of(data, "skin_tone")
    subgroup = attribute_of(data, "subgroup")
    rows = np.flatnonzero((gender.codes >= 0) & (tone.codes >= 0))
    dark = np.isin(tone.codes, [code for code, value in enumerate(tone.values) if "dark" in value])
    woman = gender.codes == code_of(gender, "woman", "gender")
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
        splits=own_splits(data, rows),
        facts=data.credits,
    )


def celeba_bias(data: ImageData, features: npt.NDArray[np.float32], experiment: str) -> BiasSet:
    """One of the paper's experiments on CelebA in its official split; see `CELEBA_EXPERIMENTS`.

    The attributes are annotators' guesses from photographs: see `mumoe.editing.subgroup_fairness`.

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
        splits=own_splits(data),
        facts=data.credits,
    )


def without_cut(bias: BiasSet) -> BiasSet:
    """The same set with the target's full support in training: an upper bound for corrections."""
    return replace(bias, name=f"{bias.name}-uncut", support=None)
