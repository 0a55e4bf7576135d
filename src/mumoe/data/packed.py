"""Sets whose images come in a few large files: CIFAR-100 and Fashion-MNIST.

torchvision downloads them. Its classes then accept only the checksums of the published files, so the files are
read here. This also reports damaged and forged files instead of trusting them.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mumoe.data.archives import read_gzip
from mumoe.data.base import Attribute, ImageData
from mumoe.data.build import ArrayImages, build
from mumoe.data.layout import existing, locate, torchvision_fetch
from mumoe.data.registry import Request, register
from mumoe.data.splits import TEST, TRAIN
from mumoe.errors import UserError, reason_of, require, shown

__all__ = ["read_cifar", "read_idx"]

Pixels = npt.NDArray[np.uint8]


@register("cifar100", "CIFAR-100: 100 classes, 60,000 images of 32 px")
def load_cifar100(request: Request) -> ImageData:
    """Load CIFAR-100 from ``cifar-100-python/``; the 20 superclasses are an attribute.

    Raises:
        UserError: If the files are missing, damaged, or hold anything but data.
    """
    folder = locate(request, ["cifar-100-python"], "train", torchvision_fetch("CIFAR100"))
    classes, superclasses = _cifar_names(folder / "meta")
    parts = [_cifar_part(folder / name) for name in ("train", "test")]
    pixels, labels, coarse = (np.concatenate(column) for column in zip(*parts, strict=True))
    codes = np.where((coarse >= 0) & (coarse < len(superclasses)), coarse, -1)
    return build(
        request,
        ArrayImages(pixels),
        classes=classes,
        labels=labels,
        ids=_numbered(len(parts[0][1]), len(parts[1][1])),
        split=np.repeat([TRAIN, TEST], [len(part[1]) for part in parts]),
        attributes={"superclass": Attribute(codes, superclasses)} if superclasses else {},
    )


@register("fashion-mnist", "Fashion-MNIST: 10 classes, 70,000 grey images of 28 px")
def load_fashion_mnist(request: Request) -> ImageData:
    """Load Fashion-MNIST from ``FashionMNIST/raw/`` or Debian's ``fashion-mnist/``, its files packed (``.gz``) or not.

    Raises:
        UserError: If the files are missing or damaged.
    """
    marker = "train-images-idx3-ubyte"
    folders = ["FashionMNIST/raw", "raw", "fashion-mnist"]
    try:
        folder = locate(request, folders, f"{marker}.gz")
    except UserError:
        folder = locate(request, folders, marker, torchvision_fetch("FashionMNIST"))
    parts = [_fashion_part(folder, name) for name in ("train", "t10k")]
    return build(
        request,
        ArrayImages(np.concatenate([pixels for pixels, _ in parts])),
        classes=require("torchvision", "vision", request.name).datasets.FashionMNIST.classes,
        labels=np.concatenate([labels for _, labels in parts]),
        ids=_numbered(len(parts[0][1]), len(parts[1][1])),
        split=np.repeat([TRAIN, TEST], [len(part[1]) for part in parts]),
    )


def _numbered(train: int, test: int) -> list[str]:
    return [f"{part}/{index:05d}" for part, count in (("train", train), ("test", test)) for index in range(count)]


def read_cifar(path: Path) -> dict[str, Any]:
    """The content of one of CIFAR's files, which are Python pickles.

    A pickle can name any function to be called while it is read. This is the only place where the library
    reads one, because the official files have no other form. Nothing that the file names is called: the six
    names that make up a numpy array are replaced by the harmless stand-ins below, which accept raw bytes and
    nothing else. Any other name raises an error before anything has run.

    Raises:
        UserError: If the file is missing, damaged, or names anything else.
    """
    who = "cifar100"
    try:
        content = _DataOnly(io.BytesIO(existing(who, path, folder=False).read_bytes()), encoding="latin1").load()
    except UserError:
        raise
    except Exception as error:
        raise _not_official(path, f"a damaged one ({reason_of(error, 120)})") from error
    if not isinstance(content, dict):
        raise _not_official(path, type(content).__name__)
    return content


def _not_official(path: Path, got: str) -> UserError:
    return UserError(f"cifar100: expected CIFAR-100's file at {str(path)!r}, got {got}. Fetch it again.")


class _Dtype:
    """Stands for `numpy.dtype`; remembers its name."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Ignores byte order and the like, which bytes do not have."""


class _Array:
    """Stands for `numpy.ndarray`; becomes a real one only if it holds bytes."""

    value: Pixels

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _bytes_array(raw, dtype, shape, "F" if fortran else "C")


