"""One opened run: its head, features and labels, and for each opened split the cached coefficients.

Coefficients come from ``RUN/analysis`` if that split was analyzed; otherwise they are computed once and kept in
``RUN/dashboard``. Both are checked against the gate on some rows, so that files of an earlier training are not
used.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe.analysis.coefficient_store import CoefficientLevel, CoefficientStore
from mumoe.analysis.layer_study import write_coefficients
from mumoe.baselines import SparseMoE
from mumoe.dashboard import WHO
from mumoe.dashboard.background import Report
from mumoe.dashboard.scoring import Groups, Scores
from mumoe.dashboard.whatif import Level, Rows, begun, open_rows
from mumoe.data.base import SPLITS
from mumoe.editing.auditing import RunAudit
from mumoe.editing.runs import EditingRun, editing_run
from mumoe.errors import UserError, unknown_name
from mumoe.files import recovered
from mumoe.layers import MuMoE
from mumoe.reports.expert_views import Analyzed, read_experts
from mumoe.training.opening import StoredRun

__all__ = ["Session", "Split", "open_session", "silent"]

CHECKED = 64
"""Rows whose stored coefficients are compared with the gate's."""

BATCH = 500
"""Rows at a time while coefficients are computed; that of `mumoe analyze`."""


def silent(done: int, total: int, note: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Split:
    """One split, ready to be viewed.

    Attributes:
        name: train, val or test.
        images: (rows,) positions in the data.
        levels: Coefficients.
        rows: What edits are computed from; None if the layer does not compute the logits.
        scores: Right answers without edits.
    """

    name: str
    images: npt.NDArray[np.int64]
    levels: tuple[Level, ...]
    rows: Rows | None
    scores: Scores

    def require_rows(self) -> Rows:
        """What edits are computed from.

        Raises:
            UserError: If the head's experts do not compute the logits.
        """
        if self.rows is None:
            raise UserError(
                f"{WHO}: expected experts that make the logits, got a head whose logits are no sum over experts. "
                "Train one with the head CPMuMoE-r256-e128 in position final to edit it."
            )
        return self.rows


@dataclass
class Session:
    """A run as one person views it.

    Attributes:
        stored: The run on disk.
        run: Its head, data and features.
        analyzed: What `mumoe analyze` measured of its experts.
        splits: Splits that were opened.
        lock: Held by whoever opens a split or computes.
        auditing: Held by whoever makes an audit, which may take a minute and changes nothing else.
        means: Factors of rewritings by their short name, so that pages need not carry them.
        audits: Audits by split and target, once they were requested.
        groups: Subgroups by split, head and sensitive attribute, once they were viewed.
        uploads: What the layer sees of the last uploaded pictures, by number.
        seen: By split and level, the classes that each expert handles most (`expert_panel.seen_classes`).
    """

    stored: StoredRun
    run: EditingRun
    analyzed: Analyzed
    splits: dict[str, Split] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    auditing: threading.Lock = field(default_factory=threading.Lock)
    means: dict[str, Any] = field(default_factory=dict)
    audits: dict[tuple[str, str], RunAudit] = field(default_factory=dict)
    groups: dict[tuple[str, str, str], Groups] = field(default_factory=dict)
    uploads: dict[int, Tensor] = field(default_factory=dict)
    seen: dict[tuple[str, int], Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run.path

    @property
    def num_experts(self) -> tuple[int, ...]:
        """Experts of each level."""
        layer: Any = self.run.head.layer
        return tuple(layer.num_experts)

    def available(self) -> dict[str, int]:
        """Images of each split that has any."""
        counts = {name: len(self.run.data.indices(name)) for name in SPLITS}  # type: ignore[arg-type]
        return {name: count for name, count in counts.items() if count}

    def default_split(self) -> str:
        """Validation if it has images: edits are chosen there, and test images are reserved for the report."""
        found = self.available()
        return next((name for name in ("val", "test") if name in found), next(iter(found)))

    def split(self, name: str, report: Report = silent) -> Split:
        """A split, opened on its first request.

        Raises:
            UserError: If there is no such split, or it has no images.
        """
        if name not in self.available():
            raise unknown_name(WHO, "split with images", name, self.available())
        with self.lock:
            if name not in self.splits:
                self.splits[name] = _open_split(self, name, report)
            return self.splits[name]


def open_session(stored: StoredRun, report: Report = silent, *, split: str = "") -> Session:
    """Open a run for the dashboard, with one split ready. Features are extracted on the run's device; the head, which
    answers each click on a few rows, runs on the CPU.

    Args:
        stored: The run.
        report: Called with the steps done, the steps in all, and what is being done.
        split: Split to open first; by default `Session.default_split`.

    Raises:
        UserError: If the run has no experts, or has changed.
        JobError: If it has no intact checkpoint.
    """
    report(0, 3, "Reading the run")
    analyzed = begun(lambda: read_experts(stored, most_images=0))
    run = stored if isinstance(stored, EditingRun) else editing_run(stored)
    run.head.cpu()
    if not isinstance(run.head.layer, MuMoE | SparseMoE):
        raise UserError(
            f"{WHO}: expected a run with experts, got a {type(run.head.layer).__name__} head in {run.path}. "
            "Train one with the head CPMuMoE-r256-e128."
        )
    session = Session(stored, run, Analyzed())
    session.split(split or session.default_split(), lambda done, total, note: report(2 * total + done, 3 * total, note))
    session.analyzed = analyzed.result()
    report(3, 3, "Ready")
    return session


def _open_split(session: Session, name: str, report: Report) -> Split:
    run = session.run
    images = run.data.indices(name)  # type: ignore[arg-type]
    stored = _stored(session, name, images) or _computed(session, name, images, report)
    report(len(images), len(images), f"Computing the logits of {len(images):,} {name} images")
    if run.layer is not None:
        rows = open_rows(run, images, stored)
        return Split(name, images, rows.levels, rows, Scores.of(rows))
    truth = run.data.labels[images].astype(np.int64)
    return Split(
        name, images, tuple(map(Level.of, stored)), None, Scores(run.data, truth, run.answers(images).astype(np.int64))
    )


def _stored(session: Session, name: str, images: npt.NDArray[np.int64]) -> list[CoefficientLevel] | None:
    """Coefficients that are on disk already, if they belong to this model."""
    for folder in (session.folder / "analysis" / "coefficients", _cache(session, name)):
        if not (recovered(folder) / "index.json").is_file():
            continue
        try:
            store = CoefficientStore(folder)
            levels = [store.level(level=level) for level in range(len(session.num_experts))]
        except UserError:
            continue
        if store.images is not None and np.array_equal(store.images, images) and _agree(session, levels, images):
            return levels
    return None


def _agree(session: Session, levels: Sequence[CoefficientLevel], images: npt.NDArray[np.int64]) -> bool:
    if tuple(level.num_experts for level in levels) != session.num_experts:
        return False
    rows = np.unique(np.linspace(0, len(images) - 1, CHECKED).round().astype(np.int64))
    layer: Any = session.run.head.layer
    with torch.no_grad():
        now = layer.coefficients(session.run.inputs(images[rows]))
    for level, expected in zip(levels, now, strict=True):
        kept = np.concatenate([level.dense(row, row + 1) for row in rows.tolist()])
        if not np.allclose(kept, expected.numpy(), atol=1e-4):
            return False
    return True


def _computed(session: Session, name: str, images: npt.NDArray[np.int64], report: Report) -> list[CoefficientLevel]:
    """Coefficients computed now and kept for the next time."""
    layer: Any = session.run.head.layer

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(images), BATCH):
            report(start, len(images), f"Computing coefficients of {len(images):,} {name} images")
            yield session.run.inputs(images[start : start + BATCH]), torch.zeros(0)

    store = write_coefficients(layer, batches, _cache(session, name), images=images)
    return [store.level(level=level) for level in range(len(session.num_experts))]


def _cache(session: Session, name: str) -> Path:
    return session.folder / "dashboard" / f"coefficients-{name}"
