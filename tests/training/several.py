"""What every process of test_distributed runs, started by torchrun: several jobs in turn.

Argument: a folder; each job of `JOBS` trains in the folder of its name.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from made_up_training import make_data, make_features, tiny_backbone

from mumoe.training import TrainConfig, resume, train
from mumoe.training.engine import Engine
from mumoe.training.signals import Interrupted

BASE = TrainConfig(
    data="made-up", head="CPMuMoE-r4-e3", epochs=4, batch_size=16, log_every=1, lr=0.02, clip=1.0, precision="fp32"
)
JOBS = {
    "batch": BASE,
    "parts": BASE.replace(accumulate=2, norm="layer", head="TRMuMoE-r4-e3"),
    "shard": BASE.replace(shard=True, checkpoint_every=3),
    "stopped": BASE.replace(shard=True, epochs=4),
    "images": BASE.replace(mode="finetune", epochs=2, batch_size=8, zscore=False),
}


def run(name: str, out: Path) -> None:
    """Train one job in the processes that there are."""
    data = make_data(62 if name == "images" else 118)
    given = {"data": data, "progress": False}
    if name == "images":
        backbone = tiny_backbone()
        backbone.drop.p = 0.0
        backbone.transform = lambda train: type(backbone).transform(backbone, False)
        given["backbone"] = backbone
    else:
        given["features"] = make_features(data)
    if name != "stopped":
        train(JOBS[name].replace(out=str(out / name)), **given)
        return
    try:
        with_stop(lambda: train(JOBS[name].replace(out=str(out / name)), **given))
    except Interrupted:
        resume(out / name, **given)


def with_stop(job) -> None:
    """Ask the last process alone to stop at step 5: all must agree on where."""
    real = Engine._update

    def update(self, *arguments):
        if self.step == 5 and self.accelerator.is_last_process:
            self.stop.asked = True
        real(self, *arguments)

    Engine._update = update
    try:
        job()
    finally:
        Engine._update = real


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in JOBS:
        run(name, Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
