"""`mumoe predict`: labels of images, and the experts behind them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from mumoe.commands.open_run import opened_classifier, require_run
from mumoe.errors import JobError, UserError
from mumoe.parsing import Argument
from mumoe.records import to_plain

if TYPE_CHECKING:
    from mumoe.deploy.model import ImageClassifier
    from mumoe.deploy.predictions import LabelScore, Prediction

__all__ = ["Options", "run"]

_MOST_NAMED = 5


@dataclass(frozen=True)
class Options:
    """Predict the labels of images, with the experts behind them and their terms of the logit."""

    COMMON: ClassVar = {"top": "5", "experts": "10", "json": ""}

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of a run, of the job that holds it, or of a saved model"""
    images: Annotated[tuple[str, ...], Argument(positional=True, metavar="IMAGE [IMAGE ...]")]
    """image files, or folders of images"""
    top: int = 3
    """how many labels to show (of attributes: all that reach the threshold)"""
    experts: int = 3
    """how many experts to show, those with the largest coefficients"""
    threshold: float = 0.5
    """least probability of an attribute"""
    batch_size: int = 16
    """images that go through the model at a time"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    json: bool = False
    """print one JSON object per image instead"""


def run(options: Options) -> None:
    """Predict and print; images that cannot be read are named at the end."""
    if options.batch_size < 1:
        raise UserError(f"mumoe predict: expected --batch-size >= 1, got {options.batch_size}.")
    require_run(options.run)
    from mumoe.deploy.predictions import find_images, note, predict_files

    paths = find_images(options.images)
    model = opened_classifier(options, "mumoe predict")
    settings = {"top": options.top, "experts": options.experts, "batch_size": options.batch_size}
    failed: list[Prediction] = []
    for prediction in predict_files(model, paths, threshold=options.threshold, **settings):
        if prediction.error:
            failed.append(prediction)
        if options.json:
            _write(json.dumps(to_plain(prediction)))
        elif not prediction.error:
            _write("\n".join(_lines(prediction, options, model)))
    if not options.json and len(failed) < len(paths):
        _write(note(model))
    if failed:
        raise _unread(failed, len(paths))


def _write(text: str) -> None:
    """To stdout; a file name that is not UTF-8 is shown with its bytes escaped."""
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")


def _lines(found: Prediction, options: Options, model: ImageClassifier) -> list[str]:
    """The label, or each attribute, with the experts behind it and the labels that follow indented below."""
    assert found.likeliest is not None
    name = _one_line(found.image)
    if not found.labels:
        nearest = f"{found.likeliest.label} has {found.likeliest.probability:.4f}"
        return [f"{name}: none of {len(model.classes)} attributes reaches {options.threshold:g}; {nearest}"]
    lines = []
    for label in found.labels if model.multi_label else found.labels[:1]:
        lines.append(f"{name}: {label.probability:.4f}  {label.label}  (logit {label.logit:+.3f})")
        lines += _expert_lines(label, options.experts)
    others = [] if model.multi_label else found.labels[1:]
    then = ", ".join(f"{label.probability:.4f} {label.label}" for label in others)
    return [*lines, f"    then {then}"] if then else lines


def _expert_lines(label: LabelScore, experts: int) -> list[str]:
    """Experts and their shares; the rest of the logit is shown unless no expert is left."""
    lines = []
    for share in label.experts:
        index = share.index if isinstance(share.index, int) else f"({', '.join(map(str, share.index))})"
        term = "" if share.contribution is None else f", contributes {share.contribution:+.3f}"
        named = f" ({share.name})" if share.name else ""
        lines.append(f"    expert {index}{named}: coefficient {share.coefficient:.4f}{term}")
    shown = [share.contribution for share in label.experts if share.contribution is not None]
    if shown and len(label.experts) == experts:
        lines.append(f"    all other experts: {label.logit - sum(shown):+.3f}")
    return lines


def _one_line(name: str) -> str:
    return "".join(
        character if character.isprintable() or "\udc80" <= character <= "\udcff" else "?" for character in name
    )


def _unread(failed: list[Prediction], total: int) -> JobError:
    named = [f"{os.fsencode(_one_line(item.image)).decode('utf-8', 'replace')} ({item.error})" for item in failed]
    shown = ", ".join(named[:_MOST_NAMED]) + (
        f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    )
    others = "The others were predicted." if len(failed) < total else "Give files that are images."
    return JobError(
        f"mumoe predict: expected image files, got {len(failed)} of {total} that cannot be read: {shown}. {others}"
    )
