"""Sets of image files in the layout that their authors published: Caltech, Food-101, Pets, CelebA, ImageNet.

torchvision downloads them and defines the layout. The lists are read here rather than by its classes, which
number the files of a Caltech class without looking at them (one missing file shifts the rest) and reject
CelebA unless the checksums of five lists match. The tests compare both, image by image.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mumoe.data.base import Attribute, ImageData
from mumoe.data.build import FileImages, build
from mumoe.data.columns import yes_no
from mumoe.data.folder import class_folders, list_classes
from mumoe.data.layout import existing, lines, locate, torchvision_fetch
from mumoe.data.registry import Request, register
from mumoe.data.splits import TEST, TRAIN
from mumoe.errors import UserError

__all__ = ["imagenet_names"]


@register("caltech101", "Caltech-101: 101 classes of objects (102 with both kinds of faces)")
def load_caltech101(request: Request) -> ImageData:
    """Load Caltech-101 from ``caltech101/101_ObjectCategories/``; the background folder is not a class.

    The set fixes no splits, so they are drawn with the seed.
    """
    marker = "101_ObjectCategories"
    folder = locate(request, ["caltech101"], marker, torchvision_fetch("Caltech101")) / marker
    return _from_class_folders(request, folder, lambda name: name, skip=["BACKGROUND_Google"])


@register("caltech256", "Caltech-256: 256 classes of objects and clutter")
def load_caltech256(request: Request) -> ImageData:
    """Load Caltech-256 from ``caltech256/256_ObjectCategories/``; ``001.ak47`` becomes the class ``ak47``.

    The set fixes no splits, so they are drawn with the seed.
    """
    marker = "256_ObjectCategories"
    folder = locate(request, ["caltech256"], marker, torchvision_fetch("Caltech256")) / marker
    return _from_class_folders(request, folder, lambda name: name.partition(".")[2] or name)


@register("food101", "Food-101: 101 dishes, 101,000 photographs")
def load_food101(request: Request) -> ImageData:
    """Load Food-101 from ``food-101/``: ``meta/train.json``, ``meta/test.json`` and ``images/``."""
    folder = locate(request, ["food-101"], "meta", torchvision_fetch("Food101"))
    listed = {part: _food_list(folder / "meta" / f"{part}.json") for part in ("train", "test")}
    classes = sorted({name for part in listed.values() for name in part})
    paths, labels, split = [], [], []
    for code, part in ((TRAIN, "train"), (TEST, "test")):
        for name, files in sorted(listed[part].items()):
            paths += [f"images/{file}.jpg" for file in files]
            labels += [classes.index(name)] * len(files)
            split += [code] * len(files)
    images = FileImages(folder, tuple(paths))
    return build(request, images, classes=classes, labels=labels, ids=paths, split=split)


@register("oxford-pets", "Oxford-IIIT Pet: 37 breeds of cats and dogs")
def load_oxford_pets(request: Request) -> ImageData:
    """Load the Pets from ``oxford-iiit-pet/``: ``annotations/``, ``images/``; the species is an attribute."""
    folder = locate(request, ["oxford-iiit-pet"], "annotations", torchvision_fetch("OxfordIIITPet"))
    paths, labels, split, species, problems = [], [], [], [], []
    names: dict[int, str] = {}
    for code, part in ((TRAIN, "trainval"), (TEST, "test")):
        for number, line in lines(request.name, folder / "annotations" / f"{part}.txt"):
            fields = line.split()
            if line.startswith("#"):
                continue
            if len(fields) != 4 or not all(field.isdigit() for field in fields[1:]) or fields[1] == "0":
                problems.append(f"{part}.txt line {number}: expected 'image class species breed', left out")
                continue
            image, label = fields[0], int(fields[1]) - 1
            names.setdefault(label, " ".join(word.title() for word in image.rsplit("_", 1)[0].split("_")))
            paths.append(f"images/{image}.jpg")
            labels.append(label)
            split.append(code)
            species.append({"1": 0, "2": 1}.get(fields[2], -1))
    return build(
        request,
        FileImages(folder, tuple(paths)),
        classes=[names.get(label, f"class {label + 1}") for label in range(_classes_up_to(names))],
        labels=labels,
        ids=paths,
        split=split,
        attributes={"species": Attribute(np.array(species, np.int64), ("cat", "dog"))},
        problems=problems,
    )


@register("celeba", "CelebA: 40 attributes of 202,599 faces (multi-label)")
def load_celeba(request: Request) -> ImageData:
    """Load CelebA from ``celeba/``: two lists (attributes, partition) and ``img_align_celeba/``.

    Each of the 40 attributes is a target and also a subgroup column with the values ``no`` and ``yes``.
    """
    folder = locate(request, ["celeba"], "list_attr_celeba.txt", torchvision_fetch("CelebA"))
    names, rows, problems = _celeba_attributes(request.name, folder / "list_attr_celeba.txt")
    partition, more = _celeba_partition(request.name, folder / "list_eval_partition.txt")
    images = [image for image in rows if image in partition]
    problems += more + [f"{image}: in no partition, left out" for image in rows if image not in partition]
    targets = np.array([rows[image] for image in images], np.uint8).reshape(-1, len(names))
    paths = [f"img_align_celeba/{image}" for image in images]
    return build(
        request,
        FileImages(folder, tuple(paths)),
        classes=names,
        labels=targets,
        ids=paths,
        split=[partition[image] for image in images],
        attributes={name: yes_no(targets[:, column]) for column, name in enumerate(names)},
        problems=problems,
    )


@register("imagenet1k", "ImageNet-1k: 1,000 classes; its val is the test split")
def load_imagenet1k(request: Request) -> ImageData:
    """Load ImageNet from ``imagenet1k/`` (or ``imagenet/``): ``train/``, ``val/``, a folder per WordNet id.

    As the paper does, the official validation images are the test split, and a part of train becomes val. The
    set cannot be downloaded freely; `torchvision.datasets.ImageNet` unpacks its archives into this layout.
    """
    folder = locate(request, ["imagenet1k", "imagenet", "ILSVRC2012"], "train")
    places = [(folder / "train", TRAIN)]
    if (folder / "val").is_dir():
        if not class_folders(request.name, folder / "val"):
            raise UserError(
                f"{request.name}: expected a folder per WordNet id in {str(folder / 'val')!r}, got none. "
                "torchvision.datasets.ImageNet sorts the validation images into folders."
            )
        places.append((folder / "val", TEST))
    listing = list_classes(request.name, folder, places)
    return build(
        request,
        FileImages(folder, tuple(listing.paths)),
        classes=imagenet_names(listing.classes),
        labels=listing.labels,
        ids=listing.paths,
        split=listing.split,
        problems=listing.problems(),
    )


def imagenet_names(wnids: Sequence[str]) -> tuple[str, ...]:
    """Readable names of WordNet ids, one each, from the lists in timm.

    A name is the first synonym (``tench``). Where two ids share it, all synonyms are used (the maillots), followed by
    the id if they share these too (the cranes). An unknown id is its own name.
    """
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    known = {info.index_to_label_name(index) for index in range(1000)}
    every = [info.label_name_to_description(wnid) if wnid in known else wnid for wnid in wnids]
    short = [name.partition(",")[0] for name in every]
    counts = Counter(short)
    names = [name if counts[name] == 1 else full for name, full in zip(short, every, strict=True)]
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))


def _from_class_folders(
    request: Request, folder: Path, rename: Callable[[str], str], *, skip: Sequence[str] = ()
) -> ImageData:
    listing = list_classes(request.name, folder, [(folder, -1)], skip=skip)
    return build(
        request,
        FileImages(folder, tuple(listing.paths)),
        classes=[rename(name) for name in listing.classes],
        labels=listing.labels,
        ids=listing.paths,
        problems=listing.problems(),
    )


def _food_list(path: Path) -> dict[str, list[str]]:
    """Class to images, as ``meta/*.json`` lists them."""
    who = "food101"
    try:
        content = json.loads(existing(who, path, folder=False).read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{who}: expected JSON in {str(path)!r}, got: {error}. Fetch it again.") from error
    right = isinstance(content, dict) and all(
        isinstance(images, list) and all(isinstance(image, str) for image in images) for images in content.values()
    )
    if not right:
        raise UserError(f"{who}: expected lists of images by class in {str(path)!r}. Fetch it again.")
    return dict(content)


def _classes_up_to(names: dict[int, str]) -> int:
    """Number of classes that the labels imply; labels from 1,000 on do not count, so that a wrong one is harmless."""
    return max((label for label in names if label < 1000), default=-1) + 1


def _celeba_attributes(who: str, path: Path) -> tuple[list[str], dict[str, list[bool]], list[str]]:
    """Names of the attributes, whether each image has them, and which lines could not be read."""
    rows: dict[str, list[bool]] = {}
    problems: list[str] = []
    listed = list(lines(who, path))
    if len(listed) < 2 or not listed[0][1].strip().isdigit():
        raise UserError(f"{who}: expected a count and a line of names in {str(path)!r}. Fetch it again.")
    names = listed[1][1].split()
    for number, line in listed[2:]:
        image, *values = line.split()
        if len(values) != len(names) or not set(values) <= {"-1", "1"}:
            problems.append(f"{path.name} line {number}: expected {len(names)} values of -1 or 1, left out")
        else:
            rows[image] = [value == "1" for value in values]
    if len(listed) - 2 != int(listed[0][1]):
        problems.append(f"{path.name}: declares {int(listed[0][1])} images but lists {len(listed) - 2}")
    return names, rows, problems


def _celeba_partition(who: str, path: Path) -> tuple[dict[str, int], list[str]]:
    """Image to split, and which lines could not be read."""
    partition: dict[str, int] = {}
    problems: list[str] = []
    for number, line in lines(who, path):
        fields = line.split()
        if len(fields) == 2 and fields[1] in ("0", "1", "2"):
            partition[fields[0]] = int(fields[1])
        else:
            problems.append(f"{path.name} line {number}: expected an image and 0, 1 or 2, left out")
    return partition, problems
