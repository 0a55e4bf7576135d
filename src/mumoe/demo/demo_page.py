"""The demo's page and its card: what was found, as HTML that opens from disk and as a picture to share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from mumoe.analysis.chosen_images import image_label
from mumoe.data.base import ImageData
from mumoe.demo.demo_findings import GROUPS, DemoFindings, strip_text, strip_title
from mumoe.demo.strips import CONTROL, Strip
from mumoe.files import new_folder, write_text
from mumoe.local_paths import without_paths
from mumoe.plots.demo_card import SIDE, CardBar, CardStrip, demo_card
from mumoe.plots.sheets import write_thumbnails
from mumoe.reports.rendering import render

__all__ = ["CARD", "write_card", "write_demo_page"]

LEGEND = (
    "Accuracy before (grey), with experts rewritten (blue), and with all images shifted alike, the control (amber)."
)

CARD, IMAGES = "demo-card.png", "card"
"""The picture, and the folder of the thumbnails, in the demo's folder."""


def write_card(
    out: Path, found: DemoFindings, numbers: Mapping[str, Any], strips: Sequence[Strip], data: ImageData
) -> Path:
    """Write OUT/demo-card.png, and the thumbnails in it to OUT/card."""
    shown = [image for strip in strips for image in strip.images]
    with new_folder(out / IMAGES, durable=False) as scratch:
        pictures = write_thumbnails(scratch, data, shown, SIDE)
    drawn = [CardStrip(strip_title(s), strip_text(s), s.images, s.kind == CONTROL) for s in strips]
    footer = [f"{found.choice} {LEGEND} {found.method} Made by mumoe demo.", *data.credits]
    sheet = demo_card(found.headline, found.about, drawn, pictures, found.bias, bars(numbers), footer)
    sheet.save(out / CARD)
    return out / CARD


def bars(numbers: Mapping[str, Any]) -> list[CardBar]:
    """Accuracy of each subgroup, and of all images, before and after experts are rewritten, and under the control."""
    names = {**GROUPS, "accuracy": "all images"}
    return [
        CardBar(name, *(_mean(numbers, method, key) for method in ("before", "experts", "blind")))
        for key, name in names.items()
    ]


def _mean(numbers: Mapping[str, Any], method: str, key: str) -> float:
    return float(mean(entry[method][key] for entry in numbers["rewriting"]))


def write_demo_page(
    out: Path,
    found: DemoFindings,
    numbers: Mapping[str, Any],
    strips: Sequence[Strip],
    data: ImageData,
    *,
    spec: str,
    look: str,
) -> Path:
    """Write OUT/report.html: the card, tables with their controls, the figure beside it, and credits.

    Args:
        out: The demo's folder.
        found: Sentences and tables.
        numbers: What was measured.
        strips: The experts of the card.
        data: The images.
        spec: Head that a reader could train.
        look: What to do first in the dashboard.
    """
    shown = [
        {
            "strip": strip,
            "title": strip_title(strip),
            "text": strip_text(strip),
            "images": [(f"{IMAGES}/thumbnails/{image}.png", image_label(data, image)) for image in strip.images],
        }
        for strip in strips
    ]
    page = out / "report.html"
    values = {
        "found": found,
        "settings": numbers["settings"],
        "strips": shown,
        "bars": bars(numbers),
        "side": SIDE,
        "card": CARD,
        "legend": LEGEND,
        "credits": data.credits,
        "folder": without_paths(out.as_posix(), [out]),
        "look": look,
        "spec": spec,
    }
    write_text(page, render("demo.html", values))
    return page
