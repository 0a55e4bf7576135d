"""The dashboard on 5,000 experts and 100,000 cached images: how soon it is there, and how long each interaction takes.

    python -m benchmarks.dashboard

A run is made first: features of clustered images with 40 attributes (or 70 classes) and a group, a head trained for
a few steps, its coefficients as `mumoe analyze` caches them, and a made-up analysis of the same size as a real one.
Then `mumoe dashboard` is started as a user starts it, and asked over HTTP what its page asks; with playwright and
Chromium the page itself is timed as well, from a click to the change on the screen. Seconds are of the wall clock.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from mumoe.analysis.files import write_json
from mumoe.analysis.results import Effect, Specialization
from mumoe.analysis.studies import LayerStudy, UnitStudy, write_coefficients
from mumoe.editing.runs import open_run
from mumoe.training import TrainConfig, train

RESULT = Path(__file__).parent / "results" / "dashboard.json"
EXPERTS, IMAGES, TRAINING, WIDTH, RANK = 5_000, 100_000, 3_000, 512, 256
SETTINGS = {"40 attributes": (40, True), "70 classes": (70, False)}
REPEATS = 7


def write_features(path: Path, classes: int, multi_label: bool) -> None:
    """Clustered features; validation holds the images that are looked at."""
    rng = np.random.default_rng(0)
    count = IMAGES + TRAINING
    centres = rng.normal(size=(classes, WIDTH)).astype(np.float32)
    labels = rng.integers(0, 2, (count, classes)) if multi_label else rng.integers(0, classes, count)
    x = rng.normal(size=(count, WIDTH)).astype(np.float32)
    x += 0.4 * (labels.astype(np.float32) @ centres if multi_label else centres[labels])
    split = np.where(np.arange(count) < TRAINING, 0, 1)
    group = rng.integers(0, 2, count)
    names = [f"class {n}" for n in range(classes)]
    metadata = {"classes": json.dumps(names), "group_sex": json.dumps(["woman", "man"])}
    save_file({"features": x, "labels": labels, "split": split, "group_sex": group}, path, metadata=metadata)


def make_run(folder: Path, classes: int, multi_label: bool) -> Path:
    """A trained run with its caches."""
    write_features(folder / "features.safetensors", classes, multi_label)
    config = TrainConfig(
        data=f"features:{folder / 'features.safetensors'}",
        head=f"CPMuMoE-r{RANK}-e{EXPERTS}",
        epochs=1,
        batch_size=500,
        lr=0.01,
        out=str(folder / "run"),
    )
    train(config, progress=False)
    run = open_run(folder / "run", progress=False)
    rows = run.data.indices("val")

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(rows), 1000):
            yield run.inputs(rows[start : start + 1000]), torch.zeros(0)

    store = write_coefficients(run.layer, batches, run.path / "analysis" / "coefficients", images=rows)
    content = {"classes": run.data.classes, "seed": 0, "split": "val", "head": config.head, "experts_skipped": 0}
    write_json(
        run.path / "analysis" / "analysis.json", {**content, "study": made_up_study(store.level().usage(), classes)}
    )
    return run.path


def made_up_study(usage: Any, classes: int) -> LayerStudy:
    """Numbers of the size and form that an analysis has, drawn at random."""
    rng = np.random.default_rng(0)
    effects = []
    for n in range(EXPERTS):
        lost = tuple((int(c), float(rng.uniform(0, 0.6))) for c in rng.choice(classes, 12, replace=False))
        spans = tuple((d - 0.05, d + 0.05) for _, d in lost)
        effects.append(Effect(n, float(rng.uniform(0.3, 1.2)), (0.3, 1.2), lost[0][0], lost[0][1], False, lost, spans))
    part = Specialization(EXPERTS, classes, IMAGES, 0.5, 0, 0, EXPERTS, 0.8, None, 0, None, None, tuple(effects))
    control = Specialization(EXPERTS, classes, IMAGES, 0.5, 0, 0, EXPERTS, 0.8, None, 0, None, None, ())
    unit = UnitStudy("experts", {"zero": part}, control, usage.touched, 0, 0)
    return LayerStudy((usage,), (unit,), ())


class Page:
    """A running dashboard, asked as its page asks."""

    def __init__(self, url: str, process: int) -> None:
        self.process = process
        found = re.match(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", url)
        assert found is not None
        self.url, self.port, self.token = url, int(found[1]), found[2]
        self.secret = ""

    def ask(self, method: str, path: str, given: Any = None) -> Any:
        """The JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        headers = {"Cookie": f"mumoe_{self.port}={self.token}", "X-Mumoe-Page": self.secret}
        connection.request(method, path, None if given is None else json.dumps(given), headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {content}")
        return content

    def wait(self) -> None:
        """Return when the run is open and its first list is there."""
        while True:
            found = self.ask("GET", "/api/state")
            self.secret = found["page"]
            if found["opening"]["state"] == "failed":
                raise RuntimeError(found["opening"]["error"])
            if "run" in found:
                break
            time.sleep(0.02)
        self.ask("GET", "/api/experts?level=0&gap=sex")


@contextmanager
def started(run: Path) -> Iterator[tuple[Page, float]]:
    """A dashboard as a user starts it, and the seconds until its first list was there."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "mumoe.cli", "dashboard", str(run), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        page = Page(process.stdout.readline().strip(), process.pid)
        page.wait()
        yield page, time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait(20)


def edit(kind: str, expert: int, **fields: Any) -> dict[str, Any]:
    """One edit as a file holds it."""
    return {"name": f"{kind}-{expert}", "kind": kind, "expert": expert, "level": 0, "strength": 1.0, **fields}


def interactions(page: Page, multi_label: bool) -> dict[str, Callable[[int], Any]]:
    """What a page asks for, by what somebody did; the number makes each one new."""
    subgroup = {"head": "class 0" if multi_label else "", "sensitive": "sex", "value": "man" if multi_label else ""}

    def compare(edits: list[dict[str, Any]], **more: Any) -> Any:
        return page.ask("POST", "/api/compare", {"split": "val", "edits": edits, "subgroup": subgroup, **more})

    def images(n: int, **more: Any) -> Any:
        return page.ask("POST", "/api/images", {"split": "val", "offset": 100 * n, "limit": 100, **more})

    every = {"name": "r", "kind": "rewrite", "head": 0, "factors": [[[1 / EXPERTS]] * EXPERTS]}
    found: dict[str, Callable[[int], Any]] = {
        "list of all experts": lambda n: page.ask("GET", f"/api/experts?level=0&gap=sex&n={n}"),
        "experts filtered by class": lambda n: page.ask("GET", f"/api/experts?level=0&gap=sex&label=class+{n}"),
        "experts filtered by subgroup": lambda n: page.ask(
            "GET", f"/api/experts?level=0&gap=sex&label=class+{n}&attribute=sex&value=man"
        ),
        "one expert": lambda n: page.ask("GET", f"/api/expert?level=0&expert={11 * n}"),
        "images of an expert": lambda n: images(0, level=0, expert=11 * n),
        "images, a page of 100": images,
        "images with wrong answers": lambda n: images(n, kind="wrong"),
        "one image taken apart": lambda n: page.ask("POST", "/api/image", {"image": TRAINING + 997 * n}),
        "ablate 1 expert": lambda n: compare([edit("ablate", 7 * n)]),
        "scale 1 expert": lambda n: compare([edit("scale", 7 * n, factor=-0.5 * n)]),
        "ablate 20 experts": lambda n: compare([edit("ablate", 20 * n + k) for k in range(20)]),
        "ablate 200 experts": lambda n: compare([edit("ablate", 200 * n + k) for k in range(200)]),
        "correct 1 output by 1 expert": lambda n: compare(
            [{"name": "c", "kind": "correct", "head": n, "terms": [[[n], 1.0]], "strength": 1}]
        ),
        "rewrite 1 output by all experts": lambda n: compare([{**every, "strength": 1.0 + n}]),
        "images that 20 ablations mend": lambda n: images(
            0, kind="mended", edits=[edit("ablate", 20 * n + k) for k in range(20)]
        ),
        "save 20 edits": lambda n: page.ask(
            "POST", "/api/save", {"name": f"n{n}", "split": "val", "edits": [edit("ablate", k) for k in range(20)]}
        ),
        "list the files": lambda n: page.ask("GET", "/api/edits"),
        "load 20 edits": lambda n: page.ask("POST", "/api/load", {"name": f"n{n}"}),
    }
    if multi_label:
        found["intervals of 500 resamples"] = lambda n: compare([edit("ablate", 7 * n)], resamples=500)
    return found


def processor_seconds(process: int) -> float:
    """What a process has used so far, where the system tells it (Linux), else NaN."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(work: Callable[[int], Any], process: int) -> dict[str, float]:
    """Milliseconds of a few repeats: on the clock, and of the processor, to which other programs do not add."""
    seconds, used = [], processor_seconds(process)
    for n in range(REPEATS):
        start = time.perf_counter()
        work(n)
        seconds.append(1000 * (time.perf_counter() - start))
    spent = 1000 * (processor_seconds(process) - used) / REPEATS
    return {
        "median_ms": round(statistics.median(seconds), 1),
        "max_ms": round(max(seconds), 1),
        "server_cpu_ms": round(spent, 1),
    }


def on_the_screen(page: Page) -> dict[str, dict[str, float]] | None:
    """Milliseconds from a click to the change in Chromium; None where it or playwright is missing."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, chromium_sandbox=False, args=["--disable-gpu"])
        view = browser.new_page(viewport={"width": 1280, "height": 860})
        start = time.perf_counter()
        view.goto(page.url)
        view.wait_for_selector(".experts .row:not(.head)")
        found = {"page until its first rows": {"median_ms": round(1000 * (time.perf_counter() - start), 1)}}
        found |= {name: measured(work, page.process) for name, work in clicks(view).items()}
        browser.close()
    return found


def clicks(view: Any) -> dict[str, Callable[[int], Any]]:
    """Interactions with the page; each returns when what it changes is there."""
    first = "document.querySelector('.experts .row:not(.head) .num').textContent"

    def sort(n: int) -> None:
        before = view.evaluate(first)
        view.select_option("label:has-text('Sort by') select", ("polysemanticity", "load", "loss", "mean")[n % 4])
        view.wait_for_function(f"{first} !== '{before}'")

    def scroll(n: int) -> None:
        view.evaluate(f"document.querySelector('.experts').scrollTop = {15000 * (n + 1)}")
        view.wait_for_function(f"{first} !== '{view.evaluate(first)}' || true")

    def open_expert(n: int) -> None:
        view.evaluate(f"location.hash = '#/expert/0/{13 * n + 1}'")
        view.get_by_role("heading", name=f"Expert {13 * n + 1}", exact=True).wait_for()
        view.wait_for_selector(".facts")

    def ablate(n: int) -> None:
        view.get_by_role("button", name="Ablate it").click()
        view.wait_for_function(f"document.querySelectorAll('.edit b[title]').length === {n + 1}")

    def slide(n: int) -> None:
        before = view.evaluate("document.querySelector('.overall').textContent")
        view.locator(".edit input[type=number]").first.fill(str(round(0.1 * n, 1)))
        view.locator(".edit input[type=number]").first.press("Tab")
        view.wait_for_function(
            "before => document.querySelector('.overall').textContent !== before", arg=before, timeout=5000
        )

    return {
        "sort 5,000 experts": sort,
        "scroll the list": scroll,
        "open an expert": open_expert,
        "ablate it": ablate,
        "change a strength": slide,
    }


def measure(name: str) -> dict[str, Any]:
    """The record of one setting."""
    classes, multi_label = SETTINGS[name]
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), classes, multi_label)
        return measure_run(name, run, multi_label)


def measure_run(name: str, run: Path, multi_label: bool) -> dict[str, Any]:
    """The record of one setting whose run is made."""
    opened = open_run(run, progress=False)
    a = opened.coefficients(opened.data.indices("val")[:2000], "benchmark")[0]
    starts, cpu = [], []
    for last in (False, False, True):
        with started(run) as (page, seconds):
            starts.append(seconds)
            cpu.append(processor_seconds(page.process))
            if not last:
                continue
            found = {text: measured(work, page.process) for text, work in interactions(page, multi_label).items()}
            screen = on_the_screen(page)
    return {
        "setting": name,
        "experts_per_image": round(float((a > 0).sum(1).float().mean()), 1),
        "start_seconds": round(min(starts), 2),
        "start_cpu_seconds": round(min(cpu), 2),
        "start_seconds_all": [round(seconds, 2) for seconds in starts],
        "interactions": found,
        "slowest_ms": max(item["median_ms"] for item in found.values()),
        "load_average": round(os.getloadavg()[0], 1),
        "in_the_browser": screen,
    }


def main() -> None:
    """Measure every setting and write the record."""
    record: dict[str, Any] = {
        "command": "python -m benchmarks.dashboard",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "experts": EXPERTS,
        "images": IMAGES,
        "layer": f"CPMuMoE-r{RANK}-e{EXPERTS}, {WIDTH} features",
        "settings": [],
    }
    for name in sys.argv[1:] or SETTINGS:
        record["settings"].append(measure(name))
        row = record["settings"][-1]
        print(
            f"{name}: there after {row['start_seconds']} s, slowest interaction {row['slowest_ms']:.0f} ms", flush=True
        )
        for text, item in {**row["interactions"], **(row["in_the_browser"] or {})}.items():
            print(f"  {text}: {item['median_ms']:.0f} ms", flush=True)
    if not sys.argv[1:]:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
