"""What is known of a head beyond one seed and one set of images: the files that `stability` and `shift` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mumoe.analysis.shifting import Shift
from mumoe.analysis.stability import FILE, Stability
from mumoe.reports.views import HeadFacts, Missing
from mumoe.training.opening import StoredRun

__all__ = ["read_shifts", "read_stability"]


def read_stability(path: str, runs: Sequence[StoredRun], head: HeadFacts) -> tuple[Stability | None, list[Missing]]:
    """Whether the experts of a head's seeds were matched, or the command that does it.

    Args:
        path: Folder of the job.
        runs: The runs of one head.
        head: The head.

    Raises:
        UserError: If the file is damaged.
    """
    finished = [run for run in runs if run.facts.get("state") == "finished"]
    if len(finished) < 2 or not head.gate:
        return None, []
    file = finished[0].path.parent / FILE
    found = Stability.load(file) if file.is_file() else None
    if found is not None and found.head == head.spec:
        return found, []
    command = f"mumoe stability {path} --spec {head.spec}"
    return None, [Missing("stability", "Whether the experts of one seed reappear in others was not measured.", command)]


def read_shifts(path: str, runs: Sequence[StoredRun]) -> tuple[Shift, ...]:
    """Every shift that was measured of a job, or of one of its runs, and has a run of this head.

    Raises:
        UserError: If a file is damaged.
    """
    folders = list(dict.fromkeys([Path(path), *(run.path for run in runs)]))
    found = [Shift.load(file) for folder in folders for file in sorted(folder.glob("shift-*.json"))]
    heads = {run.config.head for run in runs}
    return tuple(shift for shift in found if heads & {run.head for run in shift.runs})
