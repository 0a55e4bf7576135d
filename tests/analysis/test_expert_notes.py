"""Names and notes of experts: kept with a run, read back, suggested from the classes."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from mumoe.analysis.expert_notes import FILE, ExpertNote, ExpertNotes, change_note, suggest_name
from mumoe.errors import UserError


def test_notes_are_read_back_from_the_run(tmp_path):
    assert ExpertNotes.of_run(tmp_path).rows() == []
    notes = ExpertNotes().with_note(17, name="  cat\nfaces ", note="Also tigers.").with_note(3, "1", name="round")
    notes.save_to(tmp_path)
    found = ExpertNotes.of_run(tmp_path)
    assert found == notes
    assert found.of(17) == ExpertNote("cat faces", "Also tigers.")
    assert (found.name(3, 1), found.name(3)) == ("round", "")
    assert found.rows()[1] == {"level": "1", "expert": 3, "name": "round", "note": ""}


def test_an_empty_note_removes_the_entry():
    notes = ExpertNotes().with_note(2, name="a").with_note(10, name="b").with_note(2)
    assert [row["expert"] for row in notes.rows()] == [10]
    assert ExpertNotes().with_note(2, name="a").with_note(2, name=" ").levels == {}


def test_entries_are_in_the_order_of_the_experts():
    notes = ExpertNotes().with_note(10, name="b").with_note(9, name="a")
    assert [row["expert"] for row in notes.rows()] == [9, 10]


@pytest.mark.parametrize(
    ("given", "message"),
    [({"name": "x" * 81}, "at most 80"), ({"note": "x" * 4001}, "at most 4,000")],
)
def test_long_texts_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        ExpertNotes().with_note(0, **given)
    with pytest.raises(UserError, match="expert >= 0"):
        ExpertNotes().with_note(-1, name="a")


def test_a_damaged_file_is_reported(tmp_path):
    (tmp_path / FILE).write_text('{"levels": {"0": {"1": 3}}}')
    with pytest.raises(UserError, match=FILE):
        ExpertNotes.of_run(tmp_path)


@pytest.mark.parametrize(
    ("lost", "seen", "name"),
    [
        ([("cat-face", 1.0), ("monkey-face", 0.6), ("bird", 0.3)], [], "cat-face and monkey-face"),
        ([("cat-face", 1.0), ("bird", 0.2)], [], "cat-face"),
        ([("flag", 0.1), ("sky", 0.06), ("sea", 0.01)], [], "flag and sky"),
        ([("flag", -0.2)], [("sky", 0.7)], "mostly sky"),
        ([], [("sky", 0.4)], ""),
        ([], [], ""),
    ],
)
def test_suggested_names(lost, seen, name):
    assert suggest_name(lost, seen) == name


def test_a_change_is_made_only_to_what_it_was_made_from(tmp_path):
    first = change_note(tmp_path, 4, name="cats", before=ExpertNote())
    assert first == ExpertNotes.of_run(tmp_path)
    change_note(tmp_path, 5, 1, name="dogs")
    with pytest.raises(UserError, match="expert 4 with no name and no note, got the name 'cats' and no note"):
        change_note(tmp_path, 4, name="lions", before=ExpertNote())
    assert ExpertNotes.of_run(tmp_path).name(4) == "cats"
    change_note(tmp_path, 4, before=ExpertNote("cats"))
    assert ExpertNotes.of_run(tmp_path).rows() == [{"level": "1", "expert": 5, "name": "dogs", "note": ""}]


def test_changes_at_the_same_time_are_all_kept(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: change_note(tmp_path, n, name=f"e{n}"), range(40)))
    assert [row["name"] for row in ExpertNotes.of_run(tmp_path).rows()] == [f"e{n}" for n in range(40)]
