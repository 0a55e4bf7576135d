"""A million images: every stage on a feature file of 1,000,000 x 768, its time, its memory and its progress.

The file is mapped, so its pages are the system's to keep or to drop; what a stage holds of its own must stay below
3 GiB. A matrix of all images and experts alone takes more (the control), so that a stage that forms one fails. The
short run does the same on 20,000 images, in one process, with the limit scaled down.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import mumoe
from soak.memory import watched

__all__ = ["PART"]

WIDTH, CLASSES, CLUSTERS, TARGETS = 768, 100, 400, 16
BLOCK = 20_000

LABEL = "Training {head} (seed 0)"


@dataclass(frozen=True)
class Sizes:
    """How large the job is.

    Attributes:
        rows: Images of the file; 90% of them in train, which is what stages read.
        experts: Of the head.
        rank: Of the head.
        predicted: Images that are predicted one by one.
        limit: Bytes of anonymous memory: in all, or in the short run beyond what the process held before the stage.
        interval: Seconds between lines of progress.
        resamples: Of the bootstrap.
    """

    rows: int
    experts: int
    rank: int
    predicted: int
    limit: int
    interval: float
    resamples: int

    @property
    def measured(self) -> int:
        """Rows of the split that is measured."""
        return self.rows - 2 * (self.rows // 20)

    @property
    def dense(self) -> int:
        """Bytes of the coefficients of the measured split as a matrix."""
        return 4 * self.measured * self.experts


FULL = Sizes(1_000_000, 1024, 64, 50_000, 3 * 2**30, 5.0, 1000)
QUICK = Sizes(20_000, 1024, 16, 200, 48 * 2**20, 0.0, 20)
TINY = Sizes(1_000, 1024, 16, 50, 2**40, 0.0, 20)


# Data -------------------------------------------------------------------------------------------------------------


def make_file(folder: Path, sizes: Sizes, kind: str, seed: int) -> Path:
    """Features in a mapped file, with labels, a split and a group beside it.

    ``clustered`` features lie around centres, of which each class has some; ``random`` ones are noise, but for a weak
    direction of each class.
    """
    rng = np.random.default_rng(seed)
    place = folder / kind
    place.mkdir(parents=True, exist_ok=True)
    x = np.lib.format.open_memmap(place / "features.npy", "w+", np.float32, (sizes.rows, WIDTH))
    centres = rng.standard_normal((CLUSTERS, WIDTH), dtype=np.float32)
    cluster = rng.integers(CLUSTERS, size=sizes.rows)
    labels = cluster % CLASSES
    rare = rng.random(sizes.rows) < 0.2
    for start in range(0, sizes.rows, BLOCK):
        part = slice(start, start + BLOCK)
        noise = rng.standard_normal((len(labels[part]), WIDTH), dtype=np.float32)
        near = centres[cluster[part]] * (0.35 if kind == "clustered" else 0.08)
        x[part] = noise + near * np.where(rare[part], 0.6, 1.0)[:, None].astype(np.float32)
    x.flush()
    split = np.zeros(sizes.rows, np.int64)
    split[rng.permutation(sizes.rows)[: 2 * (sizes.rows // 20)]] = np.arange(2 * (sizes.rows // 20)) % 2 + 1
    np.save(place / "labels.npy", labels)
    np.save(place / "split.npy", split)
    np.save(place / "group_light.npy", np.where(rare, "dim", "bright"))
    _make_targets(folder / f"{kind}-targets", place, cluster, rng)
    return place / "features.npy"


def _make_targets(place: Path, source: Path, cluster: npt.NDArray[np.int64], rng: np.random.Generator) -> None:
    """The same features (a second name of the file) with 0/1 targets."""
    place.mkdir(exist_ok=True)
    has = rng.random((CLUSTERS, TARGETS)) < 0.3
    for name in ("features", "split", "group_light"):
        (place / f"{name}.npy").unlink(missing_ok=True)
        (place / f"{name}.npy").hardlink_to(source / f"{name}.npy")
    np.save(place / "labels.npy", has[cluster].astype(np.uint8))


# Stages -----------------------------------------------------------------------------------------------------------


def train(folder: Path, kind: str, sizes: Sizes) -> None:
    """Heads of experts, and a linear one, on classes; a head of experts on 0/1 targets."""
    common: dict[str, Any] = {
        "head": f"CPMuMoE-r{sizes.rank}-e{sizes.experts}",
        "epochs": 1,
        "batch_size": min(2048, sizes.rows // 10),
        "lr": 3e-3,
        "keep": 1,
    }
    mumoe.train(f"features:{folder / kind / 'features.npy'}", out=str(folder / "run"), against=("linear",), **common)
    if kind == "clustered":
        targets = folder / f"{kind}-targets" / "features.npy"
        mumoe.train(f"features:{targets}", out=str(folder / "targets"), **common)


def _run(folder: Path, sizes: Sizes, name: str = "run") -> mumoe.Run:
    head = f"CPMuMoE-r{sizes.rank}-e{sizes.experts}"
    path = folder / name / head / "seed-0" if name == "run" else folder / name
    found = mumoe.load(path, device="cpu")
    assert isinstance(found, mumoe.Run)
    return found


def evaluate(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """Both heads on the largest split."""
    experts = _run(folder, sizes).evaluate("train")
    linear: Any = mumoe.load(folder / "run" / "linear" / "seed-0", device="cpu")
    return {"accuracy": experts.accuracy, "linear accuracy": linear.evaluate("train").accuracy}


def analyze(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """Every expert ablated, and its coefficients kept."""
    study: Any = _run(folder, sizes).analyze(split="train", resamples=sizes.resamples, images=6)
    usage = study.study.usage[0]
    study.expert(int(np.argmax(usage.touched))).headline()
    return {"experts per image": usage.support_mean, "dead experts": usage.dead}


def audit(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """Groups by experts and by attributes, as `mumoe audit` writes them."""
    found = _run(folder, sizes).audit(split="train")
    found.write([*found.pictured(10, 5), *found.pictured(10, 5, by="attributes")])
    return {"groups compared": found.comparisons}


def edit(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """A rewriting with a strength chosen on validation, an edit by hand, and the edited model evaluated."""
    run = _run(folder, sizes, "targets")
    made = run.rewrite(target="0", sensitive="light", value="dim", resamples=200)
    (run.path / "edits").mkdir(exist_ok=True)
    made.save(run.path / "edits" / "dim.json")
    run.fairness(target="0", sensitive="light", edits=made, split="train", resamples=200)
    run.edit(mumoe.Ablate(3), mumoe.Scale(5, 0.5), split="train")
    found = run.audit("0", split="train")
    found.propose(run.path / "proposed", 3)
    return {"edited accuracy": run.with_edits(made).evaluate("train").accuracy}


def report(folder: Path, kind: str, sizes: Sizes) -> None:
    """Pages of the job and of the run with edits."""
    job: Any = mumoe.load(folder / "run", device="cpu")
    job.report(folder / "report")
    _run(folder, sizes, "targets").report(folder / "report-targets")


STAGES: dict[str, Callable[[Path, str, Sizes], dict[str, float] | None]] = {
    "train": train,
    "evaluate": evaluate,
    "analyze": analyze,
    "audit": audit,
    "edit": edit,
    "report": report,
}


# Measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Reading:
    """One stage, measured."""

    stage: str
    seconds: float = 0.0
    processor: float = 0.0
    anonymous: int = 0
    grown: int = 0
    resident: int = 0
    log: str = ""
    facts: dict[str, float] = field(default_factory=dict)
    error: str = ""


def measure(stage: str, folder: Path, kind: str, sizes: Sizes) -> Reading:
    """Run a stage in this process; its progress is kept, not shown."""
    found, log = Reading(stage), io.StringIO()
    before, used = time.monotonic(), time.process_time()
    try:
        with watched() as peak, contextlib.redirect_stderr(log), contextlib.redirect_stdout(io.StringIO()):
            found.facts = STAGES[stage](folder, kind, sizes) or {}
    except Exception:
        found.error = traceback.format_exc()
    found.seconds, found.processor = time.monotonic() - before, time.process_time() - used
    found.anonymous, found.grown, found.resident, found.log = (
        peak.anonymous,
        peak.grown,
        peak.resident,
        log.getvalue(),
    )
    return found


if __name__ == "__main__":  # probe
    rows = int(sys.argv[1])
    folder = Path(sys.argv[2])
    sizes = Sizes(rows, 1024, 64, 1000, 3 * 2**30, 5.0, 1000)
    torch.set_num_threads(1)
    if not (folder / "clustered").exists():
        make_file(folder, sizes, "clustered", 0)
    for stage in sys.argv[3:] or STAGES:
        if stage == "train":
            for name in ("run", "targets"):
                shutil.rmtree(folder / name, ignore_errors=True)
        found = measure(stage, folder, "clustered", sizes)
        print(stage, f"{found.seconds:.1f} s, cpu {found.processor:.1f}", f"anon {found.anonymous/2**20:.0f} grown {found.grown/2**20:.0f} rss {found.resident/2**20:.0f} MiB, dense {sizes.dense/2**20:.0f}", found.facts, found.error)  # noqa
        print(found.log[-1500:])
