"""The tables say what the reports say, in the paper's order."""

from __future__ import annotations

import pytest

from mumoe.editing.fairness_tables import fairness_table, subgroup_table
from mumoe.editing.subgroup_fairness import Bootstrap, fairness_report
from mumoe.errors import UserError

TRUE = [0] * 8 + [1] * 8
SEX = (["f"] * 4 + ["m"] * 4) * 2
BEFORE = [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0]
AFTER = [0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]


def report(guess, before=None, resamples=0):
    return fairness_report(
        TRUE,
        guess,
        sensitive_features=SEX,
        target=(1, "m"),
        y_pred_before=before,
        bootstrap=Bootstrap(resamples),
    )


def cells(line):
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_markdown_in_the_papers_layout():
    table = fairness_table(
        {"CP": report(BEFORE), "+ experts": report(AFTER, BEFORE)}, parameters={"CP": 578_048}
    ).splitlines()
    assert cells(table[0]) == [
        *("MRS (↑)", "Target subpop. acc. (↑)", "Equality of opp. (↓)", "STD bias (↓)"),
        *("Subpop. max-min (↑)", "Test set acc. (↑)", "# params (↓)"),
    ]
    assert set(table[1]) == set("|-: ")
    assert cells(table[2]) == ["CP", "-", "0.250", "0.500", "0.272", "0.250", "0.688", "578,048"]
    assert cells(table[3]) == ["+ experts", "0.250", "1.000", "0.250", "0.125", "0.750", "0.875", "-"]
    assert len({len(line) for line in table}) == 1


def test_intervals_and_seeds():
    one = report(BEFORE, resamples=200)
    interval = one.metrics["accuracy"]
    line = fairness_table({"CP": one}, metrics=("accuracy",)).splitlines()[2]
    assert cells(line) == ["CP", f"0.688 [{interval.low:.3f}, {interval.high:.3f}]"]
    seeds = fairness_table({"CP": [one, report(AFTER)]}, metrics=("accuracy",)).splitlines()[2]
    assert cells(seeds) == ["CP", "0.781 ± 0.133"]  # 11/16 and 14/16: deviation (3/16) / sqrt(2)
    bare = fairness_table({"CP": [one, report(AFTER)]}, metrics=("accuracy",), intervals=False)
    assert cells(bare.splitlines()[2]) == ["CP", "0.781"]


def test_text_has_no_markup_and_aligned_columns():
    table = fairness_table({"CP": report(BEFORE), "longer name": report(AFTER)}, format="text")
    assert "|" not in table
    lines = table.splitlines()
    assert lines[0].endswith("Test set acc. (↑)")
    assert lines[2].startswith("CP           ")
    assert lines[2].endswith("0.688")
    assert len(lines[2]) == len(lines[3]) == len(lines[0])


def test_subgroups_before_and_after():
    table = subgroup_table({"before": report(BEFORE), "after": report(AFTER)}).splitlines()
    assert cells(table[0]) == ["0 / f, n=4", "0 / m, n=4", "1 / f, n=4", "1 / m (target), n=4"]
    assert cells(table[2]) == ["before", "1.000", "0.750", "0.750", "0.250"]
    assert cells(table[3]) == ["after", "0.750", "1.000", "0.750", "1.000"]


def test_bad_input():
    with pytest.raises(UserError, match="expected at least one report, got none"):
        fairness_table({})
    with pytest.raises(UserError, match=r"got 'markdwn'\. Did you mean 'markdown'"):
        fairness_table({"CP": report(BEFORE)}, format="markdwn")
    with pytest.raises(UserError, match=r"got 'std'\. Did you mean 'std_bias'"):
        fairness_table({"CP": report(BEFORE)}, metrics=("std",))
