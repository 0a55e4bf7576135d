"""Tables, folders and sets may not name files elsewhere, such as private ones of the user, unless that is allowed."""

from __future__ import annotations

import csv

import pytest

from mumoe.data.inside import require_inside
from mumoe.data.named import find_entry
from mumoe.data.tokenizing import open_tokenizer
from mumoe.errors import UserError


@pytest.fixture
def place(tmp_path, draw):
    """A table's folder with six images, and a private folder beside it."""
    for n in range(6):
        draw(tmp_path / "set" / f"{n}.png", n)
        draw(tmp_path / "private" / f"{n}.png", 10 + n)
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "private" / "0.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "private")
    return tmp_path / "set"


def table(place, *more):
    with (place / "table.csv").open("w", newline="") as file:
        rows = [[image, "ab"[n % 2]] for n, image in enumerate([*(f"{n}.png" for n in range(6)), *more])]
        csv.writer(file).writerows([["image", "label"], *rows])
    return f"csv:{place / 'table.csv'}"


@pytest.mark.parametrize(
    "image", ["{private}/1.png", "../private/1.png", "x/../../private/1.png", "link.png", "linked/2.png"]
)
def test_rows_that_lead_elsewhere_are_refused_unless_allowed(place, load, image):
    name = table(place, image.format(private=place.parent / "private"))
    with pytest.raises(UserError, match=r"^csv:.*inside '.*set', got 1 file elsewhere, .*allow_outside=true"):
        load(name)
    if not image.startswith("x/"):
        assert len(load(name, allow_outside=True)) == 7
    find_entry(name, {"allow_outside": True})


def test_the_option_image_folder_leads_nowhere_else(place, load):
    with pytest.raises(UserError, match="got 6 files elsewhere"):
        load(table(place), image_folder="../private")


def test_folders_with_links_elsewhere_are_refused_unless_allowed(tmp_path, place, draw, load):
    for name in ("cat", "dog"):
        for n in range(4):
            draw(tmp_path / "classes" / name / f"{n}.png", n + 20 * len(name) + ord(name[0]))
    (tmp_path / "classes" / "owl").symlink_to(tmp_path / "private")
    name = f"folder:{tmp_path / 'classes'}"
    with pytest.raises(UserError, match="got 6 files elsewhere"):
        load(name)
    assert len(load(name, allow_outside=True)) == 14
    (tmp_path / "classes" / "owl").unlink()
    (tmp_path / "there").symlink_to(tmp_path / "classes")
    assert len(load(f"folder:{tmp_path / 'there'}")) == 8


@pytest.mark.parametrize("name", ["../tokenizer.json", "/etc/passwd", "..", "a\\b"])
def test_tokens_name_a_tokenizer_in_their_folder(tmp_path, name):
    with pytest.raises(UserError, match="expected 'bytes' or a tokenizer.json, got"):
        open_tokenizer(name, tmp_path)


def test_a_name_that_no_file_can_have_is_not_inside(tmp_path):
    with pytest.raises(UserError, match="expected images inside"):
        require_inside("csv", [tmp_path], [f"{tmp_path}/a\0.png"])
