"""Pictures of an audit's findings: the right images, their labels and credits, and no half-written folder."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from mumoe.data.base import ImageData
from mumoe.editing.group_audit import Finding
from mumoe.editing.subgroup_fairness import Estimate
from mumoe.errors import JobError
from mumoe.plots import sheets
from mumoe.plots.finding_sheet import Pictured, spread, write_findings

COLOURS = ["#ff0000", "#00ff00", "#0000ff", "#ffff00"]
NAMES = ("red", "green", "blue", "yellow")


def open_image(index: int) -> Image.Image:
    if index > 30:
        raise JobError(f"image {index}: unreadable")
    return Image.new("RGB", (60, 30), COLOURS[index % 4])


def data() -> ImageData:
    return ImageData(
        name="colours",
        classes=NAMES,
        multi_label=False,
        labels=np.arange(40) % 4,
        split=np.ones(40, dtype=np.int8),
        ids=tuple(f"{i}.png" for i in range(40)),
        open_image=open_image,
        fingerprint="0",
        credits=("Colours by nobody, CC0.",),
    )


def finding(p: float = 0.001) -> Finding:
    return Finding(((0, 3), (1, 2)), 1, 5, 0.4, 0.9, Estimate(0.5, 0.2, 0.7), p, p)


def write(folder, item, **options):
    said = np.arange(40) % 4
    said[[1, 5]] = 2
    return write_findings(folder, [item], data(), said, NAMES, alpha=0.05, title="Colours", **options)


def test_spread_takes_the_ends_and_never_too_many():
    rows = np.arange(10, 21)
    assert spread(rows, 3) == (10, 15, 20)
    assert spread(rows[:2], 5) == (10, 11)
    assert spread(rows[:0], 5) == spread(rows, 0) == ()


def test_images_labels_and_credits(tmp_path, monkeypatch):
    drawn = []
    real = sheets.Sheet.tile
    monkeypatch.setattr(sheets.Sheet, "tile", lambda *given: drawn.append(given) or real(*given))
    item = Pictured(finding(), (1, 5), (9,), 3, 2)
    sheet = write(tmp_path / "a", item, size=40)
    assert sheet == tmp_path / "a" / "sheet.png"
    assert [given[3:5] for given in drawn] == [("green", "blue"), ("green", "blue"), ("green", "green")]
    found = json.loads((tmp_path / "a" / "findings.json").read_text())
    assert found["credits"] == ["Colours by nobody, CC0."]
    assert found["findings"][0]["wrong"][1] == {
        "image": 5, "id": "5.png", "said": "blue", "thumbnail": "thumbnails/5.png"
    }  # fmt: skip
    assert found["findings"][0]["finding"]["gap"]["value"] == 0.5
    with Image.open(sheet) as picture:
        for given in drawn:
            x, y = given[1]
            assert picture.getpixel((x + 20, y + 20)) == (0, 255, 0)
    with Image.open(tmp_path / "a" / "thumbnails" / "9.png") as picture:
        assert picture.size == (40, 40)


def test_chance_is_said_and_text_stays_in_its_column(tmp_path, monkeypatch):
    texts = []
    monkeypatch.setattr(sheets, "shortened", lambda text, *_: texts.append(text) or text[:20])
    write(tmp_path / "a", Pictured(finding(0.3), (), (), 3, 2))
    assert "corrected p 0.3: may be chance" in texts
    assert "experts 3 + 2 (level 1)" in texts
    assert "score: 0.100" in texts
    named = dataclasses.replace(finding(0.3), experts=(), attributes=(("studio", "noto"), ("tone", "dark")))
    write(tmp_path / "a", Pictured(named, (), (), 3, 2))
    assert texts.index("tone = dark") == texts.index("studio = noto") + 1
    texts.clear()
    write(tmp_path / "a", Pictured(finding(0.04), (), (), 3, 2))
    assert "corrected p 0.04" in texts


def test_an_unreadable_image_leaves_what_was_there(tmp_path):
    write(tmp_path / "a", Pictured(finding(), (1,), (), 3, 2))
    with pytest.raises(JobError, match="image 31: unreadable"):
        write(tmp_path / "a", Pictured(finding(), (31,), (), 3, 2))
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert sorted(file.name for file in (tmp_path / "a" / "thumbnails").iterdir()) == ["1.png"]
