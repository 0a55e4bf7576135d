"""One expert as a picture to share: its name, its images, what its classes lose without it, and its control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mumoe.plots.sheets import GREEN, MARGIN, PALE, Sheet, wrapped

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SIDE", "TILES", "CardTile", "expert_card"]

SIDE, TILES = 180, 6
"""Side of an image in pixels, and images of a card."""

BARS = 6
"""Classes of a card."""

WIDTH = 2 * MARGIN + TILES * (SIDE + 8) - 8
LOSS, GAIN, SOFT = "#c4571a", "#2c6fd1", "#eaedf1"


@dataclass(frozen=True)
class CardTile:
    """An image of a card.

    Attributes:
        picture: A thumbnail of `SIDE` pixels.
        label: Its class.
        coefficient: The expert's coefficient on it.
    """

    picture: Image.Image
    label: str
    coefficient: float


def expert_card(
    title: str,
    lines: Sequence[str],
    tiles: Sequence[CardTile],
    lost: Sequence[tuple[str, float]],
    footer: Sequence[str] = (),
) -> Sheet:
    """Draw the card.

    Args:
        title: The name.
        lines: Paragraphs below it: which expert of what, and the measurements with their control.
        tiles: Images, the largest coefficient first; the first `TILES` are drawn.
        lost: (class, share of its right answers lost without the expert; negative: gained), the largest loss first.
            Losses are drawn to the right, gains to the left.
        footer: Credits of the images.
    """
    text, shown = wrapped(lines, WIDTH - 2 * MARGIN, 15), lost[:BARS]
    below = MARGIN + 44 + 22 * len(text) + 10
    bars = below + (SIDE + 46 if tiles else 0)
    height = bars + (30 + 26 * len(shown) + 12 if shown else 0)
    sheet = Sheet(WIDTH, height, footer)
    sheet.text((MARGIN, MARGIN), title, 30, width=WIDTH - 2 * MARGIN)
    for number, line in enumerate(text):
        sheet.text((MARGIN, MARGIN + 44 + 22 * number), line, 15, PALE)
    for number, tile in enumerate(tiles[:TILES]):
        corner = (MARGIN + number * (SIDE + 8), below)
        sheet.tile(corner, tile.picture, tile.label, f"coefficient {tile.coefficient:.2f}", GREEN)
    if shown:
        sheet.text((MARGIN, bars), "Share of right answers lost without it", 15)
    for number, (name, share) in enumerate(shown):
        _bar(sheet, bars + 30 + 26 * number, name, share, any(value < 0 for _, value in shown))
    return sheet


def _bar(sheet: Sheet, top: int, name: str, share: float, both: bool) -> None:
    """One line: the class, a bar on a track, and the share in words; with gains the bar starts in the middle."""
    left, length = MARGIN + 260, WIDTH - 2 * MARGIN - 260 - 140
    start = left + (length // 2 if both else 0)
    pixels = round(min(abs(share), 1.0) * (length - length // 2 if both else length))
    sheet.text((MARGIN, top), name, 15, width=250)
    sheet.box((left, top + 4), (length, 12), SOFT)
    sheet.box((start if share >= 0 else start - pixels, top + 4), (pixels, 12), LOSS if share >= 0 else GAIN)
    words = f"{100 * share:.0f}%" if share >= 0 else f"gains {-100 * share:.0f}%"
    sheet.text((left + length + 12, top), words, 15)
