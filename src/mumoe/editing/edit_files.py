"""Edits as JSON files: what was done to which model, on what grounds, and with what effect.

A file names the layer it belongs to by a fingerprint of its weights; loading it for another model is refused.
It is replaced as a whole.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from mumoe.editing.expert_edits import EDITS, ExpertEdit
from mumoe.editing.stack import EditStack, fingerprint
from mumoe.errors import UserError, unknown_name
from mumoe.files import write_text
from mumoe.layers import MuMoE

__all__ = ["FORMAT", "EditFile", "as_entry", "from_entry", "load_edits", "read_edit_file", "save_edits", "stack_on"]

FORMAT = "mumoe-edits"
VERSION = 1


@dataclass(frozen=True)
class EditFile:
    """The content of a file.

    Attributes:
        layer: spec, in_features, out_features and fingerprint of the layer.
        edits: Name to edit, in order.
        provenance: Whatever explains the edits: data, subgroup, strength and how it was chosen, metrics before and
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
    have = fingerprint(layer)
    if content.layer.get("fingerprint") != have:
        raise UserError(
            f"load_edits: expected edits of this model ({layer.spec}, {have[:12]}), got edits of another "
            f"({content.layer.get('spec')}, {str(content.layer.get('fingerprint'))[:12]}) in {Path(path).name}. "
            "Use the run that they were made on."
        )
    stack = EditStack(layer)
    for name, edit in content.edits.items():
        try:
            stack.add(edit, name)
        except (TypeError, IndexError) as error:
            raise _damaged(Path(path), error) from error
    return stack


class Stacked(Protocol):
    """What holds a stack of edits, such as `mumoe.editing.correcting.Edit`."""

    @property
    def stack(self) -> EditStack: ...


Edits = str | Path | EditStack | Stacked
"""A file of edits, a stack, or what holds one."""


def stack_on(layer: MuMoE, edits: Edits) -> EditStack:
    """A new stack on a layer with the edits of a file or of another stack.

    Raises:
        UserError: As `load_edits`, also for the stack of another model.
    """
    if isinstance(edits, str | Path):
        return load_edits(edits, layer)
    stack = edits if isinstance(edits, EditStack) else edits.stack
    if stack.layer is not layer and fingerprint(stack.layer) != fingerprint(layer):
        raise UserError(
            f"stack_on: expected edits of this model ({layer.spec}), got edits of another ({stack.layer.spec}). "
            "Use the run that they were made on."
        )
    return EditStack(layer, dict(stack.edits))


def read_edit_file(path: str | Path) -> EditFile:
    """The content of a file, without the model.

    Raises:
        UserError: If the file cannot be read, is no edit file, or is damaged.
    """
    path = Path(path)
    data = _read(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"load_edits: expected a file written by `mumoe edit`, got {path.name}. Give such a file.")
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
    """One edit as a file holds it."""
    return {"name": name, "kind": edit.kind, **dataclasses.asdict(edit)}  # type: ignore[call-overload]


def from_entry(item: Mapping[str, Any]) -> ExpertEdit:
    """The edit of a file's entry.

    Raises:
        UserError: If its kind or a field is not known.
        KeyError, TypeError, ValueError, IndexError: If something is missing or of the wrong type.
    """
    fields = dict(item)
    kind = fields.pop("kind")
    fields.pop("name")
    if kind not in EDITS:
        raise unknown_name("load_edits", "kind of edit", str(kind), EDITS)
    known = {entry.name: entry for entry in dataclasses.fields(EDITS[kind])}
    for name in fields:
        if name not in known:
            raise unknown_name("load_edits", f"field of {kind}", name, known)
    edit: ExpertEdit = EDITS[kind](**{name: _plain(known[name].type, value) for name, value in fields.items()})
    return edit


def _plain(annotation: Any, value: Any) -> Any:
    """Values as the dataclass declares them: lists to tuples; numbers that are numbers, and finite."""
    if str(annotation).startswith("tuple"):
        if not isinstance(value, list):
            raise ValueError(f"{value!r} where a list belongs")
        return _tuple(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} where a number belongs")
    if annotation == "int" and not isinstance(value, int):
        raise ValueError(f"{value!r} where a whole number belongs")
    return float(value) if annotation == "float" else value


def _tuple(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuple(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} where a number belongs")
    return value
