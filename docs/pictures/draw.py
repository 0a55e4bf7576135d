"""Draw the pictures of docs/method.md from what the library computes: `python docs/pictures/draw.py [FOLDER]`.

Every picture is legible on white and on black: it has no background, its lines and words are of middle grey, and words
on colour are white.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mumoe import MuMoE, costs, functional

GREY = "#7b8088"
COLOURS = ("#3572b0", "#c4572b", "#3a8a4d", "#8a5bb5", "#a37a12", "#b0406f", "#2f8790", "#6d6d2a")
STYLE = {
    "font.size": 11,
    "svg.hashsalt": "mumoe",
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    "mathtext.fontset": "dejavusans",
}


def box(axes: Axes, x: float, y: float, text: str, colour: str, size: tuple[float, float] = (1.7, 0.8)) -> None:
    """A coloured box with white words, centred."""
    width, height = size
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.1", fc=colour, ec="none")
    )
    axes.text(x, y, text, color="white", ha="center", va="center", fontsize=11)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """An arrow with words above its middle."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=GREY, lw=1.4))
    axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.13, text, ha="center", va="bottom", fontsize=10)


def blank(figure: Figure, width: float, height: float) -> Axes:
    """Axes without axes."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return axes


def layer_picture() -> Figure:
    """From x to y: the gate's coefficients mix the experts."""
    figure = Figure(figsize=(9, 3.1))
    axes = blank(figure, 12, 4.1)
    box(axes, 0.8, 1.2, "x", COLOURS[0], (0.9, 0.8))
    box(axes, 3.5, 3.2, "projection", COLOURS[1])
    box(axes, 5.8, 3.2, "batch norm", COLOURS[1])
    box(axes, 8.0, 3.2, "entmax", COLOURS[1])
    box(axes, 8.0, 1.2, "experts  W", COLOURS[2], (2.6, 1.1))
    box(axes, 11.2, 1.2, "y", COLOURS[3], (0.9, 0.8))
    axes.plot([1.25, 1.9, 1.9], [1.2, 1.2, 3.2], color=GREY, lw=1.4)
    arrow(axes, (1.85, 3.2), (2.65, 3.2))
    arrow(axes, (4.35, 3.2), (4.95, 3.2))
    arrow(axes, (6.65, 3.2), (7.15, 3.2))
    arrow(axes, (1.85, 1.2), (6.7, 1.2), "z = (x, 1)")
    arrow(axes, (9.3, 1.2), (10.75, 1.2))
    axes.add_patch(FancyArrowPatch((8, 2.8), (8, 1.75), arrowstyle="-|>", mutation_scale=13, color=GREY, lw=1.4))
    axes.text(8.2, 2.28, "coefficients a ≥ 0,\nsum 1, mostly 0", va="center", fontsize=10)
    axes.text(8.0, 0.35, r"$y = \sum_n a_n\, W_n z$", ha="center", va="center", fontsize=12)
    return figure


def gate_picture() -> Figure:
    """Coefficients of ten experts from the same logits, under three activations."""
    figure = Figure(figsize=(9, 2.7), layout="constrained")
    logits = torch.tensor([2.1, 1.7, 1.2, 0.6, 0.3, 0.0, -0.4, -0.8, -1.3, -2.0])
    gates: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = [
        ("softmax", lambda z: torch.softmax(z, -1)),
        ("entmax 1.5", functional.entmax15),
        ("sparsemax", functional.sparsemax),
    ]
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (name, gate), colour in zip(panels, gates, COLOURS, strict=False):
        a = gate(logits)
        axes.bar(range(1, 11), a.numpy(), color=colour)
        axes.set(title=f"{name}: {int((a > 0).sum())} of 10 above 0", xlabel="expert", xticks=range(1, 11))
    panels[0].set_ylabel("coefficient")
    return figure


def _shape_text(name: str, tensor: torch.Tensor) -> str:
    return f"{name}\n" + " × ".join(f"{size:,}" for size in tensor.shape)


