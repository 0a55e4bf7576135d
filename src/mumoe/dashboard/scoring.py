"""What a page shows of predictions before and after edits: accuracy, classes, subgroups; counts, never a model.

The numbers are those of `mumoe edit` (accuracy of all images of the split, and of each class) and of
`mumoe fairness` (subgroups of images whose sensitive value is known).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.dashboard import WHO
from mumoe.dashboard.whatif import Changed, Rows
from mumoe.data.base import ImageData
from mumoe.editing.runs import Problem
from mumoe.editing.subgroup_fairness import Bootstrap, fairness_report, metrics_at, worst_value
from mumoe.editing.subgroups import Subgroups, find_subgroups
from mumoe.errors import UserError, unknown_name

__all__ = ["Groups", "Scores", "accuracies", "attribute_groups", "by_value"]


@dataclass(frozen=True)
class Scores:
    """Right answers of one split without edits, ready for comparison.

    Attributes:
        data: The set.
        truth: (rows,) classes, or (rows, classes) 0 and 1.
        decided: What the model without edits answers, of the same shape.
    """

    data: ImageData
    truth: npt.NDArray[np.int64]
    decided: npt.NDArray[np.int64]

    @staticmethod
    def of(rows: Rows) -> Scores:
        """Of a split's rows."""
        data = rows.run.data
        return Scores(data, data.labels[rows.images].astype(np.int64), rows.decided.numpy())

    @functools.cached_property
    def right(self) -> npt.NDArray[np.bool_]:
        """Which answers are right without edits."""
        return self.decided == self.truth

    @functools.cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """(classes,) images of each class; all of them for 0/1 attributes."""
        if self.data.multi_label:
            return np.full(len(self.data.classes), len(self.truth))
        return np.bincount(self.truth, minlength=len(self.data.classes))

    @functools.cached_property
    def hits(self) -> npt.NDArray[np.int64]:
        """(classes,) right answers of each class without edits."""
        return self._by_class(np.arange(len(self.truth)), self.right)

    def after(self, changed: Changed) -> npt.NDArray[np.int64]:
        """All answers with the edits."""
        answers = self.decided.copy()
        answers[changed.rows.numpy()] = changed.decided.numpy()
        return answers

    def compared(self, changed: Changed) -> dict[str, Any]:
        """Accuracy before and after, answers corrected and broken, and every class."""
        rows = changed.rows.numpy()
        old, new = self.right[rows], changed.decided.numpy() == self.truth[rows]
        after = self.hits + self._by_class(rows, new) - self._by_class(rows, old)
        answers = int(self.counts.sum())
        shares = [[_share(part[c], count) for part in (self.hits, after)] for c, count in enumerate(self.counts)]
        return {
            "images": len(self.truth),
            "answers": answers,
            "accuracy": [_share(self.hits.sum(), answers), _share(after.sum(), answers)],
            "mended": int((new & ~old).sum()),
            "broken": int((old & ~new).sum()),
            "touched": len(rows),
            "classes": {
                "count": self.counts.tolist(),
                "before": [s[0] for s in shares],
                "after": [s[1] for s in shares],
            },
        }

    def _by_class(self, rows: npt.NDArray[np.int64], right: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        if self.data.multi_label:
            return right.sum(0).astype(np.int64)
        return np.bincount(self.truth[rows][right], minlength=len(self.data.classes))


def _share(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def accuracies(scores: Scores, changed: Changed) -> tuple[dict[str, Any], dict[str, Any]]:
    """Accuracy before and after as an edit file records them: that of `mumoe edit --do`."""
    found = scores.compared(changed)
    return tuple(  # type: ignore[return-value]
        {
            "images": found["images"],
            "accuracy": found["accuracy"][which],
            "classes": {
                name: found["classes"][key][c]
                for c, name in enumerate(scores.data.classes)
                if found["classes"]["count"][c]
            },
        }
        for which, key in enumerate(("before", "after"))
    )


@dataclass(frozen=True)
class Groups:
    """Subgroups of one split: every combination of one 0/1 attribute and a sensitive value (`mumoe fairness`).

    Attributes:
        problem: The attribute and the sensitive values.
        known: (rows,) whether the row's sensitive value is known.
        truth: (known rows,) 0 or 1.
        values: (known rows,) sensitive values.
        groups: The subgroups.
    """

    problem: Problem
    known: npt.NDArray[np.bool_]
    truth: npt.NDArray[np.int64]
    values: npt.NDArray[np.str_]
    groups: Subgroups

    @staticmethod
    def of(problem: Problem, rows: Rows) -> Groups:
        """Of a split's rows.

        Raises:
            UserError: If a subgroup has no image there.
        """
        known = problem.known[rows.images]
        images = rows.images[known]
        truth, values = problem.labels[images], problem.values[images]
        return Groups(problem, known, truth, values, find_subgroups(truth, values, who=WHO))

    def worst(self, answers: npt.NDArray[np.int64], label: int) -> str:
        """Sensitive value of the subgroup with this label that is right least often."""
        return worst_value(self.truth, self._mine(answers), sensitive_features=self.values, label=label)

    def compared(
        self,
        before: npt.NDArray[np.int64],
        after: npt.NDArray[np.int64],
        target: tuple[int, str],
        resamples: int = 0,
    ) -> dict[str, Any]:
        """Metrics and subgroups before and after; with resamples also their bootstrap intervals.

        Raises:
            UserError: If the target names no subgroup.
        """
        if resamples:
            return dict(zip(("before", "after"), self.reports(before, after, target, resamples), strict=True))
        old, new = self._mine(before), self._mine(after)
        aim = self.groups.index(*target, who=WHO)
        return {
            "before": self._plain(metrics_at(self.groups, aim, self.truth, old, old), old, aim),
            "after": self._plain(metrics_at(self.groups, aim, self.truth, new, old), new, aim),
        }

    def reports(
        self, before: npt.NDArray[np.int64], after: npt.NDArray[np.int64], target: tuple[int, str], resamples: int
    ) -> list[dict[str, Any]]:
        """The reports of `mumoe fairness` before and after, as an edit file records them."""
        old, new = self._mine(before), self._mine(after)
        common: dict[str, Any] = {"target": target, "bootstrap": Bootstrap(resamples), "y_pred_before": old}
        return [
            fairness_report(self.truth, guess, sensitive_features=self.values, **common).to_dict()
            for guess in (old, new)
        ]

    def _mine(self, answers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return answers[self.known, self.problem.position]

    def _plain(self, metrics: Mapping[str, float], guess: npt.NDArray[np.int64], aim: int) -> dict[str, Any]:
        """In the form of `FairnessReport.to_dict`, without intervals."""
        right = np.bincount(self.groups.codes, weights=guess == self.truth, minlength=len(self.groups.groups))
        return {
            "target": vars(self.groups.groups[aim]),
            "rows": len(self.truth),
            "metrics": {name: {"value": value} for name, value in metrics.items()},
            "subgroups": [
                {"subgroup": vars(group), "count": int(count), "accuracy": {"value": float(hits / count)}}
                for group, count, hits in zip(self.groups.groups, self.groups.counts, right, strict=True)
            ],
        }


def attribute_groups(data: ImageData, name: str) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """(images,) code of an attribute's value, -1 where it is unknown, and the values; 0/1 labels count as attributes.

    Raises:
        UserError: If there is no such attribute; the message suggests the nearest.
    """
    column = data.column(name)
    if column is not None:
        return column.codes, column.values
    if not data.column_names:
        raise UserError(f"{WHO}: expected an attribute, got {name!r}; {data.name} has none. Leave it out.")
    raise unknown_name(WHO, "attribute", name, data.column_names)


def by_value(scores: Scores, rows: Rows, changed: Changed, name: str) -> dict[str, Any]:
    """Accuracy of the images of each value of an attribute, before and after."""
    codes, values = attribute_groups(scores.data, name)
    mine = codes[rows.images]
    right = scores.right if scores.right.ndim == 1 else scores.right.mean(1)
    new = right.astype(np.float64)
    found = changed.decided.numpy() == scores.truth[changed.rows.numpy()]
    new[changed.rows.numpy()] = found if found.ndim == 1 else found.mean(1)
    known = mine >= 0
    counts = np.bincount(mine[known], minlength=len(values))
    sums = [np.bincount(mine[known], weights=part[known], minlength=len(values)) for part in (right, new)]
    return {
        "values": list(values),
        "count": counts.tolist(),
        "before": [_share(hits, count) for hits, count in zip(sums[0], counts, strict=True)],
        "after": [_share(hits, count) for hits, count in zip(sums[1], counts, strict=True)],
    }
