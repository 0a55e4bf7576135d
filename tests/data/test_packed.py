import gzip
import importlib
import os
import pickle
import struct
import subprocess

import numpy as np
import pytest
import torchvision

from mumoe.data.packed import read_cifar, read_idx
from mumoe.errors import UserError

COUNTS = {"train": 40, "test": 12}


def cifar_batch(count, seed=0, protocol=2, **changes):
    rng = np.random.default_rng(seed)
    batch = {
        "filenames": [f"{index}.png" for index in range(count)],
        "batch_label": "a batch",
        "fine_labels": [index % 4 for index in range(count)],
        "coarse_labels": [index % 2 for index in range(count)],
        "data": rng.integers(0, 256, (count, 3072), np.uint8),
        **changes,
    }
    return pickle.dumps({key: value for key, value in batch.items() if value is not None}, protocol)


@pytest.fixture
def cifar(root):
    folder = root / "cifar-100-python"
    folder.mkdir()
    for seed, (part, count) in enumerate(COUNTS.items()):
        (folder / part).write_bytes(cifar_batch(count, seed))
    names = {"fine_label_names": ["apple", "bus", "cat", "dog"], "coarse_label_names": ["fruit", "else"]}
    (folder / "meta").write_bytes(pickle.dumps(names, 2))
    return folder


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(params=["packed", "plain"])
def fashion(root, request):
    folder, rng = root / "FashionMNIST/raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        images, labels = (
            rng.integers(0, 256, (count, 28, 28), np.uint8),
            np.arange(count, dtype=np.uint8) % 10,
        )
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            if request.param == "packed":
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder


def test_cifar100(cifar, root, load, monkeypatch):
    data = load("cifar100")
    assert data.classes == ("apple", "bus", "cat", "dog")
    assert [len(data.indices(part)) for part in ("train", "val", "test")] == [36, 4, 12]
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_load_meta", lambda self: None)
    theirs = [
        *torchvision.datasets.CIFAR100(root, train=True),
        *torchvision.datasets.CIFAR100(root, train=False),
    ]
    for index, (image, label) in enumerate(theirs):
        assert np.array_equal(np.asarray(data.open_image(index)), np.asarray(image))
        assert data.labels[index] == label
    assert data.attributes["superclass"].values == ("fruit", "else")
    assert data.attributes["superclass"].codes.tolist() == [i % 2 for i in range(40)] + [i % 2 for i in range(12)]


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_is_read(cifar, load, protocol):
    before = load("cifar100").fingerprint
    (cifar / "train").write_bytes(cifar_batch(40, 0, protocol))
    assert load("cifar100").fingerprint == before


def test_arrays_as_python_2_wrote_them(tmp_path):
    """The published files: text keys and raw pixels both as Python 2's str, the array by _reconstruct."""
    raw = (
        b"\x80\x02}U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x03\x00\x80\xfftbs."
    )
    (tmp_path / "train").write_bytes(raw)
    assert read_cifar(tmp_path / "train")["data"].value.tolist() == [[0, 128, 255]]


class Call:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


CALLS = [
    (os.system, "touch {}"),
    (subprocess.run, "touch {}"),
    (eval, "open({!r}, 'w')"),
    (np.load, "{}"),
    (importlib.import_module, "antigravity"),
]


