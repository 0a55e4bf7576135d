"""What a job reads: random backbones that open again, a line that describes the data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_up_training import make_data

from mumoe.data.base import Attribute
from mumoe.training import StoredRun, train
from mumoe.training.run import RunFolder


def test_a_run_on_a_backbone_with_random_weights_opens_again(config, data, tmp_path, monkeypatch):
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path / "cache"))
    random = config.replace(backbone="test_efficientnet", pretrained=False, image_size=32, epochs=1)
    prints = []
    for seed in (0, 3):
        out = str(tmp_path / f"run-{seed}")
        result = train(random.replace(out=out, backbone_seed=seed, seed=7), data=data, progress=False)
        assert RunFolder.open(out).config().backbone_seed == seed
        again = StoredRun(out, data=data, progress=False).evaluate()
        assert again.loss == result.runs[0].evaluations["test"].loss
        prints.append(StoredRun(out, device="cpu").model.backbone.fingerprint)
    assert prints[0] != prints[1]


def test_a_line_describes_the_data():
    data = make_data()
    assert data.describe() == "made-up: 120 images, 4 classes; split as given: train 72, val 24, test 24"
    sex = Attribute(np.array([-1] * 7 + [0] * 113), ("f",))
    more = dataclasses.replace(data, image_size=96, split_by="by image", attributes={"sex": sex})
    assert more.describe() == (
        "made-up: 120 images of 96 px, 4 classes; split by image: train 72, val 24, test 24; unknown: sex for 7"
    )
    assert "4 attributes" in make_data(multi_label=True).describe()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "at random by class (seed 4)"),
        ("train test", "as given, val drawn from train (seed 4)"),
        ("train val test", "as given"),
    ],
)
def test_how_a_set_was_split(tmp_path, given, words):
    from made_up_training import made_up_image

    from mumoe.data import load_data

    for part in given.split() or [""]:
        for name in ("ant", "bee"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for index in range(10):
                made_up_image(index).save(tmp_path / "set" / part / name / f"{index}.png")
    data = load_data(f"folder:{tmp_path / 'set'}", split_seed=4, cache_dir=tmp_path, progress=False)
    assert data.split_by == words
    assert f"; split {words}: train " in data.describe()
