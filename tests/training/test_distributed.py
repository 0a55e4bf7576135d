"""Several processes compute what one computes: loss curves, parameters, gate statistics, checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import several
import torch
from made_up_training import make_data, make_text
from safetensors.numpy import save_file
from safetensors.torch import load_file

from mumoe.gating import BatchNorm
from mumoe.layers import MuMoE
from mumoe.training import StoredRun, resume
from mumoe.training.distributed import SynchronizedBatchNorm, sum_over_processes, synchronize_gates
from mumoe.training.run import RunFolder


def curve(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] if "loss" in row else row["val_loss"] for row in rows]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of the same jobs on one process and on two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    text = make_text(tmp_path_factory.mktemp("text"))
    for name in several.JOBS:
        several.run(name, one, text)
    begin(one / "begun-alone", two / "begun-alone")
    launch = ["--standalone", "--nproc-per-node", "2", str(Path(__file__).with_name("several.py")), str(two), str(text)]
    done = start(launch)
    _, said = done.communicate(timeout=500)
    assert done.returncode == 0, said[-5000:]
    return one, two


def begin(whole: Path, folder: Path) -> None:
    """A copy of a finished run as it was at its first checkpoint that is kept but the last."""
    shutil.copytree(whole, folder)
    shutil.rmtree(sorted((folder / "checkpoints").iterdir())[-1])
    RunFolder.open(folder).update(state="running")


def start(arguments: list[str]) -> subprocess.Popen:
    """torchrun with these arguments, one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    launch = [sys.executable, "-m", "torch.distributed.run", *arguments]
    return subprocess.Popen(launch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> str:
    """A port below those that the system gives to connections: one of those could be taken before its server starts.

    A client that tries such a port while no server listens may get it as its own port, and then connects to itself.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return str(port)
    raise OSError("no free port among 100 of 20000 to 30000")


def weights(run: Path) -> dict[str, torch.Tensor]:
    whole = RunFolder.open(run).config().mode in ("scratch", "text")
    opened = StoredRun(run, device="cpu")
    return (opened.model if whole else opened.head).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", several.JOBS)
def test_two_processes_equal_one_with_the_same_batch(both, name):
    one, two = (folder / name for folder in both)
    assert curve(two) == pytest.approx(curve(one), abs=1e-5)
    assert len(curve(two)) > 10
    if name == "images":
        return
    ours, theirs = weights(two), weights(one)
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_stop_asked_of_one_process_stops_all_at_the_same_step(both):
    facts = RunFolder.open(both[1] / "stopped").facts()
    assert facts["state"] == "finished"
    assert curve(both[1] / "stopped") == curve(both[1] / "shard")


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_with_one(both, tmp_path):
    """Sharded tensors are saved whole: the last checkpoint is dropped and one process repeats its steps."""
    from made_up_training import make_features

    begin(both[1] / "shard", tmp_path / "shard")
    data = make_data(118)
    resume(tmp_path / "shard", data=data, features=make_features(data), progress=False)
    assert curve(tmp_path / "shard") == pytest.approx(curve(both[0] / "shard"), abs=1e-5)
    begin(both[1] / "text-shard", tmp_path / "text")
    resume(tmp_path / "text", progress=False)
    assert curve(tmp_path / "text") == pytest.approx(curve(both[0] / "text-shard"), abs=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_one_process_goes_on_with_two(both):
    """`begun-alone` was trained by one process, cut back to its checkpoint of step 8, and resumed by two."""
    one, two = (json.loads((folder / "begun-alone" / "run.json").read_text())["result"] for folder in both)
    assert one["step"] == two["step"] == 12
    assert two["evaluations"]["test"]["loss"] == pytest.approx(one["evaluations"]["test"]["loss"], abs=1e-5)
    last = both[1] / "begun-alone" / "checkpoints" / "step-00000012" / "random.safetensors"
    assert {name[:2] for name in load_file(last)} == {"0/", "1/"}  # two processes wrote it


@pytest.mark.slow
def test_two_nodes_compute_what_one_process_computes(both, tmp_path):
    """The documented command for several machines, with both of them here."""
    common = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", free_port()]
    job = [str(Path(__file__).with_name("several.py")), str(tmp_path), "", "batch"]
    nodes = [start([*common, "--node-rank", str(rank), *job]) for rank in range(2)]
    ended = [node.communicate(timeout=300) for node in nodes]
    said = "\n".join(text[-5000:] for _, text in ended)
    assert [node.returncode for node in nodes] == [0, 0], said
    assert curve(tmp_path / "batch") == pytest.approx(curve(both[0] / "batch"), abs=1e-5)
    assert len(list((tmp_path / "batch" / "checkpoints").iterdir())) > 0


@pytest.mark.slow
def test_the_command_on_two_processes_prints_once_and_ends_both(tmp_path):
    """With status 0: what a process does while Python shuts down does not count."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    tensors = {"features": (rng.normal(size=(90, 6)) + labels[:, None]).astype(np.float32), "labels": labels}
    save_file(tensors, tmp_path / "x.safetensors")
    words = f"train --data features:{tmp_path / 'x.safetensors'} --spec linear --epochs 2 --batch-size 16 --device cpu"
    node = start(
        ["--standalone", "--nproc-per-node", "2", "-m", "mumoe.cli", *words.split(), "-o", str(tmp_path / "run")]
    )
    out, said = node.communicate(timeout=300)
    assert node.returncode == 0, said[-3000:]
    assert out.count("Written to") == 1
    assert RunFolder.open(tmp_path / "run").facts()["state"] == "finished"


def test_a_launch_that_starts_one_process_only_is_told(config, data, features, monkeypatch, caplog):
    """What accelerate launch --cpu --num_processes 2 leaves in the environment of its one process."""
    from mumoe.training import train

    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    train(config.replace(epochs=1), data=data, features=features, progress=False)
    assert "torchrun --standalone --nproc-per-node N" in caplog.text


def test_gates_are_converted_in_place_and_keep_their_names_and_statistics():
    layer = torch.nn.Sequential(MuMoE(5, 3, (4, 2), rank=2), torch.nn.BatchNorm1d(3, affine=False))
    layer(torch.randn(8, 5))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    synchronize_gates(layer)
    kinds = [type(module) for module in layer.modules() if isinstance(module, BatchNorm)]
    assert kinds == [SynchronizedBatchNorm, SynchronizedBatchNorm]
    assert type(layer[1]) is torch.nn.BatchNorm1d
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_on_one_process_the_synchronized_norm_is_the_plain_one():
    torch.manual_seed(0)
    x = torch.randn(9, 4)
    plain = BatchNorm(4)
    synchronized = SynchronizedBatchNorm.of(BatchNorm(4))
    assert torch.equal(synchronized(x), plain(x))
    assert torch.equal(sum_over_processes(x), x)


@pytest.fixture
def alone():
    """A process group of this process alone, to run the reduction itself without a second process."""
    address = f"tcp://127.0.0.1:{free_port()}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_the_reduction_has_the_values_gradients_and_statistics_of_batch_norm(alone, monkeypatch):
    import mumoe.training.distributed as distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)  # takes the path of several processes
    torch.manual_seed(0)
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, dtype=torch.float64)
    plain, ours = BatchNorm(4, dtype=torch.float64), SynchronizedBatchNorm(4, dtype=torch.float64)
    expected, found = plain(x), ours(x)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)
    assert ours.num_batches_tracked == 1
    assert torch.autograd.gradcheck(ours, x)
