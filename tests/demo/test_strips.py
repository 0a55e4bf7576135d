"""The card's strips by hand: which images are lost without a unit, and those of the control."""

import numpy as np

from mumoe.analysis.class_effects import Answers, Changes, shuffle_units, specialization
from mumoe.analysis.findings import UnitStudy
from mumoe.analysis.outcomes import Interventions
from mumoe.demo.demo_findings import strip_text
from mumoe.demo.strips import CONTROL, PUREST, TYPICAL, choose_strips

LABELS = np.repeat([0, 1, 2], 8)
CLASSES = ("heart", "cat", "tree")
LOST = [(n, 0) for n in range(8)] + [(n, 1) for n in range(8, 14)] + [(16, 1), (17, 2), (3, 2)]
"""(image, unit): unit 0 is pure, unit 1 loses six cats and a tree, unit 2 a tree and a heart."""


def made():
    image, unit = np.array(LOST).T
    changes = Changes(image, unit, LABELS[image], -np.ones(len(image), dtype=np.int64), 4)
    answers = Answers(LABELS, np.ones(24, dtype=bool), 3)
    load = np.array([8, 10, 6, 5])
    found = Interventions(answers, changes, load)
    control = specialization(answers, shuffle_units(changes, load, seed=0))
    return UnitStudy("experts", {"zero": specialization(answers, changes)}, control, (8, 10, 6, 5)), found


def test_strips_show_the_images_that_are_lost_those_of_the_main_class_first():
    units, found = made()
    strips = choose_strips(units, found, CLASSES, np.arange(100, 124))
    kinds = [strip.kind for strip in strips]
    assert kinds == [PUREST, PUREST, TYPICAL, CONTROL]
    first, second, typical, control = strips
    assert (first.unit, first.top, first.lost, first.right, first.others) == (0, "heart", 8, 8, 0)
    assert first.images == (100, 101, 102, 103, 104, 105)
    assert (second.unit, second.top, second.lost, second.others) == (1, "cat", 6, 1)
    assert second.images == (108, 109, 110, 111, 112, 113)
    assert (typical.unit, typical.lost + typical.others, set(typical.images)) == (2, 2, {103, 117})
    dealt = shuffle_units(found.changes, found.load, seed=0)
    mine = set((dealt.image[dealt.unit == control.unit] + 100).tolist())
    assert control.lost + control.others == len(mine)
    assert set(control.images) <= mine


def test_a_strip_in_words():
    first, second, *_ = choose_strips(*made(), CLASSES, np.arange(24))
    assert strip_text(first) == "heart: 8 of 8 right answers lost; no other class loses any."
    assert strip_text(second) == "cat: 6 of 8 right answers lost; 1 of all other classes."
