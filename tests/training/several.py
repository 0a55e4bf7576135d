"""What every process of test_distributed runs, started by torchrun: several jobs in turn.

Arguments: a folder, in which each job of `JOBS` trains in the folder of its name; the folder of a text; names of
the jobs (none: all).
"""

from __future__ import annotations

import faulthandler
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from made_up_training import make_data, make_features, tiny_backbone

from mumoe.errors import JobError, UserError
from mumoe.files import write_errors
from mumoe.training import TrainConfig, resume, train
from mumoe.training.distributed import from_main, gathered, leave, main_first, together
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
    "mixer": BASE.replace(
        mode="scratch",
        backbone="mixer-s16",
        network_options=("depth=1", "width=8", "token_hidden=16", "channel_hidden=32", "patch_size=4"),
        image_size=16,
        head="CPMuMoE-e4",
        epochs=2,
        batch_size=8,
        mixup=0.5,
        decay="mumoe",
    ),
    "text": BASE.replace(
        mode="text",
        backbone="gpt2",
        network_options=("depth=1", "heads=2", "width=16", "context=16"),
        head="CPMuMoE-e4",
        norm="layer",
        batch_size=40,
        accumulate=2,
        steps=12,
        eval_steps=6,
        decay="matrices",
    ),
}
JOBS["text-shard"] = JOBS["text"].replace(shard=True, accumulate=1, head="TRMuMoE-e4", checkpoint_every=5)
JOBS["begun-alone"] = JOBS["text"].replace(checkpoint_every=4)
"""A run that one process started and stopped at step 4; the processes here resume it."""
SMALL = {"k": 4, "width": 4, "tokens": 1500, "context": 17, "lr": (4e-3,), "batch_size": 65, "val_contexts": 8}
FITS = ("decompose", "decompose-tr")
"""Decompositions; the gate of the second normalizes over the batch."""
TEXT = ("text", "text-shard", "begun-alone")


def run(name: str, out: Path, text: Path) -> None:
    """Train one job in the processes that there are."""
    if name in FITS:
        decompose(name, out)
        return
    if name in TEXT:
        job = JOBS[name].replace(data=f"tokens:{text}", out=str(out / name))
        begun = (out / name / "config.toml").exists()
        resume(out / name, progress=False) if begun else train(job, progress=False)
        return
    data = make_data(62 if name in ("images", "mixer") else 118)
    given = {"data": data, "progress": False}
    if name == "images":
        backbone = tiny_backbone()
        backbone.drop.p = 0.0
        backbone.transform = lambda train: type(backbone).transform(backbone, False)
        given["backbone"] = backbone
    elif name != "mixer":
        given["features"] = make_features(data)
    if name != "stopped":
        train(JOBS[name].replace(out=str(out / name)), **given)
        return
    try:
        with_stop(lambda: train(JOBS[name].replace(out=str(out / name)), **given))
    except Interrupted:
        resume(out / name, **given)


def decompose(name: str, out: Path) -> None:
    import mumoe
    from mumoe.models.language import HubTokenizer, LanguageModel

    sys.path.insert(1, str(Path(__file__).parents[1]))
    from tiny_llama import sentences, tiny_llama, tiny_tokenizer

    language = LanguageModel("tiny", tiny_llama(), HubTokenizer(tiny_tokenizer()))
    given = {**SMALL, "text": [sentences(seed, 60) for seed in range(20)], "layer": 1, "device": "cpu"}
    given |= {"kind": "tr", "experts": 6, "rank": 3, "lr": (1e-3,)} if name.endswith("tr") else {}
    mumoe.decompose(language, out=out / name, cache_dir=out / "cache", precision="float32", progress=False, **given)


def fail(out: Path) -> None:
    """What fails on one process is raised on all of them; each writes down what it saw."""
    rank = torch.distributed.get_rank()

    def broken(by: int, error: Exception) -> None:
        if rank == by:
            raise error

    (out / "failures").mkdir(exist_ok=True)
    full = OSError(28, "No space left on device", str(out / "failures" / "x"))
    cases = {
        "work": lambda: together(lambda: broken(1, JobError("work: expected rank 1 to work, got this. Try again."))),
        "main": lambda: from_main(lambda: broken(0, UserError("main: expected 1, got 2. Give 1."))),
        "first": lambda: main_first(lambda: broken(1, KeyError("k"))),
        "disk": lambda: together(lambda: with_errors(out, lambda: broken(1, full))),
    }
    seen = {}
    for name, case in cases.items():
        try:
            case()
        except Exception as error:
            seen[name] = f"{type(error).__name__}: {error}"
    seen["values"] = str([from_main(lambda: rank), main_first(lambda: rank), gathered(rank)])
    (out / "failures" / f"{rank}.json").write_text(json.dumps(seen))


def with_errors(out: Path, work) -> None:
    with write_errors(out / "failures" / "x", who="train"):
        work()


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
    faulthandler.enable()
    faulthandler.dump_traceback_later(180, exit=True)  # processes that wait for each other show where
    torch.set_num_threads(1)
    for name in sys.argv[3:] or (*JOBS, *FITS):
        run(name, Path(sys.argv[1]), Path(sys.argv[2]))
    fail(Path(sys.argv[1]))
    leave()
