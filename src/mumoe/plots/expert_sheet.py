"""Sheets of the images that each expert processes (Figures 2, 7 and 8), as `mumoe.analysis.choose_images` picks them.

Thumbnails are files of their own, one per image; the sheet that shows them all carries the credits of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mumoe.analysis.chosen_images import ChosenImages, choose_images, image_label
from mumoe.analysis.coefficient_store import CoefficientLevel
from mumoe.errors import UserError
from mumoe.files import new_folder, write_bytes, write_json
from mumoe.plots.sheets import GREEN, INK, PALE, STRIP, WHITE, encoded, font, shortened, thumbnail, wrapped

if TYPE_CHECKING:
    from PIL import Image

    from mumoe.data.base import ImageData

__all__ = ["ExpertImages", "Shown", "write_grid"]


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
    with new_folder(Path(folder), durable=False) as scratch:
        (scratch / "thumbnails").mkdir()
        shown = tuple(
            ExpertImages(n, int(count[n]), _shown(random, data, images), _shown(top, data, images))
            for n, (random, top) in sorted(found.items())[:most_experts]
        )
        opened = _write_thumbnails(scratch, shown, data, size)
        asked = level.num_experts if experts is None else len(experts)
        skipped = asked - len(found)
        write_json(scratch / "grid.json", _grid_json(shown, data, threshold, seed, asked, skipped))
        note = f"{skipped} of {asked} experts skipped: no image with a coefficient of at least {threshold:g}"
        sheet = _sheet(shown, opened, size, title or f"Images that each expert processes, {data.name}", note, data)
        write_bytes(scratch / "grid.png", encoded(sheet, "PNG"))
    return shown


def _grid_json(
    shown: tuple[ExpertImages, ...], data: ImageData, threshold: float, seed: int, asked: int, skipped: int
) -> dict[str, Any]:
    return {
        "data": data.name,
        "threshold": threshold,
        "seed": seed,
        "experts": asked,
        "experts_skipped": skipped,
        "credits": data.credits,
        "shown": shown,
    }


def _shown(kept: ChosenImages, data: ImageData, images: npt.NDArray[np.int64]) -> tuple[Shown, ...]:
    rows = zip(images[kept.image].tolist(), kept.value.tolist(), strict=True)
    return tuple(
        Shown(image, image_label(data, image), float(value), f"thumbnails/{image}.png") for image, value in rows
    )


def _write_thumbnails(
    folder: Path, shown: tuple[ExpertImages, ...], data: ImageData, size: int
) -> dict[int, Image.Image]:
    wanted = sorted({item.image for expert in shown for item in (*expert.random, *expert.top)})
    opened = {image: thumbnail(data.open_image(image), size) for image in wanted}
    for image, picture in opened.items():
        (folder / "thumbnails" / f"{image}.png").write_bytes(encoded(picture, "PNG"))
    return opened


MARGIN, BAND, GAP, SIDE, HEAD = 12, 28, 4, 92, 58


def _sheet(
    shown: tuple[ExpertImages, ...],
    opened: dict[int, Image.Image],
    size: int,
    title: str,
    note: str,
    data: ImageData,
) -> Image.Image:
    """Rows of experts, their random images left and their top ones right, with credits below."""
    from PIL import Image, ImageDraw

    columns = max((max(len(e.random), len(e.top)) for e in shown), default=1)
    half = columns * (size + GAP)
    width = max(MARGIN * 2 + SIDE + 2 * half + 4 * GAP, 560)
    footer = wrapped([note, *data.credits], width - 2 * MARGIN, 11)
    top = MARGIN + HEAD
    height = top + max(len(shown), 1) * (size + BAND + 2 * GAP) + 14 * len(footer) + 2 * MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, fill=INK, font=font(17))
    for left, heading in _columns(half, columns):
        pen.text((left, MARGIN + 32), heading, fill=PALE, font=font(13))
    for row, expert in enumerate(shown):
        y = top + row * (size + BAND + 2 * GAP)
        pen.text((MARGIN, y + size // 2 - 14), f"expert {expert.expert}", fill=INK, font=font(14))
        pen.text(
            (MARGIN, y + size // 2 + 6),
            f"{expert.processed} image{'' if expert.processed == 1 else 's'}",
            fill=PALE,
            font=font(11),
        )
        for (left, _), items in zip(_columns(half, columns), (expert.random, expert.top), strict=True):
            for column, item in enumerate(items):
                _tile(sheet, pen, (left + column * (size + GAP), y), item, opened[item.image], size)
    for line, text in enumerate(footer):
        pen.text((MARGIN, height - MARGIN - 14 * (len(footer) - line)), text, fill=PALE, font=font(11))
    return sheet


def _columns(half: int, columns: int) -> tuple[tuple[int, str], tuple[int, str]]:
    left = MARGIN + SIDE
    return (left, "drawn at random"), (left + half + 4 * GAP, "largest coefficients")


def _tile(sheet: Image.Image, pen: Any, corner: tuple[int, int], item: Shown, picture: Image.Image, size: int) -> None:
    x, y = corner
    sheet.paste(picture, (x, y))
    pen.rectangle((x, y + size, x + size - 1, y + size + BAND - 1), fill=STRIP)
    pen.rectangle((x, y, x + size - 1, y + size + BAND - 1), outline="#c8ccd1")
    pen.text((x + 4, y + size + 1), shortened(item.label, size - 8, 11), fill=WHITE, font=font(11))
    pen.text((x + 4, y + size + 14), f"{item.coefficient:.2f}", fill=GREEN, font=font(11))
