"""Sheets of an audit's findings: for each, images that the model gets wrong and images that it gets right.

A finding is a row of numbers about images that some experts handle, or that share a named attribute. A person has to
judge whether they have anything else in common: left are images that the model gets wrong, right, for comparison,
images of the same group and the same true label that it gets right. Both are spread evenly over all such images, in the
order of the data, not picked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mumoe.files import new_folder, write_json
from mumoe.local_paths import public_name
from mumoe.plots.sheets import BAND, GREEN, MARGIN, PALE, RED, Sheet, write_thumbnails

if TYPE_CHECKING:
    from PIL import Image

    from mumoe.data.base import ImageData
    from mumoe.editing.group_audit import Finding

__all__ = ["Pictured", "spread", "write_findings"]

GAP, SIDE, HEAD, APART, LINE = 6, 220, 62, 22, 17
"""Pixels between tiles, of the column with numbers, of the heading, between wrong and right, and of a line of text."""


@dataclass(frozen=True)
class Pictured:
    """One finding with images to show.

    Attributes:
        finding: The finding.
        wrong: Positions in the data of images of the group that the model gets wrong.
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
    answers: npt.NDArray[np.int64],
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
        answers: (images,) the model's label for each image of `data`; read for those shown.
        names: Name of each label.
        alpha: Level up to which a corrected p-value counts as significant.
        title: Heading of the sheet.
        size: Side of a thumbnail in pixels.

    Returns:
        The path of the sheet.
    """
    folder = Path(folder)
    names_of = _Names(data, answers, names)
    with new_folder(folder, durable=False) as scratch:
        opened = write_thumbnails(scratch, data, (n for item in findings for n in (*item.wrong, *item.right)), size)
        write_json(scratch / "findings.json", names_of.content(findings))
        _sheet(findings, opened, names_of, alpha, title, size).save(scratch / "sheet.png")
    return folder / "sheet.png"


@dataclass(frozen=True)
class _Names:
    """The data, the model's label for each image, and names of labels."""

    data: ImageData
    answers: npt.NDArray[np.int64]
    names: Sequence[str]

    def answer(self, image: int) -> str:
        return self.names[int(self.answers[image])]

    def truth(self, item: Pictured, image: int) -> str:
        """The true label of an image: the finding's, or its own where labels were pooled."""
        label, multi_label = item.finding.label, self.data.multi_label
        return self.names[int(self.data.labels[image]) if label is None and not multi_label else label or 0]

    def content(self, findings: Sequence[Pictured]) -> dict[str, Any]:
        """What the sheet shows, as JSON."""
        rows = [
            {
                "finding": item.finding,
                "label": None if item.finding.label is None else self.names[item.finding.label],
                "wrong": [self._entry(image) for image in item.wrong],
                "right": [self._entry(image) for image in item.right],
                "wrong_total": item.wrong_total,
                "right_total": item.right_total,
            }
            for item in findings
        ]
        return {"data": public_name(self.data.name), "credits": self.data.credits, "findings": rows}

    def _entry(self, image: int) -> dict[str, Any]:
        file = f"thumbnails/{image}.png"
        return {"image": image, "id": self.data.ids[image], "said": self.answer(image), "thumbnail": file}


_NOTE = (
    "Images are spread evenly over all of a group. What they have in common is yours to judge: a "
    "finding is a group of images, not a named group of people."
)


def _sheet(
    findings: Sequence[Pictured], opened: dict[int, Image.Image], names: _Names, alpha: float, title: str, size: int
) -> Sheet:
    """A row for each finding: its numbers, images that are wrong, images that are right; credits below."""
    tile, left = size + GAP, MARGIN + SIDE
    middle = left + max([3, *(len(item.wrong) for item in findings)]) * tile + APART
    width = max(middle + max([2, *(len(item.right) for item in findings)]) * tile + MARGIN, 640)
    pitch, top = max(size + BAND, 24 + 7 * LINE) + 14, MARGIN + HEAD
    sheet = Sheet(width, top + max(1, len(findings)) * pitch + MARGIN, [_NOTE, *names.data.credits])
    sheet.text((MARGIN, MARGIN), title, 17, width=width - 2 * MARGIN)
    sheet.text((MARGIN, MARGIN + 36), "group", 13, PALE)
    sheet.text((left, MARGIN + 36), "wrong: true label, then the model's", 13, PALE)
    sheet.text((middle, MARGIN + 36), "right: same group and label", 13, PALE)
    for row, item in enumerate(findings):
        y = top + row * pitch
        _write_numbers(sheet, y, item, names.names, alpha)
        for x, images in ((left, item.wrong), (middle, item.right)):
            for column, image in enumerate(images):
                label, answer = names.truth(item, image), names.answer(image)
                colour = GREEN if label == answer else RED
                sheet.tile((x + column * tile, y), opened[image], label, answer, colour)
    return sheet


def _write_numbers(sheet: Sheet, y: int, item: Pictured, names: Sequence[str], alpha: float) -> None:
    """The finding in words, beside its images."""
    found = item.finding
    p = f"corrected p {found.p_corrected:.2g}"
    name, *others = [f"{column} = {value}" for column, value in found.attributes] or [found.group_in_words()]
    lines = [
        *others,
        "true label: any" if found.label is None else f"true label: {names[found.label]}",
        f"wrong: {item.wrong_total} of {found.rows} images",
        f"right: {found.accuracy:.3f}, elsewhere {found.rest:.3f}",
        f"gap: {found.gap.value:.3f} [{found.gap.low:.3f}, {found.gap.high:.3f}]",
        f"score: {found.score:.3f}",
        p if found.p_corrected <= alpha else f"{p}: may be chance",
    ]
    sheet.text((MARGIN, y), name, 15, width=SIDE - 12)
    for number, text in enumerate(lines):
        sheet.text((MARGIN, y + 24 + LINE * number), text, 12, PALE, SIDE - 12)
