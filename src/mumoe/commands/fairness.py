"""`mumoe fairness`: accuracy of subgroups and the paper's fairness metrics, before and after edits."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from mumoe.commands.opening import opened as open_verb
from mumoe.commands.opening import require_run
from mumoe.data.base import SPLITS
from mumoe.errors import UserError, unknown_name
from mumoe.parsing import Argument

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Measure whom a run's model fails: every combination of a 0/1 attribute and a sensitive one."""

    COMMON: ClassVar = {
        "head": "Blond_Hair",
        "sensitive": "Male",
        "edits": "blond.json",
        "split": "val",
        "json": "",
    }
    """Shown first in help, with an example of each."""

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of a run, or of the job that holds it"""
    head: Annotated[str, Argument(("--target",))]
    """the attribute that is predicted"""
    sensitive: str
    """the sensitive attribute"""
    label: int = 1
    """label of the target subgroup, 0 or 1"""
    value: str = ""
    """sensitive value of the target subgroup, e.g. 1 or yes (empty: the one that is right least often)"""
    edits: str = ""
    """file of edits to compare with the model as it was trained"""
    split: str = "test"
    """train, val or test"""
    resamples: int = 1000
    """bootstrap resamples of the intervals (0: none)"""
    seed: int = 0
    """of the bootstrap"""
    json: bool = False
    """print JSON instead of tables"""
    data: str = ""
    """the data where they are now, e.g. folder:/new/place (empty: where the run found them)"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    quiet: bool = False
    """show no progress"""


def run(options: Options) -> None:
    """Measure and print."""
    require_run(options.run)
    from mumoe.editing.fairness import Bootstrap, fairness_report, subgroup_accuracy
    from mumoe.editing.files import load_edits
    from mumoe.editing.runs import check_edits
    from mumoe.editing.tables import fairness_table, subgroup_table

    if options.split not in SPLITS:
        raise unknown_name("mumoe fairness", "split", options.split, SPLITS)
    if options.edits:
        check_edits(options.run, files=[options.edits], who="mumoe fairness")
    opened = open_verb(options, "mumoe fairness").editing()
    problem = opened.problem(options.head, options.sensitive, who="mumoe fairness")
    rows = problem.rows(options.split)
    if not len(rows):
        raise UserError(f"mumoe fairness: expected images in the {options.split} split, got none. Take another.")
    truth, values = problem.labels[rows], problem.values[rows]
    before = opened.logits(rows, problem.position) > 0
    value = problem.value(options.value, who="mumoe fairness") if options.value else ""
    if not value:
        found = subgroup_accuracy(truth, before, sensitive_features=values)
        mine = {group: share for group, share in found.items() if group.label == options.label}
        value = min(mine, key=lambda group: mine[group]).sensitive if mine else ""
    common: dict[str, Any] = {
        "sensitive_features": values,
        "target": (options.label, value),
        "bootstrap": Bootstrap(options.resamples, seed=options.seed),
    }
    reports = {"model": fairness_report(truth, before, **common)}
    if options.edits:
        with load_edits(options.edits, opened.require_layer("mumoe fairness")):
            after = opened.logits(rows, problem.position) > 0
        reports["+ edits"] = fairness_report(truth, after, y_pred_before=before, **common)
    if options.json:
        plain = {name: report.to_dict() for name, report in reports.items()}
        sys.stdout.write(json.dumps(plain, allow_nan=False) + "\n")
        return
    left_out = problem.left_out(options.split)
    first = f"{options.head} by {options.sensitive} on {len(rows):,} {options.split} images of {opened.path}"
    unknown = f" ({left_out})" if left_out else ""
    tables = [subgroup_table(reports, format="text"), fairness_table(reports, format="text")]
    sys.stdout.write(f"{first}{unknown}\n\n" + "\n".join(tables))
