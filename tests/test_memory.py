"""Memory of a layer with 65,536 experts, measured in a process of its own."""

import subprocess
import sys

import pytest

PROBE = """
import sys, torch, mumoe

def memory(key):  # bytes; VmRSS is now, VmHWM the highest since the last reset
    lines = open('/proc/self/status').read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

torch.manual_seed(0)
layer = mumoe.MuMoE(768, 1000, 65536, 'cp', 512)
x = torch.randn(256, 768)
layer.train(sys.argv[1] == 'train')
layer.gate.route = sys.argv[2]
with torch.no_grad():
    mumoe.MuMoE(768, 1000, 1024, 'cp', 512).train(sys.argv[1] == 'train')(x)  # libraries load, kernels compile
    before = memory('VmRSS')
    open('/proc/self/clear_refs', 'w').write('5')
    layer(x)
print(memory('VmHWM') - before)
"""


MATRIX = 256 * 65536 * 4


def peak(mode, route):
    run = subprocess.run([sys.executable, "-c", PROBE, mode, route], capture_output=True, text=True, check=True)
    return int(run.stdout) / MATRIX


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_forward_of_65536_experts(mode):
    """The dense route, which does form matrices of batch x experts, shows that the probe measures something."""
    assert peak(mode, "auto") < 0.5
    assert peak(mode, "dense") > 2
