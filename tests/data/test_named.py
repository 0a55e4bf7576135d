import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from mumoe.data import DATASETS, Attribute, load_data
from mumoe.data.build import ArrayImages, build
from mumoe.data.fingerprint import fingerprint
from mumoe.data.named import data_home
from mumoe.data.registry import Request, register
from mumoe.errors import UserError
from mumoe.files import cache_root

NAMES = {
    "cifar100", "caltech101", "caltech256", "food101", "oxford-pets", "celeba", "imagenet1k", "fashion-mnist",
    "folder", "csv", "hf", "emoji", "icons",
}  # fmt: skip


def test_every_name_is_there():
    assert set(DATASETS) >= NAMES


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10", "got 'cifar10'. Did you mean 'cifar100'?"),
        ("Oxford-Pet", "got 'Oxford-Pet'. Did you mean 'oxford-pets'?"),
        ("folders:x", "got 'folders:x'. Did you mean 'folder:PATH'?"),
        ("folder", "expected 'folder:PATH', got 'folder'. Use this form."),
        ("csv:", "expected 'csv:PATH', got 'csv:'. Use this form."),
        ("celeba:x", "expected 'celeba', got 'celeba:x'. Use this form."),
        ("", "expected a data name out of"),
    ],
)
def test_a_wrong_name_is_one_line(name, words):
    with pytest.raises(UserError) as error:
        load_data(name)
    assert str(error.value).startswith("load_data: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_options_are_checked_before_anything_is_read():
    with pytest.raises(UserError, match=r"^load_data: expected no option for 'celeba', got 'size'\."):
        load_data("celeba", size=3)
    with pytest.raises(UserError, match=r"a 'hf' option .*, got 'confg'\. Did you mean 'config'\?"):
        load_data("hf:x", confg="a")


def test_a_name_of_ones_own():
    pixels = np.arange(20, dtype=np.uint8).repeat(12).reshape(20, 2, 2, 3)

    @register("two-colours", "a test")
    def load(request: Request, *, offset: int = 0):
        labels = (np.arange(20) + offset) % 2
        return build(request, ArrayImages(pixels), classes="ab", labels=labels, ids=[f"{i}" for i in range(20)])

    try:
        data = load_data("two-colours", offset=1)
        assert data.labels.tolist() == [1, 0] * 10
        assert data.open_image(7).getpixel((1, 1)) == (7, 7, 7)
        with pytest.raises(UserError, match="got 'two-colours', which is taken"):
            register("two-colours", "again")
        with pytest.raises(UserError, match="without a colon"):
            register("two:colours", "again")
        with pytest.raises(UserError, match=r"Did you mean 'two-colours'\?"):
            load_data("two-colour")
    finally:
        del DATASETS["two-colours"]


@pytest.mark.parametrize(
    ("classes", "labels", "words"),
    [
        (("a", "a"), [0, 1], "expected distinct class names, got 'a' twice. Rename one."),
        (("a", "b"), [[0, 1], [2, 1]], "expected targets of 0 and 1, got 2. Correct them."),
        (("a", "b"), [5, 7], "got none. Left out: x: label 5 is not in 0..1; y: label 7 is not in 0..1."),
    ],
)
def test_what_a_loader_finds_is_checked(tmp_path, classes, labels, words):
    request, images = Request("mine", "", tmp_path), ArrayImages(np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(UserError) as error:
        build(request, images, classes=classes, labels=labels, ids=["x", "y"])
    assert str(error.value).startswith("mine: ")
    assert words in str(error.value)


def test_the_emoji_are_loaded_by_their_own_module(monkeypatch, tmp_path):
    asked = {}
    module = types.ModuleType("mumoe.data.emoji")
    made = types.SimpleNamespace(name="emoji", problems=("a: is missing",), ids=())
    module.load_emoji = lambda **options: asked.update(options) or made
    monkeypatch.setitem(sys.modules, "mumoe.data.emoji", module)
    result = load_data("emoji", cache_dir=tmp_path, split_seed=3, progress=False, split_by="studio", size=48)
    assert result is made
    assert asked == {
        "cache_dir": tmp_path, "split_seed": 3, "progress": False, "split_by": "studio", "size": 48,
    }  # fmt: skip


def test_homes(monkeypatch, tmp_path):
    for name in ("MUMOE_DATA", "MUMOE_CACHE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_home() == tmp_path / "mumoe/data"
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path / "c"))
    assert (cache_root(), data_home()) == (tmp_path / "c", tmp_path / "c/data")
    monkeypatch.setenv("MUMOE_DATA", str(tmp_path / "d"))
    assert (data_home(), data_home("e"), cache_root("f")) == (tmp_path / "d", data_home("e"), cache_root("f"))
    assert str(data_home("e")) == "e"


def test_the_contract_can_be_imported_without_pillow():
    code = (
        "import sys; sys.modules['PIL'] = None; import mumoe.data.base, mumoe.data\n"
        "try: mumoe.data.load_data\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": "src"})
    assert run.stdout.startswith("UserError mumoe.data: expected the package 'PIL'")
    assert "pip install 'mumoe[vision]'" in run.stdout


def parts(**changes):
    return {
        "classes": ("a", "b"),
        "labels": np.array([0, 1]),
        "split": np.array([0, 1], np.int8),
        "ids": ("x", "y"),
        "content": [b"1", b"2"],
        "attributes": {"s": Attribute(np.array([0, 1]), ("p", "q"))},
        **changes,
    }


def test_everything_that_training_sees_is_in_the_fingerprint():
    changed = [
        {},
        {"classes": ("a", "c")},
        {"classes": ("ab", "")},
        {"labels": np.array([1, 0])},
        {"labels": np.array([[0, 1]])},
        {"labels": np.array([[0], [1]])},
        {"split": np.array([1, 0], np.int8)},
        {"ids": ("x", "z")},
        {"ids": ("xy", "")},
        {"content": [b"1", b"3"]},
        {"content": [b"12", b""]},
        {"attributes": {}},
        {"attributes": {"t": Attribute(np.array([0, 1]), ("p", "q"))}},
        {"attributes": {"s": Attribute(np.array([0, 0]), ("p", "q"))}},
        {"attributes": {"s": Attribute(np.array([0, 1]), ("p", "r"))}},
    ]
    assert len({fingerprint(**parts(**change)) for change in changed}) == len(changed)


def test_the_order_of_attributes_is_not():
    one, two = (Attribute(np.array([0, value]), ("p", "q")) for value in (0, 1))
    assert fingerprint(**parts(attributes={"a": one, "b": two})) == fingerprint(
        **parts(attributes={"b": two, "a": one})
    )


def test_the_fingerprint_is_the_same_on_every_machine():
    assert fingerprint(**parts()) == fingerprint(**parts(labels=np.array([0, 1], ">i8")))
    assert fingerprint(**parts())[:16] == "16270cfccc369f70"


def test_grey_arrays_open_as_rgb():
    assert ArrayImages(np.full((1, 2, 2), 9, np.uint8))(0).getpixel((0, 0)) == (9, 9, 9)
    assert isinstance(ArrayImages(np.zeros((1, 2, 2, 3), np.uint8))(0), Image.Image)