def factors_picture() -> Figure:
    """The tensors that CP, Tucker, TT and TR hold, with the sizes of a real layer."""
    figure = Figure(figsize=(9, 4.6))
    sizes = {"cp": 512, "tucker": 128, "tt": 512, "tr": 512}
    titles = {"cp": "CP", "tucker": "Tucker", "tt": "tensor train", "tr": "tensor ring"}
    for number, (kind, rank) in enumerate(sizes.items()):
        axes = figure.add_axes((0.01 + 0.5 * (number % 2), 0.5 - 0.49 * (number // 2), 0.48, 0.48))
        axes.set(xlim=(0, 6), ylim=(0, 2.9))
        axes.axis("off")
        layer = MuMoE(768, 1000, 512, kind, rank)
        part = layer.factorization
        held = sum(parameter.numel() for parameter in part.parameters())
        axes.text(0.1, 2.7, f"{titles[kind]}, rank {rank}: {held:,} numbers", va="center", fontsize=11, weight="bold")
        _draw_factors(axes, kind, dict(part.named_parameters()))
    return figure


def _draw_factors(axes: Axes, kind: str, tensors: dict[str, torch.Tensor]) -> None:
    """Boxes for the factors, lines for the ranks that they share."""
    grey = {"color": GREY, "lw": 1.6, "zorder": 0}
    if kind == "tucker":
        for place in (1.0, 3.0, 5.0):
            axes.plot([3.0, place], [2.05, 0.9], **grey)
    else:
        axes.plot([1.0, 5.0], [0.9, 0.9], **grey)
    if kind in ("cp", "tr"):
        axes.plot([1.0, 1.0, 5.0, 5.0], [0.9, 1.7, 1.7, 0.9], **grey)
    where = {"out": (1.0, 0.9, 3), "in": (3.0, 0.9, 0), "expert": (5.0, 0.9, 2), "core": (3.0, 2.05, 4)}
    for name, tensor in tensors.items():
        x, y, colour = where[name.partition("_")[0]]
        title = {"out": "out", "in": "in + 1", "expert": "experts", "core": "core"}[name.partition("_")[0]]
        box(axes, x, y, _shape_text(title, tensor), COLOURS[colour], (1.9, 0.74))


def cost_picture() -> Figure:
    """Parameters and multiply-adds against the number of experts, by formula."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    experts = [2**n for n in range(1, 15)]
    kinds: list[tuple[str, str, int | None]] = [
        ("dense mixture", "dense", None),
        ("CP, rank 512", "cp", 512),
        ("Tucker, rank 128", "tucker", 128),
        ("tensor train, rank 512", "tt", 512),
        ("tensor ring, rank 512", "tr", 512),
    ]
    counts = {"parameters": costs.count_parameters, "multiply-adds for one input": costs.count_flops}
    panels = figure.subplots(1, 2)
    for axes, (title, count) in zip(panels, counts.items(), strict=True):
        for (label, kind, rank), colour, style in zip(kinds, COLOURS, ("-", "-", "-", "--", "-"), strict=False):
            values = [count(kind, 768, 1000, n, rank) for n in experts]
            axes.loglog(experts, values, style, base=2, color=colour, label=label, lw=2)
        linear = count("linear", 768, 1000)
        axes.axhline(linear, color=GREY, lw=1, ls=":", label="one linear layer")
        axes.set(title=title, xlabel="experts", yscale="log", xticks=experts[1::4])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.minorticks_off()
    panels[0].legend(fontsize=9, loc="upper left")
    return figure


def trained_toy() -> tuple[MuMoE, torch.Tensor, torch.Tensor]:
    """Six experts that learned three classes of points on a ring, twice round."""
    torch.manual_seed(4)
    angle = torch.rand(3000) * 2 * torch.pi
    x = torch.stack([angle.cos(), angle.sin()], 1) * (0.6 + 0.8 * torch.rand(3000, 1))
    labels = (angle / (2 * torch.pi) * 6).long() % 3
    layer = MuMoE(2, 3, num_experts=6, factorization="cp", rank=6)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.03)
    for _ in range(400):
        loss = torch.nn.functional.cross_entropy(layer(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layer.eval(), x, labels


@torch.no_grad()
def experts_picture() -> Figure:
    """Where each expert of a trained layer is used, and what its ablation changes."""
    with torch.enable_grad():
        layer, x, labels = trained_toy()
    line = torch.linspace(-1.5, 1.5, 150)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    a = layer.coefficients(grid)[0]
    first = int(layer.coefficients(x)[0].sum(0).argmax())
    with layer.ablate(first):
        without, after = layer(grid), layer(x).argmax(-1)
    right = [100 * float((guess == labels).float().mean()) for guess in (layer(x).argmax(-1), after)]
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    used, before, cut = figure.subplots(1, 3)
    _paint(used, a.argmax(-1), COLOURS, 0.35 + 0.65 * a.amax(-1))
    _paint(before, layer(grid).argmax(-1), COLOURS[5:8] + COLOURS[:1])
    _paint(cut, without.argmax(-1), COLOURS[5:8] + COLOURS[:1])
    for expert in range(a.shape[-1]):
        place = grid[a[..., expert] > 0.9 * a[..., expert].max()].mean(0)
        if (a.argmax(-1) == expert).any():
            used.text(*place.tolist(), str(expert), color="white", ha="center", va="center", weight="bold")
    used.set_title("expert with the largest coefficient")
    before.set_title(f"answers: {right[0]:.0f}% right")
    cut.set_title(f"without expert {first}: {right[1]:.0f}% right")
    return figure


def _paint(axes: Axes, which: torch.Tensor, colours: tuple[str, ...], strength: torch.Tensor | None = None) -> None:
    """Colour each place of the grid by a number."""
    table = np.array([mpl.colors.to_rgb(colour) for colour in colours])
    image = np.dstack([table[which.numpy()], np.ones(which.shape) if strength is None else strength.numpy()])
    axes.imshow(image, extent=(-1.5, 1.5, -1.5, 1.5), origin="lower")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


PICTURES: dict[str, Callable[[], Figure]] = {
    "layer": layer_picture,
    "gate": gate_picture,
    "factors": factors_picture,
    "cost": cost_picture,
    "experts": experts_picture,
}


def main(folder: Path) -> None:
    """Write every picture."""
    for name, draw in PICTURES.items():
        with mpl.rc_context(STYLE):
            figure = draw()
            figure.savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
