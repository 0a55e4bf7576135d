"""The icon set: on made-up packages from a made-up npm, and the real ones from the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.made_up_npm import serve, tarball

from mumoe.data import icon_drawings, icons, load_data
from mumoe.data.base import ImageData
from mumoe.data.icon_concepts import CONCEPTS, OTHER_MEANING
from mumoe.data.icon_drawings import FAMILIES, Family
from mumoe.data.icons import CREDITS, load_icons
from mumoe.data.npm import fetch_packages
from mumoe.errors import JobError, UserError
from mumoe.training.config import TrainConfig
from mumoe.training.tasks import settled


def square(left: int, side: int) -> dict[str, str]:
    return {"body": f'<path fill="currentColor" d="M{left} {left}h{side}v{side}h-{side}z"/>'}


SOFT = {
    "width": 10,
    "height": 10,
    "icons": {
        "heart": square(1, 3),
        "heart-fill": square(1, 5),
        "heart-2-fill": square(1, 6),
        "heart-plus": square(1, 7),
        "home-duotone": square(2, 3),
        "home": square(2, 4),
        "house": square(2, 4),
        "star": square(3, 3),
        "star-old": square(3, 4),
        "flag": square(4, 3),
        "nothing": square(4, 4),
        "tag": {**square(4, 5), "hidden": True},
    },
    "aliases": {"favorite": {"parent": "heart"}},
}
HARD = {
    "width": 10,
    "height": 10,
    "icons": {
        "outline-heart": square(5, 1),
        "sharp-heart": square(5, 2),
        "sharp-home": square(5, 3),
        "outline-heart-2": square(5, 4),
        "sharp-user": square(4, 3),
    },
}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two families of made-up packages."""
    served = tmp_path / "registry"
    served.mkdir()
    soft = tarball(served / "made-up-soft-1.0.0.tgz", {"package/icons.json": SOFT})
    hard = tarball(served / "made-up-hard-1.0.0.tgz", {"package/icons.json": HARD})
    families = (
        Family("soft", soft, "CC", "outline", (("-fill", "filled"), ("-duotone", "other")), numbered=True),
        Family("hard", hard, "CC", "filled", (("outline-", "outline"), ("sharp-", "filled"))),
    )
    monkeypatch.setattr(icons, "FAMILIES", families)
    monkeypatch.setattr(icon_drawings, "FAMILIES", families)
    monkeypatch.setattr(icon_drawings, "OTHER_MEANING", {"soft/star": ""})
    serve(served, tmp_path, monkeypatch)
    return served


def load_tiny(tmp_path: Path, **options: Any) -> ImageData:
    settings: dict[str, Any] = {"size": 20, "min_per_class": 1, "progress": False, **options}
    return load_icons(cache_dir=tmp_path / "cache", **settings)


def table(data: ImageData) -> dict[str, tuple[str, ...]]:
    columns = [[column.values[code] for code in column.codes] for column in data.attributes.values()]
    return dict(zip(data.ids, zip(*columns, strict=True), strict=True))


def test_concepts_families_and_styles(registry: Path, tmp_path: Path) -> None:
    data = load_tiny(tmp_path)
    assert list(data.attributes) == ["concept", "family", "style"]
    assert table(data) == {
        "soft/heart": ("heart", "soft", "outline"),
        "soft/heart-2-fill": ("heart", "soft", "filled"),
        "soft/heart-fill": ("heart", "soft", "filled"),
        "soft/home": ("home", "soft", "outline"),
        "soft/home-duotone": ("home", "soft", "other"),
        "hard/outline-heart": ("heart", "hard", "outline"),
        "hard/sharp-heart": ("heart", "hard", "filled"),
        "hard/sharp-home": ("home", "hard", "filled"),
    }
    assert [data.classes[label] for label in data.labels] == [row[0] for row in table(data).values()]
    assert (data.labels.dtype, data.split.dtype, data.image_size) == (np.int64, np.int8, 20)


def test_equal_pictures_count_once_and_not_at_all_where_they_mean_two_things(registry: Path, tmp_path: Path) -> None:
    ids = load_tiny(tmp_path).ids
    assert "soft/home" in ids
    assert "soft/house" not in ids
    assert not {"soft/flag", "hard/sharp-user"} & set(ids)


def test_black_on_white(registry: Path, tmp_path: Path) -> None:
    data = load_tiny(tmp_path)
    picture = np.asarray(data.open_image(data.ids.index("soft/heart-fill")))
    expected = np.full((20, 20, 3), 255)
    expected[2:12, 2:12] = 0
    np.testing.assert_array_equal(picture, expected)


def test_drawings_of_one_icon_stay_together(registry: Path, tmp_path: Path) -> None:
    for seed in range(5):
        data = load_tiny(tmp_path, split_seed=seed, fractions=(0.5, 0.25, 0.25))
        where = dict(zip(data.ids, data.split, strict=True))
        assert where["soft/heart"] == where["soft/heart-fill"]
        assert where["soft/home"] == where["soft/home-duotone"]
        assert where["hard/outline-heart"] == where["hard/sharp-heart"]
    assert data.split_by == "by icon"


