"""Edits as a page makes them: what they do to a split, rewritings of a subgroup, and files that `mumoe edit` reads.

A page holds its edits as entries of such a file. Only the mean coefficients of a rewriting, which may be long, stay
here: an entry names them (``mean``) in place of its factors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from mumoe.dashboard import WHO
from mumoe.dashboard.background import Report
from mumoe.dashboard.scoring import Groups, accuracies, by_value
from mumoe.dashboard.session import Session, Split, silent
from mumoe.dashboard.whatif import Changed
from mumoe.editing.choose import LabelledRows, LogitShift
from mumoe.editing.edit_files import as_entry, from_entry, load_edits, read_edit_file, save_edits
from mumoe.editing.edit_texts import parse_edit
from mumoe.editing.operations import Mean, separate
from mumoe.editing.rewriting import choose_rewriting, mean_coefficients
from mumoe.editing.stack import EditStack, fingerprint
from mumoe.errors import UserError, unknown_name
from mumoe.files import digest_file, make_folder, write_errors
from mumoe.local_paths import public_name, run_name

__all__ = ["Subgroup", "compare", "list_edits", "load", "make_stack", "outcome", "parse", "rewrite", "save"]

MOST_EDITS = 200
"""Edits of one stack."""

LOCK = ".edits.lock"
"""Name of the file in RUN/edits that is locked while another is compared and replaced."""

RESAMPLES = 1000
"""Bootstrap resamples of the intervals in a file, as `mumoe edit` draws them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_=,.-]{0,80}")

MEANS = ("factors", "num_experts", "combinations", "shares")
"""Fields of a rewriting that hold its mean coefficients."""


@dataclass(frozen=True)
class Subgroup:
    """Whom a correction is meant for; for single-label data only `sensitive`, an attribute, counts.

    Attributes:
        head: 0/1 attribute that is predicted.
        sensitive: Sensitive attribute.
        value: Its value; empty for the value that is right least often.
        label: True label.
    """

    head: str = ""
    sensitive: str = ""
    value: str = ""
    label: int = 1


def make_stack(session: Session, entries: Sequence[Mapping[str, Any]]) -> EditStack:
    """The edits of a page, checked against the layer.

    Raises:
        UserError: If one is malformed or does not fit the layer.
    """
    if len(entries) > MOST_EDITS:
        raise UserError(f"{WHO}: expected at most {MOST_EDITS} edits, got {len(entries)}. Remove some.")
    try:
        edits = {str(entry["name"]): from_entry(_with_factors(session, entry)) for entry in entries}
        if len(edits) < len(entries):
            raise ValueError("a name twice")
        stack = EditStack(session.run.require_layer(WHO))
        stack.extend(edits)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        got = f"{type(error).__name__} {error}"
        raise UserError(f"{WHO}: expected an edit, got {got}. Load the page again.") from error
    return stack


