"""Figures 1 and 4: the unfactorized forward of one and of two levels, drawn from the numbers of a small layer.

The picture shows real numbers: a dense layer with random weights is contracted step by step, and every cell is
shaded by the number that it stands for. Yellow: weights of experts; blue: the input and the outputs of the experts;
red and green: the coefficients of the first and second level, mostly zero; purple: the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mumoe import MuMoE
from mumoe.errors import require
from reproduction.recipe import Sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Steps", "contraction_figure", "contraction_steps"]

YELLOW, BLUE, RED, GREEN, PURPLE = "#f2b705", "#2f77b4", "#c8323c", "#1e7a3c", "#6a4fa3"
ALONG, UP = (0.34, 0.17), (0.0, 0.72)
"""How one step along the inputs (or outputs) and one expert up move on the page."""


@dataclass(frozen=True)
class Steps:
    """A forward of one row, contraction by contraction.

    Attributes:
        weight: (out, in, N_1, .., N_E).
        x: (in,) the input.
        coefficients: Per level (N_e,).
        partial: What is left after the contraction with x, then with each level's coefficients but the last.
        y: (out,) the output.
    """

    weight: Tensor
    x: Tensor
    coefficients: tuple[Tensor, ...]
    partial: tuple[Tensor, ...]
    y: Tensor

    def numbers(self) -> dict[str, Any]:
        """Shapes and numbers for the JSON beside the figure."""
        shapes = {"weight": list(self.weight.shape), "after": [list(part.shape) for part in self.partial]}
        values = {"x": self.x.tolist(), "coefficients": [a.tolist() for a in self.coefficients], "y": self.y.tolist()}
        return {"shapes": shapes, **values}


@torch.no_grad()
def contraction_steps(sizes: Sizes, seed: int = 0) -> Steps:
    """Contract a random dense layer with one input: first its input mode, then level after level (eq. 1)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = (sizes.in_features, sizes.out_features)
        layer = MuMoE(*widths, sizes.experts, "dense", bias=False, norm="none", init="paper")
        weight, x = torch.randn_like(layer.to_dense()), torch.randn(sizes.in_features)
        a = tuple(torch.softmax(torch.randn(n), 0) for n in sizes.experts)
        a = tuple(torch.where(part < part.median(), 0.0, part) for part in a)
        a = tuple(part / part.sum() for part in a)
    partial = [torch.tensordot(weight, x, dims=([1], [0]))]
    for part in a[:-1]:
        partial.append(torch.tensordot(partial[-1], part, dims=([1], [0])))
    y = torch.tensordot(partial[-1], a[-1], dims=([1], [0]))
    return Steps(weight, x, a, tuple(partial), y)


def contraction_figure(steps: Steps, title: str) -> Figure:
    """The tensors in their order, with the products between them."""
    require("matplotlib", "reports", "figures")
    from matplotlib.figure import Figure

    levels = len(steps.coefficients)
    figure = Figure(figsize=(11.5, 4.1) if levels == 1 else (15.5, 3.1), layout="constrained")
    axes = figure.subplots()
    page = _Page(axes)
    _draw_weight(page, steps)
    page.sign(r"$\times_2$")
    page.sheet(steps.x[None], BLUE, r"$\mathbf{z}\in\mathbb{R}^{I}$", flat=True)
    for level, part in enumerate(steps.partial):
        page.sign("=")
        colour = RED if level == 0 else GREEN
        _draw_partial(page, part, level, levels)
        page.sign(rf"$\times_{{{level + 3}}}$")
        name = r"\mathbf{a}" if levels == 1 else rf"\mathbf{{a}}_{level + 1}"
        size = "N" if levels == 1 else f"N_{level + 1}"
        page.column(steps.coefficients[level], colour, rf"${name}\in\mathbb{{R}}^{{{size}}}$")
    page.sign("=")
    page.sheet(steps.y[:, None], PURPLE, r"$\mathbf{y}\in\mathbb{R}^{O}$", flat=True)
    axes.set_aspect("equal")
    axes.set_xlim(-0.4, page.x + 0.3)
    axes.set_ylim(-0.95, page.top + 0.5)
    axes.axis("off")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    return figure


