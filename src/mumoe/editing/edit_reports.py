"""What edits change, as records: subgroups before and after beside a blind shift, or the accuracy of every class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mumoe.editing.choose import Choice
from mumoe.editing.fairness_tables import fairness_table, subgroup_table
from mumoe.editing.subgroup_fairness import Estimate, FairnessReport
from mumoe.errors import require
from mumoe.plots.dots import dot_figure
from mumoe.plots.subgroup_accuracy import subgroup_figure
from mumoe.plots.tradeoff import trade_off_figure
from mumoe.records import Record, read_typed, record, render_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = [
    "COMPARED",
    "STAGES",
    "ChangeReport",
    "FairnessComparison",
    "RewritingReport",
    "recorded_choice",
    "recorded_fairness",
]

COMPARED = ("model", "+ blind", "+ edits")
"""Names of the models that `Run.fairness` compares: as trained, with one threshold shifted for all, with edits."""

STAGES = ("before", "blind", "after")
"""The same of `Run.rewrite` and `Run.edit`."""

MOST_CLASSES = 8
"""Classes that are printed: those whose accuracy changes most."""


@record
class FairnessComparison(Record):
    """The accuracy of subgroups, and what edits and a blind shift of the threshold change; made by `Run.fairness`.

    Attributes:
        run: Folder of the run.
        target: The 0/1 attribute that is predicted.
        sensitive: The sensitive attribute.
        split: The split whose images were measured.
        models: Name to report, see `COMPARED` and `STAGES`; without edits one.
        blind: How the blind shift was chosen on validation images; None without it.
        left_out: How many images have no known sensitive value, in words; empty if all have one.
    """

    run: str
    target: str
    sensitive: str
    split: str
    models: Mapping[str, FairnessReport]
    blind: Choice | None = None
    left_out: str = ""

    def headline(self) -> str:
        images = next(iter(self.models.values())).rows
        unknown = f" ({self.left_out})" if self.left_out else ""
        return f"{self.target} by {self.sensitive} on {images:,} {self.split} images of {self.run}{unknown}"

    def rows(self) -> list[dict[str, Any]]:
        return self.subgroup_rows()

    def subgroup_rows(self) -> list[dict[str, Any]]:
        """One row per model and subgroup."""
        return [
            {
                "model": name,
                self.target: found.subgroup.label,
                self.sensitive: found.subgroup.sensitive,
                "images": found.count,
                "accuracy": found.accuracy.value,
                "low": found.accuracy.low,
                "high": found.accuracy.high,
                "is_target": found.subgroup == report.target,
            }
            for name, report in self.models.items()
            for found in report.subgroups
        ]

    def metric_rows(self) -> list[dict[str, Any]]:
        """One row per model, one column per metric, each of `mumoe.editing.subgroup_fairness.METRICS`."""
        return [
            {"model": name, **{metric: found.value for metric, found in report.metrics.items()}}
            for name, report in self.models.items()
        ]

    def to_frame(self, *, metrics: bool | None = None) -> pd.DataFrame:
        """The accuracy of each subgroup (a row per model and subgroup), or the metrics (a row per model).

        Args:
            metrics: True for the metrics, False for the subgroups; by default what the record's table shows.

        Raises:
            UserError: If pandas is not installed.
        """
        pandas = require("pandas", "reports", f"{type(self).__name__}.to_frame")
        tables = {None: self.rows, True: self.metric_rows, False: self.subgroup_rows}
        frame: pd.DataFrame = pandas.DataFrame(tables[metrics]())
        return frame

    def tables(self) -> str:
        """Subgroups and metrics as the text that the command line prints."""
        return "\n".join([subgroup_table(self.models, format="text"), fairness_table(self.models, format="text")])

    def plot(self) -> Figure:
        """Draw the accuracy of each subgroup under each model, with intervals.

        Raises:
            UserError: If matplotlib is not installed.
        """
        first = next(iter(self.models.values()))
        groups = [found.subgroup for found in first.subgroups]
        names = [f"{self.target}={group.label}, {self.sensitive}={group.sensitive}" for group in groups]
        series = {name: [found.accuracy for found in report.subgroups] for name, report in self.models.items()}
        return dot_figure(names, series, label="accuracy", title=self.headline())


def recorded_fairness(provenance: Mapping[str, Any]) -> FairnessComparison | None:
    """The subgroups that a file of edits records; None where it records none. Files may lack the blind shift.

    Raises:
        UserError: If the values are not those of reports.
    """
    blind, subgroup = provenance.get("blind") or {}, provenance.get("subgroup") or {}
    recorded = (provenance.get("metrics_before"), blind.get("metrics"), provenance.get("metrics_after"))
    models = {
        name: FairnessReport.from_dict(found)
        for name, found in zip(STAGES, recorded, strict=True)
        if found and "subgroups" in found
    }
    if not models:
        return None
    named = (subgroup.get("head", ""), subgroup.get("sensitive", ""), provenance.get("split", "test"))
    return FairnessComparison(str(provenance.get("run", "")), *named, models, recorded_choice(blind.get("choice")))


def recorded_choice(values: Mapping[str, Any] | None) -> Choice | None:
    """The choice that a file of edits records.

    Raises:
        UserError: If the values are not those of a choice.
    """
    return read_typed(Choice, values, "recorded_choice") if values else None


@record
class RewritingReport(FairnessComparison):
    """What the rewriting of a subgroup's experts changes on test images; the report of `Run.rewrite`.

    Attributes:
        name: Name of the rewriting in the stack.
        value: Sensitive value of the subgroup.
        label: Its true label.
        strength: Lambda, with its sign.
        choice: How lambda was chosen on validation images; None if it was given.
        training_images: Images of the subgroup, over which the coefficients were averaged.
    """

    name: str = ""
    value: str = ""
    label: int = 1
    strength: float = 0.0
    choice: Choice | None = None
    training_images: int = 0

    def headline(self) -> str:
        return (
            f"{self.name}: {self.target} of {self.sensitive}={self.value} with label {self.label}, "
            f"mean coefficients of {self.training_images:,} training images, lambda {self.strength:+.4g}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row per model: lambda, or how far the threshold was shifted, and the metrics."""
        strengths = {"after": self.strength, "blind": self.blind.strength if self.blind else None}
        return [{"model": row["model"], "strength": strengths.get(row["model"]), **row} for row in self.metric_rows()]

    def lines(self) -> list[str]:
        """What the command line prints."""
        lines = [self.headline(), *([self.left_out] if self.left_out else []), ""]
        if self.choice is not None:
            lines += [f"Trade-off on validation images ({self.choice.objective}):", _curve(self.choice)]
        return [*lines, f"On {self.split} images:", self.tables()]

    def plot(self) -> Figure:
        """Draw the trade-off over strengths on validation images; for a given strength the subgroups before and after.

        Raises:
            UserError: If matplotlib is not installed.
        """
        if self.choice is None:
            return subgroup_figure([self.models["after"]], title=self.headline())
        choices = {"experts": self.choice, **({"blind threshold": self.blind} if self.blind else {})}
        return trade_off_figure(choices, title=f"{self.target} of {self.sensitive}={self.value}")


