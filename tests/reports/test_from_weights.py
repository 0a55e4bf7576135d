"""Numbers of pages from the weights and the data: nothing is read from the JSON that the pages were made of."""

from __future__ import annotations

import re
from html import unescape

import numpy as np
import pytest
import torch
from made_up_report import NAMES, analyzed, named_data, trained
from made_up_results import gathered
from torch import nn

from commands.made_up_analysis import make_features
from mumoe.analysis import analyzing
from mumoe.analysis.interventions import intervene
from mumoe.reports import site
from mumoe.reports.expert_views import _right_answers
from mumoe.results import EvalResult
from mumoe.training import StoredRun
from tests_support import mix, weight_by_formula

LEAST = 3


class Source:
    """A head's answers on test images, with and without each expert, from its factors in float64."""

    def __init__(self, run):
        self.head, self.data = StoredRun(run, device="cpu").head, named_data()
        self.rows = self.data.indices("test")
        self.labels = self.data.labels[self.rows]
        self.layer = self.head.layer
        with torch.no_grad():
            self.x = self.head.prepare(torch.from_numpy(make_features(self.data)[self.rows]))
            self.a = self.layer.gate(self.x)
        dense = weight_by_formula(self.layer)
        self.before = self.right(mix(dense, self.x, self.a))
        self.after = []
        for n in range(self.layer.num_experts[0]):
            without = dense.clone()
            without[:, :, n] = 0
            self.after.append(self.right(mix(without, self.x, self.a)))

    def right(self, logits):
        hits = logits.argmax(1).numpy() == self.labels
        return np.array([hits[self.labels == c].sum() for c in range(len(NAMES))])

    def lost(self):
        """(experts, classes that were ever right) right answers lost, and as shares."""
        known = self.before > 0
        lost = (self.before - np.array(self.after))[:, known]
        return lost, lost / self.before[known]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with two modes, its pages, and the same numbers by hand."""
    folder = tmp_path_factory.mktemp("weights")
    trained(folder / "run", head="CPMuMoE-r6-e12")
    trained(folder / "plain", head="linear")
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(analyzing, "save_figure", lambda *_: None)
        analyzed(folder / "run", modes=("zero", "mean"), least_lost=LEAST)
    views = [*gathered(folder / "run"), *gathered(folder / "plain")]
    site.write_pages(views[:1], folder / "one")
    site.write_pages(views, folder / "two")
    return folder, Source(folder / "run")


def cells(page, heading):
    """Texts of the cells of the table row that begins with this heading, markup left out."""
    rows = [row for row in re.findall(r"<tr>.*?</tr>", page, re.S) if "<td" in row]
    row = next(row for row in rows if re.search(rf">{re.escape(heading)}", row))
    return [re.sub(r"<[^>]*>", "", unescape(cell)).strip() for cell in re.findall(r"<td.*?</td>", row, re.S)]


def first_number(cell):
    return float(cell.split()[0].replace(",", ""))


def test_specialization_is_that_of_the_weights(made):
    folder, source = made
    page = (folder / "one" / "experts.html").read_text()
    lost, d = source.lost()
    p = np.sqrt(((d - (np.arange(d.shape[1]) == d.argmax(1)[:, None])) ** 2).sum(1))
    active, strong = (d != 0).any(1), ((d >= 0.5) & (lost >= LEAST)).any(1)
    assert 0 < strong.sum() < active.sum() < len(d)
    shown = cells(page, "weight set to zero")
    assert [first_number(shown[i]) for i in (0, 1, 3)] == [len(d), active.sum(), strong.sum()]
    assert first_number(shown[2]) == pytest.approx(p[active].mean(), abs=5e-4)
    assert first_number(shown[5]) == pytest.approx(p[strong].mean(), abs=5e-4)
    assert 0 < first_number(shown[4]) <= lost[strong].clip(min=0).sum()


def test_the_control_is_none_of_the_modes(made):
    folder, source = made
    batches = [(source.x, torch.from_numpy(source.labels))]
    control = intervene(source.layer, batches, plainly=True).load_control(seed=0, least_lost=LEAST)
    shown = {}
    for name, page in (("one", "experts.html"), ("two", "run/experts.html")):
        text = (folder / name / page).read_text()
        rows = [cells(text, heading) for heading in ("weight set to zero", "replaced by the mean", "control")]
        shown[name] = [[first_number(row[i]) for i in (1, 2, 3)] for row in rows]
        assert shown[name][2][0] == control.with_effect
        assert shown[name][2][1] == pytest.approx(control.mean_polysemanticity, abs=5e-4)
        assert shown[name][2][2] == control.strong
        assert len({row[1] for row in shown[name]}) == 3
    compared = re.search(r"Specialization by run.*?</table>", (folder / "two" / "index.html").read_text(), re.S)[0]
    row = cells(compared, "run<")
    assert first_number(row[2]) == pytest.approx(control.mean_polysemanticity, abs=5e-4)
    assert first_number(row[4]) == control.strong
    page = (folder / "one" / "experts.html").read_text()
    table = re.search(r'<table class="sortable" id="experts">.*?</table>', page, re.S)[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr data-find.*?</tr>", table, re.S)]
    shown = {int(re.sub(r"<[^>]*>", "", row[0])): row for row in rows}
    by_unit = {effect.unit: effect for effect in control.effects}
    lost, d = source.lost()
    for expert in range(12):
        effect, row = by_unit.get(expert), shown[expert]
        assert row[5] == ("–" if effect is None else f"{effect.polysemanticity:.3f}")
        assert row[6] == ("yes" if effect and effect.strong else "no")
        assert (row[7] != "–") == ((d[expert] >= 0.5) & (lost[expert] >= LEAST)).any()


def test_costs_are_counted_from_the_layers(made):
    folder, source = made
    parameters = sum(value.numel() for value in source.layer.parameters())
    linear = sum(value.numel() for value in nn.Linear(10, len(NAMES)).parameters())
    flops = 6 * (12 + 11 + len(NAMES))  # rank * (experts + inputs with bias + outputs)
    dense = sum(w.numel() for w in (torch.empty(len(NAMES), 11, 12), torch.empty(12, 10)))
    page = (folder / "one" / "index.html").read_text()
    costs = re.search(r"Costs of the layer.*?</table>", page, re.S)[0]
    ours, plain, full = (cells(costs, name) for name in ("this head", "linear", "dense, the same experts"))
    assert [first_number(row[0]) for row in (ours, plain)] == [parameters, linear]
    assert first_number(ours[1]) == pytest.approx(parameters / linear, abs=0.05)
    assert first_number(full[1]) == pytest.approx(first_number(full[0]) / linear, abs=0.05)
    assert first_number(full[0]) >= dense
    assert (plain[1], plain[3]) == ("1.0", "1.0")
    assert first_number(ours[2]) == pytest.approx(flops, rel=0.1)
    assert first_number(ours[3]) == pytest.approx(first_number(ours[2]) / first_number(plain[2]), abs=0.05)
    assert first_number(ours[3]) != pytest.approx(1.0, abs=0.1)
    compared = re.search(r"Costs by run.*?</table>", (folder / "two" / "index.html").read_text(), re.S)[0]
    row = cells(compared, "run<")
    assert [first_number(row[i]) for i in (0, 1)] == [first_number(ours[0]), first_number(ours[2])]
    assert row[2] == ours[3]
    assert first_number(row[3]) == pytest.approx(first_number(full[2]) / first_number(ours[2]), abs=0.05)


def test_accuracy_and_right_answers_are_those_of_the_data(made):
    folder, source = made
    page = (folder / "one" / "index.html").read_text()
    total = np.bincount(source.labels, minlength=len(NAMES))
    assert first_number(cells(page, "test")[0]) == pytest.approx(source.before.sum() / total.sum(), abs=5e-4)
    classes = re.search(r"<h2>Accuracy by class.*?</table>", page, re.S)[0]
    lost, d = source.lost()
    known = np.flatnonzero(source.before > 0)
    for c in np.flatnonzero(total > 0):
        row = next(row for row in re.findall(r"<tr>.*?</tr>", classes, re.S) if f">{NAMES[c]}<" in unescape(row))
        shown = [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row)]
        assert first_number(shown[0]) == total[c]
        assert first_number(shown[1]) == pytest.approx(source.before[c] / total[c], abs=5e-4)
    checked = 0
    for n in np.flatnonzero((d != 0).any(1)):
        expert = (folder / "one" / "experts" / f"0-{n}.html").read_text()
        table = re.search(r"Classes that change.*?</table>", expert[expert.index("region") :], re.S)[0]
        for place, c in enumerate(known):
            if lost[n, place]:
                row = next(row for row in re.findall(r"<tr>.*?</tr>", table, re.S) if f">{NAMES[c]}<" in unescape(row))
                shown = [re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", row)]
                assert first_number(shown[1].replace("−", "-")) == pytest.approx(d[n, place], abs=5e-4)
                assert first_number(shown[3]) == source.before[c]
                checked += 1
    assert checked >= 5


def test_a_share_of_a_count_is_the_count_again():
    """Right answers are stored as shares: 0.29 of 100 images are 29, though 0.29 * 100 is less in floating point."""
    pairs = [(k, n) for n in range(1, 120) for k in range(n + 1)]
    assert any(int(k / n * n) != k for k, n in pairs)
    for k, n in pairs:
        one = EvalResult("", "test", 1, 500, 0.1, 0.5, {"a": k / n}, {"a": n})
        assert _right_answers(one, multi_label=False) == {"a": k}
    many = EvalResult("", "test", 1, 500, 0.1, 0.5, {"a": 0.622}, {"a": 70})
    assert _right_answers(many, multi_label=True) == {"a": 311}  # of all images, not of the 70 that have it
