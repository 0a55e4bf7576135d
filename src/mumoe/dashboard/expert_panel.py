"""Experts as lists and one by one: load, what they lose, whom they treat, and the images behind the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.dashboard import WHO
from mumoe.dashboard.scoring import attribute_groups
from mumoe.dashboard.session import Session, Split
from mumoe.dashboard.whatif import Level
from mumoe.errors import UserError, unknown_name
from mumoe.files import to_plain
from mumoe.reports.views import LevelView

__all__ = ["THRESHOLD", "Filter", "expert_columns", "expert_detail", "expert_images"]

THRESHOLD = 0.5
"""Coefficient from which an image counts as processed by an expert, as in `mumoe analyze`."""


@dataclass(frozen=True)
class Filter:
    """Which images count.

    Attributes:
        label: Name of a class (of a 0/1 attribute: those that have it); empty for all.
        attribute, value: A subgroup attribute and one of its values; empty for all.
    """

    label: str = ""
    attribute: str = ""
    value: str = ""

    def mask(self, session: Session, split: Split) -> npt.NDArray[np.bool_]:
        """(rows,) whether an image counts.

        Raises:
            UserError: If a class, attribute or value does not exist.
        """
        data, mask = session.run.data, np.ones(len(split.images), dtype=np.bool_)
        if self.label:
            if self.label not in data.classes:
                raise unknown_name(WHO, "class", self.label, data.classes)
            position, labels = data.classes.index(self.label), split.scores.truth
            mask &= labels[:, position] == 1 if data.multi_label else labels == position
        if self.attribute:
            codes, values = attribute_groups(data, self.attribute)
            if self.value not in values:
                raise unknown_name(WHO, f"value of {self.attribute}", self.value, values)
            mask &= codes[split.images] == values.index(self.value)
        return mask


def level_of(session: Session, split: Split, level: int) -> Level:
    """Coefficients of a level.

    Raises:
        UserError: If there is no such level.
    """
    if not 0 <= level < len(split.levels):
        raise UserError(f"{WHO}: expected a level in 0..{len(split.levels) - 1}, got {level}. Count from 0.")
    return split.levels[level]


def expert_columns(session: Session, split: Split, level: int, chosen: Filter, gap: str = "") -> dict[str, Any]:
    """All experts of a level, column by column.

    Args:
        session: The session.
        split: The split.
        level: The level.
        chosen: Images that count for load, mean coefficient and accuracy.
        gap: Attribute for the gap: the largest minus the smallest mean coefficient over its values.
    """
    part, mask = level_of(session, split, level), chosen.mask(session, split)
    experts, row, value = _pairs(part)
    inside = mask[row]
    experts_in, row_in, value_in = experts[inside], row[inside], value[inside]
    processed = value_in >= THRESHOLD
    right = split.scores.right if split.scores.right.ndim == 1 else split.scores.right.mean(1)

    def summed(weights: npt.NDArray[Any] | None, where: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return np.bincount(where, weights=weights, minlength=part.num_experts)

    load = summed(None, experts_in[processed])
    hits = summed(right[row_in[processed]].astype(np.float64), experts_in[processed])
    columns: dict[str, Any] = {
        "rows": int(mask.sum()),
        "load": load,
        "touched": summed(None, experts_in),
        "mean": summed(value_in, experts_in) / max(int(mask.sum()), 1),
        "accuracy": np.divide(hits, load, out=np.full(len(load), np.nan), where=load > 0),
    }
    if gap:
        columns |= _gap(session, split, gap, (experts, row, value), part.num_experts)
    plain = {name: _plain(value) if isinstance(value, np.ndarray) else value for name, value in columns.items()}
    return plain | _measured(session, level, part.num_experts)


def _plain(values: npt.NDArray[Any]) -> list[Any]:
    """Numbers for JSON; one that is not there is None."""
    if values.dtype.kind != "f":
        return list(values.tolist())
    return [None if value != value else value for value in values.tolist()]


def _pairs(part: Level) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Expert, row and coefficient of every pair."""
    counts = part.offsets.diff().numpy()
    return part.experts.numpy(), np.repeat(np.arange(len(counts)), counts), part.values.numpy()


