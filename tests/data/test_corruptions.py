"""Corrupted images: the same for an image wherever it is, of the same size, and worse with severity."""

import pickle

import numpy as np
import pytest
from PIL import Image

from mumoe.data.base import Attribute, ImageData
from mumoe.data.corruptions import CORRUPTIONS, corrupted
from mumoe.errors import UserError


def open_image(index):
    pixels = np.random.default_rng(index).integers(0, 256, (14, 20, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(pixels, np.ones((4, 4, 1), np.uint8)).astype(np.uint8))


def make_data(images=12):
    return ImageData(
        name="made-up",
        classes=("a", "b"),
        multi_label=False,
        labels=np.arange(images) % 2,
        split=np.zeros(images, np.int8),
        ids=tuple(f"image-{index}" for index in range(images)),
        open_image=open_image,
        fingerprint="made-up",
        attributes={"odd": Attribute(np.arange(images) % 2, ("no", "yes"))},
    )


def pixels(data, index):
    return np.asarray(data.open_image(index), dtype=np.float64)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_moves_an_image_further_from_itself(name):
    data, rows = make_data(), np.array([3, 7])
    before = np.stack([pixels(data, row) for row in rows])
    moved = []
    for severity in (1, 2, 3):
        found = corrupted(data, rows, name, severity)
        after = np.stack([pixels(found, index) for index in range(2)])
        assert after.shape == before.shape
        moved.append(np.sqrt(((after - before) ** 2).mean()))
    assert 5 < moved[0] < moved[1] < moved[2]


def test_noise_has_the_deviation_that_it_names():
    data = make_data(1)
    grey = Image.new("RGB", (100, 100), (128, 128, 128))
    plain = corrupted(data, np.array([0]), "gaussian-noise", 1).open_image
    object.__setattr__(plain, "images", lambda index: grey)
    found = np.asarray(plain(0), dtype=np.float64) - 128
    assert found.std() == pytest.approx(255 * CORRUPTIONS["gaussian-noise"].amounts[0], rel=0.05)


def test_an_image_is_corrupted_alike_in_any_selection_and_other_seeds_differ():
    data = make_data()
    one, other = (corrupted(data, np.array(rows), "gaussian-noise", 2) for rows in ([1, 5], [5, 9, 1]))
    np.testing.assert_array_equal(pixels(one, 1), pixels(other, 0))
    again = pickle.loads(pickle.dumps(one.open_image))  # noqa: S301 (what loader workers do)
    np.testing.assert_array_equal(np.asarray(again(0)), pixels(one, 0))
    seeded = corrupted(data, np.array([1, 5]), "gaussian-noise", 2, seed=1)
    assert (pixels(seeded, 0) != pixels(one, 0)).any()
    assert len({one.fingerprint, other.fingerprint, seeded.fingerprint}) == 3


def test_the_rest_of_the_set_follows_the_rows():
    found = corrupted(make_data(), np.array([9, 2]), "blur", 1)
    assert found.ids == ("image-9", "image-2")
    assert found.labels.tolist() == [1, 0]
    assert found.attributes["odd"].codes.tolist() == [1, 0]
    assert len(found) == 2


def test_unknown_corruptions_and_severities_are_refused():
    with pytest.raises(UserError, match="Did you mean 'blur'"):
        corrupted(make_data(), np.array([0]), "blurr", 1)
    with pytest.raises(UserError, match="expected a severity of 1, 2 or 3, got 4"):
        corrupted(make_data(), np.array([0]), "blur", 4)