def _bytes_array(raw: Any, dtype: Any, shape: Any, order: Any) -> Pixels:
    if not isinstance(dtype, _Dtype) or dtype.name not in ("u1", "|u1"):
        raise ValueError("an array of something other than bytes")
    if not isinstance(raw, str | bytes | bytearray):  # of a number, bytes() makes as many
        raise ValueError(f"an array of {type(raw).__name__}")
    data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if order == "F" else "C")


def _blank_array(*_: object) -> _Array:
    return _Array()


def _filled_array(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _bytes_array(raw, dtype, shape, order)
    return array


def _latin(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


_STANDINS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _blank_array,
    ("numpy._core.multiarray", "_reconstruct"): _blank_array,
    ("numpy._core.numeric", "_frombuffer"): _filled_array,
    ("_codecs", "encode"): _latin,
}


class _DataOnly(pickle._Unpickler):
    """Reads builtin containers, text, numbers and arrays of bytes; see `read_cifar`.

    This is the unpickler in Python. The one in C allocates what a damaged file asks for, however small the file is; of
    this one the only instruction that does so is replaced.
    """

    def _load_bytearray8(self: Any) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        content = self.read(min(size, sys.maxsize))
        if len(content) < size:
            raise EOFError(f"{size} bytes are announced, {len(content)} are left")
        self.append(bytearray(content))

    dispatch: ClassVar[Any] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytearray8}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STANDINS:
            raise UserError(
                f"cifar100: expected arrays, lists, text and numbers in CIFAR-100's files, got a call of "
                f"{shown(f'{module}.{name}')}. This is not the official file: delete it."
            )
        return _STANDINS[module, name]


def _cifar_names(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    meta = read_cifar(path)
    names = meta.get("fine_label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _not_official(path, "one without fine_label_names")
    return tuple(names), tuple(str(name) for name in meta.get("coarse_label_names") or ())


def _cifar_part(path: Path) -> tuple[Pixels, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pixels (n, 32, 32, 3), fine labels and coarse labels (-1 if there are none) of one file."""
    content = read_cifar(path)
    data, fine = content.get("data"), content.get("fine_labels")
    if not isinstance(data, _Array) or data.value.ndim != 2 or data.value.shape[1] != 3072:
        raise _not_official(path, "one without rows of 3072 bytes")
    rows = data.value
    if not _whole_numbers(fine, len(rows)):
        raise _not_official(path, f"one without a label for each of its {len(rows)} images")
    coarse = content.get("coarse_labels")
    if not _whole_numbers(coarse, len(rows)):
        coarse = [-1] * len(rows)
    pixels = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return pixels, np.array(fine, np.int64), np.array(coarse, np.int64)


def _whole_numbers(values: object, count: int) -> bool:
    if not isinstance(values, list) or len(values) != count:
        return False
    return all(isinstance(value, int) and abs(value) < 2**31 for value in values)


def _fashion_part(folder: Path, part: str) -> tuple[Pixels, npt.NDArray[np.int64]]:
    pixels = read_idx(folder / f"{part}-images-idx3-ubyte", dimensions=3)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte", dimensions=1)
    if len(pixels) != len(labels):
        raise UserError(
            f"fashion-mnist: expected a label for each image of {part!r}, got {len(pixels)} images and "
            f"{len(labels)} labels. Fetch the files again."
        )
    return pixels, labels.astype(np.int64)


def read_idx(path: Path, *, dimensions: int) -> Pixels:
    """Read an array of bytes in MNIST's IDX format, from the file or its ``.gz``.

    Args:
        path: The file, without ``.gz``.
        dimensions: How many dimensions it must have.

    Raises:
        UserError: If it is missing or not such a file.
    """
    packed = path.with_name(path.name + ".gz")
    use_packed = packed.is_file() and not path.is_file()
    source = existing("fashion-mnist", packed if use_packed else path, folder=False)
    try:
        return _idx(read_gzip(source, "fashion-mnist") if use_packed else source.read_bytes(), dimensions)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"fashion-mnist: expected an IDX file of bytes at {str(source)!r}, got {error}. Fetch it again."
        ) from error


def _idx(content: bytes, dimensions: int) -> Pixels:
    magic, start = content[:4], 4 + 4 * dimensions
    if magic != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"the first bytes {magic.hex(' ')!r}")
    shape = np.frombuffer(content[4:start], ">u4").astype(np.int64)
    if len(shape) != dimensions or len(content) - start != int(np.prod(shape)):
        raise ValueError(f"{len(content)} bytes for the shape {shape.tolist()}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
