"""The dashboard on 5,000 experts and 100,000 cached images: its start-up time, and the time of each interaction.

    python -m benchmarks.dashboard [--keep DIR] [SETTING ...]

A run is made first: features of clustered images with 40 attributes (or 70 classes) and a group, a head trained for
a few steps, its coefficients as `mumoe analyze` caches them, and a made-up analysis of the same size as a real one;
and, as a run of a usual size, 128 experts on the embedded images, as `mumoe demo` trains them. Then `mumoe dashboard`
is started as a user starts it, and gets the HTTP requests that its page sends; with playwright and Chromium the page
itself is timed too, from a click to the change on the screen. Seconds are of the wall clock. With ``--keep`` runs are
made once and kept in a folder.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import mumoe  # noqa: E402
from benchmarks import measuring  # noqa: E402
from browsing import launched  # noqa: E402
from mumoe.training import TrainConfig, train  # noqa: E402
from soak.large_run import LARGE, make_run  # noqa: E402


@dataclass(frozen=True)
class Setting:
    """The run of a setting, and its bound.

    Attributes:
        make: Makes the run in a folder.
        most_ms: What an interaction may take.
    """

    make: Callable[[Path], Path]
    most_ms: float


SETTINGS: dict[str, Setting] = {
    "40 attributes": Setting(lambda folder: make_run(folder, 40, True), 500),
    "70 classes": Setting(lambda folder: make_run(folder, 70, False), 500),
    "embedded images": Setting(lambda folder: make_usual(folder), 200),
}
LATER = "intervals of 500 resamples"
"""Computed in the background once a slider rests."""

REPEATS = 7


def make_usual(folder: Path) -> Path:
    """A run of a usual size: the demo's head of 128 experts on the embedded images."""
    config = TrainConfig(
        data="emoji",
        data_options=("split_by=image", "size=96"),
        image_size=96,
        head="CPMuMoE-r256-e128",
        epochs=14,
        weight_decay=3.0,
        keep=1,
        out=str(folder / "run"),
    )
    train(config, progress=False)
    return folder / "run"


