"""Sheets of the images that each expert processes (Figures 2, 7 and 8), as `mumoe.analysis.choose_images` picks them.

Thumbnails are files of their own, one per image; the sheet that shows them all carries the credits of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mumoe.analysis.chosen_images import ChosenImages, choose_images, image_label
from mumoe.analysis.coefficient_store import CoefficientLevel
from mumoe.errors import UserError
from mumoe.files import new_folder, write_json
from mumoe.local_paths import public_name
from mumoe.plots.sheets import BAND, GREEN, MARGIN, PALE, Sheet, write_thumbnails

if TYPE_CHECKING:
    from PIL import Image

    from mumoe.data.base import ImageData

__all__ = ["ExpertImages", "Shown", "write_grid"]

GAP, SIDE, HEAD = 4, 92, 58
"""Pixels between tiles, of the column with the experts, and of the heading."""


@dataclass(frozen=True)
class Shown:
    """One image shown for an expert.

    Attributes:
        image: Position of the image in its data set.
        label: Name of its class; for a multi-label image the names of its targets.
        coefficient: The expert's coefficient, in [0, 1].
        thumbnail: Its file, relative to the grid's folder.
    """

    image: int
    label: str
    coefficient: float
    thumbnail: str


@dataclass(frozen=True)
class ExpertImages:
    """The images shown for one expert.

    Attributes:
        expert: Position of the expert.
        processed: Number of images with a coefficient of at least the threshold.
        random: Drawn at random from these.
        top: Those with the largest coefficients.
    """

    expert: int
    processed: int
    random: tuple[Shown, ...]
    top: tuple[Shown, ...]


def write_grid(
    folder: str | Path,
    level: CoefficientLevel,
    data: ImageData,
    images: npt.NDArray[np.int64],
    *,
    experts: Sequence[int] | None = None,
    most_experts: int = 10,
    each: int = 6,
    threshold: float = 0.5,
    seed: int = 0,
    size: int = 96,
    title: str = "",
) -> tuple[ExpertImages, ...]:
    """Write thumbnails, ``grid.json`` and one sheet ``grid.png`` of the first experts that process any image.

    Args:
        folder: Where they go; a folder of an earlier call is replaced in one step.
        level: Coefficients whose rows are `images`, in this order.
        data: The data set that opens the images and knows their labels and credits.
        images: (images,) position in `data` of each image of `level`.
        experts: Experts to show; those without an image are skipped. By default all.
        most_experts: Number of experts shown, in numerical order as in the paper.
        each: Images per expert and kind (random, top).
        threshold: Coefficient from which an image counts as processed by an expert.
        seed: Seed of the random draw.
        size: Side of a thumbnail in pixels.
        title: Heading of the sheet.

    Raises:
        UserError: If the images do not fit the coefficients, or an expert does not exist.
    """
    if level.rows != len(images) * level.rows_per_image:
        raise UserError(
            f"write_grid: expected {level.rows // level.rows_per_image} images for these coefficients, "
            f"got {len(images)}. Give the images in the order of the capture."
        )
    found, count = choose_images(level, each=each, threshold=threshold, seed=seed, experts=experts)
    shown = tuple(
        ExpertImages(n, int(count[n]), _shown(random, data, images), _shown(top, data, images))
        for n, (random, top) in sorted(found.items())[:most_experts]
    )
    asked = level.num_experts if experts is None else len(experts)
    skipped = asked - len(found)
    note = f"{skipped} of {asked} experts skipped: no image with a coefficient of at least {threshold:g}"
    content = {
        "data": public_name(data.name),
        "threshold": threshold,
        "seed": seed,
        "experts": asked,
        "experts_skipped": skipped,
    }
    with new_folder(Path(folder), durable=False) as scratch:
        pictures = (item.image for expert in shown for item in (*expert.random, *expert.top))
        opened = write_thumbnails(scratch, data, pictures, size)
        write_json(scratch / "grid.json", {**content, "credits": data.credits, "shown": shown})
        title = title or f"Images that each expert processes, {public_name(data.name)}"
        _sheet(shown, opened, size, title, [note, *data.credits]).save(scratch / "grid.png")
    return shown


def _shown(kept: ChosenImages, data: ImageData, images: npt.NDArray[np.int64]) -> tuple[Shown, ...]:
    rows = zip(images[kept.image].tolist(), kept.value.tolist(), strict=True)
    return tuple(
        Shown(image, image_label(data, image), float(value), f"thumbnails/{image}.png") for image, value in rows
    )


def _sheet(
    shown: tuple[ExpertImages, ...], opened: dict[int, Image.Image], size: int, title: str, footer: Sequence[str]
) -> Sheet:
    """Rows of experts, their random images left and their top ones right, with credits below."""
    columns = max((max(len(expert.random), len(expert.top)) for expert in shown), default=1)
    left, half = MARGIN + SIDE, columns * (size + GAP)
    starts = (left, left + half + 4 * GAP)
    width = max(MARGIN * 2 + SIDE + 2 * half + 4 * GAP, 560)
    pitch = size + BAND + 2 * GAP
    sheet = Sheet(width, MARGIN + HEAD + max(len(shown), 1) * pitch + MARGIN, footer)
    sheet.text((MARGIN, MARGIN), title, 17)
    for x, heading in zip(starts, ("drawn at random", "largest coefficients"), strict=True):
        sheet.text((x, MARGIN + 32), heading, 13, PALE)
    for row, expert in enumerate(shown):
        y = MARGIN + HEAD + row * pitch
        sheet.text((MARGIN, y + size // 2 - 14), f"expert {expert.expert}", 14)
        count = f"{expert.processed} image{'' if expert.processed == 1 else 's'}"
        sheet.text((MARGIN, y + size // 2 + 6), count, 11, PALE)
        for x, items in zip(starts, (expert.random, expert.top), strict=True):
            for column, item in enumerate(items):
                corner = (x + column * (size + GAP), y)
                sheet.tile(corner, opened[item.image], item.label, f"{item.coefficient:.2f}", GREEN)
    return sheet
