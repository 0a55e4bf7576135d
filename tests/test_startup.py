"""What is imported when: a wrong call is answered before torch is imported, a run on cached features without timm."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROBE = """
import json, sys
from mumoe import cli
heavy = {"torch", "timm", "torchvision", "transformers", "accelerate", "matplotlib", "numba", "huggingface_hub"}
found = []
for call in json.loads(sys.argv[1]):
    status = cli.main(call.split())
    found.append([call, status, sorted(heavy & set(sys.modules))])
sys.stdout.write("\\n" + json.dumps(found))
"""


def imported(calls: list[str], cwd: Path) -> list[list[Any]]:
    """Calls that one process makes in turn: the call, its exit status, the large packages imported by then."""
    command = [sys.executable, "-c", PROBE, json.dumps(calls)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd)
    found: list[list[Any]] = json.loads(run.stdout.rpartition("\n")[2])
    return found


WRONG = [
    "cots",
    "cost --in-features 8",
    "train --mode feature",
    "train --data emojy",
    "train --data emoji --data-options splitby=image",
    "train --data folder:nothing-there",
    "train --data csv:nothing-there.csv",
    "train --data features:nothing-there.npy",
    "train --mode text --data tokens:nothing-there",
    "train --out full",
    "train --resume nowhere",
    "evaluate nowhere",
    "evaluate empty",
    "evaluate empty --split tset",
    "predict nowhere image.png",
    "generate nowhere",
    "analyze nowhere",
    "analyze nowhere --modes zerro",
    "report nowhere",
    "dashboard nowhere",
    "fairness nowhere --target a --sensitive b",
    "audit nowhere",
    "audit nowhere --split tset",
    "edit nowhere",
    "export nowhere --to onnx",
    "decompose --kind cp-liner",
    "decompose --text folder:nothing-there",
    "decompose --model nowhere",
    "convert resnet18",
    "tokenize nothing-there --out out",
]


def test_wrong_calls_are_answered_without_torch(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert imported(WRONG, tmp_path) == [[call, 2, []] for call in WRONG]
