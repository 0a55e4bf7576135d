"""Edits written by hand: every form is read, and what is wrong is said in one line."""

from __future__ import annotations

import pytest

from mumoe.editing.edit_texts import FORMS, parse_edit
from mumoe.editing.expert_edits import EDITS, Ablate, Correct, Scale, SetOutput, Swap
from mumoe.errors import UserError

CLASSES = ("ant", "a: b=c", "bee")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ablate:17", Ablate(17)),
        ("ablate:1/17", Ablate(17, level=1)),
        ("scale:3=0.5", Scale(3, 0.5)),
        ("scale:2/3=-1", Scale(3, -1.0, level=2)),
        ("swap:4=9", Swap(4, 9)),
        ("swap:1/4=9", Swap(4, 9, level=1)),
        ("set-output:5:bee=2.0", SetOutput((5,), 2, 2.0)),
        ("set-output:5,1:a: b=c=-2e-1", SetOutput((5, 1), 1, -0.2)),
        ("correct:5:ant=0.3", Correct.of(0, {5: 0.3})),
    ],
)
def test_forms(text, expected):
    assert parse_edit(text, CLASSES) == expected


def test_every_kind_but_rewriting_can_be_written():
    assert set(FORMS) == set(EDITS) - {"rewrite"}
    for kind, text in FORMS.items():
        assert parse_edit(text.replace("CLASS", "ant"), CLASSES).kind == kind


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ablat:17", "expected a kind of edit out of .*, got 'ablat'. Did you mean 'ablate'?"),
        ("ablate", "expected an edit such as ablate:17, got 'ablate'"),
        ("ablate:x", "expected an edit such as ablate:17, got 'ablate:x'"),
        ("scale:3", "expected an edit such as scale:3=0.5, got 'scale:3'"),
        ("scale:3=nan", "expected an edit such as scale:3=0.5"),
        ("scale:3.5=1", "expected an edit such as scale:3=0.5"),
        ("swap:4=9.5", "expected an edit such as swap:4=9, got"),
        ("set-output:5:beee=1", "expected a class out of .*, got 'beee'. Did you mean 'bee'?"),
        ("set-output:5:bee", "expected an edit such as set-output:5:CLASS=2.0"),
        ("correct:5:bee=", "expected an edit such as correct:5:CLASS=0.3"),
    ],
)
def test_what_is_wrong_is_said(text, message):
    with pytest.raises(UserError, match=f"parse_edit: {message}"):
        parse_edit(text, CLASSES)
