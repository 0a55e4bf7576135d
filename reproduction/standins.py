"""A dozen random pictures in the official layout of every data set of the paper, for dry runs.

The sets are read by the loaders that read the real ones, so that a wrong path, list or option shows before a GPU is
rented. CelebA's has four pictures for each combination of the attributes that its experiments need, in every split.
"""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mumoe.errors import unknown_name

__all__ = ["LAYOUTS", "make_standin"]

SIDE = 40
WNIDS = ("n01440764", "n02012849")


def make_standin(data: str, root: Path) -> None:
    """Write the stand-in of a data set below `root`, unless it is there.

    Raises:
        UserError: If there is none of this name.
    """
    if data not in LAYOUTS:
        raise unknown_name("make_standin", "data set", data, LAYOUTS)
    mark = root / f".{data}"
    if not mark.exists():
        LAYOUTS[data](root)
        mark.touch()


def _draw(path: Path, seed: int) -> None:
    """A picture whose colour depends on the seed, with some noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (SIDE, SIDE, 3)) + rng.integers(0, 190, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def _cifar100(root: Path) -> None:
    """CIFAR's files are pickles of plain containers and bytes; written here, read by `data.packed` without trust."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, (part, count) in enumerate((("train", 10), ("test", 4))):
        rng = np.random.default_rng(seed)
        labels = [index % 2 for index in range(count)]
        batch = {
            "filenames": [f"{index}.png" for index in range(count)],
            "fine_labels": labels,
            "coarse_labels": labels,
            "data": rng.integers(0, 256, (count, 3072), np.uint8),
        }
        (folder / part).write_bytes(pickle.dumps(batch, 2))
    names = {"fine_label_names": ["apple", "bus"], "coarse_label_names": ["fruit", "vehicle"]}
    (folder / "meta").write_bytes(pickle.dumps(names, 2))


def _caltech101(root: Path) -> None:
    for label, name in enumerate(("BACKGROUND_Google", "Faces", "accordion")):
        for image in range(1, 8):
            _draw(root / "caltech101/101_ObjectCategories" / name / f"image_{image:04d}.jpg", 50 * label + image)


def _caltech256(root: Path) -> None:
    for label, name in enumerate(("ak47", "american-flag"), 1):
        for image in range(1, 8):
            place = root / "caltech256/256_ObjectCategories" / f"{label:03d}.{name}"
            _draw(place / f"{label:03d}_{image:04d}.jpg", 50 * label + image)


def _food101(root: Path) -> None:
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for label, name in enumerate(("waffles", "apple_pie")):
        names = [f"{name}/{100 * label + image}" for image in range(7)]
        lists["train"][name], lists["test"][name] = names[:5], names[5:]
        for seed, image in enumerate(names):
            _draw(root / "food-101/images" / f"{image}.jpg", 50 * label + seed)
    (root / "food-101/meta").mkdir()
    for part, content in lists.items():
        (root / f"food-101/meta/{part}.json").write_text(json.dumps(content))


def _oxford_pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, name in enumerate(("Abyssinian", "american_bulldog"), 1):
        for image in range(7):
            lists["trainval" if image < 5 else "test"].append(f"{name}_{image} {label} {label} 1")
            _draw(folder / "images" / f"{name}_{image}.jpg", 20 * label + image)
    (folder / "annotations").mkdir()
    for part, content in lists.items():
        (folder / f"annotations/{part}.txt").write_text("\n".join(content) + "\n")


def _celeba(root: Path) -> None:
    """Every combination of three attributes in every split: 24 pictures, the minimum for the metrics."""
    folder, names = root / "celeba", ("Blond_Hair", "Male", "Young")
    rows, parts = [], []
    for number, (part, *values) in enumerate(itertools.product((0, 1, 2), (-1, 1), (-1, 1), (-1, 1)), 1):
        name = f"{number:06d}.jpg"
        _draw(folder / "img_align_celeba" / name, number)
        rows.append(f"{name}  {' '.join(map(str, values))}")
        parts.append(f"{name} {part}")
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(rows)), " ".join(names), *rows]) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")


def _imagenet1k(root: Path) -> None:
    for part, count in (("train", 5), ("val", 2)):
        for label, wnid in enumerate(WNIDS):
            for image in range(count):
                _draw(root / "imagenet1k" / part / wnid / f"{wnid}_{part}_{image}.JPEG", 50 * label + image)


LAYOUTS: Mapping[str, Callable[[Path], None]] = {
    "cifar100": _cifar100,
    "caltech101": _caltech101,
    "caltech256": _caltech256,
    "food101": _food101,
    "oxford-pets": _oxford_pets,
    "celeba": _celeba,
    "imagenet1k": _imagenet1k,
}
"""Name of the data set -> what writes it."""
