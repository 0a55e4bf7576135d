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
with torch.no_grad():
    mumoe.MuMoE(768, 1000, 1024, 'cp', 512).train(sys.argv[1] == 'train')(x)  # libraries load, kernels compile
    before = memory('VmRSS')
    open('/proc/self/clear_refs', 'w').write('5')
    layer(x)
print(memory('VmHWM') - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_forward_of_65536_experts(mode):
    run = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
    matrix = 256 * 65536 * 4
    assert matrix / 100 < int(run.stdout) < 4 * matrix
    print(f"{mode}: {int(run.stdout) / matrix:.2f} batch x experts float32 matrices")  # noqa: T201
