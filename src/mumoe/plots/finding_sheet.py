"""What an audit's findings look like: for each, images that went wrong and images that went right, on one sheet.

A finding is a row of numbers about images that some experts handle. Whether they have anything in common is for a
person to see: left are images that the model gets wrong, right, for comparison, those of the same experts and the same
true label that it gets right. Both are spread evenly over all there are, in the order of the data, not picked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mumoe.editing.audit import Finding
from mumoe.files import new_folder, write_bytes, write_json
from mumoe.plots.sheets import GREEN, INK, PALE, RED, STRIP, WHITE, encoded, font, shortened, thumbnail, wrapped

if TYPE_CHECKING:
    from PIL import Image

    from mumoe.data.base import ImageData

__all__ = ["Pictured", "spread", "write_findings"]

MARGIN, GAP, BAND, SIDE, HEAD, APART = 14, 6, 30, 220, 62, 22


@dataclass(frozen=True)
class Pictured:
    """One finding with images to show.

    Attributes:
        finding: What the audit said.
        wrong: Positions in the data of images that its experts handle and the model gets wrong.
        right: Positions of those that it gets right.
        wrong_total: How many there are.
        right_total: How many there are.
    """

    finding: Finding
    wrong: tuple[int, ...]
    right: tuple[int, ...]
    wrong_total: int
    right_total: int


def spread(rows: npt.NDArray[np.int64], most: int) -> tuple[int, ...]:
    """At most so many of these rows, evenly spread over them."""
    chosen = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)
    return tuple(int(row) for row in rows[chosen])


def write_findings(
    folder: str | Path,
    findings: Sequence[Pictured],
    data: ImageData,
    said: npt.NDArray[np.int64],
    names: Sequence[str],
    *,
    alpha: float,
    title: str,
    size: int = 112,
) -> Path:
    """Write ``sheet.png``, ``findings.json`` and ``thumbnails/``; a folder of an earlier call is replaced in one step.

    Args:
        folder: Where they go.
        findings: In the order of the sheet.
        data: Opens the images and knows their ids and credits.
        said: (images,) the model's label for each image of `data`; read for those shown.
        names: Name of each label.
        alpha: Level up to which a corrected p-value counts as significant.
        title: Heading of the sheet.
        size: Side of a thumbnail in pixels.

    Returns:
        The path of the sheet.
    """
    folder = Path(folder)
    wanted = sorted({image for item in findings for image in (*item.wrong, *item.right)})
    with new_folder(folder, durable=False) as scratch:
        (scratch / "thumbnails").mkdir()
        opened = {image: thumbnail(data.open_image(image), size) for image in wanted}
        for image, picture in opened.items():
            (scratch / "thumbnails" / f"{image}.png").write_bytes(encoded(picture, "PNG"))
        write_json(scratch / "findings.json", _content(findings, data, said, names))
        sheet = _sheet(findings, opened, said, names, alpha, title, data, size)
        write_bytes(scratch / "sheet.png", encoded(sheet, "PNG"))
    return folder / "sheet.png"


def _content(
    findings: Sequence[Pictured], data: ImageData, said: npt.NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    def shown(image: int) -> dict[str, Any]:
        file = f"thumbnails/{image}.png"
        return {"image": image, "id": data.ids[image], "said": names[int(said[image])], "thumbnail": file}

    rows = [
        {
            "finding": item.finding,
            "label": None if item.finding.label is None else names[item.finding.label],
            "wrong": [shown(image) for image in item.wrong],
            "right": [shown(image) for image in item.right],
            "wrong_total": item.wrong_total,
            "right_total": item.right_total,
        }
        for item in findings
    ]
    return {"data": data.name, "credits": data.credits, "findings": rows}


def _sheet(
    findings: Sequence[Pictured],
    opened: dict[int, Image.Image],
    said: npt.NDArray[np.int64],
    names: Sequence[str],
    alpha: float,
    title: str,
    data: ImageData,
    size: int,
) -> Image.Image:
    """A row for each finding: its numbers, images that went wrong, images that went right; credits below."""
    from PIL import Image, ImageDraw

    tile = size + GAP
    left = MARGIN + SIDE
    wrong = max([3, *(len(item.wrong) for item in findings)])
    right = max([2, *(len(item.right) for item in findings)])
    middle = left + wrong * tile + APART
    width = max(middle + right * tile + MARGIN, 640)
    footer = wrapped([_NOTE, *data.credits], width - 2 * MARGIN, 11)
    pitch = size + BAND + 14
    top = MARGIN + HEAD
    height = top + max(1, len(findings)) * pitch + 15 * len(footer) + 2 * MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), shortened(title, width - 2 * MARGIN, 17), fill=INK, font=font(17))
    for x, heading in (
        (MARGIN, "experts"),
        (left, "wrong: true label, then the model's"),
        (middle, "right: same experts and label"),
    ):
        pen.text((x, MARGIN + 36), heading, fill=PALE, font=font(13))
    for row, item in enumerate(findings):
        y = top + row * pitch
        _numbers(pen, (MARGIN, y), item, names, alpha)
        for x, images in ((left, item.wrong), (middle, item.right)):
            for column, image in enumerate(images):
                words = (_true(item, data, image, names), names[int(said[image])])
                _tile(sheet, pen, (x + column * tile, y), opened[image], words, size)
    for line, text in enumerate(footer):
        pen.text((MARGIN, height - MARGIN - 15 * (len(footer) - line)), text, fill=PALE, font=font(11))
    return sheet


def _true(item: Pictured, data: ImageData, image: int, names: Sequence[str]) -> str:
    """The true label of an image: the finding's, or its own where labels were pooled."""
    label = item.finding.label
    return names[int(data.labels[image]) if label is None and not data.multi_label else label or 0]


