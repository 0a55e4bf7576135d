"""Style of all figures (colours, axes), and how they are saved: PNG and SVG beside the numbers they show as JSON."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mumoe.errors import require
from mumoe.files import write_bytes, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bare_axes", "new_figure", "plain_axes", "rendered", "save_figure", "save_svg"]

INK, PALE, GRID = "#202124", "#5f6368", "#e3e5e8"
COLOURS = ("#0b6e99", "#d1495b", "#6a994e", "#8e5ea2", "#c98a1b", "#3d5a80")
BLUE, RED, GREY = COLOURS[0], COLOURS[1], "#8a8f98"
MARKERS = ("o", "s", "^", "D", "v", "P")


def save_figure(figure: Figure, path: str | Path, numbers: Any) -> tuple[Path, Path, Path]:
    """Write ``path.png``, ``path.svg`` and ``path.json`` (the numbers shown), each in one step."""
    base = Path(path)
    kinds: dict[str, dict[str, Any]] = {"png": {"dpi": 150}, "svg": {"metadata": {"Date": None}}}
    for kind, options in kinds.items():
        write_bytes(base.with_name(f"{base.name}.{kind}"), rendered(figure, kind, options))
    write_json(base.with_name(f"{base.name}.json"), numbers)
    png, svg, described = (base.with_name(f"{base.name}.{kind}") for kind in ("png", "svg", "json"))
    return png, svg, described


def save_svg(figure: Figure, path: str | Path) -> None:
    """Write an SVG whose bytes depend on the figure alone."""
    write_bytes(path, rendered(figure, "svg", {"metadata": {"Date": None}}))


def rendered(figure: Figure, kind: str, options: dict[str, Any]) -> bytes:
    """A figure as the bytes of a file of this kind; text of an SVG stays text."""
    matplotlib = require("matplotlib", "reports", "figures")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mumoe"}):
        figure.savefig(buffer, format=kind, facecolor="white", **options)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches without a window; notebooks show it without setting up matplotlib."""
    require("matplotlib", "reports", "figures")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    vars(figure)["_repr_png_"] = functools.partial(rendered, figure, "png", {"dpi": 100})
    return figure


def plain_axes(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of this size and its axes side by side; a single one has no box."""
    figure = new_figure(width, height)
    axes = figure.subplots(1, columns)
    if columns == 1:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def bare_axes(axes: Axes) -> None:
    """Axes without a box, with pale horizontal lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
