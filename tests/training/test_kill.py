"""SIGKILL at random moments, the writing of checkpoints included: always loadable, always the same bits."""

from __future__ import annotations

import os

import pytest

from soak.children import own_process

KILLS = int(os.environ.get("MUMOE_KILLS", "10"))  # the full test: MUMOE_KILLS=50


@pytest.mark.slow
@pytest.mark.parametrize(("job", "kills"), [("train-head", KILLS), ("decompose", 4), ("edit", 3)])
def test_a_job_killed_at_many_moments_ends_with_the_same_bits(tmp_path, job, kills):
    found = own_process("soak.killer", tmp_path / "work", "--jobs", job, "--kills", kills)
    assert found["faults"] == []
    assert found["counts"]["kills"] >= kills
    if job == "train-head":
        assert found["counts"]["kills while a file was being written"] >= 1


@pytest.mark.slow
def test_a_full_disk_a_closed_folder_and_two_processes_at_once(tmp_path):
    found = own_process("soak.disk_trials", tmp_path / "work", "--jobs", "train-head", "--trials", 1)
    assert found["faults"] == []
    assert found["counts"]["jobs that were finished once there was room"] >= 2
    assert found["counts"]["pairs of processes on one folder at once"] == 2
