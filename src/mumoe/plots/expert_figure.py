"""One expert as a figure: images with coefficients, classes lost, effects on logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mumoe.plots.style import COLOURS, bare_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

__all__ = ["Picture", "expert_figure"]

BARS = 8
"""Classes drawn in each panel."""

Named = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Picture:
    """An image to draw.

    Attributes:
        label: Its class.
        coefficient: The expert's coefficient.
        image: The picture, or None if it cannot be opened.
    """

    label: str
    coefficient: float
    image: Image.Image | None


def expert_figure(title: str, pictures: Sequence[Picture], lost: Named, logits: Named) -> Figure:
    """Draw images above, and below them the classes that lose right answers and the logits that change.

    Args:
        title: Heading.
        pictures: Images, the largest coefficient first.
        lost: (class, share of right answers lost).
        logits: (class, change of the logit).
    """
    bars = [("share of right answers lost", lost), ("change of the logit", logits)]
    panels = [(name, values) for name, values in bars if values]
    figure = new_figure(9.0, 1.9 * bool(pictures) + 2.6 * bool(panels) + 0.6)
    figure.suptitle(_literal(title), fontsize=10)
    parts = figure.subfigures(int(bool(pictures)) + int(bool(panels)) or 1, 1, squeeze=False)[:, 0]
    if pictures:
        for panel, picture in zip(parts[0].subplots(1, len(pictures), squeeze=False)[0], pictures, strict=True):
            _draw_picture(panel, picture)
    if panels:
        for panel, (name, values) in zip(parts[-1].subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_bars(panel, name, values)
    return figure


def _draw_picture(panel: Axes, picture: Picture) -> None:
    panel.axis("off")
    panel.set_title(f"{_literal(picture.label[:18])}\n{picture.coefficient:.2f}", fontsize=8)
    if picture.image is not None:
        panel.imshow(picture.image.convert("RGB"))


def _draw_bars(panel: Axes, name: str, values: Named) -> None:
    shown = values[:BARS]
    panel.barh(range(len(shown)), [value for _, value in shown], color=COLOURS[0])
    panel.set_yticks(range(len(shown)), [_literal(label[:18]) for label, _ in shown], fontsize=8)
    panel.invert_yaxis()
    panel.axvline(0, color="black", linewidth=0.8)
    bare_axes(panel)
    panel.set_xlabel(name, fontsize=8)


def _literal(text: str) -> str:
    """A text without mathematics: names may hold dollar signs."""
    return text.replace("$", r"\$")