def _curve(choice: Choice) -> str:
    """A dozen points of the curve, the chosen one among them and marked."""
    curve = choice.curve
    chosen = next(i for i, point in enumerate(curve) if point.strength == choice.strength)
    shown = sorted({*np.linspace(0, len(curve) - 1, min(12, len(curve))).round().astype(int).tolist(), chosen})
    names = {"target_accuracy": "target", "min_accuracy": "worst", "accuracy": "overall", "rewriting_score": "MRS"}
    rows = [
        [
            f"{curve[i].strength:+.4g}" + (" <- chosen" if i == chosen else ""),
            *(f"{curve[i].metrics[metric]:.3f}" for metric in names),
        ]
        for i in shown
    ]
    return render_table(["lambda", *names.values()], rows)


@record
class ChangeReport(Record):
    """What edits by hand change: accuracy overall and of each class; the report of `Run.edit`.

    Attributes:
        run: Folder of the run.
        split: The split whose images were measured.
        edits: The edits in words, by name.
        images: Number of images.
        accuracy: Accuracy before and after.
        classes: The same for each class, or each attribute.
        mended: Answers that the edits correct.
        broken: Answers that the edits make wrong.
        multi_label: Whether each image has an answer for every attribute.
        fairness: The subgroups before and after, where a sensitive attribute was named.
    """

    run: str
    split: str
    edits: Mapping[str, str]
    images: int
    accuracy: tuple[float, float]
    classes: Mapping[str, tuple[float, float]]
    mended: int
    broken: int
    multi_label: bool = False
    fairness: FairnessComparison | None = None

    def headline(self) -> str:
        before, after = self.accuracy
        what = "answers" if self.multi_label else "images"
        return f"accuracy {before:.4f} -> {after:.4f}: {self.mended:,} {what} corrected, {self.broken:,} newly wrong"

    def rows(self) -> list[dict[str, Any]]:
        """One row per class, those whose accuracy changes most first."""
        rows = [
            {"class": name, "before": before, "after": after, "change": after - before}
            for name, (before, after) in self.classes.items()
        ]
        return sorted(rows, key=_change)

    def lines(self) -> list[str]:
        """What the command line prints."""
        moved = [row for row in self.rows() if row["change"]]
        lines = [f"{name}: {text}" for name, text in self.edits.items()]
        lines += ["", f"On {self.images:,} {self.split} images:", f"  {self.headline()}"]
        lines += [f"  {row['class']}: {row['before']:.3f} -> {row['after']:.3f}" for row in moved[:MOST_CLASSES]]
        lines += [f"  and {len(moved) - MOST_CLASSES} more"] if len(moved) > MOST_CLASSES else []
        return [*lines, "", self.fairness.tables()] if self.fairness else lines

    def measured(self, which: int) -> dict[str, Any]:
        """What an edit file records of the model before (0) or after (1) the edits."""
        if self.fairness is not None:
            return list(self.fairness.models.values())[which].to_dict()
        classes = {name: values[which] for name, values in self.classes.items()}
        return {"images": self.images, "accuracy": self.accuracy[which], "classes": classes}

    def plot(self) -> Figure:
        """Draw the accuracy of the classes that change most, before and after.

        Raises:
            UserError: If matplotlib is not installed.
        """
        rows = self.rows()[:20]
        series = {name: [Estimate(row[name]) for row in rows] for name in ("before", "after")}
        return dot_figure([row["class"] for row in rows], series, label="accuracy", title=self.headline())


def _change(row: Mapping[str, Any]) -> float:
    return -abs(row["change"])
