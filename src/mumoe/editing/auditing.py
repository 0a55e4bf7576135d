"""An audit of a trained run: by experts and by named attributes, the images behind it, and rewritings it suggests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe.coefficients import SparseCoefficients
from mumoe.data.base import SPLITS, Attribute, ImageData, NoImages
from mumoe.editing.attribute_audit import audit_attributes, matching
from mumoe.editing.edit_files import save_edits
from mumoe.editing.expert_audit import audit, handled, proposed, proposed_rows
from mumoe.editing.group_audit import Audit, Finding, Rules
from mumoe.editing.rewriting import mean_coefficients
from mumoe.editing.runs import EditingRun, check_editable, editing_run
from mumoe.editing.stack import EditStack
from mumoe.errors import UserError, unknown_argument
from mumoe.files import make_folder
from mumoe.local_paths import public_name, run_name
from mumoe.plots.finding_sheet import Pictured, spread, write_findings
from mumoe.records import record
from mumoe.training.opening import StoredRun

__all__ = ["AUDIT", "RunAudit", "audit_opened", "audit_run"]

WHO = "Run.audit"

AUDIT = "audit.json"
"""The audit in the folder that `RunAudit.write` makes."""

By = Literal["experts", "attributes"]


@dataclass(frozen=True)
class _Audited:
    """The images that were audited.

    Attributes:
        run: The run.
        rows: Their positions.
        coefficients: One (rows, N_e) per level; those below the threshold are left out.
        labels: (rows,) true labels.
        answers: (rows,) the model's.
        columns: Named columns of the rows.
    """

    run: EditingRun
    rows: npt.NDArray[np.int64]
    coefficients: tuple[SparseCoefficients, ...]
    labels: Tensor
    answers: Tensor
    columns: Mapping[str, Attribute]

    def inside(self, finding: Finding, threshold: float) -> npt.NDArray[np.bool_]:
        """(rows,) whether an image is one of a finding's."""
        if finding.attributes:
            inside = matching(self.columns, finding.attributes)
        else:
            inside = handled(self.coefficients, finding.experts, threshold)
        if finding.label is not None:
            inside = inside & (self.labels == finding.label)
        return inside.numpy()


@record
class RunAudit(Audit):
    """Groups of a run's images that are right less often than the rest; made by `Run.audit`.

    The findings are groups by experts; the ranking of groups by named attributes is in `by_attributes`.

    Attributes:
        run: Folder of the run.
        split: The split that was audited.
        images: Number of its images.
        target: The attribute that was audited; empty in a single-label run.
        labels: Name of each label.
        by_attributes: The ranking of groups by named attributes; None where the data have none.
    """

    run: str = ""
    split: str = ""
    images: int = 0
    target: str = ""
    labels: tuple[str, ...] = ()
    by_attributes: Audit | None = None

    _audited: ClassVar[_Audited | None] = None

    def bound(self, audited: _Audited) -> Self:
        """The audit with its sources."""
        vars(self)["_audited"] = audited
        return self

    @property
    def audited(self) -> _Audited:
        """Its sources.

        Raises:
            UserError: If the audit was read from a file.
        """
        if self._audited is None:
            raise UserError("RunAudit: expected an audit made by Run.audit, got one read from a file. Audit again.")
        return self._audited

    def headline(self) -> str:
        return f"{super().headline()}, on {self.images:,} {self.split} images of {self.run}"

    @property
    def by_experts(self) -> Self:
        """The ranking of groups by experts: this audit itself."""
        return self

    def pictured(self, top: int = 10, images: int = 5, *, by: By = "experts") -> list[Pictured]:
        """The first findings with some of their images, wrong and right, evenly spread.

        Args:
            top: Number of findings.
            images: Most wrong images of each, and most right ones.
            by: Which ranking's: ``experts`` or ``attributes``.
        """
        if by not in ("experts", "attributes"):
            raise unknown_argument("RunAudit.pictured", "by", by, ("experts", "attributes"))
        ranking = self if by == "experts" else self.by_attributes
        return [self._pictured(finding, images) for finding in (ranking.findings[:top] if ranking else ())]

    def _pictured(self, finding: Finding, images: int) -> Pictured:
        made = self.audited
        inside, right = made.inside(finding, self.threshold), (made.answers == made.labels).numpy()
        wrong, good = made.rows[inside & ~right], made.rows[inside & right]
        return Pictured(finding, spread(wrong, images), spread(good, images), len(wrong), len(good))

    def write(self, shown: Sequence[Pictured], folder: str | Path = "") -> list[Path]:
        """Write the audit as ``audit.json``, which `mumoe report` shows, and images of findings on one sheet.

        Args:
            shown: From `pictured`.
            folder: Where they go, in place of an earlier audit; by default RUN/audit/SPLIT, or RUN/audit/TARGET-SPLIT.

        Returns:
            The paths of the audit and of the sheet, which is missing if the data have no images.
        """
        place = self._place(folder)
        sheet = self.write_sheet(shown, folder)
        self.save(place / AUDIT)
        return [place / AUDIT, *([sheet] if sheet else [])]

    def write_sheet(self, shown: Sequence[Pictured], folder: str | Path = "") -> Path | None:
        """Draw the images of findings on one sheet, with their ids and credits beside it.

        Args:
            shown: From `pictured`.
            folder: As for `write`.

        Returns:
            The path of the sheet; None if the data have no images.
        """
        made = self.audited
        data = made.run.data
        if isinstance(data.open_image, NoImages):
            return None
        guesses = np.full(len(data), -1, dtype=np.int64)
        guesses[made.rows] = made.answers.numpy()
        title = f"Groups whose images go wrong, {public_name(data.name)}, {self.split} images"
        return write_findings(self._place(folder), shown, data, guesses, self.labels, alpha=self.alpha, title=title)

    def _place(self, folder: str | Path) -> Path:
        name = "".join(c if c.isalnum() or c in "-_=" else "_" for c in self.target)
        default = self.audited.run.path / "audit" / "-".join(part for part in (name, self.split) if part)
        return Path(folder) if str(folder) else default

    def propose(self, folder: str | Path, top: int = 10) -> list[Path]:
        """Write one edit file, named after its place, for each significant one of the first findings by experts.

        It holds the rewriting of these experts.

        The mean coefficients come from training images; the strength is the paper's, to be chosen on validation.

        Raises:
            UserError: If the run is single-label, or a finding has no training image.
            JobError: If the folder cannot be written.
        """
        made, folder = self.audited, Path(folder)
        run, train = made.run, made.run.data.indices("train")
        if not run.data.multi_label:
            raise UserError(f"{WHO}: expected a multi-label run to `propose` edits for, got a single-label one.")
        position = run.data.classes.index(self.target)
        labels = torch.from_numpy(run.data.labels[train, position].astype("int64"))
        coefficients = _handling(run, train, self.threshold)
        make_folder(folder, who=WHO)
        written = []
        chosen = [(n, found) for n, found in enumerate(self.findings[:top], 1) if found.p_corrected <= self.alpha]
        for number, finding in chosen:
            stack = EditStack(run.require_layer(WHO))
            mine = train[proposed_rows(finding, coefficients, labels, self.threshold).numpy()]
            mean = mean_coefficients(run.require_layer(WHO), run.batches(mine, doing="Averaging coefficients"))
            edit = proposed(finding, mean, position)
            stack.add(edit, f"finding-{number}")
            written.append(folder / f"finding-{number}.json")
            about = {"run": self.run, "head": self.target, "split": self.split, "finding": str(finding)}
            save_edits(written[-1], stack, about)
        return written


