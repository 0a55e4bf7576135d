"""Extraction by two processes: the bits of one process, each image opened once, and no process left waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mumoe

sys.path.insert(0, str(Path(__file__).parent))

import several_extract as several

Both = tuple[Path, dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A folder, and how every case ended on each of two processes."""
    folder = tmp_path_factory.mktemp("shares")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", several.__file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(mumoe.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, *launch], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    return folder, first, second


@pytest.mark.slow
def test_two_processes_share_the_images_and_give_the_bits_of_one(both: Both, tmp_path: Path) -> None:
    folder, first, second = both
    alone = several.extract(several.images(), tmp_path, together=False).x
    assert np.abs(alone).max() > 0.001
    for ended in (first, second):
        found = np.load(ended["shared"]["path"])
        assert ended["shared"]["extracted"] == several.COUNT
        assert found.tobytes() == alone.tobytes()
    opened = [[int(line) for line in (folder / f"opened-{rank}").read_text().split()] for rank in range(2)]
    assert opened == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10]]
    assert not [path for path in (folder / "cache/features").iterdir() if path.name.startswith(".processes")]


@pytest.mark.slow
def test_what_is_there_is_read_and_what_one_lacks_is_made(both: Both) -> None:
    folder, first, second = both
    for ended in (first, second):
        assert ended["again"]["extracted"] == 0
        assert not (folder / "opened-again-0").exists()
        assert not (folder / "opened-again-1").exists()
        whole = Path(ended["shared"]["path"]).read_bytes()
        assert Path(ended["apart"]["path"]).read_bytes() == whole
        assert Path(ended["one has it"]["path"]).read_bytes() == whole
        assert Path(ended["after"]["path"]).read_bytes() == whole
    assert first["apart"]["path"] != second["apart"]["path"]
    assert (folder / "new/features").is_dir()


@pytest.mark.slow
def test_a_failure_of_one_process_ends_both_in_one_line(both: Both) -> None:
    _, first, second = both
    said = "features: expected an image at 'noise/2', got OSError: image file is truncated."
    assert second["broken"]["error"].startswith(f"JobError: {said}")
    assert first["broken"]["error"].startswith(
        f"JobError: features: expected every process to extract its share, got from process 1: {said}"
    )
    assert (
        "JobError: features: expected every process to extract its share, got from process 0"
        in (second["full"]["error"])
    )
    assert first["full"]["error"].startswith("JobError: ")
    assert all("\n" not in ended[case]["error"] for ended in (first, second) for case in ("broken", "full"))
