"""`mumoe edit`: correct a subgroup by rewriting the experts that treat it (eq. 6), or edit experts by hand."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from mumoe.errors import UserError, unknown_name
from mumoe.files import write_tensors

__all__ = ["Options", "export_head", "output_file", "run"]


@dataclass(frozen=True)
class Options:
    """Correct a biased run without training: rewrite the experts that a subgroup is sent to.

    The mean coefficients come from training images, lambda is chosen on validation images, and test images are
    used once, for the report. With --do the edits are yours, and are measured on validation images.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folder of the run"""
    head: str = ""
    """the attribute whose logit is corrected, e.g. Blond_Hair"""
    sensitive: str = ""
    """the sensitive attribute, e.g. Male"""
    value: str = ""
    """sensitive value of the subgroup to help, e.g. 1"""
    do: tuple[str, ...] = ()
    """edits by hand instead, in this order: ablate:17 scale:3=0.5 swap:4=9 set-output:5:CLASS=2.0
    correct:5:CLASS=0.3 (1/3 is expert 3 of level 1; 5,2 one of a hierarchy's combinations)"""
    report: str = "val"
    """split that --do is measured on: train, val or test"""
    label: int = 1
    """true label of that subgroup: 1 raises the logit, 0 lowers it"""
    lambda_: Annotated[str, tyro.conf.arg(name="lambda")] = "auto"
    """auto (chosen on validation), paper (the number of experts), or a number"""
    objective: Literal["worst_group", "match", "rewriting_score"] = "worst_group"
    """what auto looks for: the best worst subgroup, the target as good as its counterpart, the best MRS"""
    max_loss: float = 0.01
    """overall accuracy that worst_group may cost on validation, 0.01 is one point"""
    reading: Literal["joint", "levels"] = "joint"
    """mean coefficients in a hierarchy: of combinations, or the product of each level's"""
    base: str = ""
    """file of edits to put this one on top of"""
    out: str = ""
    """file to write (empty: RUN/edits/HEAD-SENSITIVE-VALUE.json, or one named after --do)"""
    export: str = ""
    """safetensors file for the head with the edit folded into its factors"""
    resamples: int = 1000
    """bootstrap resamples of the intervals (0: none)"""
    seed: int = 0
    """of the bootstrap"""
    quiet: bool = False
    """show no progress"""


def run(options: Options) -> None:
    """Choose, edit, report, and write the file."""
    if options.do:
        from mumoe.commands.edit_by_hand import run_by_hand

        return run_by_hand(options)
    missing = [f"--{name}" for name in ("head", "sensitive", "value") if not getattr(options, name)]
    if missing:
        raise UserError(
            f"mumoe edit: expected a subgroup (--head, --sensitive, --value) or edits by hand (--do ablate:17), "
            f"got no {', '.join(missing)}. Name one of the two."
        )
    return _rewrite(options)


def _rewrite(options: Options) -> None:
    from mumoe.editing.choose import final_report
    from mumoe.editing.fairness import Bootstrap
    from mumoe.editing.files import load_edits, save_edits
    from mumoe.editing.rewriting import rewriting
    from mumoe.editing.runs import edited_head, open_run
    from mumoe.editing.stack import EditStack

    wanted = _lambda(options.lambda_)
    if options.label not in (0, 1):
        raise UserError(f"mumoe edit: expected a label 0 or 1, got {options.label}. 1 raises the logit.")
    opened = open_run(options.run, progress=not options.quiet)
    layer = opened.require_layer("mumoe edit")
    problem = opened.problem(options.head, options.sensitive, who="mumoe edit")
    stack = load_edits(options.base, layer) if options.base else EditStack(layer)
    train, val, sealed = problem.splits.seal(problem.labels, problem.values)
    before = {split: opened.logits(problem.rows(split), problem.position) for split in ("val", "test")}
    with stack:
        based = {split: opened.logits(problem.rows(split), problem.position) for split in ("val", "test")}
    mean, support = _mean(options, opened, problem, train)
    directions = {split: _direction(opened, problem.rows(split), mean) for split in ("val", "test")}
    strength, choice = _choose(options, wanted, val, based["val"], directions["val"], float(mean.numel()))
    direction: Literal["raise", "lower"] = "raise" if options.label == 1 else "lower"
    name = stack.add(rewriting(layer, problem.position, mean, direction=direction, strength=abs(strength)))
    corrected = based["test"] + (0 if strength == 0 else strength * directions["test"]) > 0
    bootstrap = Bootstrap(options.resamples, seed=options.seed)
    common: dict[str, Any] = {"target": (options.label, options.value), "bootstrap": bootstrap}
    old = before["test"] > 0
    first = final_report(sealed, old, y_pred_before=old, purpose="report before", **common)
    report = final_report(sealed, corrected, y_pred_before=old, purpose="final report", **common)
    provenance = {
        "run": str(opened.path),
        "data": {"name": opened.data.name, "fingerprint": opened.data.fingerprint},
        "subgroup": {
            "head": options.head,
            "label": options.label,
            "sensitive": options.sensitive,
            "value": options.value,
            "training_images": support,
        },
        "lambda": strength,
        "choice": choice,
        "metrics_before": first.to_dict(),
        "metrics_after": report.to_dict(),
    }
    out = output_file(options, opened.path, f"{options.head}-{options.sensitive}-{options.value}")
    save_edits(out, stack, provenance)
    if options.export:
        export_head(Path(options.export), edited_head(opened, stack))
    _say(options, name, strength, support, choice, first, report, out)


def _lambda(text: str) -> float | Literal["paper"] | None:
    """None for auto.

    Raises:
        UserError: If the text is neither auto, paper nor a number from 0.
    """
    if text in ("auto", "paper"):
        return None if text == "auto" else "paper"
    try:
        value = float(text)
    except ValueError:
        raise unknown_name("mumoe edit", "lambda", text, ("auto", "paper", "0.5")) from None
    if not 0 <= value < math.inf:
        raise UserError(f"mumoe edit: expected lambda from 0, got {text}. Its sign follows from --label.")
    return value


def _mean(options: Options, opened: Any, problem: Any, train: Any) -> tuple[Any, int]:
    """Mean coefficients of the target's training images, and how many there are."""
    from mumoe.editing.rewriting import mean_coefficients

    if options.value not in set(problem.values[problem.known].tolist()):
        raise unknown_name("mumoe edit", f"value of {options.sensitive}", options.value, set(problem.values.tolist()))
    inside = (train.y_true == options.label) & (train.sensitive_features == options.value)
    if not inside.any():
        raise UserError(
            f"mumoe edit: expected training images with {options.head}={options.label} and "
            f"{options.sensitive}={options.value}, got none. Take a subgroup that training has seen."
        )
    rows = problem.rows("train")[inside]
    return mean_coefficients(opened.layer, opened.inputs(rows), reading=options.reading), len(rows)


def _direction(opened: Any, rows: Any, mean: Any) -> Any:
    import torch

    value = mean.expand(len(rows), *mean.shape)
    for a in opened.coefficients(rows, "mumoe edit"):
        value = torch.einsum("zn...,zn->z...", value, a.double())
    return value.numpy()


def _choose(
    options: Options, wanted: Any, val: Any, logits: Any, direction: Any, paper: float
) -> tuple[float, dict[str, Any] | None]:
    """Lambda with its sign, and how it was chosen."""
    from mumoe.editing.choose import LogitShift, choose_strength

    sign = 1 if options.label == 1 else -1
    if wanted is not None:
        return sign * (paper if wanted == "paper" else float(wanted)), None
    shift = LogitShift(logits, direction)
    choice = choose_strength(
        val,
        shift,
        shift.candidates(sign),
        target=(options.label, options.value),
        objective=options.objective,
        max_loss=options.max_loss,
    )
    return choice.strength, choice.to_dict()


def output_file(options: Options, run: Path, name: str) -> Path:
    """The file of --out, or RUN/edits/NAME.json, whose folder is made."""
    if options.out:
        return Path(options.out)
    folder = run / "edits"
    folder.mkdir(exist_ok=True)
    return folder / ("".join(c if c.isalnum() or c in "-_=" else "_" for c in name) + ".json")


def export_head(path: Path, head: Any) -> None:
    """Write a head's weights with its layer's spec, in one piece."""
    write_tensors(path, head.state_dict(), {"spec": head.layer.spec}, who="mumoe edit", remedy="Check --export.")


def _say(
    options: Options,
    name: str,
    strength: float,
    support: int,
    choice: dict[str, Any] | None,
    before: Any,
    after: Any,
    out: Path,
) -> None:
    from mumoe.editing.tables import fairness_table, render_table, subgroup_table

    reports = {"before": before, "after": after}
    lines = [
        f"{name}: {options.head} of {options.sensitive}={options.value} with label {options.label}, "
        f"mean coefficients of {support:,} training images, lambda {strength:+.4g}",
        "",
    ]
    if choice is not None:
        lines += [f"Trade-off on validation images ({choice['objective']}):", _curve(choice, render_table)]
    lines += ["On test images:", subgroup_table(reports, format="text"), fairness_table(reports, format="text")]
    lines += [f"Written: {out}", *([f"Written: {options.export}"] if options.export else [])]
    sys.stdout.write("\n".join(lines) + "\n")


def _curve(choice: dict[str, Any], render: Any) -> str:
    """A dozen points of the curve, the chosen one among them and marked."""
    curve = choice["curve"]
    chosen = next(i for i, point in enumerate(curve) if point["strength"] == choice["strength"])
    shown = sorted({*np.linspace(0, len(curve) - 1, min(12, len(curve))).round().astype(int).tolist(), chosen})
    names = {"target_accuracy": "target", "min_accuracy": "worst", "accuracy": "overall", "rewriting_score": "MRS"}
    rows = [
        [
            f"{curve[i]['strength']:+.4g}" + (" <- chosen" if i == chosen else ""),
            *(f"{curve[i]['metrics'][metric]:.3f}" for metric in names),
        ]
        for i in shown
    ]
    return str(render(["lambda", *names.values()], rows, "text"))
