"""Files as content that is equal for equal results; what differs between two equal runs is listed and left out."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

__all__ = ["LEFT_OUT", "VOLATILE", "content", "contents", "differences", "steady"]

VOLATILE = frozenset({"seconds", "started", "finished", "made_at", "created", "time", "date", "host", "commit"})
"""Keys of JSON files that may differ between two equal runs: times, and where the code came from."""
SHOWN = re.compile(rb'started [0-9-]+T[0-9:]+Z|<data [^>]*data-at="[^"]*seconds"[^>]*>[^<]*</data>')
"""The same in the pages of a report."""
LEFT_OUT = ("manifest.json", ".lock", ".mumoe-lock", "events.out", ".holder")
"""Files that may differ between two equal runs, by how their names begin: digests of files with times in them, locks,
and TensorBoard's curves, which hold times."""


CHECKS = "checks"
"""Folder of a cache whose files hold when each image was changed."""


def steady(value: Any) -> Any:
    """JSON without what differs between equal runs."""
    if isinstance(value, dict):
        return {key: steady(inner) for key, inner in value.items() if key not in VOLATILE}
    return [steady(inner) for inner in value] if isinstance(value, list) else value


def content(path: Path) -> str:
    """A digest of a file, without times."""
    data = path.read_bytes()
    if path.suffix == ".json" and not path.name.startswith(".mumoe-"):  # a file that was being written may be cut
        data = json.dumps(steady(json.loads(data))).encode()
    elif path.suffix == ".html":
        data = SHOWN.sub(b"TIME", data)
    return hashlib.sha256(data).hexdigest()


def contents(folder: Path, *patterns: str) -> dict[str, str]:
    """Digests of the files below a folder that match, by relative name."""
    found = {path for pattern in patterns or ("**/*",) for path in folder.glob(pattern) if path.is_file()}
    names = sorted(path for path in found if not path.name.startswith(LEFT_OUT) and path.parent.name != CHECKS)
    return {path.relative_to(folder).as_posix(): content(path) for path in names}


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of the files that differ, or that only one has."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
