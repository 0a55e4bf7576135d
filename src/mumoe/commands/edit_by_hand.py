"""`mumoe edit RUN --do ...`: edits that somebody chose by hand, with what they change on validation images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mumoe.commands.edit import Options, export_head, output_file
from mumoe.commands.opening import opened as open_verb
from mumoe.data.base import SPLITS
from mumoe.errors import UserError, unknown_name

if TYPE_CHECKING:
    from mumoe.editing.runs import EditingRun, Problem

__all__ = ["run_by_hand"]

WHO = "mumoe edit"
_MOST_CLASSES = 8


def run_by_hand(options: Options) -> None:
    """Edit, measure before and after, and write the file."""
    from mumoe.editing.files import load_edits, save_edits
    from mumoe.editing.runs import check_edits, edited_head
    from mumoe.editing.stack import EditStack
    from mumoe.editing.texts import parse_edit

    _check(options)
    check_edits(options.run, do=options.do, files=[options.base] if options.base else [], who=WHO)
    opened = open_verb(options, WHO, experts=True).editing()
    layer = opened.require_layer(WHO)
    out = output_file(options, opened.path, "-".join(options.do)[:80])
    problem = opened.problem(options.head, options.sensitive, who=WHO) if options.sensitive else None
    stack = load_edits(options.base, layer) if options.base else EditStack(layer)
    names = [stack.add(parse_edit(text, opened.data.classes, who=WHO)) for text in options.do]
    rows = opened.data.indices(options.report) if problem is None else problem.rows(options.report)  # type: ignore[arg-type]
    if not len(rows):
        raise UserError(f"{WHO}: expected images in the {options.report} split, got none. Take another --split.")
    before = _predicted(opened, rows)
    with stack:
        after = _predicted(opened, rows)
    measured = [_measured(opened, rows, guess) for guess in (before, after)]
    fairness = None if problem is None else _fairness(options, problem, rows, before, after)
    metrics = measured if fairness is None else [report.to_dict() for report in fairness.values()]
    provenance = {
        "run": str(opened.path),
        "data": {"name": opened.data.name, "fingerprint": opened.data.fingerprint},
        "by_hand": list(options.do),
        "split": options.report,
        "metrics_before": metrics[0],
        "metrics_after": metrics[1],
    }
    save_edits(out, stack, provenance)
    if options.export:
        export_head(Path(options.export), edited_head(opened, stack))
    lines = [f"{name}: {stack[name].describe()}" for name in names]
    lines += ["", f"On {len(rows):,} {options.report} images:", *_changed(opened, rows, before, after, measured)]
    lines += _tables(fairness) if fairness else []
    written = [out, *([options.export] if options.export else [])]
    sys.stdout.write("\n".join([*lines, *(f"Written: {path}" for path in written)]) + "\n")


def _check(options: Options) -> None:
    if options.report not in SPLITS:
        raise unknown_name(WHO, "split", options.report, SPLITS)
    if options.lambda_ != "auto":
        raise UserError(
            f"{WHO}: expected no --lambda with --do, got {options.lambda_}. It is for rewriting a subgroup."
        )
    given = [name for name in ("head", "sensitive", "value") if getattr(options, name)]
    if len(given) not in (0, 3):
        raise UserError(
            f"{WHO}: expected --target, --sensitive and --value to measure a subgroup, got --{' and --'.join(given)} "
            "alone. Give all three or none."
        )


def _predicted(opened: EditingRun, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(rows,) classes, or (rows, attributes) of 0 and 1."""
    logits = opened.outputs(rows)
    found = logits > 0 if opened.data.multi_label else logits.argmax(1)
    return found.astype(np.int64)


def _measured(opened: EditingRun, rows: npt.NDArray[np.int64], guess: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy, and that of each attribute, or of the images of each class."""
    data = opened.data
    truth = data.labels[rows].astype(np.int64)
    hits = guess == truth
    if data.multi_label:
        each = {name: float(share) for name, share in zip(data.classes, hits.mean(0), strict=True)}
    else:
        each = {data.classes[label]: float(hits[truth == label].mean()) for label in np.unique(truth).tolist()}
    return {"images": len(rows), "accuracy": float(hits.mean()), "classes": each}


def _fairness(
    options: Options,
    problem: Problem,
    rows: npt.NDArray[np.int64],
    before: npt.NDArray[np.int64],
    after: npt.NDArray[np.int64],
) -> dict[str, Any]:
    from mumoe.editing.fairness import Bootstrap, fairness_report

    old, new = before[:, problem.position], after[:, problem.position]
    common: dict[str, Any] = {
        "sensitive_features": problem.values[rows],
        "target": (options.label, options.value),
        "bootstrap": Bootstrap(options.resamples, seed=options.seed),
        "y_pred_before": old,
    }
    truth = problem.labels[rows]
    return {"before": fairness_report(truth, old, **common), "after": fairness_report(truth, new, **common)}


def _tables(reports: dict[str, Any]) -> list[str]:
    from mumoe.editing.tables import fairness_table, subgroup_table

    return ["", subgroup_table(reports, format="text"), fairness_table(reports, format="text")]


def _changed(
    opened: EditingRun,
    rows: npt.NDArray[np.int64],
    before: npt.NDArray[np.int64],
    after: npt.NDArray[np.int64],
    measured: list[dict[str, Any]],
) -> list[str]:
    """What the edits mend and break, and the classes whose accuracy moves most."""
    truth = opened.data.labels[rows].astype(np.int64)
    old, new = before == truth, after == truth
    what = "answers" if opened.data.multi_label else "images"
    first, second = measured
    lines = [
        f"  accuracy {first['accuracy']:.4f} -> {second['accuracy']:.4f}: {int((new & ~old).sum()):,} {what} mended, "
        f"{int((old & ~new).sum()):,} broken"
    ]
    moved = {name: second["classes"][name] - value for name, value in first["classes"].items()}
    order = sorted((name for name in moved if moved[name]), key=lambda name: -abs(moved[name]))
    lines += [
        f"  {name}: {first['classes'][name]:.3f} -> {second['classes'][name]:.3f}" for name in order[:_MOST_CLASSES]
    ]
    return [*lines, f"  and {len(order) - _MOST_CLASSES} more"] if len(order) > _MOST_CLASSES else lines
