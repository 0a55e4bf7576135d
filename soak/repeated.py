"""One process of two that compute the same: everything that is drawn at random, in a folder of its own.

    python -m soak.repeated FOLDER --start 7 --threads 1 --steps train-head audit

`--start` seeds the global generators, which must not matter. Prints the seconds of each step as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soak import small
from soak.kill_jobs import World, jobs
from soak.small import demo_images

__all__ = ["STEPS", "main"]

Step = Callable[[World], object]


def attributes_run(world: World) -> Any:
    """A run on two attributes."""
    import mumoe

    return mumoe.load(world.attributes_run, device="cpu", progress=False)


def look(world: World) -> None:
    """Audit, fairness with intervals, and a rewriting whose strength is chosen."""
    run = attributes_run(world)
    found = run.audit("striped")
    found.write(found.pictured(), "audit")
    run.fairness("striped", "round", resamples=200).save("fairness.json")
    run.rewrite("striped", "round", 1, resamples=200).save("chosen.json")
    run.evaluate("test").save("evaluation.json")


def several_seeds(world: World) -> None:
    """A job of two seeds: stability beside random gates, a shift, a report of both."""
    import mumoe

    job = mumoe.train(
        data=f"features:{world.features}", head="CPMuMoE-r6-e6", seeds=2, epochs=4, batch_size=16, lr=0.02, out="job",
        preset="plain", device="cpu", progress=False,
    )  # fmt: skip
    for run in job.runs:
        run.analyze(resamples=200, images=0, threshold=0.2)
    job.stability()
    job.shift("val")
    job.report("job-report")


def features(world: World) -> None:
    """Features of images, extracted anew, and predictions."""
    from mumoe.training import train

    config = small.picture_job(world.table, cache_dir="features-cache", out="pictured")
    train(config, progress=False)
    import mumoe

    run = mumoe.load("pictured", device="cpu", progress=False)
    found = run.predict(sorted((world.table.parent / "pictures").glob("*.png"))[:12])
    text = json.dumps([one.to_dict() for one in found], indent=1)
    Path("predictions.json").write_text(text, encoding="utf-8")


def convert(world: World) -> None:
    """A network with its MLPs converted, from random weights and distilled."""
    from mumoe.cli import main as mumoe_main

    options = ["--experts", "4", "--rank", "matched", "--seed", "3", "--out", "converted"]
    status = mumoe_main(["convert", "test_vit", *options])
    if status:
        raise RuntimeError(f"mumoe convert ended with status {status}")


def small_demo(world: World) -> None:
    """`mumoe demo` on made-up images of the emoji's form, with few experts and epochs."""
    from mumoe.demo import demo_job

    data = demo_images()
    demo_job._load = lambda settings, progress: data
    settings = demo_job.DemoSettings(few=2, many=12, rank=8, seeds=2, epochs=4, bias_epochs=4, device="cpu")
    demo_job.run_demo("demo", settings=settings, progress=False)


def demo(world: World) -> None:
    """`mumoe demo` itself, with one seed."""
    from mumoe.demo.demo_job import DemoSettings, run_demo

    run_demo("demo", settings=DemoSettings(seeds=1, device="cpu"), progress=False)


def _job(name: str) -> Step:
    def run(world: World) -> None:
        job = jobs(world)[name]
        job.prepare()
        job.go_on()

    return run


JOBS = (
    *("train-head", "train-seeds", "finetune-vit", "finetune-cnn", "train-mixer", "train-text", "sweep", "analyze"),
    *("edit", "report", "export-safetensors", "decompose"),
)
STEPS: dict[str, Step] = {
    **{name: _job(name) for name in JOBS},
    "look": look,
    "several-seeds": several_seeds,
    "features": features,
    "convert": convert,
    "small-demo": small_demo,
    "demo": demo,
}
"""Each works in a folder of its own, named after it."""


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", nargs="+", default=list(STEPS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    random.seed(options.start)
    np.random.seed(options.start)  # noqa: NPY002 (the generator that must not matter)
    torch.manual_seed(options.start)
    place, seconds = options.folder.absolute(), {}
    place.mkdir(parents=True)
    world = World(place / "world")
    world.folder.mkdir()
    for name in options.steps:
        (place / name).mkdir()
        os.chdir(place / name)
        begun = time.monotonic()
        STEPS[name](world)
        seconds[name] = time.monotonic() - begun
    sys.stdout.write(f"\n{json.dumps(seconds)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
