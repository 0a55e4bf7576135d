"""The Triton kernels by Triton's interpreter, which must be chosen before triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROBE = """
import sys
import torch
from native.reference import KINDS, errors
from mumoe.native import cuda, ops

class Kernels(ops.Backend):
    def __init__(self):
        self.device, self.direct = "cpu", cuda

cuda.BLOCK, cuda.NARROWEST, cuda.DENSE, cuda.TILE = 64, 16, 2.0, 8
for rows, experts, width in ((3, 1, 3), (5, 40, 12)):
    for kind in KINDS:
        for batch in (True, False):
            found = errors(Kernels(), rows, experts, width, kind, batch)
            assert max(found.values()) < 4e-6, (rows, experts, kind, batch, found)
cuda.CAPACITY = 16
full = cuda.support(torch.ones(2, 3), torch.zeros(100, 3), None, None, "entmax15", 0, False, 0.0)
assert full.offsets.tolist() == [0, 100, 200] and abs(float(full.slack.square().sum()) - 2) < 1e-6
cuda.DENSE = 0.25
assert cuda.support(torch.ones(2, 3), torch.zeros(100, 3), None, None, "entmax15", 0, False, 0.0) is None
bad = torch.tensor([[1.0, torch.nan, 0.0], [0.0, 1.0, 2.0]])
assert cuda.support(bad, torch.eye(3), None, None, "entmax15", 0, False, 0.0) is None
try:
    cuda.bag(torch.ones(1), torch.tensor([5]), torch.tensor([0, 1]), torch.ones(5, 2))
except IndexError:
    print("done")
"""


def test_equal_to_the_dense_functions() -> None:
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root / "src"), str(root / "tests")])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths},
    )
    assert run.stdout.strip() == "done", run.stderr[-2000:]