def _with_factors(session: Session, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with its mean coefficients in full."""
    if "mean" not in entry:
        return dict(entry)
    full = {name: value for name, value in entry.items() if name != "mean"}
    if entry["mean"] not in session.means:
        raise UserError(f"{WHO}: expected mean coefficients of this session, got others. Make the rewriting again.")
    return full | session.means[entry["mean"]]


def _without_factors(session: Session, entry: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(entry))
    means = {key: plain.pop(key) for key in MEANS if key in plain}
    if not means:
        return plain
    name = hashlib.sha256(json.dumps(means).encode()).hexdigest()[:16]
    session.means[name] = means
    return plain | {"mean": name}


def parse(session: Session, text: str) -> dict[str, Any]:
    """The entry of an edit written as for `mumoe edit --do`, such as ``swap:4=9``.

    Raises:
        UserError: If it is none, or does not fit the layer.
    """
    edit = parse_edit(text.strip(), session.run.data.classes, who=WHO)
    entry = as_entry("edit", edit)
    make_stack(session, [json.loads(json.dumps(entry))])
    return _without_factors(session, entry)


def outcome(session: Session, split: Split, entries: Sequence[Mapping[str, Any]]) -> Changed:
    """The rows that edits change."""
    with session.lock:
        operations = make_stack(session, entries).operations() if entries else []
        return split.require_rows().changed(operations)


def compare(
    session: Session,
    split: Split,
    entries: Sequence[Mapping[str, Any]],
    subgroup: Subgroup,
    *,
    resamples: int = 0,
) -> dict[str, Any]:
    """Everything measured before and after: accuracy, classes, subgroups.

    Args:
        session: The session.
        split: The split.
        entries: The edits.
        subgroup: Whom the subgroup metrics are about; omitted if `sensitive` is empty.
        resamples: Of the bootstrap intervals of the subgroup metrics; 0 leaves them out.
    """
    with session.lock:
        changed = outcome(session, split, entries)
        found = split.scores.compared(changed)
        if not subgroup.sensitive:
            return found
        if not session.run.data.multi_label:
            return found | {"by_value": by_value(split.scores, split.require_rows(), changed, subgroup.sensitive)}
        groups, target = _groups(session, split, subgroup)
    after = split.scores.after(changed)  # without the lock, so that a bootstrap delays no other request
    return found | {"fairness": groups.compared(split.scores.decided, after, target, resamples)}


def _groups(session: Session, split: Split, subgroup: Subgroup) -> tuple[Groups, tuple[int, str]]:
    key = (split.name, subgroup.head, subgroup.sensitive)
    if key not in session.groups:
        problem = session.run.problem(subgroup.head, subgroup.sensitive, who=WHO)
        session.groups[key] = Groups.of(problem, split.require_rows())
    groups = session.groups[key]
    value = groups.worst(split.scores.decided, subgroup.label)
    if subgroup.value:
        value = groups.problem.value(subgroup.value, who=WHO)
    return groups, (subgroup.label, value)


# Rewriting ------------------------------------------------------------------------------------------------


def rewrite(
    session: Session,
    subgroup: Subgroup,
    entries: Sequence[Mapping[str, Any]],
    strength: str = "paper",
    report: Report = silent,
) -> dict[str, Any]:
    """The paper's rewriting (eq. 6) for a subgroup, as `mumoe edit` makes it: mean coefficients of training images.

    Args:
        session: The session.
        subgroup: Whom it is for; all four fields are needed.
        entries: Edits that it is added to.
        strength: ``paper`` (the number of experts) or ``auto`` (chosen on validation images).
        report: Called with the progress.

    Returns:
        ``entry`` without a name, ``images`` of the mean, and ``choice`` (None for ``paper``).

    Raises:
        UserError: If the subgroup has no training images, or the run is on single labels.
    """
    problem = session.run.problem(subgroup.head, subgroup.sensitive, who=WHO)
    subgroup = dataclasses.replace(subgroup, value=problem.value(subgroup.value, who=WHO))
    if strength not in ("paper", "auto"):
        raise unknown_name(WHO, "strength", strength, ("paper", "auto"))
    run, target = session.run, (subgroup.label, subgroup.value)
    images = problem.subgroup("train", target, WHO)
    note = f"Mean coefficients of {len(images):,} training images"
    mean = mean_coefficients(run.require_layer(WHO), run.batches(images, lambda done: report(done, len(images), note)))
    edit, choice = choose_rewriting(
        problem.position,
        mean,
        lambda: _validation(session, subgroup, entries, mean, report),
        target=target,
        strength="auto" if strength == "auto" else "paper",
    )
    kept = ("strength", "objective", "max_loss", "reached")
    return {
        "entry": _without_factors(session, as_entry("", edit)),
        "images": len(images),
        "choice": None if choice is None else {key: getattr(choice, key) for key in kept},
        "paper": float(mean.numel()),
    }


def _validation(
    session: Session, subgroup: Subgroup, entries: Sequence[Mapping[str, Any]], mean: Mean, report: Report
) -> tuple[LabelledRows, LogitShift]:
    """Validation images and their numbers under the page's edits, from the cached coefficients."""
    split = session.split("val", report)
    groups, _ = _groups(session, split, subgroup)
    rows, position = split.require_rows(), groups.problem.position
    changed = outcome(session, split, entries)
    logits = rows.logits[:, position].clone()
    logits[changed.rows] = changed.logits[:, position]
    shift = LogitShift(logits.double().numpy()[groups.known], _direction(split, mean)[groups.known])
    return LabelledRows(groups.truth, groups.values), shift


def _direction(split: Split, mean: Mean) -> Any:
    """(rows,) what one unit of a rewriting's strength adds: a-bar . a."""
    every = torch.arange(len(split.images))
    amount = torch.ones(1, dtype=torch.float64)
    for level, vectors in zip(split.levels, separate(mean), strict=True):
        amount = amount * level.mix(every, vectors)
    return amount.sum(1).numpy()


# Files ----------------------------------------------------------------------------------------------------


def list_edits(session: Session) -> list[dict[str, Any]]:
    """The files in RUN/edits: name, time, version, what they do, and whether they are of this model."""
    mine = fingerprint(session.run.require_layer(WHO)) if session.run.layer is not None else ""
    found: list[dict[str, Any]] = []
    for path in sorted((session.folder / "edits").glob("*.json")):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            version = _version(path)
            content = read_edit_file(path)
        except UserError as error:
            found.append({"name": path.stem, "version": version, "error": " ".join(str(error).split())})
            continue
        except OSError as error:
            found.append({"name": path.stem, "error": f"{path.name} cannot be read ({error.strerror})"})
            continue
        edits = [f"{name}: {edit.describe()}" for name, edit in content.edits.items()]
        facts = {"created": content.created, "version": version, "edits": edits}
        found.append({"name": path.stem, **facts, "fits": content.layer.get("fingerprint") == mine})
    return found


def load(session: Session, name: str) -> tuple[str, list[dict[str, Any]]]:
    """The version of a file in RUN/edits, and its entries.

    Raises:
        UserError: If there is no such file there, or it belongs to another model.
    """
    known = {entry["name"] for entry in list_edits(session)}
    if name not in known:
        raise unknown_name(WHO, "file of edits", name, known)
    path = session.folder / "edits" / f"{name}.json"
    while True:  # until the edits are those of the version: another process may replace the file meanwhile
        version, stack = _version(path), load_edits(path, session.run.require_layer(WHO))
        if _version(path) == version:
            break
    return version, [_without_factors(session, as_entry(key, edit)) for key, edit in stack.edits.items()]


def save(
    session: Session,
    split: Split,
    entries: Sequence[Mapping[str, Any]],
    name: str,
    subgroup: Subgroup,
    *,
    replace: str = "",
) -> dict[str, str]:
    """Write edits to RUN/edits/NAME.json with what they change, as `mumoe edit` does.

    Args:
        session: The session.
        split: The split that is measured.
        entries: The edits.
        name: Of the file, without ``.json``.
        subgroup: Whose accuracies are recorded.
        replace: Version of the file that this one is made from, and takes the place of; empty for a new file.

    Returns:
        ``path`` and ``version`` of the file.

    Raises:
        UserError: If the name is no plain file name or is taken, the file has another version since it was read, or
            there are no edits.
    """
    if not _NAME.fullmatch(name) or name.endswith(".json"):
        raise UserError(
            f"{WHO}: expected a name of letters, digits and -_=,. for the file, got {name!r}. RUN/edits is its folder."
        )
    if not entries:
        raise UserError(f"{WHO}: expected edits to save, got none. Make one first.")
    folder = session.folder / "edits"
    path = folder / f"{name}.json"
    if folder.is_symlink() or path.is_symlink():
        raise UserError(f"{WHO}: expected a plain file in the run's folder, got a link {path.name!r}. Remove it.")
    with session.lock:
        stack = make_stack(session, entries)
        facts = _provenance(session, split, stack, subgroup)
    make_folder(folder, who=WHO)
    with write_errors(path, who=WHO), FileLock(folder / LOCK):
        _require_version(path, replace)
        save_edits(path, stack, facts)
        return {"path": str(path), "version": _version(path)}


def _version(path: Path) -> str:
    """Digest of a file of edits."""
    return digest_file(path)[:16]


def _require_version(path: Path, expected: str) -> None:
    found = _version(path) if path.exists() else ""
    if found == expected:
        return
    if not expected:
        raise UserError(f"{WHO}: expected a new name, got {path.stem!r}, which exists. Use another, or replace it.")
    raise UserError(
        f"{WHO}: expected the file {path.stem!r} as it was when it was read, got one that was "
        f"{'changed' if found else 'deleted'} elsewhere. Load it again and repeat your change, or use another name."
    )


def _provenance(session: Session, split: Split, stack: EditStack, subgroup: Subgroup) -> dict[str, Any]:
    """What `mumoe edit` records, with the split that was looked at."""
    data = session.run.data
    facts: dict[str, Any] = {
        "run": run_name(session.folder),
        "data": {"name": public_name(data.name), "fingerprint": data.fingerprint},
        "made_with": "mumoe dashboard",
        "by_hand": stack.describe(),
        "split": split.name,
    }
    changed = split.require_rows().changed(stack.operations())
    if data.multi_label and subgroup.sensitive:
        groups, target = _groups(session, split, subgroup)
        before, after = groups.reports(split.scores.decided, split.scores.after(changed), target, RESAMPLES)
        facts["subgroup"] = {
            "head": subgroup.head,
            "label": target[0],
            "sensitive": subgroup.sensitive,
            "value": target[1],
        }
    else:
        before, after = accuracies(split.scores, changed)
    return facts | {"metrics_before": before, "metrics_after": after}
