"""A million images: every stage on a feature file of 1,000,000 x 768, its time, its memory and its progress.

The file is mapped, so its pages are the system's to keep or to drop; what a stage holds of its own (anonymous memory)
must stay below 3 GiB. A matrix of all images and experts alone takes more, so that a stage that forms one fails: the
control forms it. Stages write their progress, whose lines are read: numbers that rise, an estimate of the time left,
and at the end the total. Coefficients are written in time proportional to their number, whatever the number of experts.

Every stage of the full run has a process of its own. The short run does the same on 20,000 images in one process, where
the limit is for what a stage adds.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import mumoe
from benchmarks.measuring import fresh
from mumoe import progress
from mumoe.analysis.coefficient_store import CoefficientStore, CoefficientWriter
from mumoe.analysis.study import Study
from mumoe.coefficients import SparseCoefficients
from mumoe.dashboard import audit_panel, edit_panel, expert_panel, image_panel
from mumoe.dashboard.session import open_session
from mumoe.data.base import ImageData
from mumoe.models.backbones import create_backbone
from mumoe.training.opening import StoredRun
from soak.memory import measures_anonymous, watched
from soak.part import Found, Given, Part

__all__ = ["PART"]

WIDTH, CLASSES, CLUSTERS, TARGETS = 768, 100, 400, 16
BLOCK = 20_000

SIDE = 32
"""Of the images that are predicted."""

LINE = re.compile(r"(?P<what>.+): (?P<done>[0-9,]+) of (?P<total>[0-9,]+), [0-9]+ s (?P<kind>left|in all)")
"""A line of progress in a log."""


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
        whole: Whether there are a linear head and 0/1 targets too.
    """

    rows: int
    experts: int
    rank: int
    predicted: int
    limit: int
    interval: float
    resamples: int
    whole: bool = True

    @property
    def measured(self) -> int:
        """Rows of the split that is measured."""
        return self.rows - 2 * (self.rows // 20)

    @property
    def dense(self) -> int:
        """Bytes of the coefficients of the measured split as a matrix."""
        return 4 * self.measured * self.experts


FULL = Sizes(1_000_000, 1024, 64, 5_000, 3 * 2**30, 5.0, 1000)
QUICK = Sizes(20_000, 1024, 16, 0, 60 * 2**20, 0.0, 20, whole=False)
TINY = Sizes(500, 1024, 16, 0, 2**40, 0.0, 20, whole=False)


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
        "batch_size": min(4096, sizes.rows // 40),
        "lr": 0.01,
        "keep": 1,
        "device": "cpu",
    }
    against = ("linear",) if sizes.whole else ()
    mumoe.train(f"features:{folder / kind / 'features.npy'}", out=str(folder / "run"), against=against, **common)
    if sizes.whole and kind == "clustered":
        targets = folder / f"{kind}-targets" / "features.npy"
        mumoe.train(f"features:{targets}", out=str(folder / "targets"), **common)


def _path(folder: Path, sizes: Sizes, name: str = "run") -> Path:
    head = f"CPMuMoE-r{sizes.rank}-e{sizes.experts}"
    return folder / name / head / "seed-0" if name == "run" and sizes.whole else folder / name


def _run(folder: Path, sizes: Sizes, name: str = "run") -> mumoe.Run:
    found: Any = mumoe.load(_path(folder, sizes, name), device="cpu")
    return found  # type: ignore[no-any-return]


def evaluate(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """Both heads on the largest split."""
    experts = _run(folder, sizes).evaluate("train")
    linear: Any = mumoe.load(folder / "run" / "linear" / "seed-0", device="cpu")
    return {"accuracy": experts.accuracy, "accuracy of the linear head": linear.evaluate("train").accuracy}


def analyze(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """Every expert ablated, and its coefficients kept; then the facts of the expert of the largest load."""
    study: Any = _run(folder, sizes).analyze(split="train", resamples=sizes.resamples)
    usage = study.study.usage[0]
    study.expert(int(np.argmax(usage.touched)))
    return {"experts per image": usage.support_mean, "strong experts": study.units().modes["zero"].strong}


def table(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """The coefficients as parquet."""
    study: Any = Study.load(_path(folder, sizes))
    return {"rows of parquet": study.save_coefficients(folder / "coefficients.parquet")}


def audit(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """Groups by experts and by attributes, as `mumoe audit` writes them."""
    found = _run(folder, sizes).audit(split="train")
    found.write([*found.pictured(10, 5), *found.pictured(10, 5, by="attributes")])
    return {"groups compared": found.comparisons}


def edit(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """A rewriting by experts, an edit by hand, edits that an audit proposes, and the edited model evaluated."""
    run = _run(folder, sizes, "targets")
    made = run.rewrite(target="0", sensitive="light", value="dim", resamples=sizes.resamples)
    (run.path / "edits").mkdir(exist_ok=True)
    made.save(run.path / "edits" / "dim.json")
    run.fairness(target="0", sensitive="light", edits=made, split="val", resamples=sizes.resamples)
    run.edit(mumoe.Ablate(3), mumoe.Scale(5, 0.5), split="train")
    found = run.audit("0", split="train")
    found.propose(run.path / "proposed", 3)
    return {"accuracy on targets, edited": run.with_edits(made).evaluate("train").accuracy}


def report(folder: Path, kind: str, sizes: Sizes) -> None:
    """Pages of the job, and of the run with edits."""
    job: Any = mumoe.load(folder / "run", device="cpu")
    job.report(folder / "report")
    _run(folder, sizes, "targets").report(folder / "report-targets")


def dashboard(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """A run opened as the dashboard opens it, and what its pages ask for first; both runs, one after the other."""
    seconds = {}
    for name in ("run", "targets") if sizes.whole and kind == "clustered" else ("run",):
        begun = time.monotonic()
        reports: list[tuple[int, int]] = []
        stored = StoredRun(_path(folder, sizes, name), device="cpu", progress=False)
        session = open_session(
            stored, lambda done, total, note, into=reports: into.append((done, total)), split="train"
        )
        seconds[f"seconds until {name} was open"] = time.monotonic() - begun
        shares = [done / total for done, total in reports]
        if shares != sorted(shares) or shares[-1] != 1:
            raise AssertionError(f"expected shares that rise to 1 while {name} opens, got {shares[:20]}")
        split, chosen = session.split("train"), expert_panel.Filter()
        columns = expert_panel.expert_columns(session, split, 0, chosen, "light")
        expert = int(np.argmax(columns["touched"]))
        expert_panel.expert_detail(session, split, 0, expert)
        rows, values = image_panel.image_rows(session, split, chosen, expert=(0, expert))
        image_panel.list_images(session, split, rows, values, 0, 100)
        image_panel.explain_image(session, int(split.images[rows[0]]))
        ablated = {"name": "a", "kind": "ablate", "expert": expert, "level": 0, "strength": 1.0}
        edit_panel.compare(session, split, [ablated], edit_panel.Subgroup())
        audit_panel.audit_split(session, "train", "0" if name == "targets" else "")
    return seconds


def _into(reports: list[tuple[int, int]]) -> Callable[[int, int, str], None]:
    return lambda done, total, note: reports.append((done, total))


class Pictures(Sequence[Any]):
    """Noise as images, each drawn when it is opened."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: Any) -> Any:
        return [self(n) for n in range(*place.indices(self.count))] if isinstance(place, slice) else self(place)

    def __call__(self, index: int) -> Any:
        from PIL import Image

        return Image.fromarray(np.random.default_rng(index).integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8))


def predict(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """Images through a backbone (of random weights) and a head, with the experts behind each label."""
    count, network = sizes.predicted, "efficientnet-lite0"
    backbone = create_backbone(network, pretrained=False, image_size=SIDE)
    rng, pictures = np.random.default_rng(0), Pictures(count)
    data = ImageData(
        name="pictures",
        classes=tuple(map(str, range(CLASSES))),
        multi_label=False,
        labels=rng.integers(CLASSES, size=count),
        split=(np.arange(count) % 3).astype(np.int8),
        ids=tuple(map(str, range(count))),
        open_image=pictures,
        fingerprint="pictures",
    )
    features = rng.standard_normal((count, backbone.num_features), dtype=np.float32)
    given: dict[str, Any] = {"data": data, "backbone": backbone, "features": features}
    settings: dict[str, Any] = {"steps": 20, "image_size": SIDE, "device": "cpu", "out": str(folder / "predicting")}
    mumoe.train(head=f"CPMuMoE-r{sizes.rank}-e{sizes.experts}", **settings, **given)
    run: Any = mumoe.load(folder / "predicting", device="cpu", **given)
    named = [found.likeliest.label for found in run.predictions(pictures, batch_size=64) if found.likeliest]
    if len(named) != count:
        raise AssertionError(f"expected {count} predictions, got {len(named)}")
    return {"images predicted": count}


def control(folder: Path, kind: str, sizes: Sizes) -> None:
    """All coefficients of the measured split as a matrix: what no stage may hold."""
    level = CoefficientStore(_path(folder, sizes) / "analysis" / "coefficients").level()
    matrix = np.empty((level.rows, level.num_experts), np.float32)
    for start in range(0, level.rows, BLOCK):
        end = min(start + BLOCK, level.rows)
        matrix[start:end] = level.dense(start, end)


STAGES: dict[str, Callable[[Path, str, Sizes], dict[str, float] | None]] = {
    "train": train,
    "evaluate": evaluate,
    "analyze": analyze,
    "table": table,
    "audit": audit,
    "edit": edit,
    "report": report,
    "dashboard": dashboard,
    "predict": predict,
    "control": control,
}

RANDOM = ("train", "analyze")
"""Stages that are done on random features too."""

QUICKLY = ("train", "analyze", "table", "audit", "dashboard", "control")
"""Stages of the short run."""

SHOWING = ("train", "evaluate", "analyze", "audit", "edit")
"""Stages that write lines of progress."""


# Measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Reading:
    """One stage, measured: seconds on the clock and of the processor, bytes, what was written on stderr."""

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
    """Run a stage in this process; what it writes on stderr is kept, not shown."""
    found, log, shown = Reading(stage), io.StringIO(), io.StringIO()
    interval, progress.INTERVAL = progress.INTERVAL, sizes.interval
    begun, used = time.monotonic(), time.process_time()
    try:
        with watched() as peak, contextlib.redirect_stderr(log), contextlib.redirect_stdout(shown):
            found.facts = STAGES[stage](folder, kind, sizes) or {}
    except Exception as error:
        found.error = f"{type(error).__name__}: {error}"
    finally:
        progress.INTERVAL = interval
    found.seconds, found.processor = time.monotonic() - begun, time.process_time() - used
    found.anonymous, found.grown, found.resident = peak.anonymous, peak.grown, peak.resident
    found.log = log.getvalue()
    return found


def wrong_progress(log: str) -> tuple[int, list[str]]:
    """Lines of progress in a log, and what is wrong with them."""
    wrong, lines = [], 0
    under_way: dict[str, tuple[int, int]] = {}
    for line in log.splitlines():
        found = LINE.match(line)
        if found is None:
            continue
        lines += 1
        what = found["what"]
        done, total = (int(found[part].replace(",", "")) for part in ("done", "total"))
        before, expected = under_way.pop(what, (0, total))
        if not before <= done <= total == expected:
            wrong.append(f"expected '{what}' to rise from {before:,} to {expected:,}, got {done:,} of {total:,}")
        if done < total:
            under_way[what] = (done, total)
    ends = [f"expected '{what}' to reach {total:,}, got {done:,}" for what, (done, total) in under_way.items()]
    return lines, wrong + ends


def judge(found: Found, reading: Reading, sizes: Sizes, name: str, *, own: bool) -> None:
    """Record one stage; `own`: it had a process of its own, so that the limit is for all that it held."""
    held = reading.anonymous if own else reading.grown
    found.count("stages")
    found.measured[f"{name}: seconds"] = reading.seconds
    found.measured[f"{name}: seconds of the processor"] = reading.processor
    found.measured[f"{name}: MiB of its own"] = held / 2**20
    found.measured[f"{name}: MiB with pages of files"] = reading.resident / 2**20
    found.measured.update({f"{name}: {label}": float(value) for label, value in reading.facts.items()})
    if reading.error:
        found.faults.append(f"{name}: expected a result, got {reading.error}")
    if reading.stage == "control":
        if held < sizes.limit:
            found.faults.append(f"{name}: expected more than {sizes.limit / 2**20:.0f} MiB, got {held / 2**20:.0f}")
    elif held > sizes.limit:
        found.faults.append(f"{name}: expected at most {sizes.limit / 2**20:.0f} MiB, got {held / 2**20:.0f}")
    lines, wrong = wrong_progress(reading.log)
    found.count("lines of progress", lines)
    found.faults += [f"{name}: {line}" for line in wrong]
    if reading.stage in SHOWING and not lines and reading.seconds > 6 * max(sizes.interval, 0.1):
        found.faults.append(f"{name}: expected lines of progress within {reading.seconds:.0f} s, got none")


# Time by support --------------------------------------------------------------------------------------------------


def support(rows: int, experts: int, k: int) -> SparseCoefficients:
    """Coefficients of k experts in every row."""
    first = torch.arange(rows)[:, None] * 7
    indices = ((first + torch.arange(k) * (experts // k)) % experts).sort(dim=1).values
    offsets = torch.arange(rows + 1) * k
    return SparseCoefficients(torch.full((rows * k,), 1 / k), indices.flatten(), offsets, experts, torch.float32)


def stream(folder: Path, rows: int, experts: int, k: int, dense: bool = False) -> float:
    """Seconds of the processor in which the coefficients of all rows become a store and a parquet file."""
    block = min(rows, 4096)
    part: Any = support(block, experts, k)
    part = part.to_dense().numpy() if dense else part
    used = time.process_time()
    with CoefficientWriter(folder / "stream", {"layer": (experts,)}) as writer:
        for _ in range(math.ceil(rows / block)):
            writer.append("layer", [part])
    CoefficientStore(folder / "stream").write_parquet(folder / "stream.parquet")
    return time.process_time() - used


def measure_streams(found: Found, folder: Path, rows: int, quick: bool) -> None:
    """The time grows with the support and not with the experts; it would if blocks were dense (the control)."""
    stream(folder, 1, 128, 8)  # which loads the library
    seconds = {
        "128 experts, 8 per row": stream(folder, rows, 128, 8),
        "1,024 experts, 8 per row": stream(folder, rows, 1024, 8),
        "1,024 experts, 32 per row": stream(folder, rows, 1024, 32),
        "128 experts, 8 per row, dense blocks": stream(folder, rows, 128, 8, dense=True),
        "1,024 experts, 8 per row, dense blocks": stream(folder, rows, 1024, 8, dense=True),
    }
    found.count("coefficients streamed to parquet", 3 * rows * 8 + 2 * rows * 8 + rows * 24)
    found.measured.update({f"seconds to parquet, {name}": value for name, value in seconds.items()})
    few, many, large, *control = seconds.values()
    found.measured["time to parquet, 1,024 experts against 128"] = many / few
    found.measured["time to parquet, 1,024 experts against 128, dense blocks"] = control[1] / control[0]
    found.measured["time to parquet, 32 experts per row against 8"] = large / many
    if not quick and many > 1.5 * few:
        found.faults.append(f"parquet: expected 1,024 experts to take as long as 128, got {many / few:.2f} times")
    if not quick and large > 1.5 * 4 * many:
        found.faults.append(f"parquet: expected four times the support to take 4 times, got {large / many:.2f}")


# Running ----------------------------------------------------------------------------------------------------------


def _quick(given: Given) -> Found:
    """In this process: first on few images, which loads what is loaded once, then on more."""
    found = Found()
    for sizes, name in ((TINY, "tiny"), (QUICK, "quick")):
        folder = given.work / name
        make_file(folder, sizes, "clustered", given.seed)
        for stage in QUICKLY:
            reading = measure(stage, folder, "clustered", sizes)
            if sizes is QUICK or reading.error:
                judge(found, reading, sizes, stage, own=False)
    found.count("images", QUICK.rows)
    measure_streams(found, given.work, QUICK.rows, quick=True)
    return found


def _full(given: Given) -> Found:
    found = Found()
    for kind in ("clustered", "random"):
        folder = given.work / kind
        make_file(folder, FULL, kind, given.seed)
        stages = list(STAGES) if kind == "clustered" else RANDOM
        calls = [(stage, folder, kind, FULL) for stage in stages]
        for stage, reading in zip(stages, fresh(measure, calls, preload=["mumoe"]), strict=True):
            judge(found, reading, FULL, f"{stage}, {kind} features", own=True)
        found.count("images", FULL.rows)
        shutil.rmtree(folder)
    measure_streams(found, given.work, FULL.rows, quick=False)
    found.measured["MiB of a matrix of images and experts"] = FULL.dense / 2**20
    return found


def run(given: Given) -> Found:
    """All stages."""
    if not measures_anonymous():
        return Found(skipped=["memory: the system does not report the anonymous memory of a process"])
    return _quick(given) if given.quick else _full(given)


PART = Part(
    "Train, analyze, audit, edit, report and dashboard take a million images x 768 features in less than 3 GiB of "
    "their own, show how far they are, and write coefficients in time proportional to their number.",
    run,
)
