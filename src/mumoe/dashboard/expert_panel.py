"""Experts as lists and one by one: load, what they lose, which images they process, and what they add to logits."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mumoe.analysis.chosen_images import image_label, largest_products
from mumoe.analysis.expert_notes import ExpertNotes, suggest_name
from mumoe.analysis.findings import UnitStudy
from mumoe.analysis.highlights import choose_highlights, interest_order
from mumoe.baselines import SparseMoE
from mumoe.dashboard import WHO
from mumoe.dashboard.edit_panel import outcome
from mumoe.dashboard.scoring import attribute_groups
from mumoe.dashboard.session import Session, Split
from mumoe.dashboard.whatif import Level
from mumoe.errors import UserError, unknown_name
from mumoe.files import to_plain
from mumoe.local_paths import public_name
from mumoe.plots.expert_card import SIDE, TILES, CardTile
from mumoe.plots.expert_card import expert_card as drawn_card
from mumoe.plots.sheets import encoded, thumbnail
from mumoe.reports.views import LevelView

__all__ = [
    "THRESHOLD",
    "Filter",
    "combinations",
    "expert_card",
    "expert_columns",
    "expert_detail",
    "expert_images",
    "first_experts",
]

THRESHOLD = 0.5
"""Coefficient from which an image counts as processed by an expert, as in `mumoe analyze`."""

BINS = 20
"""Bins of the histogram of coefficients, equal parts of [0, 1]."""

SEEN, LOST = 3, 5
"""Classes of each expert in the list: those it handles most, and those that lose most without it."""

PICTURES = 5
"""Images of each combination of experts in the list."""

MOVED = 5
"""Classes shown whose logits rise, and whose logits fall, most without an expert."""


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
    right = (split.scores.right if split.scores.right.ndim == 1 else split.scores.right.mean(1)).astype(np.float64)
    load, touched = np.zeros((2, part.num_experts), dtype=np.int64)
    hits, mass = np.zeros((2, part.num_experts))
    for experts, row, value in part.blocks():
        inside = mask[row]
        processed = inside & (value >= THRESHOLD)
        touched += np.bincount(experts[inside], minlength=part.num_experts)
        mass += np.bincount(experts[inside], value[inside], part.num_experts)
        load += np.bincount(experts[processed], minlength=part.num_experts)
        hits += np.bincount(experts[processed], right[row[processed]], part.num_experts)
    columns: dict[str, Any] = {
        "rows": int(mask.sum()),
        "load": load,
        "touched": touched,
        "mean": mass / max(int(mask.sum()), 1),
        "accuracy": np.divide(hits, load, out=np.full(len(load), np.nan), where=load > 0),
    }
    if gap:
        columns |= _gap(session, split, gap, part)
    plain = {name: _plain(value) if isinstance(value, np.ndarray) else value for name, value in columns.items()}
    shown = {"picture": _images_of(split, part.peaks), "seen": seen_classes(session, split, level).tolist()}
    return plain | shown | _measured(session, level, part.num_experts)


def _images_of(split: Split, rows: npt.NDArray[np.int64]) -> list[int]:
    """Positions in the data; -1 stays -1."""
    return [int(split.images[row]) if row >= 0 else -1 for row in rows.tolist()]


def seen_classes(session: Session, split: Split, level: int) -> npt.NDArray[np.int64]:
    """(experts, up to `SEEN`) the classes whose images get most of each expert's coefficients; -1 for none."""
    if (split.name, level) not in session.seen:
        classes = len(session.run.data.classes)
        masses = torch.from_numpy(_masses(level_of(session, split, level), split.scores.truth, classes))
        mass, order = masses.topk(min(SEEN, classes))
        session.seen[split.name, level] = order.masked_fill(mass <= 0, -1).numpy()
    found: npt.NDArray[np.int64] = session.seen[split.name, level]
    return found


def _masses(part: Level, truth: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float64]:
    """(experts, classes) coefficients of each expert summed over the images of each class, in steps per pair."""
    masses = np.zeros((part.num_experts, classes))
    for experts, row, value in part.blocks():
        if truth.ndim == 1:
            cells = np.bincount(experts * classes + truth[row], value, masses.size)
            masses += cells.reshape(masses.shape)
        else:
            columns = [np.bincount(experts, value * truth[row, c], part.num_experts) for c in range(classes)]
            masses += np.stack(columns, axis=1)
    return masses


def _plain(values: npt.NDArray[Any]) -> list[Any]:
    """Numbers for JSON; None for a missing one."""
    if values.dtype.kind != "f":
        return list(values.tolist())
    return [None if value != value else value for value in values.tolist()]


