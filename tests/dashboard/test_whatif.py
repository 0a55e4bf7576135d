"""What edits change, computed from caches, against the edited layer itself on every image."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mumoe.analysis.layer_study import write_coefficients
from mumoe.dashboard.scoring import Scores
from mumoe.dashboard.whatif import open_rows
from mumoe.data.base import ImageData
from mumoe.editing.expert_edits import Ablate, Correct, Rewrite, Scale, SetOutput, Swap
from mumoe.editing.runs import EditingRun
from mumoe.editing.stack import EditStack
from mumoe.layers import MuMoE
from mumoe.models.heads import Head
from tests_support import KINDS, randomize, rank_of

ROWS, WIDTH, CLASSES = 90, 6, 4


def make_run(tmp_path, kind="cp", experts=(7,), multi_label=False, bias=True):
    layer = randomize(MuMoE(WIDTH, CLASSES, experts, kind, rank_of(kind), bias=bias)).eval()
    rng = np.random.default_rng(0)
    data = ImageData(
        name="made-up",
        classes=("ant", "bee", "cat", "dog"),
        multi_label=multi_label,
        labels=rng.integers(0, 2, (ROWS, CLASSES)).astype(np.uint8) if multi_label else rng.integers(0, CLASSES, ROWS),
        split=np.full(ROWS, 2, dtype=np.int8),
        ids=tuple(map(str, range(ROWS))),
        open_image=None,
        fingerprint="made-up",
    )
    features = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    return EditingRun(tmp_path, Head(layer, WIDTH).eval(), layer, data, features)


def rows_of(run, tmp_path):
    images = np.arange(ROWS)
    store = write_coefficients(run.layer, lambda: [(run.inputs(images), None)], tmp_path / "store", images=images)
    return open_rows(run, images, [store.level(level=level) for level in range(len(run.layer.num_experts))])


def everything(rows, stack):
    """Logits and decisions of all rows with the edits."""
    changed = rows.changed(stack.operations())
    logits, decided = rows.logits.clone(), rows.decided.clone()
    logits[changed.rows], decided[changed.rows] = changed.logits, changed.decided
    return logits, decided


def some_edits(experts):
    first = experts[0]
    last = len(experts) - 1
    index = tuple(size - 1 for size in experts)
    return [
        Ablate(2),
        Rewrite.of(1, torch.rand(experts), 3.0),
        Scale(experts[last] - 1, -1.5, last),
        Swap(0, first - 1, 0, 0.25),
        SetOutput(index, 3, 0.7),
        Correct.of(0, {index: 0.4}, 2.0),
        Ablate(0, strength=0.5),
        Swap(0, 1, last),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("experts", [(7,), (4, 3)], ids=["one-level", "two-levels"])
def test_edits_on_top_of_each_other_equal_the_edited_layer(tmp_path, kind, experts):
    run = make_run(tmp_path, kind, experts)
    rows, stack = rows_of(run, tmp_path), EditStack(run.layer)
    np.testing.assert_allclose(rows.logits, run.outputs(rows.images), rtol=1e-4, atol=1e-4)
    for edit in some_edits(experts):
        stack.add(edit)
        logits, decided = everything(rows, stack)
        with stack:
            expected = run.outputs(rows.images)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=2e-4, err_msg=edit.kind)
        np.testing.assert_array_equal(decided, expected.argmax(1), err_msg=edit.kind)


def test_a_layer_without_bias_and_with_attributes(tmp_path):
    run = make_run(tmp_path, "tr", multi_label=True, bias=False)
    rows, stack = rows_of(run, tmp_path), EditStack(run.layer)
    for edit in (SetOutput((3,), 2, 1.0), Scale(3, 0.0), Correct.of(1, {(3,): -2.0})):
        stack.add(edit)
    logits, decided = everything(rows, stack)
    with stack:
        expected = run.outputs(rows.images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(decided, expected > 0)


def test_only_the_rows_of_an_expert_are_touched(tmp_path):
    run = make_run(tmp_path)
    rows = rows_of(run, tmp_path)
    expert = int(np.argmin([len(rows.levels[0].of_expert(n)[0]) for n in range(7)]))
    mine = rows.levels[0].of_expert(expert)[0]
    assert 0 < len(mine) < ROWS
    stack = EditStack(run.layer)
    stack.add(Ablate(expert))
    np.testing.assert_array_equal(rows.changed(stack.operations()).rows, mine)
    stack = EditStack(run.layer)
    stack.add(Correct.of(1, {expert: 0.5}))
    np.testing.assert_array_equal(rows.changed(stack.operations()).rows, mine)
    assert len(rows.changed([]).rows) == 0


def test_a_row_whose_last_expert_is_left_out_answers_with_the_first_class(tmp_path):
    run = make_run(tmp_path)
    with torch.no_grad():
        run.layer.gate.weights[0].mul_(100)
    rows = rows_of(run, tmp_path)
    alone = (rows.levels[0].offsets.diff() == 1).nonzero()[:, 0]
    expert = int(rows.levels[0].experts[rows.levels[0].offsets[alone[0]]])
    stack = EditStack(run.layer)
    stack.add(Ablate(expert))
    changed = rows.changed(stack.operations())
    place = changed.rows.tolist().index(int(alone[0]))
    assert changed.logits[place].tolist() == [0.0] * CLASSES
    assert int(changed.decided[place]) == 0


def test_decisions_within_rounding_are_taken_by_the_layer_itself(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    with torch.no_grad():  # outputs 1 and 2 are the same function: always a tie
        run.layer.factorization.out_factor[2] = run.layer.factorization.out_factor[1]
        run.layer.factorization.out_factor[0] = run.layer.factorization.out_factor[3] = 0
    rows = rows_of(run, tmp_path)
    asked, plain = [], type(rows).plain

    def watched(self, part, operations):
        asked.extend(part.tolist())
        return plain(self, part, operations)

    monkeypatch.setattr(type(rows), "plain", watched)
    stack = EditStack(run.layer)
    stack.add(Scale(1, 2.0))
    changed = rows.changed(stack.operations())
    positive = changed.rows[changed.logits[:, 1] > 0]
    assert set(positive.tolist()) <= set(asked)
    with stack:
        np.testing.assert_array_equal(changed.decided, run.outputs(rows.images)[changed.rows].argmax(1))


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_count_what_changes(tmp_path, multi_label):
    run = make_run(tmp_path, multi_label=multi_label)
    rows, stack = rows_of(run, tmp_path), EditStack(run.layer)
    stack.add(Ablate(1))
    scores, changed = Scores.of(rows), rows.changed(stack.operations())
    found, after = scores.compared(changed), scores.after(changed)
    old, new = rows.decided.numpy() == scores.truth, after == scores.truth
    assert found["accuracy"] == pytest.approx([old.mean(), new.mean()], abs=1e-12)
    assert (found["mended"], found["broken"]) == ((new & ~old).sum(), (old & ~new).sum())
    for c in range(CLASSES):
        mine = (slice(None), c) if multi_label else scores.truth == c
        shares = (found["classes"]["before"][c], found["classes"]["after"][c])
        assert shares == pytest.approx((old[mine].mean(), new[mine].mean()))


@pytest.mark.parametrize("kind", ["cp", "hadamard"])
def test_large_projections_are_in_a_mapped_file_that_is_gone_with_them(tmp_path, monkeypatch, kind):
    run = make_run(tmp_path, kind)
    before = rows_of(run, tmp_path)
    monkeypatch.setattr("mumoe.dashboard.whatif.MAPPED", 1)
    mapped = rows_of(run, tmp_path)
    assert torch.equal(mapped.logits, before.logits)
    assert len(mapped.hidden) == (ROWS if mapped.form else 0)  # a layer without a form reads its inputs again
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    lines = Path("/proc/self/maps").read_text().splitlines() if sys.platform.startswith("linux") else []
    assert not lines or kind != "cp" or any("mumoe-held-" in line and "deleted" in line for line in lines)
