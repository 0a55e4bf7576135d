"""The icon set: the same concepts, drawn in black by fourteen families of user interface icons.

Like `mumoe.data.emoji`, a real, many-class image set available from package registries: what an icon shows (home,
trash, thumbs up), the family that it belongs to and its style. The drawings come from pinned npm packages of SVG
icons, are drawn once on white into the cache, and keep their licences: see `CREDITS`.

Only one of several equal images is kept, so that no image is in two splits. Families draw an icon in several styles and
weights, which differ little: a random split of images has some of them in train and others in test. The split by icon
keeps them together, and the split by family tests on a family that was not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from mumoe.data.base import Attribute, ImageData
from mumoe.data.drawn_set import DrawnOptions, columns_of, drawn_data, hold_out, select
from mumoe.data.icon_drawings import FAMILIES, STYLES, Row, drawings, read_rows
from mumoe.data.iconify import credit_lines
from mumoe.data.splits import group_split, stratified_split
from mumoe.files import cache_root

__all__ = ["ATTRIBUTES", "CREDITS", "SPLIT_BY", "load_icons"]

ATTRIBUTES = ("concept", "family", "style")
SPLIT_BY = ("icon", "image", "family")
HELD_OUT = "tabler"

CREDITS = credit_lines(FAMILIES)


def load_icons(
    *,
    cache_dir: str | Path | None = None,
    split_by: Literal["icon", "image", "family"] = "icon",
    split_seed: int = 0,
    size: int = 96,
    label: str = "concept",
    min_per_class: int = 40,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    held_out: str | None = None,
    progress: bool = True,
) -> ImageData:
    """The icon set: about 5,000 drawings of 84 concepts.

    The first call fetches fourteen npm packages (8 MB) and draws their icons, which takes a few seconds.
    Later calls read the cache and need no network.

    Args:
        cache_dir: Where the packages and drawings are kept; see `mumoe.files.cache_root`.
        split_by: ``icon`` keeps the styles and weights in which a family draws one icon in one split, so that test
            icons are new. ``image`` splits drawings at random. ``family`` tests on the family `held_out`.
        split_seed: Seed of the split.
        size: Side of the drawings in pixels. Equal drawings are detected at this size.
        label: The attribute to predict, one of `ATTRIBUTES`.
        min_per_class: Classes with fewer drawings are left out.
        fractions: Shares of train, val and test; with ``family`` the first two share what is not held out.
        held_out: The family whose drawings are the test split; None means tabler. Only with ``family``.
        progress: Whether to show progress on stderr.

    Returns:
        The set with the attributes of `ATTRIBUTES`.

    Raises:
        UserError: For an unknown name, a size or count out of range, or when npm or a package is missing.
        JobError: If the packages cannot be fetched, have another hash, or cannot be drawn.
    """
    options = DrawnOptions(split_by, label, size, min_per_class, held_out, fractions, split_seed)
    families = [family.name for family in FAMILIES]
    options.check("icons", splits=SPLIT_BY, labels=ATTRIBUTES, designer="family", names=families, least=40)
    folder = drawings(cache_root(cache_dir), size, progress)
    rows = read_rows(folder)
    columns = columns_of(rows, ATTRIBUTES, {"family": tuple(families), "style": STYLES})
    kept, attributes = select("icons", columns, options)
    chosen = [rows[row] for row in kept]
    return drawn_data(
        "icons",
        folder,
        np.array([row.place for row in chosen], np.int64),
        attributes=attributes,
        split=_split(chosen, attributes, options),
        ids=tuple(f"{row.family}/{row.name}" for row in chosen),
        credits=CREDITS,
        options=options,
        split_by=f"by {split_by}" + (f" ({held_out or HELD_OUT} in test)" if split_by == "family" else ""),
    )


def _split(rows: Sequence[Row], attributes: Mapping[str, Attribute], options: DrawnOptions) -> npt.NDArray[np.int8]:
    labels, fractions, seed = attributes[options.label].codes, options.fractions, options.seed
    if options.split_by == "image":
        return stratified_split(labels, fractions=fractions, seed=seed)
    if options.split_by == "icon":
        groups = [f"{row.family}/{row.icon}" for row in rows]
        return group_split(groups, fractions=fractions, seed=seed, labels=labels)
    return hold_out("icons", "family", attributes, options, HELD_OUT)
