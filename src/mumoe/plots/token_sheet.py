"""A sheet of tokens: the experts of a language model that matter most, with tokens that they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mumoe.plots.sheets import INK, PALE, encoded, font

if TYPE_CHECKING:
    from PIL import ImageDraw

    from mumoe.analysis.findings import ExpertText, TextStudy, TopToken

__all__ = ["heat_map", "one_line"]

_NAMES = {"\n": "¶", "\0": "§", "\ufffd": "·"}
_POINTS, _LINE, _LEFT, _TOP, _WIDTH = 15, 22, 150, 56, 1100
_PLAIN = {"\n": "\\", "\0": "^", "\ufffd": "·"}
"""Characters of the default font."""
_GROUND = (11, 110, 153)


def one_line(piece: str, names: Mapping[str, str] = _NAMES) -> str:
    """A token's text on one line; characters in `names` are replaced."""
    return "".join(names.get(letter, letter if letter.isprintable() else "·") for letter in piece)


def heat_map(study: TextStudy, *, experts: int = 8, lines: int = 3) -> bytes:
    """A PNG of the experts that matter most in each layer, some quoted tokens each."""
    from PIL import Image, ImageDraw

    chosen = [(layer, layer.by_effect()[:experts]) for layer in study.layers]
    height = _TOP + sum(_LINE * 2 + sum(_LINE * min(lines, len(e.top)) + 8 for e in found) for _, found in chosen)
    picture = Image.new("RGB", (_WIDTH, height + 12), "white")
    draw = ImageDraw.Draw(picture)
    heading = (
        "Tokens with the largest coefficients, by expert; dark: coefficient 1; \\: a line's end. "
        "Right: rise of the loss, in nats, when it is ablated."
    )
    draw.text((16, 16), heading, fill=INK, font=font(16))
    y = _TOP
    for layer, found in chosen:
        draw.text((16, y), layer.layer, fill=INK, font=font(16))
        y += _LINE + 8
        for expert in found:
            y = _draw_expert(draw, expert, y, lines)
        y += _LINE - 8
    return encoded(picture, "PNG")


def _draw_expert(draw: ImageDraw.ImageDraw, expert: ExpertText, y: int, lines: int) -> int:
    draw.text((28, y), f"expert {expert.expert}", fill=INK, font=font(_POINTS))
    if expert.effect is not None:
        draw.text((_WIDTH - 70, y), f"{expert.effect.all:+.3f}", fill=PALE, font=font(_POINTS))
    for token in expert.top[:lines]:
        _draw_quote(draw, token, y, expert.largest)
        y += _LINE
    return y + 8


def _draw_quote(draw: ImageDraw.ImageDraw, token: TopToken, y: int, largest: float) -> None:
    """The token in the middle of the line, as much around it as fits."""
    measure = font(_POINTS).getlength
    texts = [one_line(piece, _PLAIN) for piece in token.pieces]
    widths = [max(measure(text), 5.0) for text in texts]
    middle, right = (_LEFT + _WIDTH - 90) / 2, _WIDTH - 90
    x = middle - sum(widths[: token.center])
    for place, (text, value, width) in enumerate(zip(texts, token.coefficients, widths, strict=True)):
        if x >= _LEFT and x + width <= right:
            shade = min(value / largest, 1.0) * 0.8
            ground = tuple(round(255 + (c - 255) * shade) for c in _GROUND)
            frame = "#b3261e" if place == token.center else None
            draw.rectangle((x, y - 1, x + width, y + _LINE - 4), fill=ground, outline=frame)
            draw.text((x, y), text, fill="white" if shade > 0.55 else INK, font=font(_POINTS))
        x += width