def test_a_family_is_held_out(registry: Path, tmp_path: Path) -> None:
    data = load_tiny(tmp_path, split_by="family", held_out="hard")
    assert {data.ids[row].split("/")[0] for row in data.indices("test")} == {"hard"}
    assert {data.ids[row].split("/")[0] for row in data.indices("train")} == {"soft"}
    assert data.split_by == "by family (hard in test)"


def test_other_labels_and_fingerprints(registry: Path, tmp_path: Path) -> None:
    first, style = load_tiny(tmp_path), load_tiny(tmp_path, label="style")
    other_split, other_size = load_tiny(tmp_path, split_by="image", split_seed=1), load_tiny(tmp_path, size=24)
    assert style.classes == ("outline", "filled", "other")
    assert load_tiny(tmp_path).fingerprint == first.fingerprint
    assert len({data.fingerprint for data in (first, style, other_split, other_size)}) == 4
    assert first.open_image.fingerprint == other_split.open_image.fingerprint  # type: ignore[attr-defined]
    assert load_tiny(tmp_path, min_per_class=4).classes == ("heart",)


def test_by_name_and_drawn_once(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_tiny(tmp_path, split_seed=3)
    monkeypatch.setattr(icon_drawings, "draw_all", None)
    options = {"size": 20, "min_per_class": 1}
    again = load_data("icons", cache_dir=tmp_path / "cache", split_seed=3, progress=False, **options)
    assert again.fingerprint == first.fingerprint
    assert len((registry / "calls").read_text().split()) == 2


def test_training_reads_them_at_their_size() -> None:
    config = settled(TrainConfig(data="icons"))
    assert (config.data_options, config.image_size) == (("size=96",), 96)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"split_by": "familiy"}, "split_by out of family, icon, image, got 'familiy'. Did you mean 'family'?"),
        ({"label": "stile"}, "Did you mean 'style'?"),
        ({"split_by": "family", "held_out": "sott"}, "Did you mean 'soft'?"),
        ({"split_by": "family"}, "got 'tabler'"),
        ({"held_out": "soft"}, "expected held_out with split_by='family' only"),
        ({"split_by": "family", "label": "family"}, "Split by icon or image."),
        ({"size": 4}, "icons: expected size between 8 and 1024 pixels, got 4"),
        ({"min_per_class": 0}, "expected min_per_class of at least 1, got 0"),
        ({"min_per_class": 6}, "expected classes of concept with 6 images, got at most 5. Lower min_per_class."),
    ],
)
def test_wrong_options(registry: Path, tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        load_tiny(tmp_path, **options)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_bytes_are_refused(registry: Path, tmp_path: Path) -> None:
    served = registry / "made-up-hard-1.0.0.tgz"
    served.write_bytes(served.read_bytes() + b"\0")
    with pytest.raises(JobError, match=r"icons: expected @made-up/hard@1\.0\.0 with integrity sha512-.*, got sha512-"):
        load_tiny(tmp_path)
    assert not list((tmp_path / "cache" / "icons").glob("20px-*[!k]"))


def test_every_name_means_one_thing() -> None:
    names = [name for concept in CONCEPTS.values() for name in concept]
    assert sorted(names) == sorted(set(names))
    families = {family.name for family in FAMILIES}
    assert {key.split("/")[0] for key in OTHER_MEANING} <= families
    assert set(OTHER_MEANING.values()) - {""} <= set(CONCEPTS)


def test_credits_name_permissive_licences() -> None:
    assert len(CREDITS) == len(FAMILIES) == 14
    assert all(
        line.split(" (through")[0].rsplit(", ")[-1] in {"MIT", "ISC", "Apache-2.0", "CC-BY-4.0"} for line in CREDITS
    )
    assert all("https://" in line and "@iconify-json/" in line for line in CREDITS)


# The real set ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> ImageData:
    return load_icons(progress=False)


@pytest.mark.slow
def test_real_counts(real: ImageData) -> None:
    assert (len(real), len(real.classes)) == (5042, 84)
    assert np.bincount(real.labels).min() >= 40
    assert np.bincount(real.attributes["family"].codes).min() >= 100
    np.testing.assert_allclose(np.bincount(real.split) / len(real), (0.7, 0.1, 0.2), atol=0.01)
    assert set(real.labels[real.indices("test")]) == set(range(84))
    picture = [real.open_image(row).tobytes() for row in range(len(real))]
    assert len(set(picture)) == len(picture)


@pytest.mark.slow
def test_real_images_show_something(real: ImageData) -> None:
    grey = np.array([np.asarray(real.open_image(row)).mean() for row in range(len(real))])
    assert grey.max() < 254
    assert grey.min() > 10


@pytest.mark.slow
def test_exceptions_are_icons_that_there_are(real: ImageData) -> None:
    """An exception for a name that is in no package would never apply."""
    del real
    folder = icons.cache_root(None) / "npm"
    for family, path in zip(FAMILIES, fetch_packages([f.package for f in FAMILIES], folder, who="t"), strict=True):
        found = {family.read_name(name)[1] for name in icon_drawings.read_json(path, "icons.json", "t")["icons"]}
        named = {key.split("/")[1] for key in OTHER_MEANING if key.startswith(f"{family.name}/")}
        assert named <= found, family.name