def _draw_weight(page: _Page, steps: Steps) -> None:
    levels = len(steps.coefficients)
    if levels == 1:
        slices = [steps.weight[:, :, n] for n in range(steps.weight.shape[2])]
        page.stack(slices, YELLOW, r"$\mathcal{W}\in\mathbb{R}^{O\times I\times N}$")
        return
    first, second = steps.weight.shape[2:]
    for m in range(second):
        text = r"$\mathcal{W}\in\mathbb{R}^{O\times I\times N_1\times N_2}$" if m == second // 2 else ""
        page.stack([steps.weight[:, :, n, m] for n in range(first)], YELLOW, text)


def _draw_partial(page: _Page, part: Tensor, level: int, levels: int) -> None:
    """The outputs of the experts: a column for each expert that is left."""
    if part.dim() == 2:
        size = r"O\times N" if levels == 1 else r"O\times N_2"
        page.stack([part[:, n, None] for n in range(part.shape[1])], BLUE, rf"$\mathbb{{R}}^{{{size}}}$")
        return
    for m in range(part.shape[2]):
        text = r"$\mathbb{R}^{O\times N_1\times N_2}$" if m == part.shape[2] // 2 else ""
        page.stack([part[:, n, m, None] for n in range(part.shape[1])], BLUE, text)


class _Page:
    """Places tensors from left to right; `x` is where the next one starts."""

    def __init__(self, axes: Axes) -> None:
        self.axes, self.x, self.top = axes, 0.0, 0.0

    def stack(self, slices: Sequence[Tensor], colour: str, text: str) -> None:
        """Matrices (out, in) as horizontal slices, one above the other: the first expert on top."""
        largest = max(float(part.abs().max()) for part in slices)
        width = 0.0
        for n, part in enumerate(slices):
            height = (len(slices) - 1 - n) * UP[1]
            width = self._slice(part / largest, (self.x, height), colour)
        self._close(width, (len(slices) - 1) * UP[1] + slices[0].shape[0] * ALONG[1], text)

    def sheet(self, values: Tensor, colour: str, text: str, *, flat: bool) -> None:
        """One matrix at half height."""
        width = self._slice(values / float(values.abs().max()), (self.x, 0.7), colour)
        self._close(width, 0.7 + values.shape[0] * ALONG[1], text)

    def column(self, values: Tensor, colour: str, text: str) -> None:
        """A vector of coefficients, one square above the other in the order of the slices."""
        for n, value in enumerate(values.tolist()):
            low = (len(values) - 1 - n) * UP[1]
            corners = [(self.x, low), (self.x + 0.42, low), (self.x + 0.42, low + 0.42), (self.x, low + 0.42)]
            self._cell(corners, colour, value)
            word = f"{value:.2f}" if value else "0"
            dark = "white" if value > 0.45 else "#202124"
            self.axes.text(self.x + 0.21, low + 0.2, word, ha="center", va="center", fontsize=7.5, color=dark)
        self._close(0.42, (len(values) - 1) * UP[1] + 0.42, text)

    def sign(self, text: str) -> None:
        """An operator between two tensors."""
        self.axes.text(self.x + 0.18, 0.95, text, ha="center", va="center", fontsize=15)
        self.x += 0.5

    def _slice(self, values: Tensor, corner: tuple[float, float], colour: str) -> float:
        rows, columns = values.shape
        (ax, ay), cell = ALONG, 0.3
        for i in range(rows):
            for j in range(columns):
                x, y = corner[0] + j * cell + (rows - 1 - i) * ax * 0.62, corner[1] + (rows - 1 - i) * ay * 0.62
                ends = [(x, y), (x + cell, y), (x + cell + ax * 0.62, y + ay * 0.62), (x + ax * 0.62, y + ay * 0.62)]
                self._cell(ends, colour, abs(float(values[i, j])))
        return columns * cell + rows * ax * 0.62

    def _cell(self, corners: list[tuple[float, float]], colour: str, strength: float) -> None:
        from matplotlib.colors import to_rgb
        from matplotlib.patches import Polygon

        share = 0.12 + 0.88 * min(strength, 1.0) if strength else 0.0
        mixed = [1 - share * (1 - part) for part in to_rgb(colour)]
        self.axes.add_patch(Polygon(corners, closed=True, facecolor=mixed, edgecolor="#3c4043", linewidth=0.6))

    def _close(self, width: float, height: float, text: str) -> None:
        self.axes.text(self.x + width / 2, -0.5, text, ha="center", va="center", fontsize=11.5)
        self.top = max(self.top, height)
        self.x += width + 0.32
