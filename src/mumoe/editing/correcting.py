"""Edits of a trained run, and what they change: the procedures behind `Run.fairness`, `Run.rewrite` and `Run.edit`.

Training images give the mean coefficients, validation images the strength, test images the report. Reports are computed
with the stack that is saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mumoe.data.base import SPLITS
from mumoe.devices import host
from mumoe.editing.choose import Choice, LabelledRows, LogitShift, Objective, choose_blind
from mumoe.editing.edit_files import EditFile, Edits, content_of, save_edits, stack_on
from mumoe.editing.edit_reports import COMPARED, STAGES, ChangeReport, FairnessComparison, RewritingReport
from mumoe.editing.edit_texts import parse_edit
from mumoe.editing.expert_edits import ExpertEdit
from mumoe.editing.operations import Mean
from mumoe.editing.rewriting import Reading, Strength, choose_rewriting, mean_coefficients, moved_by
from mumoe.editing.runs import EditingRun, Problem, check_editable, editing_run
from mumoe.editing.stack import EditStack
from mumoe.editing.subgroup_fairness import Bootstrap, fairness_report, worst_value
from mumoe.errors import UserError, unknown_argument
from mumoe.local_paths import public_name, run_name
from mumoe.records import to_plain
from mumoe.training.opening import StoredRun

__all__ = ["Edit", "edit_by_hand", "measure_fairness", "rewrite_subgroup"]


@dataclass(frozen=True, repr=False)
class Edit:
    """Edits of a run with what they change; made by `Run.rewrite` and `Run.edit`, read by `Run.with_edits`.

    Attributes:
        stack: The edits, by name; not applied.
        report: What they change.
        provenance: What the file records besides the edits.
    """

    stack: EditStack
    report: RewritingReport | ChangeReport
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the edits and their report to a JSON file.

        Raises:
            JobError: If the folder does not exist or cannot be written.
        """
        save_edits(path, self.stack, self.provenance)

    def __repr__(self) -> str:
        return f"Edit: {'; '.join(self.stack.describe())}\n{self.report!r}"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


# Fairness -------------------------------------------------------------------------------------------------------


