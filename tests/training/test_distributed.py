"""Several processes compute what one computes: loss curves, parameters, gate statistics, checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
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

import mumoe
from mumoe.errors import JobError
from mumoe.gating import BatchNorm
from mumoe.layers import MuMoE
from mumoe.training import StoredRun, resume
from mumoe.training.distributed import (
    SynchronizedBatchNorm,
    lost_process,
    sum_over_processes,
    synchronize_gates,
    synchronize_norms,
)
from mumoe.training.run import RunFolder
from soak.process_group import free_port
from soak.processes import TWO_MACHINES


def curve(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] if "loss" in row else row["val_loss"] for row in rows]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of the same jobs on one process and on two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    text = make_text(tmp_path_factory.mktemp("text"))
    for name in (*several.JOBS, *several.FITS):
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
@pytest.mark.parametrize("name", several.FITS)
def test_a_decomposition_on_two_processes_equals_that_of_one(both, name):
    ours, theirs = (mumoe.load(str(folder / name)).fitted[0] for folder in reversed(both))
    assert ours.error == pytest.approx(theirs.error, abs=1e-6)
    assert ours.train_error == pytest.approx(theirs.train_error, abs=1e-5)
    weights = [load_file(folder / name / "replacement.safetensors") for folder in both]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_sharded_job_writes_each_tensor_once_over_both_processes(both):
    last = sorted((both[1] / "shard" / "checkpoints").iterdir())[-1]
    assert sorted(path.name for path in last.iterdir())[:3] == ["manifest.json", "model", "optimizer"]
    names = ["shard-00001-model-00001-of-00001.safetensors", "shard-00002-model-00001-of-00001.safetensors"]
    assert sorted(path.name for path in (last / "model").iterdir()) == names
    whole = StoredRun(both[1] / "shard", device="cpu").network.state_dict()
    held = [load_file(last / "model" / name) for name in names]
    for key, tensor in whole.items():
        parts = [part[key] for part in held if key in part]
        assert torch.equal(torch.cat(parts) if len(parts) > 1 else parts[0], tensor)
    assert any(len([part for part in held if key in part and len(part[key])]) == 2 for key in whole)


@pytest.mark.slow
def test_what_fails_on_one_process_is_raised_on_both(both):
    seen = [json.loads((both[1] / "failures" / f"{rank}.json").read_text()) for rank in range(2)]
    assert seen[0]["work"] == seen[1]["work"] == "JobError: work: expected rank 1 to work, got this. Try again."
    assert seen[0]["main"] == seen[1]["main"] == "UserError: main: expected 1, got 2. Give 1."
    assert seen[1]["first"] == "KeyError: 'k'"
    assert seen[0]["first"] == "JobError: KeyError: 'k'"
    assert seen[0]["disk"] == seen[1]["disk"]
    assert "train: expected room on the disk" in seen[0]["disk"]
    assert [each["values"] for each in seen] == ["[0, 0, [0, 1]]", "[0, 1, [0, 1]]"]


@pytest.mark.slow
def test_a_stop_asked_of_one_process_stops_all_at_the_same_step(both):
    facts = RunFolder.open(both[1] / "stopped").facts()
    assert facts["state"] == "finished"
    assert curve(both[1] / "stopped") == curve(both[1] / "shard")


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_with_one(both, tmp_path):
    """Shards of both processes: the last checkpoint is dropped and one process repeats its steps."""
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


def plain_norms() -> list[torch.nn.Module]:
    from timm.layers import BatchNormAct2d

    return [torch.nn.BatchNorm1d(3), torch.nn.BatchNorm2d(3, momentum=None), BatchNormAct2d(3, act_layer=torch.nn.SiLU)]


@pytest.mark.parametrize("kind", range(3))
def test_a_backbones_norm_over_processes_has_values_gradients_and_statistics_of_the_plain_one(alone, monkeypatch, kind):
    """Its batch would otherwise be each process's own, and so would the statistics that are saved."""
    import mumoe.training.distributed as distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)  # takes the path of several processes
    torch.manual_seed(0)
    plain, ours = torch.nn.Sequential(plain_norms()[kind]), torch.nn.Sequential(plain_norms()[kind])
    names = list(ours.state_dict())
    synchronize_norms(ours)
    assert type(ours[0]).__name__ == "SynchronizedNorm"
    assert list(ours.state_dict()) == names
    x = torch.randn(9, 3, *[4, 5] * (kind > 0))
    weight = torch.randn_like(x)
    for step in range(2):
        inputs = [(x + step).requires_grad_(), (x + step).requires_grad_()]
        both = [net(one) for net, one in zip((plain, ours), inputs, strict=True)]
        torch.testing.assert_close(both[1], both[0])
        found = [
            torch.autograd.grad((y * weight).sum(), [one, *net.parameters()])
            for y, one, net in zip(both, inputs, (plain, ours), strict=True)
        ]
        for mine, theirs in zip(found[1], found[0], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:400."),
        torch.distributed.DistBackendError("NCCL error"),
    ],
)
def test_a_process_that_is_gone_ends_the_others_with_one_line(monkeypatch, error):
    import mumoe.training.distributed as distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    one_line = r"^train: expected 3 processes, got fewer: .* Resume\.$"
    with pytest.raises(JobError, match=one_line), lost_process("train", "Resume."):
        raise error
    with pytest.raises(RuntimeError, match="^mat1"), lost_process("train", "Resume."):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    with pytest.raises(type(error)), lost_process("train", "Resume."):
        raise error


class Third:
    """What accelerate says to the last of three processes; sums are those of this process alone."""

    num_processes, process_index, device = 3, 2, torch.device("cpu")
    autocast = staticmethod(contextlib.nullcontext)

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        return tensor


def test_a_process_without_rows_runs_the_network_too_and_counts_nothing():
    """The others wait for its shards; skipping the pass would leave them waiting."""
    from mumoe.training.evaluation import evaluate_network
    from mumoe.training.sources import FeatureSource

    calls = []

    class Recorded(torch.nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x), x.new_zeros(())

    source = FeatureSource(np.ones((7, 6), np.float32), np.zeros(7, np.int64))
    tally = evaluate_network(Recorded(6, 4), source, np.arange(2), 4, Third(), 16)
    assert calls == [1]
    assert tally.count == 0
    tally = evaluate_network(Recorded(6, 4), source, np.arange(7), 4, Third(), 4)
    assert calls == [1, 1, 1]
    assert tally.count == 2


def test_the_documented_command_for_two_machines_is_the_one_that_is_tried():
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    assert all(TWO_MACHINES.format(count=8, host="HOST", rank=rank) in page for rank in range(2))
