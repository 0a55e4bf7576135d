"""`mumoe edit`: correct a subgroup by rewriting the experts that treat it (eq. 6), or edit experts by hand."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from mumoe.commands.opening import opened as open_verb
from mumoe.commands.opening import require_run
from mumoe.errors import UserError, unknown_name
from mumoe.files import check_writable, write_tensors
from mumoe.parsing import Argument

if TYPE_CHECKING:
    from mumoe.editing.choose import Choice
    from mumoe.editing.rewriting import Corrected, Strength
    from mumoe.editing.runs import EditingRun

__all__ = ["Options", "export_head", "output_file", "run"]


@dataclass(frozen=True)
class Options:
    """Correct a biased run without training: rewrite the experts that a subgroup is sent to.

    The mean coefficients come from training images, lambda is chosen on validation images, and test images are
    used once, for the report. With --do the edits are yours, and are measured on validation images.
    """

    COMMON: ClassVar = {
        "head": "Blond_Hair",
        "sensitive": "Male",
        "value": "1",
        "do": "ablate:17 scale:3=0.5",
        "out": "blond.json",
    }
    """Shown first in help, with an example of each."""

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of a run, or of the job that holds it"""
    head: Annotated[str, Argument(("--target",))] = ""
    """the attribute whose logit is corrected"""
    sensitive: str = ""
    """the sensitive attribute"""
    value: str = ""
    """sensitive value of the subgroup to help (of a 0/1 attribute 1, yes and true are one)"""
    do: tuple[str, ...] = ()
    """edits by hand instead, in this order: ablate:17 scale:3=0.5 swap:4=9 set-output:5:CLASS=2.0
    correct:5:CLASS=0.3 (1/3 is expert 3 of level 1; 5,2 one of a hierarchy's combinations)"""
    report: Annotated[str, Argument(("--split",))] = "val"
    """split that --do is measured on: train, val or test"""
    label: int = 1
    """true label of that subgroup: 1 raises the logit, 0 lowers it"""
    lambda_: Annotated[str, Argument(("--lambda",))] = "auto"
    """auto (chosen on validation), paper (the number of experts), or a number"""
    objective: Literal["worst_group", "match", "rewriting_score"] = "worst_group"
    """what auto looks for: the best worst subgroup, the target as good as its counterpart, the best MRS"""
    max_loss: float = 0.01
    """overall accuracy that worst_group may cost on validation, 0.01 is one point"""
    reading: Literal["joint", "levels"] = "joint"
    """mean coefficients in a hierarchy: of combinations, or the product of each level's"""
    base: str = ""
    """file of edits to put this one on top of"""
    out: Annotated[str, Argument(("-o", "--out"))] = ""
    """file to write (empty: RUN/edits/HEAD-SENSITIVE-VALUE.json, or one named after --do)"""
    export: str = ""
    """safetensors file for the head with the edit folded into its factors"""
    resamples: int = 1000
    """bootstrap resamples of the intervals (0: none)"""
    seed: int = 0
    """of the bootstrap"""
    data: str = ""
    """the data where they are now, e.g. folder:/new/place (empty: where the run found them)"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    quiet: bool = False
    """show no progress"""


def run(options: Options) -> None:
    """Choose, edit, report, and write the file."""
    require_run(options.run)
    if options.do:
        from mumoe.commands.edit_by_hand import run_by_hand

        return run_by_hand(options)
    missing = [f"--{name}" for name in ("head", "sensitive", "value") if not getattr(options, name)]
    if missing:
        raise UserError(
            f"mumoe edit: expected a subgroup (--target, --sensitive, --value) or edits by hand (--do ablate:17), "
            f"got no {', '.join(missing)}. Name one of the two."
        )
    return _rewrite(options)


def _rewrite(options: Options) -> None:
    from mumoe.editing.fairness import Bootstrap
    from mumoe.editing.files import load_edits, save_edits
    from mumoe.editing.rewriting import rewrite_run
    from mumoe.editing.runs import check_edits, edited_head
    from mumoe.editing.stack import EditStack

    wanted = _lambda(options.lambda_)
    if options.label not in (0, 1):
        raise UserError(f"mumoe edit: expected a label 0 or 1, got {options.label}. 1 raises the logit.")
    check_edits(options.run, files=[options.base] if options.base else [], who="mumoe edit")
    opened = open_verb(options, "mumoe edit", experts=True).editing()
    layer = opened.require_layer("mumoe edit")
    problem = opened.problem(options.head, options.sensitive, who="mumoe edit")
    options = dataclasses.replace(options, value=problem.value(options.value, who="mumoe edit"))
    out = output_file(options, opened.path, f"{options.head}-{options.sensitive}-{options.value}")
    found = rewrite_run(
        opened,
        problem,
        load_edits(options.base, layer) if options.base else EditStack(layer),
        target=(options.label, options.value),
        strength=wanted,
        objective=options.objective,
        max_loss=options.max_loss,
        reading=options.reading,
        bootstrap=Bootstrap(options.resamples, seed=options.seed),
        who="mumoe edit",
    )
    save_edits(out, found.stack, {"run": str(opened.path), "data": _data(opened), **_provenance(options, found)})
    if options.export:
        export_head(Path(options.export), edited_head(opened, found.stack))
    _say(options, found, out, problem.left_out("train", "val", "test"))


def _data(opened: EditingRun) -> dict[str, str]:
    return {"name": opened.data.name, "fingerprint": opened.data.fingerprint}


def _provenance(options: Options, found: Corrected) -> dict[str, Any]:
    choice = found.rewriting.choice
    return {
        "subgroup": {
            "head": options.head,
            "label": options.label,
            "sensitive": options.sensitive,
            "value": options.value,
            "training_images": found.rewriting.images,
        },
        "lambda": found.rewriting.edit.strength,
        "choice": None if choice is None else choice.to_dict(),
        "metrics_before": found.before.to_dict(),
        "metrics_after": found.after.to_dict(),
    }


def _lambda(text: str) -> Strength:
    """The strength that a text names.

    Raises:
        UserError: If the text is neither auto, paper nor a number from 0.
    """
    if text in ("auto", "paper"):
        return "auto" if text == "auto" else "paper"
    try:
        value = float(text)
    except ValueError:
        raise unknown_name("mumoe edit", "lambda", text, ("auto", "paper", "0.5")) from None
    if not 0 <= value < math.inf:
        raise UserError(f"mumoe edit: expected lambda from 0, got {text}. Its sign follows from --label.")
    return value


def output_file(options: Options, run: Path, name: str) -> Path:
    """The file of --out, or RUN/edits/NAME.json, whose folder is made."""
    if options.out:
        check_writable(options.out, who="mumoe edit", parents=False)
        return Path(options.out)
    file = "".join(c if c.isalnum() or c in "-_=" else "_" for c in name) + ".json"
    check_writable(run / "edits" / file, who="mumoe edit")
    (run / "edits").mkdir(exist_ok=True)
    return run / "edits" / file


def export_head(path: Path, head: Any) -> None:
    """Write a head's weights with its layer's spec, in one piece."""
    write_tensors(path, head.state_dict(), {"spec": head.layer.spec}, who="mumoe edit", remedy="Check --export.")


def _say(options: Options, found: Corrected, out: Path, left_out: str) -> None:
    from mumoe.editing.tables import fairness_table, render_table, subgroup_table

    reports, edit = {"before": found.before, "after": found.after}, found.rewriting.edit
    lines = [
        f"{found.name}: {options.head} of {options.sensitive}={options.value} with label {options.label}, "
        f"mean coefficients of {found.rewriting.images:,} training images, lambda {edit.strength:+.4g}",
        *([left_out] if left_out else []),
        "",
    ]
    if (choice := found.rewriting.choice) is not None:
        lines += [f"Trade-off on validation images ({choice.objective}):", _curve(choice, render_table)]
    lines += ["On test images:", subgroup_table(reports, format="text"), fairness_table(reports, format="text")]
    lines += [f"Written: {out}", *([f"Written: {options.export}"] if options.export else [])]
    sys.stdout.write("\n".join(lines) + "\n")


def _curve(choice: Choice, render: Any) -> str:
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
    return str(render(["lambda", *names.values()], rows, "text"))
