"""Peak memory of each of two processes that shard a network of 300 MB, while they write and read a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from soak.part import Found
from soak.process_group import launch

__all__ = ["MODEL_MB", "measure_memory"]

WIDTH, LAYERS = 2048, 18
MODEL_MB = WIDTH * WIDTH * 4 * LAYERS / 1e6
"""Weights; weights and moments are three times as much, and a process's shard half of that."""
ALLOWED = 0.5
"""Largest memory beyond weights and moments while a checkpoint is written or read, in units of the process's shard of
them: a process holds one file's content at a time, and never another's shard."""


def measure_memory(folder: Path, found: Found) -> None:
    """Measure, and note a fault if a process holds much more than its own shard."""
    folder.mkdir(parents=True, exist_ok=True)
    ended = launch(lambda: _work(folder), 2, folder / "log").wait()
    if not all(one.done for one in ended):
        found.faults.append(f"memory: {next(one for one in ended if not one.done).summary()}")
        return
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    shard = 3 * MODEL_MB / 2
    found.measured["MB of weights of the network whose memory is measured"] = MODEL_MB
    found.measured["MB of a process's shard of weights and moments"] = shard
    for key in ("write", "read"):
        peak = max(rank[key] for rank in ranks)
        found.measured[f"peak MB of a process beyond that shard, to {key} a checkpoint"] = peak
        if peak > ALLOWED * shard:
            found.faults.append(f"memory: {peak:.0f} MB to {key} a checkpoint of which a process holds {shard:.0f} MB")


def _work(folder: Path) -> None:
    import torch
    from torch import nn

    from mumoe.training import state
    from mumoe.training.checkpoint import Snapshot, open_stored, write_sharded
    from mumoe.training.distributed import join, shard

    join("cpu", who="soak")
    rank = torch.distributed.get_rank()
    with torch.device("meta"):
        network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    shard(network, torch.device("cpu"))
    network.to_empty(device="cpu")
    optimizer = torch.optim.AdamW(network.parameters(), foreach=False)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    peaks: dict[str, float] = {}
    own = {"model": state.model_tensors(network), "optimizer": state.optimizer_tensors(network, optimizer)}
    numbers: dict[str, Any] = {"losses": 0.5, "unlogged": 1, "seconds": 1.0, "log_bytes": 10, "best": None}
    (folder / "checkpoints").mkdir(exist_ok=True)
    before = _reset()
    path = write_sharded(folder / "checkpoints", Snapshot(1, {"random": state.random_tensors(rank)}, numbers), own)
    peaks["write"] = _peak() - before
    del own
    optimizer.state.clear()
    before = _reset() + 2 * MODEL_MB / 2  # the moments, which are made again
    stored = open_stored(path, state.check_fit(network), rank, 2)
    state.fill_model(network, stored)
    state.fill_optimizer(network, optimizer, stored)
    peaks["read"] = _peak() - before
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(peaks))
    torch.distributed.barrier()


def _reset() -> float:
    """Forget the peak; returns the memory of now in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024 * 1.048576