_NOTE = (
    "Images are spread evenly over all that these experts handle. What they have in common is yours to judge: a "
    "finding is a group of images, not a named group of people."
)


def _numbers(pen: Any, corner: tuple[int, int], item: Pictured, names: Sequence[str], alpha: float) -> None:
    """The finding in words, beside its images."""
    found = item.finding
    experts = " + ".join(f"{n}" if level == 0 else f"{n} (level {level})" for level, n in found.experts)
    p = f"corrected p {found.p_corrected:.2g}"
    lines = [
        "true label: any" if found.label is None else f"true label: {names[found.label]}",
        f"wrong: {item.wrong_total} of {found.rows} images",
        f"right: {found.accuracy:.3f}, elsewhere {found.rest:.3f}",
        f"gap: {found.gap.value:.3f} [{found.gap.low:.3f}, {found.gap.high:.3f}]",
        p if found.p_corrected <= alpha else f"{p}: may be chance",
    ]
    x, y = corner
    name = shortened(f"expert{'s' if len(found.experts) > 1 else ''} {experts}", SIDE - 12, 15)
    pen.text((x, y), name, fill=INK, font=font(15))
    for number, text in enumerate(lines):
        pen.text((x, y + 24 + 17 * number), shortened(text, SIDE - 12, 12), fill=PALE, font=font(12))


def _tile(
    sheet: Image.Image, pen: Any, corner: tuple[int, int], picture: Image.Image, words: tuple[str, str], size: int
) -> None:
    """A thumbnail over its true label and the model's."""
    (x, y), (label, said) = corner, words
    sheet.paste(picture, (x, y))
    pen.rectangle((x, y + size, x + size - 1, y + size + BAND - 1), fill=STRIP)
    pen.rectangle((x, y, x + size - 1, y + size + BAND - 1), outline="#c8ccd1")
    pen.text((x + 4, y + size + 1), shortened(label, size - 8, 11), fill=WHITE, font=font(11))
    colour = GREEN if label == said else RED
    pen.text((x + 4, y + size + 15), shortened(said, size - 8, 11), fill=colour, font=font(11))
