"""Names and notes of experts, as a page reads and changes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mumoe.analysis.expert_notes import ExpertNote, ExpertNotes, change_note
from mumoe.dashboard import WHO
from mumoe.dashboard.session import Session
from mumoe.dashboard.token_view import TokenSession
from mumoe.errors import UserError, unknown_name
from mumoe.files import to_plain

__all__ = ["all_notes", "note_of", "set_note"]

Opened = Session | TokenSession


def all_notes(session: Opened) -> dict[str, Any]:
    """Names and notes by level and expert, and the reason if their file cannot be read."""
    try:
        return {"levels": to_plain(ExpertNotes.of_run(session.folder).levels), "problem": ""}
    except UserError as error:
        return {"levels": {}, "problem": " ".join(str(error).split())}


def set_note(session: Opened, level: str, expert: int, after: ExpertNote, before: ExpertNote) -> dict[str, Any]:
    """Save the name and note of one expert at once; returns all of them.

    Args:
        session: The session.
        level: The level, or of a language model the name of the layer.
        expert: Its position there.
        after: What to save; both empty removes the entry.
        before: What the page showed when the change was made.

    Raises:
        UserError: If there is no such expert, it was changed elsewhere since, or a text is too long.
        JobError: If the file cannot be written.
    """
    sizes = _sizes(session)
    if level not in sizes:
        raise unknown_name(WHO, "level", level, sizes)
    if not 0 <= expert < sizes[level]:
        raise UserError(f"{WHO}: expected an expert in 0..{sizes[level] - 1}, got {expert}. Count from 0.")
    change_note(session.folder, expert, level, name=after.name, note=after.note, before=before)
    return all_notes(session)


def note_of(given: Mapping[str, Any], name: str = "") -> ExpertNote:
    """The name and note in a request, or in the object of this name in it.

    Raises:
        UserError: If they are not texts.
    """
    found = given.get(name) if name else given
    called, note = (found.get("name", ""), found.get("note", "")) if isinstance(found, Mapping) else (None, None)
    if not isinstance(called, str) or not isinstance(note, str):
        raise UserError(f"{WHO}: expected a name and a note as texts, got others. Load the page again.")
    return ExpertNote(called, note)


def _sizes(session: Opened) -> dict[str, int]:
    """Experts of each level, or layer."""
    if isinstance(session, TokenSession):
        return {layer.layer: layer.num_experts for layer in session.study.layers}
    return {str(level): size for level, size in enumerate(session.num_experts)}