def _gap(session: Session, split: Split, name: str, part: Level) -> dict[str, Any]:
    """How much the gate distinguishes the values of an attribute."""
    codes, values = attribute_groups(session.run.data, name)
    mine, count = codes[split.images], part.num_experts
    sizes = np.bincount(mine[mine >= 0], minlength=len(values))
    sums = np.zeros(count * len(values))
    for experts, row, value in part.blocks():
        group = mine[row]
        known = group >= 0
        sums += np.bincount(experts[known] * len(values) + group[known], value[known], len(sums))
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
        "rank": _ranks(interest_order(levels[level].modes["zero"])),
        "losing": [[item.position for item in view.losses[:LOST] if item.loss > 0] for view in views],
        "lost": [view.losses[0].position if view.losses and view.losses[0].loss > 0 else -1 for view in views],
        "loss": [view.losses[0].loss if view.losses and view.losses[0].loss > 0 else None for view in views],
    }


def _ranks(order: list[int]) -> list[int]:
    """Place of each expert in an order."""
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return list(ranks.tolist())


def first_experts(session: Session) -> dict[str, Any]:
    """Experts of the first level to open: the purest strong ones, and one of median polysemanticity; empty lists and
    None if nothing was measured."""
    if not session.analyzed.levels:
        return {"purest": [], "typical": None, "first": None}
    level = session.analyzed.levels[0]
    units = UnitStudy(level.name, dict(level.modes), level.control, ())
    found, order = choose_highlights(units), interest_order(units.modes["zero"])
    return {"purest": list(found.purest), "typical": found.typical, "first": order[0] if order else None}


def combinations(session: Session, split: Split) -> dict[str, Any]:
    """The combinations of a hierarchy that the analysis lists, with their images in this split.

    Raises:
        UserError: If the combinations were not measured.
    """
    found = session.analyzed.occurrence
    if found is None:
        raise UserError(f"{WHO}: expected an analysis with combinations of experts, got none. Run: mumoe analyze.")
    zero = found.modes["zero"]
    listed = []
    for view in found.shown:
        columns = [level.of_expert(n) for level, n in zip(split.levels, view.experts, strict=True)]
        rows, value = largest_products(columns, PICTURES)
        listed.append(
            {
                **{name: getattr(view, name) for name in ("experts", "load", "polysemanticity", "strong", "images")},
                "control": view.control,
                "worst": view.worst,
                "pictures": _images_of(split, rows),
                "products": _plain(value),
            }
        )
    plain: dict[str, Any] = to_plain(
        {
            **{name: getattr(found, name) for name in ("total", "occurring", "least", "median", "most")},
            "with_effect": zero.with_effect,
            "strong": zero.strong,
            "control_strong": found.control.strong,
            "control_with_effect": found.control.with_effect,
            "shown": listed,
        }
    )
    return plain


def _summary(level: LevelView) -> dict[str, Any]:
    """A level's specialization beside its control, and a hint if there is none."""
    parts = {"experts": level.modes["zero"], "control": level.control}
    names = ("mean_polysemanticity", "strong", "strong_images", "least_lost")
    return {"hint": level.hint, **{key: {name: getattr(part, name) for name in names} for key, part in parts.items()}}


def expert_detail(session: Session, split: Split, level: int, expert: int) -> dict[str, Any]:
    """One expert: its use, the images it processes, and what its classes lose without it."""
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
        "histogram": _histogram(value),
        "logits": _logits(session, split, level, expert),
        "analysis": None,
    }
    levels = session.analyzed.levels
    if level < len(levels) and expert < len(levels[level].experts):
        found["analysis"] = to_plain(levels[level].experts[expert])
        found["analysis_split"] = session.analyzed.split
    return found | {"suggestion": _suggestion(found)}


def _suggestion(found: dict[str, Any]) -> str:
    """A name from the classes lost and seen."""
    lost = found["analysis"]["losses"] if found["analysis"] else []
    return suggest_name(
        [(item["name"], item["loss"]) for item in lost], [(item["name"], item["share"]) for item in found["classes"]]
    )


def _histogram(values: npt.NDArray[np.float32]) -> list[int]:
    """Images in each bin of the expert's coefficients; those with a coefficient of 0 are left out."""
    place = np.minimum((values.astype(np.float64) * BINS).astype(np.int64), BINS - 1)
    return list(np.bincount(place, minlength=BINS).tolist())


