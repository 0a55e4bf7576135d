"""`mumoe edit`: correct a subgroup by rewriting the experts that process it (eq. 6), or edit experts by hand."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from mumoe.commands.open_run import RunOptions, opened, require_run, settings_of
from mumoe.errors import UserError
from mumoe.files import check_writable, make_folder, write_tensors
from mumoe.parsing import Argument

if TYPE_CHECKING:
    from mumoe.api import Run
    from mumoe.editing.correcting import Edit

__all__ = ["Options", "run"]

WHO = "mumoe edit"


@dataclass(frozen=True)
class Options(RunOptions):
    """Correct a biased run without training: rewrite the experts that a subgroup is sent to.

    The mean coefficients come from training images, lambda is chosen on validation images, and test images are
    used once, for the report. With --do you give the edits, which are measured on validation images.
    """

    COMMON: ClassVar = {
        "target": "Blond_Hair",
        "sensitive": "Male",
        "value": "1",
        "do": "ablate:17 scale:3=0.5",
        "out": "blond.json",
    }

    target: str = ""
    """the attribute whose logit is corrected"""
    sensitive: str = ""
    """the sensitive attribute"""
    value: str = ""
    """sensitive value of the subgroup to help (of a 0/1 attribute 1, yes and true are one)"""
    do: tuple[str, ...] = ()
    """edits by hand instead, in this order: ablate:17 scale:3=0.5 swap:4=9 set-output:5:CLASS=2.0
    correct:5:CLASS=0.3 (1/3 is expert 3 of level 1; 5,2 one of a hierarchy's combinations)"""
    split: str = "val"
    """split that --do is measured on: train, val or test"""
    label: int = 1
    """true label of that subgroup: 1 raises the logit, 0 lowers it"""
    strength: Annotated[str, Argument(("--lambda",))] = "auto"
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
    """file to write (empty: RUN/edits/TARGET-SENSITIVE-VALUE.json, or one named after --do)"""
    export: str = ""
    """safetensors file for the head with the edit folded into its factors"""
    resamples: int = 1000
    """bootstrap resamples of the intervals (0: none)"""
    seed: int = 0
    """of the bootstrap"""


def run(options: Options) -> None:
    """Choose or edit by hand, report, and write the file."""
    require_run(options.run)
    _check(options)
    opened_run = opened(options, WHO, experts=True)
    check_writable(options.out or opened_run.path / "edits" / "edit.json", who=WHO, parents=not options.out)
    edit = _by_hand(options, opened_run) if options.do else _rewritten(options, opened_run)
    out = Path(options.out) if options.out else _place(opened_run.path / "edits", options, edit)
    edit.save(out)
    if options.export:
        edited = opened_run.with_edits(edit)
        spec = {"spec": edited.config.head}
        write_tensors(options.export, edited.head.state_dict(), spec, who=WHO, remedy="Check --export.")
    written = [out, *([options.export] if options.export else [])]
    sys.stdout.write("\n".join([*edit.report.lines(), *(f"Written: {path}" for path in written)]) + "\n")


def _rewritten(options: Options, opened_run: Run) -> Edit:
    names = ("target", "sensitive", "value", "label", "objective", "max_loss", "reading", "resamples", "seed")
    strength = _strength(options.strength)
    return opened_run.rewrite(strength=strength, base=options.base or None, **settings_of(options, *names))


def _by_hand(options: Options, opened_run: Run) -> Edit:
    names = ("split", "target", "sensitive", "value", "label", "resamples", "seed")
    return opened_run.edit(*options.do, base=options.base or None, **settings_of(options, *names))


def _check(options: Options) -> None:
    missing = [f"--{name}" for name in ("target", "sensitive", "value") if not getattr(options, name)]
    if options.do and options.strength != "auto":
        raise UserError(
            f"{WHO}: expected no --lambda with --do, got {options.strength}. It is for rewriting a subgroup."
        )
    if missing and not options.do:
        raise UserError(
            f"{WHO}: expected a subgroup (--target, --sensitive, --value) or edits by hand (--do ablate:17), "
            f"got no {', '.join(missing)}. Name one of the two."
        )


def _strength(text: str) -> Any:
    """The number in a text; a word is returned unchanged."""
    try:
        return float(text)
    except ValueError:
        return text


def _place(folder: Path, options: Options, edit: Edit) -> Path:
    """The file in RUN/edits, whose folder is made."""
    value = getattr(edit.report, "value", "")
    name = "-".join(options.do)[:80] if options.do else f"{options.target}-{options.sensitive}-{value}"
    return make_folder(folder, who=WHO) / ("".join(c if c.isalnum() or c in "-_=" else "_" for c in name) + ".json")
