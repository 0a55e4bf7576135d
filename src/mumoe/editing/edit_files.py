"""Edits as JSON files: what was done to which model, why, and with what effect.

A file names the layer it belongs to by a fingerprint of its weights; loading it for another model is refused.
It is replaced as a whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mumoe.editing.expert_edits import EDITS, ExpertEdit
from mumoe.editing.stack import EditStack, fingerprint
from mumoe.errors import UserError, unknown_name
from mumoe.files import regular_size, write_text
from mumoe.layers import MuMoE
from mumoe.records import read_typed

__all__ = [
    "FORMAT",
    "EditFile",
    "as_entry",
    "content_of",
    "from_entry",
    "load_edits",
    "read_edit_file",
    "save_edits",
    "stack_on",
]

FORMAT = "mumoe-edits"
VERSION = 1


@dataclass(frozen=True)
class EditFile:
    """The content of a file.

    Attributes:
        layer: spec, in_features, out_features and fingerprint of the layer.
        edits: Name to edit, in order.
        provenance: What explains the edits: data, subgroup, strength and how it was chosen, metrics before and
            after. Plain JSON values.
        created: UTC time in ISO 8601.
    """

    layer: Mapping[str, Any]
    edits: Mapping[str, ExpertEdit]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""


def save_edits(path: str | Path, stack: EditStack, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a stack with its provenance; an existing file is replaced as a whole.

    Raises:
        UserError: If the provenance is not JSON (NaN included); nothing is written.
        JobError: If the folder does not exist or cannot be written, or the disk is full.
    """
    layer = stack.layer
    with stack.being(applied=False):
        spec = layer.spec
    content = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "layer": {
            "spec": spec,
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "fingerprint": fingerprint(layer),
        },
        "edits": [as_entry(name, edit) for name, edit in stack.edits.items()],
        "provenance": dict(provenance or {}),
    }
    try:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"save_edits: expected plain JSON values, got {error}. Leave NaN and objects out.") from error
    write_text(Path(path), text + "\n", who="save_edits", parents=False)


def load_edits(path: str | Path, layer: MuMoE) -> EditStack:
    """The stack of a file, for the layer that it was made for; not applied yet.

    Raises:
        UserError: If the file cannot be read, is no edit file, is damaged, or belongs to another model.
    """
    content = read_edit_file(path)
    made_for = (str(content.layer.get("spec")), str(content.layer.get("fingerprint")))
    _require_same(layer, *made_for, f" in {Path(path).name}")
    stack = EditStack(layer)
    stack.extend(content.edits)
    return stack


def _require_same(layer: MuMoE, spec: str, mark: str, where: str = "") -> None:
    have = fingerprint(layer)
    if mark != have:
        raise UserError(
            f"load_edits: expected edits of this model ({layer.spec}, {have[:12]}), got edits of another "
            f"({spec}, {mark[:12]}){where}. Use the run that they were made on."
        )


@runtime_checkable
class Stacked(Protocol):
    """An object that holds a stack of edits, such as `mumoe.editing.correcting.Edit`."""

    @property
    def stack(self) -> EditStack: ...


Edits = str | Path | EditStack | Stacked
"""A file of edits, a stack, or an object that holds one."""


def content_of(edits: Edits | None) -> EditFile:
    """The content of edits, read without the model; None means no edits.

    Raises:
        UserError: As `read_edit_file`.
    """
    if isinstance(edits, str | Path):
        return read_edit_file(edits)
    stack = _held(edits)
    return EditFile({}, {} if stack is None else stack.edits, getattr(edits, "provenance", {}))


def _held(edits: EditStack | Stacked | None) -> EditStack | None:
    return edits if edits is None or isinstance(edits, EditStack) else edits.stack


def stack_on(layer: MuMoE, edits: Edits | None) -> EditStack:
    """A new stack on a layer with the edits of a file or of another stack; None means no edits.

    Raises:
        UserError: As `load_edits`, also for the stack of another model, or one that is applied.
    """
    if isinstance(edits, str | Path):
        return load_edits(edits, layer)
    stack = _held(edits)
    if stack is None:
        return EditStack(layer)
    if stack.layer is not layer:
        _require_same(layer, stack.layer.spec, fingerprint(stack.layer))
    elif stack.applied:
        raise UserError("stack_on: expected edits that are not applied, got applied ones. Undo them first.")
    return EditStack(layer, dict(stack.edits))


def read_edit_file(path: str | Path) -> EditFile:
    """The content of a file, without the model.

    Raises:
        UserError: If the file cannot be read, is no edit file, or is damaged.
    """
    path = Path(path)
    data = _read(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"load_edits: expected a file written by `mumoe edit`, got {path.name}. Pass such a file.")
    if data.get("version") != VERSION:
        raise UserError(
            f"load_edits: expected version {VERSION} in {path.name}, got {data.get('version')!r}. Update mumoe."
        )
    try:
        edits = {str(item["name"]): from_entry(item) for item in data["edits"]}
        if len(edits) < len(data["edits"]):
            raise ValueError("a name twice")
        return EditFile(dict(data["layer"]), edits, dict(data.get("provenance", {})), str(data.get("created", "")))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"load_edits: expected complete edits in {path.name}, got {type(error).__name__} {error}. "
        "The file was changed or cut short; write it again."
    )


def _read(path: Path) -> Any:
    try:
        regular_size(path)
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(
            f"load_edits: expected a readable file, got {error.strerror} for {path}. Check the path."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"load_edits: expected JSON in {path.name}, got {error}. Write the file again.") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the number {name}")


def as_entry(name: str, edit: ExpertEdit) -> dict[str, Any]:
    """One edit as a file holds it; fields that are empty are left out."""
    fields = {key: value for key, value in dataclasses.asdict(edit).items() if value != ()}  # type: ignore[call-overload]
    return {"name": name, "kind": edit.kind, **fields}


def from_entry(item: Mapping[str, Any]) -> ExpertEdit:
    """The edit of a file's entry.

    Raises:
        UserError: If its kind or a field is unknown, or a value is missing or of the wrong type.
        KeyError, TypeError, ValueError: If it is no entry, or a number is not finite.
    """
    fields = dict(item)
    kind = fields.pop("kind")
    fields.pop("name")
    if kind not in EDITS:
        raise unknown_name("load_edits", "kind of edit", str(kind), EDITS)
    known = [entry.name for entry in dataclasses.fields(EDITS[kind])]
    for name in fields:
        if name not in known:
            raise unknown_name("load_edits", f"field of {kind}", name, known)
    json.dumps(fields, allow_nan=False)  # refuses numbers that are not finite
    edit: ExpertEdit = read_typed(EDITS[kind], fields, "load_edits")
    return edit
