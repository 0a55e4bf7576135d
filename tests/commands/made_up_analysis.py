"""A small image set whose features tell its classes apart, and a trained run on it."""

import numpy as np
from PIL import Image

from mumoe.data.base import SPLITS, ImageData
from mumoe.training import TrainConfig, train

CLASSES = ("red", "green", "blue", "grey", "black", "never seen")
COLOURS = ("#d33", "#3a3", "#33d", "#999", "#111", "#fff")


def open_image(index):
    return Image.new("RGB", (20, 20), COLOURS[index % 5])


def make_data(images=300, seed=0):
    rng = np.random.default_rng(seed)
    return ImageData(
        name="made-up",
        classes=CLASSES,
        multi_label=False,
        labels=np.arange(images) % 5,
        split=rng.choice(3, size=images, p=(0.6, 0.1, 0.3)).astype(np.int8),
        ids=tuple(f"{index}.png" for index in range(images)),
        open_image=open_image,
        fingerprint=f"made-up-{images}-{seed}",
        credits=("Made up by nobody, CC0.",),
    )


def make_features(data):
    rng = np.random.default_rng(1)
    centres = 1.5 * rng.normal(size=(len(CLASSES), 10))
    return (centres[data.labels] + rng.normal(size=(len(data), 10))).astype(np.float32)


def make_run(folder, head="CPMuMoE-r6-e12", **settings):
    data = make_data()
    config = TrainConfig(data="made-up", head=head, epochs=5, batch_size=30, lr=0.02, out=str(folder), **settings)
    train(config, data=data, features=make_features(data), progress=False)
    return data


assert SPLITS == ("train", "val", "test")
