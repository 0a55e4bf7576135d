"""Every set of files on a tiny folder of its official layout, compared with torchvision's own reading."""

import json
import os
import shutil

import numpy as np
import pytest
import torchvision
from PIL import Image

from mumoe.data.official import imagenet_names
from mumoe.errors import JobError, UserError

WNIDS = ("n01440764", "n02012849", "n03126707")


@pytest.fixture
def caltech101(root, draw):
    for label, name in enumerate(("BACKGROUND_Google", "Faces", "accordion")):
        for image in range(1, 11):
            draw(root / "caltech101/101_ObjectCategories" / name / f"image_{image:04d}.jpg", 50 * label + image)


@pytest.fixture
def caltech256(root, draw):
    for label, name in enumerate(("ak47", "american-flag", "clutter"), 1):
        for image in range(1, 11):
            folder = root / "caltech256/256_ObjectCategories" / f"{label:03d}.{name}"
            draw(folder / f"{label:03d}_{image:04d}.jpg", 50 * label + image)


@pytest.fixture
def food101(root, draw):
    lists = {"train": {}, "test": {}}
    for label, name in enumerate(("waffles", "apple_pie")):
        names = [f"{name}/{100 * label + image}" for image in range(12)]
        lists["train"][name], lists["test"][name] = names[:10], names[10:]
        for seed, image in enumerate(names):
            draw(root / "food-101/images" / f"{image}.jpg", 50 * label + seed)
    (root / "food-101/meta").mkdir()
    for part, content in lists.items():
        (root / f"food-101/meta/{part}.json").write_text(json.dumps(content))


@pytest.fixture
def pets(root, draw):
    folder = root / "oxford-iiit-pet"
    for sub in ("annotations/trimaps", "images"):
        (folder / sub).mkdir(parents=True)
    lists = {"trainval": [], "test": []}
    for label, (name, species) in enumerate((("Abyssinian", 1), ("american_bulldog", 2), ("Bengal", 1)), 1):
        for image in range(8):
            part = "trainval" if image < 6 else "test"
            lists[part].append(f"{name}_{image} {label} {species} 1")
            draw(folder / "images" / f"{name}_{image}.jpg", 20 * label + image)
    for part, content in lists.items():
        (folder / f"annotations/{part}.txt").write_text("\n".join(content) + "\n")


