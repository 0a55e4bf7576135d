"""Combinations of the experts of a hierarchy: those that occur, with the numbers of the formulas over all of them."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from mumoe.analysis import contributions
from mumoe.analysis.class_effects import counts_after, shuffle_units, specialization, strong_losses
from mumoe.analysis.interventions import intervene
from mumoe.analysis.layer_study import and_reading, study_layer
from mumoe.analysis.outcomes import Record
from mumoe.layers import MuMoE

LEAST = 2


def sparse_layer(experts, factorization="cp"):
    """A layer whose gates choose two experts of each level, and rows that it mostly classifies."""
    torch.manual_seed(0)
    options = {"gate": "topk", "gate_options": {"k": 2}, "init": "paper"}
    layer = MuMoE(10, 6, experts, factorization, rank=8, **options).eval()
    x = torch.randn(240, 10)
    labels = torch.where(torch.rand(240) < 0.2, torch.randint(6, (240,)), layer(x).argmax(1).detach())
    return layer, list(zip(x.split(64), labels.split(64), strict=True))


@pytest.mark.parametrize("factorization", ["cp", "tr"])
@pytest.mark.parametrize("experts", [(4, 5), (3, 4, 5), (16, 16)])
def test_combinations_have_the_numbers_of_the_formulas_over_all(experts, factorization):
    layer, batches = sparse_layer(experts, factorization)
    found = intervene(layer, batches)
    assert found.changes.num_units == np.prod(experts)
    load = np.zeros(experts, dtype=np.int64)
    for x, _ in batches:
        levels = layer.coefficients(x)
        for place in itertools.product(*map(range, experts)):
            load[place] += int(torch.stack([a[:, n] > 0 for a, n in zip(levels, place, strict=True)]).all(0).sum())
    assert np.array_equal(found.all_loads(), load.ravel())
    assert np.array_equal(found.occurring, np.flatnonzero(load))
    dealt, whole = found.shuffled(seed=3), shuffle_units(found.changes, load.ravel(), seed=3)
    assert np.array_equal(dealt.unit, whole.unit)
    plain = intervene(layer, batches, plainly=True)
    assert np.array_equal(plain.occurring, found.occurring)
    assert plain.specialization(least_lost=LEAST) == found.specialization(least_lost=LEAST)
    study = study_layer(layer, lambda: batches, resamples=0, least_lost=LEAST, seed=3)
    joint = study.units[-1]
    assert joint.load_control == specialization(found.answers, whole, least_lost=LEAST)
    assert dict(joint.listed()) == {n: size for n, size in enumerate(load.ravel().tolist()) if size}
    assert [joint.load_of(n) for n in range(joint.total)] == load.ravel().tolist()
    assert all(study.experts_of(joint, n) == np.unravel_index(n, experts) for n in range(joint.total))


def test_the_and_reading_is_that_of_whole_tables():
    torch.manual_seed(0)
    layer = MuMoE(16, 6, (4, 5), rank=8).eval()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    x = torch.randn(300, 16)
    batches = [(x, layer(x).argmax(1).detach())]
    levels = [intervene(layer, batches, level=level) for level in (0, 1)]
    joint = intervene(layer, batches)

    def table(found):
        return strong_losses(found.answers.before, counts_after(found.answers, found.changes), LEAST)

    first, second, both = map(table, (*levels, joint))
    found = and_reading(levels, joint, least_lost=LEAST)
    assert [combination.experts for combination in found] == [divmod(int(n), 5) for n in np.flatnonzero(both.any(1))]
    assert found
    for combination in found:
        n, m = combination.experts
        assert combination.classes_by_level == tuple(tuple(np.flatnonzero(r)) for r in (first[n], second[m]))
        assert combination.classes_of_combination == tuple(np.flatnonzero(both[5 * n + m]))


@pytest.mark.parametrize("mode", ["zero", "mean", "resampled"])
def test_batches_with_many_combinations_are_taken_apart_in_pieces(monkeypatch, mode):
    layer, batches = sparse_layer((3, 4, 5))
    whole = intervene(layer, batches, mode=mode)
    rows = [len(x) for x, _ in batches]
    sizes = []
    opened = contributions.ExpertParts.open
    monkeypatch.setattr(
        contributions.ExpertParts, "open", lambda self, x, row: sizes.append(len(x)) or opened(self, x, row)
    )
    monkeypatch.setattr(contributions.rows_of_pairs, "__defaults__", (20,))
    found = intervene(layer, batches, mode=mode)
    assert len(sizes) > 10 * len(rows)
    assert sum(sizes) == sum(rows)
    assert np.array_equal(found.counts(), whole.counts())
    assert np.array_equal(found.all_loads(), whole.all_loads())


def test_loads_of_many_batches_are_added(monkeypatch):
    monkeypatch.setattr("mumoe.analysis.outcomes.PENDING", 3)
    record, rng, expected = Record(1 << 40), np.random.default_rng(0), {}
    record.batch(torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool), 1)
    for _ in range(40):
        units = rng.integers(0, 9, 5) * (1 << 36)
        record.loaded(torch.from_numpy(units))
        for unit in units.tolist():
            expected[unit] = expected.get(unit, 0) + 1
    assert len(record.loads) < 10
    found = record.result()
    assert dict(zip(found.occurring.tolist(), found.load.tolist(), strict=True)) == expected
    assert (np.diff(found.occurring) > 0).all()


STUDY = """
import torch
from mumoe.analysis.layer_study import study_layer
from mumoe.layers import MuMoE

def memory(key):
    lines = open('/proc/self/status').read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

torch.manual_seed(0)
layer = MuMoE(16, 20, {experts}, rank=8, gate='topk', gate_options={{'k': 4}}, init='paper').eval()
x = torch.randn(600, 16)
labels = layer(x).argmax(1)
batches = list(zip(x.split(200), labels.split(200)))
study_layer(MuMoE(16, 20, (4, 5), rank=8).eval(), lambda: batches, resamples=100)
open('/proc/self/clear_refs', 'w').write('5')
before = memory('VmRSS')
study = study_layer(layer, lambda: batches, resamples=100)
joint = study.units[-1]
assert joint.total == 1 << 20 and 0 < len(joint.load) <= 600 * 4 ** {levels}, len(joint.load)
print(memory('VmHWM') - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("experts", [(1024, 1024), (32, 32, 1024)])
def test_a_million_combinations_are_studied_in_the_memory_of_those_that_occur(experts):
    """A table of a million combinations and 20 classes alone would take 160 MB, and there were several of them."""
    code = STUDY.format(experts=experts, levels=len(experts))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 150e6
