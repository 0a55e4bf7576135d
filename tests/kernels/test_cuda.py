"""The Triton kernels by Triton's interpreter, which must be chosen before triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

PROBE = """
import torch
from kernels.reference import KINDS, errors
from mumoe.kernels import cuda

cuda.BLOCK, cuda.NARROWEST, cuda.TILE, cuda.ROOM = 64, 16, 8, 32
for rows, experts, width in ((3, 1, 3), (5, 40, 12)):
    for kind in KINDS:
        for batch in (True, False):
            found = errors(cuda, rows, experts, width, kind, batch)
            assert max(found.values()) < 4e-6, (rows, experts, kind, batch, found)
# 300 candidates of a rising row go through a list of 32: it is thinned, and nothing is computed twice
logits = torch.linspace(-1.5, 0.0, 300)[None] * torch.tensor([[1.0], [12.0]])
products, real = [], torch.Tensor.__matmul__
torch.Tensor.__matmul__ = lambda *given: products.append(1) or real(*given)
found = cuda.support(torch.eye(2)[1:], logits.T.contiguous(), None, None, "entmax15", 0, None, 0.5)
torch.Tensor.__matmul__ = real
assert len(products) == 5 and len(found[1]) < 30, (len(products), len(found[1]))
from mumoe.functional import entmax15
expected = entmax15(logits[1].double())
assert (found[0].square() - expected[expected > 0]).abs().max() < 1e-6
assert cuda.support(torch.ones(2, 3), torch.zeros(100, 3), None, None, "entmax15", 0, None, 2.0) is None
assert cuda.support(torch.ones(2, 3), torch.zeros(20, 3), None, None, "entmax15", 0, None, 0.25) is None
bad = torch.tensor([[1.0, torch.nan, 0.0], [0.0, 1.0, 2.0]])
for kind in KINDS:
    assert cuda.support(bad, torch.randn(40, 3), None, None, kind, 3, None, 2.0) is None, kind
print("fine")
"""


def test_by_the_interpreter() -> None:
    here = Path(__file__).parents[1]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{here}:{here.parent / 'src'}"}
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment, check=False)
    assert run.stdout.strip() == "fine", run.stderr[-3000:]