def _gap(session: Session, split: Split, name: str, pairs: tuple[Any, Any, Any], count: int) -> dict[str, Any]:
    """How differently the gate treats the values of an attribute."""
    codes, values = attribute_groups(session.run.data, name)
    mine = codes[split.images]
    sizes = np.bincount(mine[mine >= 0], minlength=len(values))
    experts, row, value = pairs
    group = mine[row]
    known = group >= 0
    sums = np.bincount(experts[known] * len(values) + group[known], weights=value[known], minlength=count * len(values))
    means = sums.reshape(count, len(values))[:, sizes > 0] / sizes[sizes > 0]
    if means.shape[1] < 2:
        return {"gap": np.zeros(count), "gap_most": np.zeros(count, dtype=np.int64), "gap_values": list(values)}
    present = np.flatnonzero(sizes > 0)
    return {"gap": means.max(1) - means.min(1), "gap_most": present[means.argmax(1)], "gap_values": list(values)}


def _measured(session: Session, level: int, count: int) -> dict[str, Any]:
    """Polysemanticity and the class lost most, from `mumoe analyze`."""
    levels = session.analyzed.levels
    if level >= len(levels) or len(levels[level].experts) != count:
        return {}
    views = levels[level].experts
    return {
        "polysemanticity": [view.polysemanticity for view in views],
        "strong": [view.strong for view in views],
        "images": [view.images if view.strong else None for view in views],
        "control_polysemanticity": [view.control.polysemanticity if view.control else None for view in views],
        "control_strong": [view.control is not None and view.control.strong for view in views],
        "summary": _summary(levels[level]),
        "lost": [view.losses[0].position if view.losses and view.losses[0].loss > 0 else -1 for view in views],
        "loss": [view.losses[0].loss if view.losses and view.losses[0].loss > 0 else None for view in views],
    }


def _summary(level: LevelView) -> dict[str, Any]:
    """A level's specialization beside its control, and what to try where there is none."""
    parts = {"experts": level.modes["zero"], "control": level.control}
    names = ("mean_polysemanticity", "strong", "strong_images", "least_lost")
    return {"hint": level.hint, **{key: {name: getattr(part, name) for name in names} for key, part in parts.items()}}


def expert_detail(session: Session, split: Split, level: int, expert: int) -> dict[str, Any]:
    """One expert: use, whom it treats, and what its classes lose without it."""
    part = level_of(session, split, level)
    _require_expert(part, expert)
    rows, value = part.of_expert(expert)
    found: dict[str, Any] = {
        "level": level,
        "expert": expert,
        "rows": len(split.images),
        "touched": len(rows),
        "load": int((value >= THRESHOLD).sum()),
        "mean": float(value.sum() / max(len(split.images), 1)),
        "classes": _treated(session, split, rows, value),
        "analysis": None,
    }
    levels = session.analyzed.levels
    if level < len(levels) and expert < len(levels[level].experts):
        found["analysis"] = to_plain(levels[level].experts[expert])
        found["analysis_split"] = session.analyzed.split
    return found


def _treated(session: Session, split: Split, rows: Any, value: Any) -> list[dict[str, Any]]:
    """Classes by the share of the expert's coefficients that goes to their images, the largest first."""
    truth, classes = split.scores.truth[rows], session.run.data.classes
    if session.run.data.multi_label:
        mass = (truth * value[:, None]).sum(0)
    else:
        mass = np.bincount(truth, weights=value, minlength=len(classes))
    total = float(value.sum())
    order = np.argsort(-mass, kind="stable")[:8]
    return [{"name": classes[c], "share": float(mass[c]) / total} for c in order.tolist() if total and mass[c] > 0]


def expert_images(session: Session, split: Split, level: int, expert: int) -> tuple[Any, Any]:
    """Rows that an expert treats and its coefficients, largest first."""
    part = level_of(session, split, level)
    _require_expert(part, expert)
    rows, value = part.of_expert(expert)
    order = np.lexsort((rows, -value))
    return rows[order], value[order]


def _require_expert(part: Level, expert: int) -> None:
    if not 0 <= expert < part.num_experts:
        raise UserError(f"{WHO}: expected an expert in 0..{part.num_experts - 1}, got {expert}. Count from 0.")
