"""The demo as one picture to share: a headline, strips of images that are lost without an expert, a bias corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mumoe.plots.sheets import INK, PALE, Sheet, wrapped

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SIDE", "CardBar", "CardStrip", "demo_card"]

WIDTH, EDGE, SIDE, GAP = 1200, 40, 80, 10
"""Pixels: of the card, around it, of an image, and between images."""

COLUMN = (WIDTH - 2 * EDGE - 40) // 2
"""Width of one of the two columns of strips."""

BLUE, GREY, AMBER, TRACK, RULE = "#0b6e99", "#8a8f98", "#c98a1b", "#e9edf0", "#d5dce2"


@dataclass(frozen=True)
class CardStrip:
    """One unit: its heading, what is lost without it, and images, by position in the mapping of pictures."""

    title: str
    text: str
    images: tuple[int, ...]
    control: bool = False


@dataclass(frozen=True)
class CardBar:
    """An accuracy before the correction, after it and under its control, in [0, 1]."""

    name: str
    before: float
    after: float
    control: float


def demo_card(
    headline: str,
    about: str,
    strips: Sequence[CardStrip],
    pictures: Mapping[int, Image.Image],
    bias: str,
    bars: Sequence[CardBar],
    footer: Sequence[str],
) -> Sheet:
    """Draw the card, 1,200 pixels wide.

    Args:
        headline: What was found.
        about: What an expert is.
        strips: Units, two side by side.
        pictures: Image position to a square thumbnail of `SIDE` pixels.
        bias: What the correction does, in one sentence.
        bars: Accuracy of the groups before and after it.
        footer: Where the numbers come from.
    """
    heads, lines = wrapped([headline], WIDTH - 2 * EDGE, 32), wrapped([about], WIDTH - 2 * EDGE, 18)
    corrected = wrapped([bias], WIDTH - 2 * EDGE, 22)
    top = EDGE + 42 * len(heads) + 12 + 26 * len(lines) + 24
    pitch = 2 * 24 + SIDE + 34
    below = top + -(-len(strips) // 2) * pitch + 16
    bars_top = below + 24 + 32 * len(corrected) + 8
    small, bottom = wrapped(footer, WIDTH - 2 * EDGE, 12), bars_top + 34 * len(bars) + 20
    sheet = Sheet(WIDTH, bottom + 17 * len(small) + 10, ())
    _lines(sheet, EDGE, heads, 32, 42, INK)
    _lines(sheet, EDGE + 42 * len(heads) + 12, lines, 18, 26, PALE)
    for number, strip in enumerate(strips):
        corner = (EDGE + number % 2 * (COLUMN + 40), top + number // 2 * pitch)
        _strip(sheet, corner, strip, pictures)
    sheet.box((EDGE, below), (WIDTH - 2 * EDGE, 2), RULE)
    _lines(sheet, below + 24, corrected, 22, 32, INK)
    for number, bar in enumerate(bars):
        _bar(sheet, bars_top + 34 * number, bar)
    _lines(sheet, bottom, small, 12, 17, PALE)
    return sheet


def _lines(sheet: Sheet, top: int, lines: Sequence[str], points: int, pitch: int, colour: str) -> None:
    for number, line in enumerate(lines):
        sheet.text((EDGE, top + pitch * number), line, points, colour)


def _strip(sheet: Sheet, corner: tuple[int, int], strip: CardStrip, pictures: Mapping[int, Image.Image]) -> None:
    x, y = corner
    sheet.text((x, y), strip.title, 18, GREY if strip.control else BLUE, COLUMN)
    sheet.text((x, y + 24), strip.text, 15, INK, COLUMN)
    for place, image in enumerate(strip.images):
        left = x + place * (SIDE + GAP)
        sheet.box((left - 1, y + 53), (SIDE + 2, SIDE + 2), RULE)
        sheet.image.paste(pictures[image], (left, y + 54))


def _bar(sheet: Sheet, top: int, bar: CardBar) -> None:
    """A line: the group, a track with before (grey), after (blue) and the control (amber), and the numbers."""
    left, right = EDGE + 300, WIDTH - EDGE - 290
    sheet.text((EDGE, top + 3), bar.name, 17, INK, 290)
    sheet.box((left, top + 3), (right - left, 22), TRACK)
    for value, colour, upper in ((bar.before, GREY, 3), (bar.after, BLUE, 10), (bar.control, AMBER, 19)):
        height = 8 if colour == BLUE else 6
        sheet.box((left, top + upper), (round((right - left) * value), height), colour)
    change = f"{bar.before:.3f} to {bar.after:.3f}, control {bar.control:.3f}"
    sheet.text((right + 16, top + 3), change, 17, INK)
