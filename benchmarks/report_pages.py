"""How quickly the report of 2,048 experts x 20 images opens and scrolls, in headless Chromium.

    python -m benchmarks.report_pages [EXPERTS]        (2048 by default)

The results are made up (no training), the report is the real one. Each page is opened from disk in a new profile,
several times; seconds are from the call to the `load` event with the first screenful painted. Scrolling goes through
the whole page by 120 pixels per animation frame (7,200 a second: a fling); a frame that takes longer than 50 ms is
noticeable. Chromium draws without a graphics card here. How busy the machine was is recorded beside it. Writes
results/report_pages.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from browsing import launched  # noqa: E402
from mumoe.api import load_runs, write_report  # noqa: E402
from reports.made_up_results import made_up_data, write_run  # noqa: E402

IMAGES, REPEATS = 20, 5
PAGES = ("index.html", "experts.html", "images.html", "experts/0-1000.html")
RESULT = Path(__file__).parent / "results" / "report_pages.json"

SCROLL = """async () => {
  const frames = [], step = 120;
  let last = performance.now();
  for (let y = 0; y < document.documentElement.scrollHeight; y += step) {
    scrollTo(0, y);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    frames.push(now - last);
    last = now;
  }
  return frames;
}"""


def make_report(folder: Path, experts: int) -> tuple[Path, float]:
    """The report of made-up results, and the seconds it took to write."""
    data = made_up_data((IMAGES + 1) * experts, [f"class {c}" for c in range(200)])
    write_run(folder / "run", data, experts=experts)
    start = time.perf_counter()
    runs = load_runs(folder / "run", data=data, progress=False)
    written = write_report({folder / "run": runs}, folder / "report", max_images=IMAGES)
    return Path(written.page).parent, time.perf_counter() - start


def open_page(browser: Any, url: str) -> tuple[float, list[float], int]:
    """Seconds to open, milliseconds of each frame while scrolling, elements of the page."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    start = time.perf_counter()
    page.goto(url, wait_until="load")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    seconds = time.perf_counter() - start
    frames = page.evaluate(SCROLL)
    count = page.evaluate("document.getElementsByTagName('*').length")
    context.close()
    return seconds, frames, count


def measure(folder: Path, experts: int) -> dict[str, Any]:
    """Every page, and sorting and filtering the table of all experts."""
    rows = {}
    with launched() as browser:
        for name in PAGES:
            file = folder / name if (folder / name).exists() else folder / "experts/0-0.html"
            runs = [open_page(browser, file.as_uri()) for _ in range(REPEATS)]
            frames = sorted(frame for run in runs for frame in run[1])
            rows[name] = {
                "kilobytes": round(file.stat().st_size / 1000),
                "elements": runs[0][2],
                "open_seconds_median": round(statistics.median(run[0] for run in runs), 3),
                "open_seconds_most": round(max(run[0] for run in runs), 3),
                "frames": len(frames),
                "frame_ms_median": round(statistics.median(frames), 1),
                "frame_ms_99": round(frames[int(0.99 * (len(frames) - 1))], 1),
                "frames_over_50_ms": sum(frame > 50 for frame in frames),
            }
        rows["experts.html"] |= _table(browser, (folder / "experts.html").as_uri())
    return rows


def _table(browser: Any, url: str) -> dict[str, float]:
    """Milliseconds until the table is sorted, or filtered, and laid out."""
    timed = """async (act) => {
      const search = document.getElementById('find'), start = performance.now();
      act === 'sort' ? document.querySelectorAll('#experts th button')[3].click()
        : (search.value = 'class 17', search.dispatchEvent(new Event('input', { bubbles: true })));
      document.body.offsetHeight;
      return performance.now() - start;
    }"""
    page = browser.new_page()
    page.goto(url)
    found = {act: round(page.evaluate(timed, act), 1) for act in ("sort", "filter")}
    page.close()
    return {"sort_ms": found["sort"], "filter_ms": found["filter"]}


def main() -> None:
    """Measure and write the record."""
    experts = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    with tempfile.TemporaryDirectory() as scratch:
        folder, seconds = make_report(Path(scratch), experts)
        files = [path for path in folder.rglob("*") if path.is_file()]
        record = {
            "command": "python -m benchmarks.report_pages",
            "experts": experts,
            "images_per_expert": IMAGES,
            "write_seconds": round(seconds, 1),
            "files": len(files),
            "megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 1),
            "load_average": round(os.getloadavg()[0], 1),
            "processors": os.cpu_count(),
            "pages": measure(folder, experts),
        }
    for name, row in record["pages"].items():
        print(f"{name}: opens in {row['open_seconds_median']} s (at most {row['open_seconds_most']}), ", end="")
        print(f"{row['frames_over_50_ms']} of {row['frames']} frames over 50 ms", flush=True)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
