"""The hint where experts are no more specialized than their control."""

import dataclasses

import numpy as np
import pytest

from mumoe.analysis.class_effects import Answers, Changes, specialization
from mumoe.analysis.findings import LayerStudy, UnitStudy
from mumoe.analysis.hints import layer_hint, specialization_hint
from mumoe.analysis.study import Study


@pytest.mark.parametrize(
    ("found", "hinted"),
    [
        ((0.80, 0.95, 10, 2), False),
        ((0.852, 0.850, 10, 2), True),
        ((0.850, 0.850, 10, 2), True),
        ((0.80, 0.95, 6, 6), True),
        ((0.80, 0.95, 0, 0), True),
        ((None, 0.95, 0, 0), True),
        ((0.80, None, 3, 0), False),
    ],
)
def test_both_the_mean_and_the_count_must_beat_the_control(found, hinted):
    text = specialization_hint(*found)
    assert bool(text) == hinted
    assert not hinted or 'preset "specialized"' in text


def test_the_sentence_has_both_numbers_of_both_sides():
    assert specialization_hint(0.85, 0.852, 6, 6) == (
        "No clear specialization beyond the control (mean p 0.850 against 0.852, strong experts 6 against 6): try "
        'the preset "specialized" or a larger weight of specialize.'
    )


def part(p, strong):
    """Measures of two units on six images, with this mean and count."""
    some = np.arange(6)
    answers = Answers(np.zeros(6, dtype=np.int64), np.ones(6, dtype=bool), 1)
    found = specialization(answers, Changes(some, some * 0, some * 0, some * 0 - 1, 2))
    return dataclasses.replace(found, mean_polysemanticity=p, strong=strong)


def units(name, own, control):
    return UnitStudy(name, {"zero": part(*own)}, part(*control), (6, 0))


def study(*kinds):
    return Study(("cat",), head="CPMuMoE-r2-e2", study=LayerStudy((), kinds, ()))


def test_a_study_hints_in_headline_and_sentences_only_where_no_level_shows_an_effect():
    lost, kept = units("level 0", (0.9, 1), (0.8, 1)), units("level 1", (0.5, 4), (0.9, 1))
    assert "try the preset" in study(lost).headline()
    assert study(lost).sentences()[-1] == study(lost).hint() != ""
    assert sum("try the preset" in line for line in study(lost).sentences()) == 1
    assert study(lost, kept).hint() == ""
    assert study(lost, kept).headline() == "CPMuMoE-r2-e2: accuracy 1.0000 on 6 images"


def test_neurons_have_no_gate_to_specialize():
    assert layer_hint(LayerStudy((), (units("neurons", (0.9, 1), (0.8, 1)),), ())) == ""
