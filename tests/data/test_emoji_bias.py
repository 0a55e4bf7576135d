"""The embedded set with a planted bias: which images are missing from training, and only from there."""

from __future__ import annotations

import numpy as np
import pytest

from mumoe.data import load_data
from mumoe.data.base import SPLITS, ImageData
from mumoe.data.emoji_bias import TARGET
from mumoe.errors import UserError
from mumoe.training import TrainConfig
from mumoe.training.tasks import settled

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def biased() -> ImageData:
    """Drawn small, which is quick; which drawings there are does not depend on the size."""
    return load_data("emoji-bias", size=16, progress=False)


@pytest.fixture(scope="module")
def whole() -> ImageData:
    return load_data("emoji-bias", size=16, support=1.0, progress=False)


def subgroup(data: ImageData, split: str) -> np.ndarray:
    """Positions of OpenMoji's animals in a split."""
    style = data.attributes["style"]
    inside = (data.labels[:, data.classes.index(TARGET)] == 1) & (style.codes == style.values.index("openmoji"))
    return np.flatnonzero(inside & (data.split == SPLITS.index(split)))


def test_nearly_none_of_one_studios_animals_are_in_training(biased: ImageData, whole: ImageData) -> None:
    assert len(subgroup(whole, "train")) > 90
    assert len(subgroup(biased, "train")) == round(0.003 * len(whole))
    for split in ("val", "test"):
        names = [[data.ids[row] for row in subgroup(data, split)] for data in (biased, whole)]
        assert names[0] == names[1] != []
    gone = set(whole.ids) - set(biased.ids)
    assert gone == {whole.ids[row] for row in subgroup(whole, "train")} - set(biased.ids)
    assert set(biased.ids) < set(whole.ids)


def test_labels_are_groups_and_large_subgroups(biased: ImageData) -> None:
    assert biased.multi_label
    assert biased.labels.shape == (len(biased), len(biased.classes))
    group = biased.attributes["group"]
    for name in group.values:
        expected = group.codes == group.values.index(name)
        assert np.array_equal(biased.labels[:, biased.classes.index(name)], expected.astype(np.uint8))
    counts = biased.labels.sum(0)[len(group.values) :]
    assert counts.min() >= 40 - round(0.05 * 40)  # a few animals are left out of training
    assert biased.name == "emoji-bias"


def test_images_are_those_of_their_names(biased: ImageData) -> None:
    emoji = load_data("emoji", size=16, label="group", min_per_class=1, progress=False)
    for row in range(0, len(biased), 977):
        expected = emoji.open_image(emoji.ids.index(biased.ids[row]))
        assert np.array_equal(np.asarray(biased.open_image(row)), np.asarray(expected))


def test_some_groups_alone(biased: ImageData) -> None:
    few = load_data("emoji-bias", size=16, groups="Food & Drink, Objects", progress=False)
    assert few.attributes["group"].values == biased.attributes["group"].values
    assert few.classes[:3] == (TARGET, "Food & Drink", "Objects")
    assert set(few.ids) < set(load_data("emoji-bias", size=16, support=1.0, progress=False).ids)
    with pytest.raises(UserError, match="Did you mean 'Objects'"):
        load_data("emoji-bias", size=16, groups="Object", progress=False)
    with pytest.raises(UserError, match="expected support in 0..1, got 2"):
        load_data("emoji-bias", size=16, support=2, progress=False)
    with pytest.raises(UserError, match="Did you mean 'support'"):
        load_data("emoji-bias", suport=2, progress=False)


def test_the_backbone_reads_it_at_its_own_size() -> None:
    config = settled(TrainConfig(data="emoji-bias"))
    assert (config.image_size, config.data_options) == (96, ("size=96",))
    assert settled(TrainConfig(data="emoji-bias", data_options=("size=64",))).image_size == 64
