"""Kill a small job at random moments, resume it, and compare the bits. Run by test_kill.

A template process imports everything once and forks: a child is a fresh job within milliseconds.
Arguments: number of kills, folder. Prints one JSON object: kills, kills while a checkpoint was being
written, and what went wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from made_up_training import make_data, make_features

from mumoe.training import StoredRun, TrainConfig, resume, train

DATA = make_data(200)
FEATURES = make_features(DATA)
CONFIG = TrainConfig(
    data="made-up", head="CPMuMoE-r4-e3", epochs=4, batch_size=16, log_every=3, lr=0.02, checkpoint_every=3
)


def child(job: Callable[[], object]) -> int:
    """Run a job in a fork; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        job()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def digests(run: Path) -> dict[str, str]:
    """Digests of what must not depend on where a job was stopped."""
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    files = [run / "metrics.jsonl", *sorted(last.glob("*.safetensors"))]
    return {f"{last.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(run: Path) -> None:
    train(CONFIG.replace(out=str(run)), data=DATA, features=FEATURES, progress=False)


def go_on(run: Path) -> None:
    """What a user does: load what is there (it must be loadable), then resume, or train if nothing began."""
    if not (run / "config.toml").exists():
        return start(run)
    if any((run / "checkpoints").glob("step-*")):
        _ = StoredRun(run, device="cpu").head
    resume(run, data=DATA, features=FEATURES, progress=False)
    return None


def being_written(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((run / "checkpoints").glob(".mumoe-part-*"))


def trial(run: Path, delay: float | None) -> tuple[bool, bool, int]:
    """Kill after a delay, or as soon as a checkpoint is being written, then resume.

    Returns:
        Whether it was killed, whether it was writing a checkpoint, and the exit status of the resumed job.
    """
    pid = child(lambda: start(run))
    if delay is None:
        until = time.monotonic() + 60
        while time.monotonic() < until and not being_written(run):
            pass
    else:
        time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    writing = being_written(run)
    _, after = os.waitpid(child(lambda: go_on(run)), 0)
    return os.WIFSIGNALED(status), writing, after


def main(kills: int) -> None:
    torch.set_num_threads(1)
    rng = random.Random(3)
    folder = Path(sys.argv[2])
    start(folder / "warm")  # imports everything that is imported on first use, before the forks
    began = time.monotonic()
    _, status = os.waitpid(child(lambda: start(folder / "whole")), 0)
    duration = time.monotonic() - began
    wanted = digests(folder / "whole")
    done = writing = attempts = 0
    wrong: list[str] = [] if status == 0 else ["the uninterrupted run failed"]
    while done < kills and attempts < 3 * kills and not wrong:
        run = folder / f"run-{attempts}"
        attempts += 1
        delay = None if attempts <= 2 else rng.uniform(0, duration)
        killed, busy, after = trial(run, delay)
        if not killed and delay is not None:
            duration = min(duration, delay)  # the machine is less busy than it was
        done, writing = done + killed, writing + busy
        if after != 0 or digests(run) != wanted:
            wrong.append(f"{run.name}: status {after}, {digests(run) if after == 0 else 'not resumed'}")
    print(json.dumps({"kills": done, "writing": writing, "wrong": wrong, "seconds": duration}))  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]))
