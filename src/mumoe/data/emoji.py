"""The emoji set: the same Unicode characters, drawn by six studios.

A real, many-class image set available from package registries: a label hierarchy (Unicode group, subgroup,
character), a style (the studio) and, for people, skin tone and gender. The drawings come from pinned npm
packages of SVG icons, are drawn once on white into the cache, and keep their licences: see `CREDITS`.

Flags and the bare skin-tone swatches are left out, as are a few drawings that a package defines only as the
mirror image of another. In a random split of images, train and test share characters, so that a model may
recognize a character that it was trained on in another style. The split by character avoids this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mumoe.data.base import Attribute, ImageData
from mumoe.data.drawn_set import DrawnOptions, columns_of, drawn_data, hold_out, select
from mumoe.data.emoji_drawings import GENDERS, STUDIOS, TONE_VALUES, drawings, read_rows
from mumoe.data.iconify import credit_lines
from mumoe.data.splits import group_split, stratified_split
from mumoe.files import cache_root

__all__ = ["ATTRIBUTES", "CREDITS", "SPLIT_BY", "TRAIN_OPTIONS", "load_emoji"]

ATTRIBUTES = ("group", "subgroup", "character", "studio", "skin_tone", "gender")
SPLIT_BY = ("image", "character", "studio")
TRAIN_OPTIONS: dict[str, Any] = {"split_by": "image", "size": 96}
"""Defaults of `mumoe train --data emoji`: the options of `mumoe demo`."""

HELD_OUT = "openmoji"

CREDITS = credit_lines(STUDIOS)


def load_emoji(
    *,
    cache_dir: str | Path | None = None,
    split_by: Literal["image", "character", "studio"] = "character",
    split_seed: int = 0,
    size: int = 96,
    label: str = "subgroup",
    min_per_class: int = 40,
    skin_tones: bool = False,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    held_out: str | None = None,
    progress: bool = True,
) -> ImageData:
    """The emoji set: about 8,700 drawings, or 17,000 with skin tones.

    The first call fetches six npm packages (9 MB) and draws them, which takes a few seconds. Later calls
    read the cache and need no network.

    Args:
        cache_dir: Where the packages and drawings are kept; see `mumoe.files.cache_root`.
        split_by: ``character`` keeps every character, with its skin tones and gender variants, in one split,
            so that test characters are new. ``image`` splits drawings at random, so that a character is often in train
            in one style and in test in another. ``studio`` tests on the style of the studio `held_out`.
        split_seed: Seed of the split.
        size: Side of the drawings in pixels.
        label: The attribute to predict, one of `ATTRIBUTES`; drawings where it is unknown are left out.
        min_per_class: Classes with fewer drawings are left out.
        skin_tones: Whether to draw the skin-tone variants of people and hands too.
        fractions: Shares of train, val and test; with ``studio`` the first two share what is not held out.
        held_out: The studio whose drawings are the test split; None means openmoji. Only with ``studio``.
        progress: Whether to show progress on stderr.

    Returns:
        The set with the attributes of `ATTRIBUTES`: ``skin_tone`` is unknown (-1) for characters without
        tones, ``gender`` for those that are not people. It is the gender that Unicode gives the character;
        old studios drew many neutral characters as men or women.

    Raises:
        UserError: For an unknown name, a size or count out of range, or when npm or a package is missing.
        JobError: If the packages cannot be fetched, have another hash, or cannot be drawn.
    """
    options = DrawnOptions(split_by, label, size, min_per_class, held_out, fractions, split_seed)
    studios = [studio.name for studio in STUDIOS]
    options.check("emoji", splits=SPLIT_BY, labels=ATTRIBUTES, designer="studio", names=studios, least=40)
    folder = drawings(cache_root(cache_dir), size, skin_tones, progress)
    rows = read_rows(folder)
    fixed = {"studio": tuple(studios), "skin_tone": TONE_VALUES, "gender": GENDERS}
    kept, attributes = select("emoji", columns_of(rows, ATTRIBUTES, fixed), options)
    return drawn_data(
        "emoji",
        folder,
        kept,
        attributes=attributes,
        split=_split([rows[row].group_key for row in kept], attributes, options),
        ids=tuple(f"{rows[row].studio}/{rows[row].code}" for row in kept),
        credits=CREDITS,
        options=options,
        split_by=f"by {split_by}" + (f" ({held_out or HELD_OUT} in test)" if split_by == "studio" else ""),
    )


def _split(keys: Sequence[str], attributes: Mapping[str, Attribute], options: DrawnOptions) -> npt.NDArray[np.int8]:
    labels, fractions, seed = attributes[options.label].codes, options.fractions, options.seed
    if options.split_by == "image":
        return stratified_split(labels, fractions=fractions, seed=seed)
    if options.split_by == "character":
        return group_split(np.unique(keys, return_inverse=True)[1], fractions=fractions, seed=seed, labels=labels)
    return hold_out("emoji", "studio", attributes, options, HELD_OUT)
