"""Some images of a set as a set of their own."""

import pickle

import numpy as np
from PIL import Image

from mumoe.data.base import Attribute, ImageData
from mumoe.data.subset import subset


def open_image(index):
    return Image.new("RGB", (4, 4), (index, 0, 0))


def make_data(labels=(0, 1, 0, 1, 1), fingerprint="made-up"):
    return ImageData(
        name="made-up",
        classes=("a", "b"),
        multi_label=False,
        labels=np.array(labels),
        split=np.array([0, 1, 2, 0, 2], np.int8),
        ids=tuple("vwxyz"),
        open_image=open_image,
        fingerprint=fingerprint,
        attributes={"odd": Attribute(np.array([0, 1, 0, 1, 0]), ("no", "yes"))},
    )


def test_everything_follows_the_rows():
    part = subset(make_data(), np.array([4, 1]))
    assert (part.ids, part.labels.tolist(), part.split.tolist()) == (("z", "w"), [1, 1], [2, 1])
    assert part.attributes["odd"].codes.tolist() == [0, 1]
    again = pickle.loads(pickle.dumps(part.open_image))  # noqa: S301 (what loader workers do)
    assert [again(index).getpixel((0, 0))[0] for index in range(2)] == [4, 1]


def test_images_that_are_listed_again_get_ids_of_their_own():
    assert subset(make_data(), np.array([3, 3, 0])).ids == ("y", "y#2", "v")


def test_fingerprints_tell_selections_and_sets_apart_and_pixels_from_labels():
    one, other = (subset(make_data(), np.array(rows)) for rows in ([0, 2], [2, 0]))
    assert len({make_data().fingerprint, one.fingerprint, other.fingerprint}) == 3

    class Stored:
        fingerprint = "pixels"

        def __call__(self, index):
            return open_image(index)

    sets = [
        ImageData(**{**vars(make_data(labels, name)), "open_image": Stored()})
        for labels, name in (((0, 1, 0, 1, 1), "one"), ((1, 1, 0, 1, 1), "other"))
    ]
    parts = [subset(data, np.array([0, 2])) for data in sets]
    assert parts[0].open_image.fingerprint == parts[1].open_image.fingerprint
    assert parts[0].fingerprint != parts[1].fingerprint