def measure_fairness(
    stored: StoredRun,
    target: str,
    sensitive: str,
    *,
    value: object = "",
    label: int = 1,
    split: str = "test",
    edits: Edits | None = None,
    objective: Objective | None = None,
    max_loss: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> FairnessComparison:
    """Accuracy of each subgroup and the paper's fairness metrics, of the model and of edits beside a blind shift.

    Args:
        stored: The run.
        target: The 0/1 attribute that is predicted.
        sensitive: The sensitive attribute.
        value: Sensitive value of the target subgroup; by default that of the subgroup that is right least often.
        label: True label of the target subgroup.
        split: train, val or test.
        edits: Edits to compare with the model.
        objective: How the blind shift is chosen, see `choose.OBJECTIVES`; by default as the edits were chosen.
        max_loss: Overall validation accuracy that ``worst_group`` may cost; by default as for the edits.
        resamples: Bootstrap resamples of the intervals; 0 leaves them out.
        seed: Of the bootstrap.

    Raises:
        UserError: If a name or value is unknown, the split is empty, or the edits belong to another model.
    """
    who = "Run.fairness"
    _check_split(split, who)
    content = content_of(edits)
    if edits is not None:
        check_editable(stored, content.edits.values(), who=who)
    run = editing_run(stored)
    problem = run.problem(target, sensitive, who=who)
    rows = problem.rows(split)
    if not len(rows):
        raise UserError(f"{who}: expected images in the {split} split, got none. Use another `split`.")
    logits = run.logits(rows, problem.position)
    truth, values = problem.labels[rows], problem.values[rows]
    worst = worst_value(truth, logits > 0, sensitive_features=values, label=label)
    wanted = worst if value == "" else problem.value(value, who=who)
    subject = _Subject(run, problem, split, (label, wanted), Bootstrap(resamples, seed=seed), COMPARED)
    if edits is None:
        return subject.compared({COMPARED[0]: logits > 0})
    blind = subject.blind(*_as_chosen(content, objective, max_loss))
    return subject.compared(subject.decisions(logits, blind, stack_on(run.require_layer(who), edits)), blind)


def _as_chosen(content: EditFile, objective: Objective | None, max_loss: float | None) -> tuple[Objective, float]:
    """The given objective and loss, or else those by which the edits were chosen."""
    facts = content.provenance
    chosen = (
        facts.get("choice") or facts.get("blind", {}).get("choice") or {"objective": "worst_group", "max_loss": 0.01}
    )
    return objective or chosen["objective"], chosen["max_loss"] if max_loss is None else max_loss


@dataclass(frozen=True)
class _Subject:
    """A subgroup of a run, and how it is measured."""

    run: EditingRun
    problem: Problem
    split: str
    target: tuple[int, str]
    bootstrap: Bootstrap
    names: tuple[str, str, str] = STAGES

    def blind(self, objective: Objective, max_loss: float) -> Choice | None:
        """The blind shift, chosen on validation images; None if these are measured, or lack a subgroup."""
        rows = self.problem.rows("val")
        if self.split == "val" or not len(rows):
            return None
        logits, labelled = self.run.logits(rows, self.problem.position), self.problem.labelled("val")
        return choose_blind(labelled, logits, target=self.target, objective=objective, max_loss=max_loss)

    def decisions(
        self, logits: npt.NDArray[np.float64], blind: Choice | None, stack: EditStack
    ) -> dict[str, npt.NDArray[np.bool_]]:
        """(rows,) predictions of each model: as trained (whose logits are given), shifted blindly, with the stack."""
        trained, shifted, edited = self.names
        found = {trained: logits > 0}
        if blind is not None:
            found[shifted] = LogitShift(logits, np.ones_like(logits))(blind.strength) > 0
        with stack:
            found[edited] = self.run.logits(self.problem.rows(self.split), self.problem.position) > 0
        return found

    def compared(
        self, guesses: Mapping[str, npt.NDArray[Any]], blind: Choice | None = None, *, all_scored: bool = False
    ) -> FairnessComparison:
        """The record of each model's answers.

        Args:
            guesses: Name of a model to its answers, the model as trained first.
            blind: How the blind shift was chosen.
            all_scored: Whether the model as trained has a re-writing score too, which is 0.
        """
        problem, trained = self.problem, self.names[0]
        rows = problem.rows(self.split)
        reports = {
            name: fairness_report(
                problem.labels[rows],
                guess,
                sensitive_features=problem.values[rows],
                target=self.target,
                y_pred_before=guesses[trained] if all_scored or name != trained else None,
                bootstrap=self.bootstrap,
            )
            for name, guess in guesses.items()
        }
        about = (run_name(self.run.path), problem.head, problem.sensitive, self.split)
        return FairnessComparison(*about, reports, blind, problem.left_out(self.split))


# Rewriting ------------------------------------------------------------------------------------------------------


def rewrite_subgroup(
    stored: StoredRun,
    target: str,
    sensitive: str,
    value: object,
    *,
    label: int = 1,
    strength: Strength = "auto",
    objective: Objective = "worst_group",
    max_loss: float = 0.01,
    reading: Reading = "joint",
    base: Edits | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Edit:
    """Rewrite the experts that treat a subgroup (eq. 6), and measure the resulting stack on test images.

    Args:
        stored: The run.
        target: The 0/1 attribute whose logit is corrected.
        sensitive: The sensitive attribute.
        value: Sensitive value of the subgroup to help; of a 0/1 attribute 1, yes and true are one.
        label: Its true label; 1 raises the logit, 0 lowers it.
        strength: Size of lambda, ``paper`` (the number of experts) or ``auto`` (chosen on validation images).
        objective: What ``auto`` looks for, see `choose.OBJECTIVES`; the blind shift is chosen by the same.
        max_loss: Overall validation accuracy that ``worst_group`` may cost; 0.01 is one point.
        reading: Mean coefficients in a hierarchy: of combinations (``joint``), or the product of each level's.
        base: Edits to put the rewriting on top of.
        resamples: Bootstrap resamples of the intervals; 0 leaves them out.
        seed: Of the bootstrap.

    Raises:
        UserError: If an argument is wrong, the subgroup has no training images, a split is empty, or the head has no
            experts that make the logits.
    """
    who = "Run.rewrite"
    _check_rewriting(strength, label, who)
    check_editable(stored, content_of(base).edits.values(), who=who)
    run = editing_run(stored)
    layer, problem = run.require_layer(who), run.problem(target, sensitive, who=who)
    subgroup = (label, problem.value(value, who=who))
    subject = _Subject(run, problem, "test", subgroup, Bootstrap(resamples, seed=seed))
    _require_images(problem, ("val", "test") if strength == "auto" else ("test",), who)
    stack = stack_on(layer, base)
    images = problem.subgroup("train", subgroup, who)
    mean = mean_coefficients(layer, run.batches(images, doing="Averaging coefficients"), reading=reading)
    validation = partial(_validation, run, problem, stack, mean)
    how: dict[str, Any] = {"target": subgroup, "objective": objective, "max_loss": max_loss}
    edit, choice = choose_rewriting(problem.position, mean, validation, strength=strength, **how)
    blind = subject.blind(objective, max_loss)
    logits = run.logits(problem.rows("test"), problem.position)
    name = stack.add(edit)
    found = subject.compared(subject.decisions(logits, blind, stack), blind, all_scored=True)
    report = RewritingReport(
        **{**vars(found), "left_out": problem.left_out(*SPLITS)},
        name=name,
        value=subgroup[1],
        label=label,
        strength=edit.strength,
        choice=choice,
        training_images=len(images),
    )
    return Edit(stack, report, _rewriting_facts(run, report))


def _validation(run: EditingRun, problem: Problem, stack: EditStack, mean: Mean) -> tuple[LabelledRows, LogitShift]:
    """Validation images, with their logits under the edits below, and what a lambda of 1 adds to each."""
    rows = problem.rows("val")
    with stack:
        logits = run.logits(rows, problem.position)
    layer = run.require_layer("Run.rewrite")
    with torch.no_grad():
        batches = run.batches(rows, doing="Computing what the rewriting moves")
        moved = torch.cat([moved_by(mean, [host(a) for a in layer.coefficients(x)]) for x in batches])
    return problem.labelled("val"), LogitShift(logits, moved.numpy())


def _check_rewriting(strength: Strength, label: int, who: str) -> None:
    if label not in (0, 1):
        raise UserError(f"{who}: expected `label` 0 or 1, got {label}. 1 raises the logit.")
    if isinstance(strength, str):
        if strength not in ("auto", "paper"):
            raise unknown_argument(who, "strength", strength, ("auto", "paper", "0.5"))
    elif not 0 <= strength < float("inf"):
        raise UserError(f"{who}: expected `strength` from 0, got {strength:g}. Its sign follows from `label`.")


def _require_images(problem: Problem, splits: Sequence[str], who: str) -> None:
    for split in splits:
        if not len(problem.rows(split)):
            name = "validation" if split == "val" else split
            raise UserError(
                f"{who}: expected {name} images whose {problem.sensitive} is known, got none. "
                "Use data that has train, val and test splits."
            )


def _rewriting_facts(run: EditingRun, report: RewritingReport) -> dict[str, Any]:
    """What the file of a rewriting records."""
    models = {name: found.to_dict() for name, found in report.models.items()}
    return {
        **_origin(run),
        "subgroup": {
            "head": report.target,
            "label": report.label,
            "sensitive": report.sensitive,
            "value": report.value,
            "training_images": report.training_images,
        },
        "lambda": report.strength,
        "choice": to_plain(report.choice),
        "metrics_before": models["before"],
        "metrics_after": models["after"],
        "blind": {"choice": to_plain(report.blind), "metrics": models.get("blind")},
    }


def _origin(run: EditingRun) -> dict[str, Any]:
    data = {"name": public_name(run.data.name), "fingerprint": run.data.fingerprint}
    return {"run": run_name(run.path), "data": data}


# By hand --------------------------------------------------------------------------------------------------------


def edit_by_hand(
    stored: StoredRun,
    operations: Sequence[ExpertEdit | str],
    *,
    split: str = "val",
    target: str = "",
    sensitive: str = "",
    value: object = "",
    label: int = 1,
    base: Edits | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Edit:
    """Edit experts by hand, in the order given, and measure what that changes.

    Args:
        stored: The run.
        operations: Edits such as ``mumoe.Ablate(17)``, or texts such as ``ablate:17`` (see `editing.edit_texts`).
        split: The split that is measured; choosing edits on the test split would make its numbers optimistic.
        target: 0/1 attribute of a subgroup to measure as well; with `sensitive` and `value`.
        sensitive: The sensitive attribute.
        value: Sensitive value of the subgroup.
        label: True label of the subgroup.
        base: Edits to put these on top of.
        resamples: Bootstrap resamples of the subgroup's intervals; 0 leaves them out.
        seed: Of the bootstrap.

    Raises:
        UserError: If an argument is wrong, an edit does not fit the head, or the split is empty.
    """
    who = "Run.edit"
    _check_split(split, who)
    _check_subgroup({"target": target, "sensitive": sensitive, "value": value}, who)
    if not operations:
        raise UserError(f"{who}: expected at least one edit, got none. Pass for example mumoe.Ablate(17).")
    texts = [text for text in operations if isinstance(text, str)]
    edits = [parse_edit(item, stored.classes, who=who) if isinstance(item, str) else item for item in operations]
    check_editable(stored, [*content_of(base).edits.values(), *edits], who=who)
    run = editing_run(stored)
    layer = run.require_layer(who)
    subject = None
    if sensitive:
        problem = run.problem(target, sensitive, who=who)
        subgroup = (label, problem.value(value, who=who))
        subject = _Subject(run, problem, split, subgroup, Bootstrap(resamples, seed=seed))
    stack = stack_on(layer, base)
    names = [stack.add(edit) for edit in edits]
    rows = subject.problem.rows(split) if subject else run.data.indices(split)  # type: ignore[arg-type]
    if not len(rows):
        raise UserError(f"{who}: expected images in the {split} split, got none. Use another `split`.")
    before = run.answers(rows)
    with stack:
        after = run.answers(rows)
    described = {name: stack[name].describe() for name in names}
    fairness = None
    if subject:
        columns = {name: guess[:, subject.problem.position] for name, guess in (("before", before), ("after", after))}
        fairness = subject.compared(columns, all_scored=True)
    report = _changed(run, rows, before, after, {"split": split, "edits": described, "fairness": fairness})
    by_hand = texts if len(texts) == len(operations) else [described[name] for name in names]
    facts = {**_origin(run), "by_hand": by_hand, "split": split}
    return Edit(stack, report, facts | {"metrics_before": report.measured(0), "metrics_after": report.measured(1)})


def _changed(
    run: EditingRun, rows: npt.NDArray[np.int64], before: Any, after: Any, settings: Mapping[str, Any]
) -> ChangeReport:
    """Accuracy, and that of each attribute, or of the images of each class, before and after."""
    data = run.data
    truth = data.labels[rows]
    old, new = before == truth, after == truth
    if data.multi_label:
        classes = {name: (float(old[:, c].mean()), float(new[:, c].mean())) for c, name in enumerate(data.classes)}
    else:
        members = {data.classes[label]: truth == label for label in np.unique(truth).tolist()}
        classes = {name: (float(old[mine].mean()), float(new[mine].mean())) for name, mine in members.items()}
    return ChangeReport(
        run=run_name(run.path),
        images=len(rows),
        accuracy=(float(old.mean()), float(new.mean())),
        classes=classes,
        mended=int((new & ~old).sum()),
        broken=int((old & ~new).sum()),
        multi_label=data.multi_label,
        **settings,
    )


def _check_split(split: str, who: str) -> None:
    if split not in SPLITS:
        raise unknown_argument(who, "split", split, SPLITS)


def _check_subgroup(given: Mapping[str, object], who: str) -> None:
    named = [name for name, value in given.items() if value != ""]
    if len(named) not in (0, len(given)):
        raise UserError(
            f"{who}: expected `target`, `sensitive` and `value` to measure a subgroup, got `{'` and `'.join(named)}` "
            "alone. Give all three or none."
        )
