"""Names and notes that people give to experts, kept with the run in RUN/expert-notes.json.

Dashboard, report, notebook and export read and write them here. The file is written whole and atomically; an expert
with neither name nor note has no entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from mumoe.errors import UserError, shown
from mumoe.files import read_json, write_errors
from mumoe.records import Record, record

__all__ = ["FILE", "ExpertNote", "ExpertNotes", "change_note", "suggest_name"]

FILE = "expert-notes.json"
"""Name of the file in a run's folder."""

LOCK = ".expert-notes.lock"
"""Name of the file that is locked while the notes are changed."""

MOST_NAME, MOST_NOTE = 80, 4000
"""Longest name and note, in characters."""


@dataclass(frozen=True)
class ExpertNote:
    """The name of one expert, and a note on it.

    Attributes:
        name: A short name on one line; empty for none.
        note: Anything else worth keeping; empty for none.
    """

    name: str = ""
    note: str = ""

    def __bool__(self) -> bool:
        return bool(self.name or self.note)


@record
class ExpertNotes(Record):
    """Names and notes of a run's experts.

    Attributes:
        levels: By level of a hierarchy (``"0"``, ``"1"``, ..; of a language model the name of the layer, such as
            ``"h.0.mlp"``), and in it by expert.
    """

    levels: Mapping[str, Mapping[str, ExpertNote]] = field(default_factory=dict)

    @classmethod
    def of_run(cls, folder: str | Path) -> Self:
        """The notes of a run; none if there is no file.

        Raises:
            UserError: If the file is damaged or of a later version.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            return cls()
        found = cls.from_dict(read_json(file, "expert notes"), f"expert notes: {file}")
        wrong = [key for entries in found.levels.values() for key in entries if not (key.isascii() and key.isdigit())]
        if wrong:
            raise UserError(f"expert notes: expected numbers of experts in {file}, got {shown(wrong[0])}. Correct it.")
        return found

    def save_to(self, folder: str | Path) -> None:
        """Write the notes into a run's folder.

        Raises:
            JobError: If the file cannot be written.
        """
        self.save(Path(folder) / FILE)

    def of(self, expert: int, level: int | str = 0) -> ExpertNote:
        """The name and note of one expert; both empty if it has none."""
        return self.levels.get(str(level), {}).get(str(expert), ExpertNote())

    def name(self, expert: int, level: int | str = 0) -> str:
        """The name of one expert; empty if it has none."""
        return self.of(expert, level).name

    def with_note(self, expert: int, level: int | str = 0, *, name: str = "", note: str = "") -> Self:
        """A copy in which one expert has this name and note; both empty removes its entry.

        Raises:
            UserError: If the expert is negative, or name or note is too long.
        """
        if expert < 0:
            raise UserError(f"expert notes: expected an expert >= 0, got {expert}. Count from 0.")
        entry = ExpertNote(_one_line(name), note.strip())
        for what, text, most in (("name", entry.name, MOST_NAME), ("note", entry.note, MOST_NOTE)):
            if len(text) > most:
                raise UserError(
                    f"expert notes: expected a {what} of at most {most:,} characters, got {len(text):,}. Shorten it."
                )
        others = {key: value for key, value in self.levels.get(str(level), {}).items() if key != str(expert)}
        entries = {**others, str(expert): entry} if entry else others
        levels = {**self.levels, str(level): dict(sorted(entries.items(), key=lambda item: int(item[0])))}
        return replace(self, levels={key: found for key, found in levels.items() if found})

    def rows(self) -> list[dict[str, Any]]:
        """One row per expert that has a name or note."""
        return [
            {"level": level, "expert": int(expert), "name": entry.name, "note": entry.note}
            for level, entries in self.levels.items()
            for expert, entry in entries.items()
        ]


def change_note(
    folder: str | Path,
    expert: int,
    level: int | str = 0,
    *,
    name: str = "",
    note: str = "",
    before: ExpertNote | None = None,
) -> ExpertNotes:
    """Give one expert of a run a name and a note; both empty removes them. The file is locked, read, changed and
    written, so that changes of other processes are kept.

    Args:
        folder: The run's folder.
        expert: Its position in the level.
        level: The level, or the name of the layer.
        name: Its name.
        note: Its note.
        before: The name and note that the change was made from; None skips the comparison.

    Returns:
        All names and notes of the run.

    Raises:
        UserError: If the expert has another name or note than `before`, one is too long, or the file is damaged.
        JobError: If the file cannot be written.
    """
    from filelock import FileLock  # an extra; reading notes needs none

    place = Path(folder)
    with write_errors(place / FILE), FileLock(place / LOCK):
        notes = ExpertNotes.of_run(place)
        found = notes.of(expert, level)
        if before is not None and found != before:
            raise UserError(
                f"expert notes: expected expert {expert} with {_shown(before)}, got {_shown(found)}: it was changed "
                "elsewhere. Load it again and repeat your change."
            )
        changed = notes.with_note(expert, level, name=name, note=note)
        changed.save_to(place)
    return changed


def suggest_name(lost: Sequence[tuple[str, float]], seen: Sequence[tuple[str, float]] = ()) -> str:
    """A name for an expert from what its classes lose without it and whose images it handles.

    Args:
        lost: (class, share of its right answers lost when the expert is ablated), the largest first.
        seen: (class, share of the expert's coefficients on images of that class), the largest first.

    Returns:
        Up to two classes that lose at least half, or at least half of what the first loses, joined by ``and``; without
        any, ``mostly CLASS`` for a class with at least half of the coefficients; else an empty string.
    """
    least = min(0.5, lost[0][1] / 2) if lost else 0.0
    names = [name for name, share in lost if share > 0 and share >= least][:2]
    if names:
        return " and ".join(names)
    return f"mostly {seen[0][0]}" if seen and seen[0][1] >= 0.5 else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shown(entry: ExpertNote) -> str:
    name = f"the name {entry.name!r}" if entry.name else "no name"
    note = f"the note {entry.note[:40]!r}" if entry.note else "no note"
    return f"{name} and {note}"
