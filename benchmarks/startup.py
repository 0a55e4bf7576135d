"""How long a wrong call and a small verb take, from the shell's point of view.

    python -m benchmarks.startup [--full]

Each call is a process of its own, run in turn with the others; ``import torch`` alone is the floor of every verb that
computes. Beside the seconds stands which of the large packages a call imported, which does not depend on how busy the
machine is.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measuring

LARGE = (
    "torch",
    "timm",
    "torchvision",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "numba",
    "scipy",
    "matplotlib",
)
CALL = f"""
import json, sys
from mumoe import cli
status = cli.main(sys.argv[1:])
sys.stderr.write("\\n" + json.dumps([status, [name for name in {LARGE!r} if name in sys.modules]]))
"""
TRAIN = "train --data emoji --data-options split_by=image size=96 --image-size 96 --epochs 1 --quiet"


def calls(run: Path) -> dict[str, list[str]]:
    """Name -> arguments of mumoe."""
    return {
        "help": ["--help"],
        "wrong option": ["evaluate", str(run), "--splitt", "val"],
        "wrong value": ["evaluate", str(run), "--split", "tset"],
        "no such run": ["evaluate", str(run) + "-not-there"],
        "no such data": ["train", "--data", "emojy"],
        "evaluate": ["evaluate", str(run), "--quiet"],
    }


def once(code: str, arguments: list[str]) -> tuple[float, str]:
    """Seconds of one process, and the last line that it wrote to stderr."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stderr.rpartition("\n")[2]


def measure(run: Path, rounds: int) -> dict[str, Any]:
    """Seconds of every call and of importing torch alone, in turn."""
    named = calls(run)
    seconds: dict[str, list[float]] = {name: [] for name in [*named, "import torch"]}
    facts: dict[str, Any] = {}
    for number in range(rounds + 1):  # the first round fills the caches of the disk
        for name in seconds:
            code, arguments = (CALL, named[name]) if name in named else ("import torch", [])
            taken, said = once(code, arguments)
            if number:
                seconds[name].append(taken)
            if name in named:
                facts[name] = dict(zip(("status", "imports"), json.loads(said), strict=True))
    floor = statistics.median(seconds["import torch"])
    rows = []
    for name, values in seconds.items():
        middle = statistics.median(values)
        rows.append({"call": name, "median": middle, "least": min(values), "over_import_torch": middle / floor})
        rows[-1] |= facts.get(name, {})
    return {"calls": rows, "rounds": rounds, "load_before": os.getloadavg()[0]}


def main() -> None:
    """Train a small run on cached features, then measure."""
    asked = measuring.options(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "mumoe.cli", *TRAIN.split(), "--spec", "CPMuMoE-r16-e16", "--out", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        record = measure(run, 15 if asked.full else 3)
    for row in record["calls"]:
        print(f"{row['call']:<14} {row['median']:6.2f} s  {' '.join(row.get('imports', ()))}")
    measuring.write("startup", asked, record)


if __name__ == "__main__":
    main()
