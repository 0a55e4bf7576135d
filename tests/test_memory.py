"""Memory of a layer with 65,536 experts, measured in a process of its own."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch, mumoe
torch.manual_seed(0)
layer = mumoe.MuMoE(768, 1000, 65536, 'cp', 512)
x = torch.randn(256, 768)
layer.train(sys.argv[1] == 'train')
with torch.no_grad():
    mumoe.MuMoE(768, 1000, 64, 'cp', 512)(x)  # libraries load their buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    y = layer(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_forward_of_65536_experts(mode):
    run = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
    matrix = 256 * 65536 * 4
    assert matrix / 100 < int(run.stdout) < 4 * matrix
