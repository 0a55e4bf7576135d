"""Which experts are shown first."""

from mumoe.analysis.findings import Effect, Specialization, UnitStudy
from mumoe.analysis.highlights import choose_highlights, interest_order


def effect(unit, p, loss, strong):
    return Effect(unit, p, None, 0, loss, strong, ((0, loss),))


def part(effects, units=6):
    return Specialization(units, 3, 100, 0.8, 0, 0, len(effects), 0.5, None, 1, None, None, tuple(effects))


MEASURED = [
    effect(0, 0.9, 0.4, False),
    effect(1, 0.5, 0.9, True),
    effect(2, 0.2, 0.6, True),
    effect(4, 0.7, 0.1, False),
]


def test_strong_units_come_first_and_the_purest_of_them_before_the_others():
    assert interest_order(part(MEASURED)) == [2, 1, 0, 4, 3, 5]


def test_highlights_have_a_typical_expert_and_a_control():
    control = [effect(3, 0.95, 0.2, False), effect(5, 0.1, 0.05, False)]
    units = UnitStudy("experts", {"zero": part(MEASURED)}, part(control), ())
    found = choose_highlights(units, most=1)
    assert found.purest == (2,)
    assert found.typical == 4
    assert found.control == control[0]


def test_without_effects_there_is_nothing_to_show():
    units = UnitStudy("experts", {"zero": part([])}, part([]), ())
    assert choose_highlights(units) == type(choose_highlights(units))((), None, None)
