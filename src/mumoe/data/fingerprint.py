"""One digest of everything that training sees of a data set. It is a key of caches and shows that two sets are equal.

It covers class names, labels, splits, ids (paths relative to the data folder), attributes and, for every
image, the digest of its content from `mumoe.data.verify`: the SHA-256 of the file for sets of up to
`mumoe.data.verify.FULL_LIMIT` images, its size and modification time for larger ones. A set of the first
kind keeps its fingerprint when its folder is moved; one of the second kind keeps it if the move preserves the times.
The name and location of the set, files left out and credits are not part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.data.base import Attribute

__all__ = ["fingerprint"]


def fingerprint(
    *,
    classes: Iterable[str],
    labels: npt.NDArray[Any],
    split: npt.NDArray[np.int8],
    ids: Iterable[str],
    content: Iterable[bytes] | npt.NDArray[np.uint8],
    attributes: Mapping[str, Attribute] | None = None,
) -> str:
    """Hex digest (64 characters) that changes when any argument does; the order of `attributes` does not matter.

    Args:
        classes: Names of the classes.
        labels: As in `mumoe.data.base.ImageData`.
        split: Likewise.
        ids: Likewise.
        content: Something for each image that differs when the image does, such as its SHA-256.
        attributes: Likewise.
    """
    total = hashlib.sha256(b"mumoe data 1")
    parts = [_texts(classes), _array(labels), _array(split), _texts(ids)]
    parts.append(_array(content) if isinstance(content, np.ndarray) else _blobs(content))
    for name, attribute in sorted((attributes or {}).items()):
        parts += [_texts([name]), _texts(attribute.values), _array(attribute.codes)]
    for part in parts:
        total.update(part)
    return total.hexdigest()


def _texts(texts: Iterable[str]) -> bytes:
    return _blobs(text.encode("utf-8", "surrogatepass") for text in texts)


def _blobs(blobs: Iterable[bytes]) -> bytes:
    """A digest that distinguishes ("ab", "c") from ("a", "bc")."""
    digest = hashlib.sha256()
    for blob in blobs:
        digest.update(len(blob).to_bytes(8, "little"))
        digest.update(blob)
    return digest.digest()


def _array(values: npt.NDArray[Any]) -> bytes:
    """A digest of shape, type and content, the same on machines of either byte order."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    header = f"{little.dtype.str}{little.shape}".encode()
    return hashlib.sha256(header + little.tobytes()).digest()
