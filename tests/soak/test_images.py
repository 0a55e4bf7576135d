"""What the soak with a million images finds: memory that is held, and progress that is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from soak.images import wrong_progress
from soak.memory import measures_anonymous, watched


@pytest.mark.skipif(not measures_anonymous(), reason="reads anonymous memory from /proc")
def test_a_matrix_that_is_held_is_seen_and_a_mapped_file_is_not(tmp_path):
    size = 2**23
    with watched() as held:
        np.ones(size)
    assert 8 * size <= held.grown < 1.5 * 8 * size
    np.save(tmp_path / "x.npy", np.ones(size))
    with watched() as mapped:
        assert np.load(tmp_path / "x.npy", mmap_mode="r").sum() == size
    assert mapped.grown < size
    assert mapped.resident - mapped.before >= 0


def test_progress_that_rises_to_its_total_is_right():
    log = """
        Training: 1 of 3, 9 s left loss 1.0
        Evaluating on val: 20,000 of 20,000, 0 s left
        Training: 3 of 3, 12 s in all
        Training: 2 of 2, 0 s left
    """
    assert wrong_progress(log.replace(" " * 8, "")) == (4, [])


@pytest.mark.parametrize(
    "lines",
    [
        ["A: 1 of 3, 2 s left"],
        ["A: 2 of 3, 1 s left", "A: 1 of 3, 1 s left", "A: 3 of 3, 3 s in all"],
        ["A: 2 of 3, 1 s left", "A: 4 of 4, 1 s left"],
        ["A: 4 of 3, 0 s left"],
        ["A: 1 of 3, 2 s left", "B: 3 of 3, 0 s left"],
    ],
)
def test_progress_that_falls_or_stops_early_is_not(lines):
    assert wrong_progress("\n".join(lines))[1]
