"""Figures: their numbers are the results', their files are complete, and what they say is in them."""

import json
import re

import numpy as np
import pytest

from mumoe.analysis.findings import Effect, Usage
from mumoe.errors import UserError
from mumoe.plots.effects import EffectRow, effects_figure, strong_effects
from mumoe.plots.loads import load_figure
from mumoe.plots.style import save_figure
from mumoe.plots.trend import Point, summary, trend_figure


def point(series, experts, seed, p, strong=3, control=False):
    return Point(series, experts, seed, 0.7, p, strong, 0.5 if strong else None, 9, control)


def effect(unit, *losses):
    return Effect(unit, 0.4, None, losses[0][0], losses[0][1], losses[0][1] >= 0.5, tuple(losses))


def usage(load):
    n = len(load)
    return Usage(n, 100, tuple(load), tuple(load), (1 / n,) * n, 0.5, 1, 2, 3.5, (1, 2, 3, 4, 5), 1.0, 0.5)


def saved(figure, tmp_path, numbers):
    png, svg, described = save_figure(figure, tmp_path / "figure", numbers)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.read_bytes().endswith(b"IEND\xaeB`\x82")
    return svg.read_text(), json.loads(described.read_text())


def test_summary_is_mean_and_spread_over_seeds():
    points = [point("a", 8, 0, 1.0), point("a", 8, 1, 2.0), point("a", 32, 0, 0.5), point("a", 64, 0, None)]
    assert summary(points, lambda p: p.mean_polysemanticity) == [
        (8, 1.5, pytest.approx(np.sqrt(0.5)), 2),
        (32, 0.5, 0.0, 1),
    ]


def test_trend_shows_series_controls_classes_and_counts(tmp_path):
    points = [point("CP", n, s, 10 / n) for n in (8, 32) for s in (0, 1)]
    points += [point("frozen gate", n, 0, 0.9, strong=0, control=True) for n in (8, 32)]
    figure = trend_figure(points, title="Figure 3", classes=20, note="two seeds")
    first, strong = figure.axes[:2]
    line, control = (container.lines[0] for container in first.containers)
    assert line.get_ydata().tolist() == pytest.approx([1.25, 0.3125])
    assert (line.get_linestyle(), control.get_linestyle()) == ("-", "--")
    assert strong.containers[1].lines[0].get_ydata().tolist() == [0, 0]
    text, numbers = saved(figure, tmp_path, points)
    for said in ("Figure 3", "CP", "frozen gate", "20 classes", "strong experts", "accuracy", "two seeds"):
        assert said in text
    assert numbers[0]["experts"] == 8
    assert numbers[-1]["control"] is True


def test_a_model_without_any_strong_expert_is_drawn(tmp_path):
    points = [point("CP", n, 0, None, strong=0) for n in (8, 32)]
    text, _ = saved(trend_figure(points, title="nothing found"), tmp_path, points)
    assert "nothing found" in text


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    points = [point("CP", 8, 0, 1.0)]
    texts = [saved(trend_figure(points, title="t"), tmp_path / str(i), points)[0] for i in range(2)]
    assert texts[0] == texts[1]


def test_bars_are_the_losses_of_the_first_strong_experts(tmp_path):
    row = EffectRow("e8", (effect(0, (1, 0.4)), effect(2, (0, 0.9), (1, -0.3)), effect(5, (1, 0.5))))
    assert [e.unit for e in strong_effects(row)] == [2, 5]
    figure = effects_figure([row, EffectRow("e4", ())], ["cat", "dog"], title="Figure 6")
    bars = [patch.get_width() for patch in figure.axes[0].patches]
    assert bars == pytest.approx([0.9, -0.3])
    low, high = figure.axes[0].get_xlim()
    assert low < -0.3
    assert high == 1
    text, _ = saved(figure, tmp_path, [row])
    for said in ("expert 2", "expert 5", "cat", "dog", "(2 strong experts)", "e4: no expert costs a class 50%"):
        assert said in text
    assert "expert 0" not in text


def test_load_bars_are_the_load(tmp_path):
    figure = load_figure([("e4", usage([5, 0, 2, 9]))], title="Figure 12")
    assert [patch.get_height() for patch in figure.axes[0].patches] == [5, 0, 2, 9]
    text, _ = saved(figure, tmp_path, {})
    assert re.search(r"2 of 4 experts process an image", text)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: trend_figure([], title=""),
        lambda: effects_figure([], [], title=""),
        lambda: load_figure([], title=""),
    ],
)
def test_nothing_to_draw_is_one_clear_error(draw):
    with pytest.raises(UserError, match=r"_figure: expected at least one analyzed model, got none\."):
        draw()