@pytest.fixture
def celeba(root, draw):
    folder, names = root / "celeba", ["Blond_Hair", "Male", "Smiling"]
    rng = np.random.default_rng(0)
    attributes, partition = [], []
    for image in range(1, 13):
        values = " ".join(f"{value:2d}" for value in rng.choice([-1, 1], 3))
        attributes.append(f"{image:06d}.jpg {values}")
        partition.append(f"{image:06d}.jpg {(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2)[image - 1]}")
        draw(folder / "img_align_celeba" / f"{image:06d}.jpg", image)
    (folder / "list_attr_celeba.txt").write_text("\n".join(["12", " ".join(names), *attributes]) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")


@pytest.fixture
def imagenet(root, draw):
    for part in ("train", "val"):
        for label, wnid in enumerate(WNIDS):
            for image in range(10):
                draw(root / "imagenet1k" / part / wnid / f"{wnid}_{part}_{image}.JPEG", 50 * label + image)


def pixels(image):
    return np.asarray(image.convert("RGB"))


def agree(ours, theirs, chosen):
    """The same pictures with the same labels, in any order."""
    left = sorted((ours.open_image(i).tobytes(), int(ours.labels[i])) for i in chosen)
    right = sorted((pixels(image).tobytes(), int(label)) for image, label in theirs)
    assert left == right
    assert len(left) > 0


@pytest.mark.parametrize("kind", ["Caltech101", "Caltech256"])
def test_caltech(kind, root, load, request):
    request.getfixturevalue(kind.lower())
    data = load(kind.lower())
    agree(data, getattr(torchvision.datasets, kind)(root), range(len(data)))
    names = ("Faces", "accordion") if kind == "Caltech101" else ("ak47", "american-flag", "clutter")
    assert data.classes == names
    for label in range(len(names)):
        assert [((data.split == part) & (data.labels == label)).sum() for part in range(3)] == [7, 1, 2]


def test_caltech_with_a_file_missing_in_the_middle(caltech101, root, load):
    """torchvision numbers the files by counting, and would ask for one that is not there."""
    os.remove(root / "caltech101/101_ObjectCategories/Faces/image_0004.jpg")
    data = load("caltech101")
    assert len(data) == 19
    assert data.problems == ()


def test_food101(food101, root, load):
    data = load("food101")
    assert data.classes == ("apple_pie", "waffles")
    agree(data, torchvision.datasets.Food101(root, "test"), data.indices("test"))
    agree(data, torchvision.datasets.Food101(root, "train"), [*data.indices("train"), *data.indices("val")])
    assert [len(data.indices(part)) for part in ("train", "val", "test")] == [18, 2, 4]
    assert data.ids[0] == "images/apple_pie/100.jpg"


def test_oxford_pets(pets, root, load):
    data = load("oxford-pets")
    theirs = torchvision.datasets.OxfordIIITPet(root, "test")
    assert data.classes == tuple(theirs.classes) == ("Abyssinian", "American Bulldog", "Bengal")
    agree(data, theirs, data.indices("test"))
    agree(data, torchvision.datasets.OxfordIIITPet(root), [*data.indices("train"), *data.indices("val")])
    species = data.attributes["species"]
    assert species.values == ("cat", "dog")
    assert species.codes.tolist() == (data.labels == 1).astype(int).tolist()


def test_celeba(celeba, root, load, monkeypatch):
    data = load("celeba")
    assert data.multi_label
    assert data.classes == ("Blond_Hair", "Male", "Smiling")
    folder = root / "celeba"
    shutil.copy(folder / "list_eval_partition.txt", folder / "identity_CelebA.txt")
    for name in ("list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        shutil.copy(folder / "list_attr_celeba.txt", folder / name)
    monkeypatch.setattr(torchvision.datasets.CelebA, "_check_integrity", lambda self: True)
    for part, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        expected = [(pixels(image), label) for image, label in torchvision.datasets.CelebA(root, theirs)]
        indices = data.indices(part)
        assert np.array_equal(data.labels[indices], np.stack([label for _, label in expected]))
        for index, (image, _) in zip(indices, expected, strict=True):
            assert np.array_equal(pixels(data.open_image(index)), image)
    male = data.attributes["Male"]
    assert male.values == ("no", "yes")
    assert male.codes.tolist() == data.labels[:, 1].tolist()


def test_imagenet(imagenet, root, load):
    data = load("imagenet1k")
    assert data.classes == ("tench", "crane (n02012849)", "crane (n03126707)")
    agree(data, torchvision.datasets.ImageFolder(root / "imagenet1k/val"), data.indices("test"))
    both = [*data.indices("train"), *data.indices("val")]
    agree(data, torchvision.datasets.ImageFolder(root / "imagenet1k/train"), both)
    assert [len(data.indices(part)) for part in ("train", "val", "test")] == [27, 3, 30]


def test_imagenet_names_are_readable_and_one_each():
    from timm.data import ImageNetInfo

    names = imagenet_names(ImageNetInfo().label_names())
    assert len(set(names)) == 1000
    assert names[0] == "tench"
    assert names[207] == "golden retriever"
    assert imagenet_names(["n99999999"]) == ("n99999999",)


LAYOUTS = [
    ("caltech101", "caltech101", "caltech101"),
    ("caltech256", "caltech256", "caltech256"),
    ("food101", "food101", "food-101"),
    ("oxford-pets", "pets", "oxford-iiit-pet"),
    ("celeba", "celeba", "celeba"),
    ("imagenet1k", "imagenet", "imagenet1k"),
]


@pytest.mark.parametrize(("name", "fixture", "folder"), LAYOUTS)
def test_bad_files_are_named_and_the_rest_is_used(name, fixture, folder, root, load, request):
    request.getfixturevalue(fixture)
    whole = load(name)
    path = whole.open_image.root / whole.ids[0]
    path.write_bytes(b"")
    data = load(name)
    assert data.problems == (f"{whole.ids[0]}: the file is empty",)
    assert len(data) == len(whole) - 1
    assert data.fingerprint != whole.fingerprint
    with pytest.raises(UserError, match=f"^{name}: expected no problems, got 1"):
        load(name, strict=True)


@pytest.mark.parametrize(("name", "fixture", "folder"), LAYOUTS)
def test_the_root_may_be_the_set_itself(name, fixture, folder, root, load, request):
    request.getfixturevalue(fixture)
    before = load(name)
    (root / folder).rename(root.parent / "elsewhere")
    after = load(name, root=root.parent / "elsewhere")
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize(("name", "fixture", "folder"), LAYOUTS)
def test_nothing_is_fetched_unless_allowed(name, fixture, folder, root, load, monkeypatch):
    calls = []
    kinds = ("Caltech101", "Caltech256", "Food101", "OxfordIIITPet", "CelebA", "ImageNet")
    for kind in kinds:
        monkeypatch.setattr(torchvision.datasets, kind, lambda *a, kind=kind, **k: calls.append((kind, a, k)))
    with pytest.raises(UserError) as error:
        load(name)
    assert str(error.value).startswith(f"{name}: expected {str(root / folder)!r}"[:-1])
    assert "got nothing there. Name the folder that holds it with `root`" in str(error.value)
    assert calls == []
    with pytest.raises(UserError, match="got nothing there"):
        load(name, download=True)
    assert calls == ([] if name == "imagenet1k" else [(calls[0][0], (str(root),), {"download": True})])


def test_a_download_that_fails_is_one_line(root, load, monkeypatch):
    def broken(root, download):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(torchvision.datasets, "Food101", broken)
    with pytest.raises(JobError) as error:
        load("food101", download=True)
    assert str(error.value) == (
        f"food101: expected to download into {str(root)!r}, got: no network. Try again, or download the files yourself."
    )


def test_a_download_is_read(root, load, food101, monkeypatch):
    (root / "food-101").rename(root / "far")
    monkeypatch.setattr(
        torchvision.datasets, "Food101", lambda root, download: os.rename(f"{root}/far", f"{root}/food-101")
    )
    assert len(load("food101", download=True)) == 24


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": "b"}', '{"a": [1]}'])
def test_a_broken_food_list(food101, root, load, content):
    (root / "food-101/meta/train.json").write_text(content)
    with pytest.raises(UserError, match=r"^food101: expected .*train\.json'.* Fetch it again\.$"):
        load("food101")


def test_the_same_food_in_train_and_test_is_counted_once(food101, root, load):
    path = root / "food-101/meta/test.json"
    lists = json.loads(path.read_text())
    lists["waffles"].append("waffles/0")
    path.write_text(json.dumps(lists))
    data = load("food101")
    assert data.problems == ("images/waffles/0.jpg: listed again; only the first is used",)
    assert data.split[data.ids.index("images/waffles/0.jpg")] != 2


def test_broken_pet_lines(pets, root, load):
    path = root / "oxford-iiit-pet/annotations/trainval.txt"
    path.write_text("# comment\n" + path.read_text() + "short 1\nx_1 0 1 1\nx_2 99999999 1 1\n")
    data = load("oxford-pets")
    assert data.classes == ("Abyssinian", "American Bulldog", "Bengal")
    assert data.problems == (
        "trainval.txt line 20: expected 'image class species breed', left out",
        "trainval.txt line 21: expected 'image class species breed', left out",
        "images/x_2.jpg: no such file",
    )


def test_broken_celeba_lists(celeba, root, load):
    path = root / "celeba/list_attr_celeba.txt"
    path.write_text(path.read_text() + "000013.jpg 1 1\n000014.jpg 1 0 1\n000015.jpg 1 1 1\n")
    part = root / "celeba/list_eval_partition.txt"
    part.write_text(part.read_text() + "000013.jpg 7\n")
    assert load("celeba").problems == (
        "list_attr_celeba.txt line 15: expected 3 values of -1 or 1, left out",
        "list_attr_celeba.txt line 16: expected 3 values of -1 or 1, left out",
        "list_attr_celeba.txt: declares 12 images but lists 15",
        "list_eval_partition.txt line 13: expected an image and 0, 1 or 2, left out",
        "000015.jpg: in no partition, left out",
    )
    path.write_text("nonsense\n")
    with pytest.raises(UserError, match="expected a count and a line of names"):
        load("celeba")
    os.remove(part)
    shutil.copy(root / "celeba/img_align_celeba/000001.jpg", path)
    with pytest.raises(UserError, match="expected text in UTF-8"):
        load("celeba")


def test_imagenet_validation_images_without_folders(imagenet, root, load, draw):
    shutil.rmtree(root / "imagenet1k/val")
    draw(root / "imagenet1k/val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match=r"expected a folder per WordNet id in .*val', got none"):
        load("imagenet1k")


def test_a_stray_cmyk_image_is_read(imagenet, root, load):
    """ImageNet has 22 of them, and one PNG."""
    folder = root / "imagenet1k/train" / WNIDS[0]
    Image.new("CMYK", (4, 4), (0, 255, 0, 0)).save(folder / "cmyk.JPEG")
    Image.new("RGBA", (4, 4)).save(folder / "png.JPEG", "PNG")
    data = load("imagenet1k", strict=True)
    assert data.open_image(data.ids.index(f"train/{WNIDS[0]}/png.JPEG")).getpixel((0, 0)) == (255, 255, 255)