def _logits(session: Session, split: Split, level: int, expert: int) -> dict[str, Any]:
    """Mean change of every class's logit without the expert, over the images to which it contributes.

    As `mumoe.analysis.study.ExpertFacts.logits`: ``falls`` and ``rises`` hold the largest changes, the largest first.
    """
    change = logit_changes(session, split, level, expert)
    order, classes = np.argsort(change, kind="stable").tolist(), session.run.data.classes
    falls = [c for c in order if change[c] < 0][:MOVED]
    rises = [c for c in reversed(order) if change[c] > 0][:MOVED]
    named = {
        name: [{"name": classes[c], "change": float(change[c])} for c in part]
        for name, part in (("falls", falls), ("rises", rises))
    }
    return {**named, "classes": len(classes)}


def logit_changes(session: Session, split: Split, level: int, expert: int) -> npt.NDArray[np.float64]:
    """(classes,) mean change of the logits without an expert; zeros for one that contributes to no image."""
    rows, _ = level_of(session, split, level).of_expert(expert)
    if not len(rows):
        return np.zeros(len(session.run.data.classes))
    if split.rows is not None:
        entry = {"name": "without", "kind": "ablate", "expert": expert, "level": level, "strength": 1}
        changed = outcome(session, split, [entry])
        found: npt.NDArray[np.float64] = (changed.logits - split.rows.logits[changed.rows]).double().sum(
            0
        ).numpy() / len(rows)
        return found
    run = session.run
    layer: Any = run.head.layer
    where: dict[str, Any] = {} if isinstance(layer, SparseMoE) else {"level": level}
    before = run.outputs(split.images[rows])
    with layer.ablate([expert], **where):
        after = run.outputs(split.images[rows])
    return (after - before).astype(np.float64).mean(0)


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
    """Rows that an expert processes and its coefficients, largest first."""
    part = level_of(session, split, level)
    _require_expert(part, expert)
    rows, value = part.of_expert(expert)
    order = np.lexsort((rows, -value))
    return rows[order], value[order]


def _require_expert(part: Level, expert: int) -> None:
    if not 0 <= expert < part.num_experts:
        raise UserError(f"{WHO}: expected an expert in 0..{part.num_experts - 1}, got {expert}. Count from 0.")


def expert_card(session: Session, split: Split, level: int, expert: int) -> bytes:
    """One expert as a PNG to share: name, images, measurements beside their control, classes lost.

    Raises:
        UserError: If there is no such expert, or the names in the run's folder are damaged.
    """
    detail, entry = expert_detail(session, split, level, expert), ExpertNotes.of_run(session.folder).of(expert, level)
    number = f"Expert {expert}" if len(session.num_experts) == 1 else f"Expert {expert} of level {level}"
    facts, data = session.stored.facts, session.run.data
    what = f"{public_name(data.name)}, {split.name} images"
    about = f"{number} of {facts.get('head', '')} on {what} with the largest coefficients."
    lost = detail["analysis"]["losses"] if detail["analysis"] else []
    sheet = drawn_card(
        entry.name or number,
        [about, *_measured_lines(detail), entry.note],
        _card_tiles(session, split, level, expert),
        [(item["name"], item["loss"]) for item in lost],
        data.credits,
    )
    return encoded(sheet.image, "PNG")


def _measured_lines(detail: dict[str, Any]) -> list[str]:
    """What was measured of an expert, beside its control."""
    view = detail["analysis"]
    if view is None:
        return ["What its ablation changes was not measured."]
    if view["polysemanticity"] is None:
        return [f"Its ablation changes no class on {detail['analysis_split']} images."]
    control = view["control"]
    other = "changes no class"
    if control is not None:
        other = f"{control['polysemanticity']:.2f}, {'strong' if control['strong'] else 'not strong'}"
    strong = f"strong by {view['images']:,} images" if view["strong"] else "not strong"
    return [
        f"On {detail['analysis_split']} images: polysemanticity {view['polysemanticity']:.2f} (0: one class alone), "
        f"{strong}. Control, as many random contributions: {other}."
    ]


def _card_tiles(session: Session, split: Split, level: int, expert: int) -> list[CardTile]:
    """Its images with the largest coefficients; those that cannot be opened are left out."""
    data = session.run.data
    if data.open_image is None:
        return []
    tiles = []
    rows, values = expert_images(session, split, level, expert)
    for row, value in zip(rows[:TILES].tolist(), values.tolist(), strict=False):
        image = int(split.images[row])
        with contextlib.suppress(OSError, ValueError):
            tiles.append(CardTile(thumbnail(data.open_image(image), SIDE), image_label(data, image), value))
    return tiles
