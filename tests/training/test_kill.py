"""SIGKILL at random moments, the writing of checkpoints included: always loadable, always the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


KILLS = os.environ.get("MUMOE_KILLS", "15")  # the full test: MUMOE_KILLS=50


@pytest.mark.slow
def test_a_job_killed_at_many_moments_ends_with_the_same_bits(tmp_path):
    script = Path(__file__).with_name("killer.py")
    paths = [str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, str(script), KILLS, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == [], done.stderr
    assert found["kills"] == int(KILLS)
    assert found["writing"] >= 1
