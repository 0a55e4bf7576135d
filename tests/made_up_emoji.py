"""Features and attributes like emoji's, made up."""

from __future__ import annotations

import numpy as np

from mumoe.data.base import Attribute, ImageData

GROUPS = ("Animals & Nature", "Food & Drink", "Objects")
STUDIOS = ("noto", "twemoji", "openmoji")


def opened(index):
    raise AssertionError("images are not needed")


def emoji(seed=0, rows=1500):
    """Groups and studios as directions in feature space; OpenMoji's animals look a little like its objects."""
    rng = np.random.default_rng(seed)
    group, studio = rng.integers(0, 3, rows), rng.integers(0, 3, rows)
    features = rng.normal(size=(rows, 12)).astype(np.float32)
    features[np.arange(rows), group] += 3
    features[np.arange(rows), 4 + studio] += 5
    odd = (group == 0) & (studio == 2)
    features[odd, 0] -= 2
    features[odd, 2] += 1
    gender, tone = rng.integers(-1, 2, rows), rng.integers(-1, 5, rows)
    data = ImageData(
        name="emoji",
        classes=GROUPS,
        multi_label=False,
        labels=group,
        split=rng.choice([0, 1, 2], rows, p=[0.6, 0.2, 0.2]).astype(np.int8),
        ids=tuple(f"{STUDIOS[s]}/{i:x}" for i, s in enumerate(studio)),
        open_image=opened,
        fingerprint="0",
        attributes={
            "group": Attribute(group, GROUPS),
            "studio": Attribute(studio, STUDIOS),
            "subgroup": Attribute(group, ("person", "body", "family")),
            "gender": Attribute(gender, ("man", "woman")),
            "skin_tone": Attribute(tone, ("light", "medium-light", "medium", "medium-dark", "dark")),
        },
        credits=("drawn by",),
    )
    return data, features