class Page:
    """A running dashboard that gets the requests of its page."""

    def __init__(self, url: str, process: int) -> None:
        self.process = process
        found = re.match(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", url)
        assert found is not None
        self.url, self.port, self.token = url, int(found[1]), found[2]
        self.secret = ""
        self.run: dict[str, Any] = {}

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
        """Wait until the run is open and its first list is available."""
        while True:
            found = self.ask("GET", "/api/state")
            self.secret = found["page"]
            if found["opening"]["state"] == "failed":
                raise RuntimeError(found["opening"]["error"])
            if "run" in found:
                break
            time.sleep(0.02)
        self.run = found["run"]
        self.ask("GET", f"/api/experts?level=0&gap={self.run['sensitive'][0]}")


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


def interactions(page: Page) -> dict[str, Callable[[int], Any]]:
    """Requests of the page by the interaction of a user; the number makes each one new."""
    classes, experts = page.run["classes"], page.run["num_experts"][0]
    sensitive = next(name for name in page.run["sensitive"] if name != classes[0])
    value = page.run["attributes"][sensitive][-1]
    multi_label = page.run["multi_label"]
    subgroup = {"head": classes[0] if multi_label else "", "sensitive": sensitive, "value": value * multi_label}
    few, many, stamp = max(1, experts // 250), experts // 25, os.getpid()

    def compare(edits: list[dict[str, Any]], **more: Any) -> Any:
        return page.ask("POST", "/api/compare", {"split": "val", "edits": edits, "subgroup": subgroup, **more})

    def images(n: int, **more: Any) -> Any:
        return page.ask("POST", "/api/images", {"split": "val", "offset": 100 * n, "limit": 100, **more})

    def listed(**query: str) -> Any:
        return page.ask("GET", "/api/experts?" + urlencode({"level": 0, "gap": sensitive, **query}))

    def ablated(n: int, count: int) -> list[dict[str, Any]]:
        return [edit("ablate", (count * n + k) % experts) for k in range(count)]

    shown = images(0)["items"]
    every = {"name": "r", "kind": "rewrite", "head": 0, "factors": [[[1 / experts]] * experts]}
    found: dict[str, Callable[[int], Any]] = {
        "list of all experts": lambda n: listed(n=str(n)),
        "experts filtered by class": lambda n: listed(label=classes[n]),
        "experts filtered by subgroup": lambda n: listed(label=classes[n], attribute=sensitive, value=value),
        "one expert": lambda n: page.ask("GET", f"/api/expert?level=0&expert={11 * n}"),
        "images of an expert": lambda n: images(0, level=0, expert=11 * n),
        "images, a page of 100": images,
        "images with wrong answers": lambda n: images(n, kind="wrong"),
        "one image taken apart, and without each expert": lambda n: page.ask(
            "POST", "/api/image", {"image": shown[9 * n]["image"]}
        ),
        "ablate 1 expert": lambda n: compare([edit("ablate", 7 * n)]),
        "scale 1 expert": lambda n: compare([edit("scale", 7 * n, factor=-0.5 * n)]),
        "ablate a few experts": lambda n: compare(ablated(n, few)),
        "ablate many experts": lambda n: compare(ablated(n, many)),
        "correct 1 output by 1 expert": lambda n: compare(
            [{"name": "c", "kind": "correct", "head": n, "terms": [[[n], 1.0]], "strength": 1}]
        ),
        "rewrite 1 output by all experts": lambda n: compare([{**every, "strength": 1.0 + n}]),
        "undo: no edits": lambda n: compare([]),
        "images that a few ablations correct": lambda n: images(0, kind="mended", edits=ablated(n, few)),
        "save a few edits": lambda n: page.ask(
            "POST", "/api/save", {"name": f"n{n}-{stamp}", "split": "val", "edits": ablated(0, few)}
        ),
        "list the files": lambda n: page.ask("GET", "/api/edits"),
        "load a few edits": lambda n: page.ask("POST", "/api/load", {"name": f"n{n}-{stamp}"}),
    }
    if multi_label:
        found[LATER] = lambda n: compare([edit("ablate", 7 * n)], resamples=500)
    return found


def processor_seconds(process: int) -> float:
    """CPU seconds that a process has used, if the system reports them (Linux), else NaN."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_megabytes(process: int) -> float | None:
    """The most memory that a process has held, in 10^6 bytes; None if the system does not report it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((round(int(line.split()[1]) * 1024 / 1e6, 1) for line in lines if line.startswith("VmHWM")), None)


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


def on_the_screen(page: Page) -> dict[str, dict[str, float]]:
    """Milliseconds from a click to the change in Chromium."""
    with launched() as browser:
        view = browser.new_page(viewport={"width": 1280, "height": 860})
        start = time.perf_counter()
        view.goto(f"{page.url}#/experts")
        view.wait_for_selector(".experts .row:not(.head)")
        found = {"page until its first rows": {"median_ms": round(1000 * (time.perf_counter() - start), 1)}}
        still(view)
        found |= {name: measured(work, page.process) for name, work in clicks(view, page).items()}
    return found


def still(view: Any) -> None:
    """Wait until no part of the page is busy: what was asked for is drawn."""
    view.locator("[aria-busy=true]").first.wait_for(state="detached")


def clicks(view: Any, page: Page) -> dict[str, Callable[[int], Any]]:
    """Interactions with the page; each returns when what it changes is there."""
    experts = page.run["num_experts"][0]
    sorts = ("gap", "mean", "accuracy", "load")

    view.get_by_text("Sort and filter").click()

    def sort(n: int) -> None:
        view.get_by_label("Sort by").select_option(sorts[n % len(sorts)])
        still(view)

    def scroll(n: int) -> None:
        place = (n + 1) * experts // 10
        view.evaluate(f"document.querySelector('.experts').scrollTop = {44 * place}")
        view.wait_for_selector(f".experts .row[aria-rowindex='{place + 3}']")

    def open_expert(n: int) -> None:
        view.evaluate(f"location.hash = '#/expert/0/{13 * n + 1}'")
        view.get_by_role("heading", name=f"Expert {13 * n + 1}", exact=True).wait_for()
        still(view)

    def ablate(n: int) -> None:
        view.get_by_role("button", name="Ablate it").click()
        still(view)

    def slide(n: int) -> None:
        view.get_by_label("ablate-1: strength", exact=True).fill(str(round(0.1 * n, 1)))
        still(view)

    def undo(n: int) -> None:
        view.get_by_role("button", name="Undo").click()
        still(view)

    return {
        "sort all experts": sort,
        "scroll the list": scroll,
        "open an expert": open_expert,
        "ablate it": ablate,
        "move a slider": slide,
        "undo": undo,
    }


def measure(name: str, keep: Path | None = None) -> dict[str, Any]:
    """The record of one setting."""
    if keep is None:
        with tempfile.TemporaryDirectory() as folder:
            return measure_run(name, SETTINGS[name].make(Path(folder)))
    folder = keep / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "made"
    if not made.is_file():
        made.write_text(str(SETTINGS[name].make(folder)))
    return measure_run(name, Path(made.read_text()))


def measure_run(name: str, run: Path) -> dict[str, Any]:
    """The record of one setting whose run is made."""
    opened = mumoe.load(run, progress=False).editing()
    rows = opened.data.indices("val")
    a = opened.coefficients(rows[:2000], "benchmark")[0]
    starts, cpu = [], []
    for last in (False, False, True):
        with started(run) as (page, seconds):
            starts.append(seconds)
            cpu.append(processor_seconds(page.process))
            if not last:
                continue
            found = {text: measured(work, page.process) for text, work in interactions(page).items()}
            screen = on_the_screen(page)
            peak = peak_megabytes(page.process)
    at_once = [item["median_ms"] for text, item in found.items() if text != LATER]
    return {
        "setting": name,
        "experts": page.run["num_experts"][0],
        "images": len(rows),
        "classes": len(page.run["classes"]),
        "experts_per_image": round(float((a > 0).sum(1).float().mean()), 1),
        "start_seconds": round(statistics.median(starts), 2),
        "start_cpu_seconds": round(statistics.median(cpu), 2),
        "start_seconds_all": [round(seconds, 2) for seconds in starts],
        "most_ms": SETTINGS[name].most_ms,
        "interactions": found,
        "slowest_ms": max(at_once),
        "peak_megabytes": peak,
        "load_average": round(os.getloadavg()[0], 1),
        "in_the_browser": screen,
    }


def main() -> None:
    """Measure every setting and write the record; settings that are not measured now keep their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", nargs="*", choices=[*SETTINGS, []], default=[])
    parser.add_argument("--keep", type=Path, help="folder in which runs are made once")
    asked = parser.parse_args()
    path = measuring.RESULTS / "dashboard.json"
    known = {row["setting"]: row for row in json.loads(path.read_text())["settings"]} if path.is_file() else {}
    for name in asked.setting or SETTINGS:
        row = known[name] = measure(name, asked.keep)
        print(f"{name}: there after {row['start_seconds']} s, slowest {row['slowest_ms']:.0f} ms", flush=True)
        for text, item in {**row["interactions"], **row["in_the_browser"]}.items():
            print(f"  {text}: {item['median_ms']:.0f} ms", flush=True)
        ordered = [known[name] for name in SETTINGS if name in known]
        layer = f"CPMuMoE-r{LARGE.rank}-e{LARGE.experts}, {LARGE.width} features"
        record = {"threads": torch.get_num_threads(), "layer": layer, "settings": ordered}
        measuring.write("dashboard", measuring.Options(False, measuring.RESULTS, ()), {**record, "mode": "full"})


if __name__ == "__main__":
    main()