def audit_run(stored: StoredRun, target: str = "", **settings: Any) -> RunAudit:
    """Rank groups of a run's images, by experts and by named attributes, by their excess of errors over the rest.

    Args:
        stored: The run.
        target: The attribute to audit in a multi-label run; a single-label run is audited class by class.
        **settings: As for `audit_opened`.

    Raises:
        UserError: If an argument is wrong, the split is empty, or the head has no experts that make the logits.
    """
    if settings.get("split", "val") not in SPLITS:
        raise unknown_argument(WHO, "split", settings["split"], SPLITS)
    check_editable(stored, who=WHO)
    return audit_opened(editing_run(stored), target, **settings)


def audit_opened(
    run: EditingRun,
    target: str = "",
    *,
    split: str = "val",
    threshold: float = 0.1,
    pairs: bool = True,
    **rules: Unpack[Rules],
) -> RunAudit:
    """`audit_run` for a run that is already open.

    Args:
        run: The run.
        target: The attribute to audit in a multi-label run.
        split: train, val or test; choosing edits on the test split would make its numbers optimistic.
        threshold: Coefficient from which an expert handles an image.
        pairs: Test pairs of experts, and of named values, too.
        **rules: ``min_rows``, ``alpha``, ``correction``, ``merge`` and ``most``, as for `group_audit.rank_groups`.

    Raises:
        UserError: As `audit_run`.
    """
    run.require_layer(WHO)
    rows = run.data.indices(split)  # type: ignore[arg-type]
    if not len(rows):
        raise UserError(f"{WHO}: expected images in the {split} split, got none. Use another `split`.")
    labels, answers = _outcomes(run, target, rows)
    coefficients = _handling(run, rows, threshold)
    made = _Audited(run, rows, coefficients, labels, answers, _columns(run.data, target, rows))
    right = answers == labels
    found = audit(made.coefficients, right, labels, threshold=threshold, pairs=pairs, **rules)
    named = audit_attributes(made.columns, right, labels, pairs=pairs, **rules) if made.columns else None
    names = (f"not {target}", target) if run.data.multi_label else run.data.classes
    about: dict[str, Any] = {"run": run_name(run.path), "split": split, "images": len(rows), "target": target}
    return RunAudit(**vars(found), **about, labels=tuple(names), by_attributes=named).bound(made)


def _handling(run: EditingRun, rows: npt.NDArray[np.int64], threshold: float) -> tuple[SparseCoefficients, ...]:
    """The coefficients by which experts may handle rows.

    Those below the threshold decide nothing where none is above 1: at most 1 / threshold are left of a row.
    """
    gate = run.require_layer(WHO).gate
    bounded = not any(getattr(activation, "router_bias", False) for activation in gate.activations)
    return run.coefficients(rows, WHO, threshold if bounded or len(gate.num_experts) == 1 else -math.inf)


def _columns(data: ImageData, target: str, rows: npt.NDArray[np.int64]) -> dict[str, Attribute]:
    """Named columns of these rows, except the target itself."""
    found = {name: data.column(name) for name in data.column_names if name != target}
    return {name: Attribute(column.codes[rows], column.values) for name, column in found.items() if column}


def _outcomes(run: EditingRun, target: str, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(rows,) true labels, and the model's."""
    data = run.data
    if not data.multi_label:
        if target:
            raise UserError(f"{WHO}: expected no `target` for a single-label run, got {target!r}. Leave it out.")
        return torch.from_numpy(data.labels[rows].astype("int64")), torch.from_numpy(run.answers(rows))
    if target not in data.classes:
        raise unknown_argument(WHO, "target", target, data.classes)
    position = data.classes.index(target)
    labels = torch.from_numpy(data.labels[rows, position].astype("int64"))
    return labels, torch.from_numpy(run.logits(rows, position) > 0).long()