@pytest.mark.parametrize(("function", "argument"), CALLS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(
    cifar, load, tmp_path, function, argument, protocol
):
    witness = tmp_path / "witness"
    call = Call(function, argument.format(str(witness)))
    (cifar / "train").write_bytes(cifar_batch(40, protocol=protocol, extra=call))
    with pytest.raises(UserError) as error:
        load("cifar100")
    assert "got a call of '" in str(error.value)
    assert "This is not the official file: delete it." in str(error.value)
    assert "\n" not in str(error.value)
    assert not witness.exists()


def test_the_name_of_what_was_called_is_said(cifar, load):
    (cifar / "meta").write_bytes(pickle.dumps(Call(os.getcwd)))
    with pytest.raises(UserError, match=r"arrays, lists, .*, got a call of '(posix|nt)\.getcwd'"):
        load("cifar100")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        cifar_batch(40)[:-500],
        pickle.dumps([1, 2]),
        pickle.dumps({}),
        cifar_batch(40, data=None),
        cifar_batch(40, fine_labels=None),
        cifar_batch(40, fine_labels=[0] * 39),
        cifar_batch(40, fine_labels=["a"] * 40),
        cifar_batch(40, data=np.zeros((40, 3000), np.uint8)),
        cifar_batch(40, data=np.zeros((40, 3072), np.float32)),
        cifar_batch(40, data=np.array([{}] * 40, object)),
    ],
)
def test_a_damaged_file_is_one_line(cifar, load, content):
    (cifar / "train").write_bytes(content)
    with pytest.raises(UserError, match=r"^cifar100: expected CIFAR-100's file at .*train', got .* Fetch it again\.$"):
        load("cifar100")


def test_labels_out_of_range_are_named(cifar, load):
    (cifar / "test").write_bytes(cifar_batch(12, fine_labels=[0, 1, 2, 3, 4, -1] * 2))
    data = load("cifar100")
    assert len(data) == 48
    assert data.problems[:2] == ("test/00004: label 4 is not in 0..3", "test/00005: label -1 is not in 0..3")


def test_a_changed_pixel_or_label_changes_the_fingerprint(cifar, load):
    prints = {load("cifar100").fingerprint}
    changed = np.random.default_rng(0).integers(0, 256, (40, 3072), np.uint8)
    changed[7, 9] ^= 1
    (cifar / "train").write_bytes(cifar_batch(40, data=changed))
    prints.add(load("cifar100").fingerprint)
    (cifar / "train").write_bytes(cifar_batch(40, fine_labels=[(i + 1) % 4 for i in range(40)]))
    prints.add(load("cifar100").fingerprint)
    assert len(prints) == 3


def test_fashion_mnist(fashion, root, load):
    data = load("fashion-mnist")
    assert data.classes[9] == "Ankle boot"
    assert [len(data.indices(part)) for part in ("train", "val", "test")] == [36, 4, 20]
    for packed in fashion.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    theirs = [*torchvision.datasets.FashionMNIST(root), *torchvision.datasets.FashionMNIST(root, train=False)]
    for index, (image, label) in enumerate(theirs):
        assert np.array_equal(np.asarray(data.open_image(index)), np.asarray(image.convert("RGB")))
        assert data.labels[index] == label


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08\x01\0\0\0\x05abc",
        b"\0\0\x0d\x01\0\0\0\0",
        gzip.compress(b"xx", mtime=0)[:-3],
        b"\0\0\x08\x01\xff",
    ],
)
def test_a_damaged_idx_file_is_one_line(tmp_path, content):
    for name in ("labels", "packed.gz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"an IDX file of bytes at .* Fetch it again\.$") as error:
            read_idx(tmp_path / name.removesuffix(".gz"), dimensions=1)
        assert "\n" not in str(error.value)


def test_fashion_mnist_in_debians_folder(fashion, root, load):
    before = load("fashion-mnist")
    fashion.rename(root / "fashion-mnist")
    after = load("fashion-mnist")
    assert (len(after), after.fingerprint) == (60, before.fingerprint)


def test_labels_and_images_of_different_number(fashion, load):
    for path in fashion.glob("t10k-labels*"):
        content = idx(np.zeros(7, np.uint8))
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    with pytest.raises(UserError, match="got 20 images and 7 labels"):
        load("fashion-mnist")


def test_a_missing_file_is_named(cifar, load):
    (cifar / "meta").unlink()
    with pytest.raises(UserError, match=r"expected a file at .*meta', got nothing there"):
        load("cifar100")
    with pytest.raises(UserError, match=r"fashion-mnist: expected .*FashionMNIST.raw.*, got nothing there"):
        load("fashion-mnist")
