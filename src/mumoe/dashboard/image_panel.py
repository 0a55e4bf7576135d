"""Lists of images, thumbnails and uploaded pictures; images are named by their position in the data, never by path."""

from __future__ import annotations

import base64
import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mumoe.dashboard import WHO
from mumoe.dashboard.apart import take_apart
from mumoe.dashboard.expert_panel import Filter, expert_images
from mumoe.dashboard.session import Session, Split
from mumoe.dashboard.whatif import Changed
from mumoe.data.base import SPLITS
from mumoe.data.decode import damage, decode
from mumoe.errors import JobError, UserError, unknown_name
from mumoe.plots.sheets import encoded, thumbnail

__all__ = [
    "KINDS",
    "MOST_BYTES",
    "Thumbnails",
    "add_upload",
    "explain_image",
    "explain_upload",
    "image_rows",
    "list_images",
]

KINDS = {
    "all": "all images",
    "right": "images with the right answer",
    "wrong": "images with a wrong answer",
    "mended": "images that the edits correct",
    "broken": "images that the edits make wrong",
}
"""Which images a list holds; for attributes, the answer to one of them decides (corrected and broken: any of them)."""

MOST_BYTES = 20 * 2**20
"""Largest upload in bytes."""

PAGE = 500
"""Upper bound on the images of one request."""

MOST_UPLOADS = 8
"""Uploaded pictures that are kept."""

SIZES = (96, 192, 320)
"""Sides of thumbnails in pixels."""


def image_rows(
    session: Session,
    split: Split,
    chosen: Filter,
    *,
    kind: str = "all",
    expert: tuple[int, int] | None = None,
    changed: Changed | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
    """Rows of a list in its order, and the expert's coefficients where one is given.

    Raises:
        UserError: If a name does not exist.
    """
    if kind not in KINDS:
        raise unknown_name(WHO, "kind of list", kind, KINDS)
    mask = chosen.mask(session, split)
    if kind in ("right", "wrong"):
        right = split.scores.right if split.scores.right.ndim == 1 else split.scores.right.all(1)
        mask &= right == (kind == "right")
    elif kind in ("mended", "broken"):
        mask &= _moved(split, changed, kind)
    if expert is None:
        return np.flatnonzero(mask), None
    rows, value = expert_images(session, split, *expert)
    return rows[mask[rows]], value[mask[rows]]


def _moved(split: Split, changed: Changed | None, kind: str) -> npt.NDArray[np.bool_]:
    mask = np.zeros(len(split.images), dtype=np.bool_)
    if changed is None:
        return mask
    rows = changed.rows.numpy()
    old, new = split.scores.right[rows], changed.decided.numpy() == split.scores.truth[rows]
    moved = new & ~old if kind == "mended" else old & ~new
    mask[rows] = moved if moved.ndim == 1 else moved.any(1)
    return mask


def list_images(
    session: Session,
    split: Split,
    rows: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32] | None,
    offset: int,
    limit: int,
) -> dict[str, Any]:
    """One page of a list."""
    first, last = max(offset, 0), max(offset, 0) + min(max(limit, 0), PAGE)
    part = rows[first:last]
    items = [_item(session, split, row) for row in part.tolist()]
    if values is not None:
        for item, value in zip(items, values[first:last].tolist(), strict=True):
            item["coefficient"] = value
    return {"total": len(rows), "offset": first, "items": items}


def _item(session: Session, split: Split, row: int) -> dict[str, Any]:
    image = int(split.images[row])
    right = split.scores.right[row]
    return {
        "image": image,
        "name": session.run.data.ids[image],
        "truth": _names(session, split.scores.truth[row]),
        "answer": _names(session, split.scores.decided[row]),
        "right": bool(right.all()),
    }


def _names(session: Session, label: Any) -> list[str]:
    """Class names of a label: one class, or the attributes that an image has."""
    classes = session.run.data.classes
    if session.run.data.multi_label:
        return [name for name, on in zip(classes, label, strict=True) if on]
    return [classes[int(label)]]


def explain_image(
    session: Session, image: int, *, labels: tuple[str, ...] = (), operations: Any = ()
) -> dict[str, Any]:
    """An image of the data with the experts behind its logits.

    Raises:
        UserError: If there is no such image or label.
    """
    data = session.run.data
    if not 0 <= image < len(data):
        raise UserError(f"{WHO}: expected an image in 0..{len(data) - 1}, got {image}. Count from 0.")
    truth = np.flatnonzero(data.labels[image]).tolist() if data.multi_label else [int(data.labels[image])]
    shown = [*truth[:8], *_positions(session, labels)]
    x = session.run.inputs(np.array([image], dtype=np.int64))
    found = take_apart(session.run, x, labels=shown, operations=operations)
    return found | {
        "image": image,
        "name": data.ids[image],
        "split": SPLITS[int(data.split[image])],
        "truth": truth,
        "attributes": {
            name: column.values[int(column.codes[image])] if column.codes[image] >= 0 else None
            for name, column in data.attributes.items()
        },
    }


def _positions(session: Session, labels: tuple[str, ...]) -> list[int]:
    classes = session.run.data.classes
    for label in labels:
        if label not in classes:
            raise unknown_name(WHO, "class", label, classes)
    return [classes.index(label) for label in labels]


def add_upload(session: Session, content: bytes) -> dict[str, Any]:
    """Pass an uploaded picture through the backbone; returns its number for `explain_upload`, and a small copy to show.

    Raises:
        UserError: If it is not a readable image, or the backbone of the run is unknown.
    """
    with session.lock:
        backbone = session.stored.backbone
    try:
        picture = decode(content)
        pixels = backbone.transform()(picture)
    except Exception as error:
        raise UserError(
            f"{WHO}: expected a picture, got a file that cannot be read: {damage(error)}. Try another file."
        ) from error
    with torch.inference_mode():
        features = backbone(pixels[None].to(next(backbone.parameters()).device))
        x = session.run.head.prepare(features.cpu()).clone()
    shown = base64.b64encode(encoded(thumbnail(picture, SIZES[-1]), "WEBP")).decode()
    with session.lock:
        number = max(session.uploads, default=0) + 1
        session.uploads[number] = x
        for old in sorted(session.uploads)[:-MOST_UPLOADS]:
            del session.uploads[old]
    about = {"picture": f"data:image/webp;base64,{shown}", "width": picture.width, "height": picture.height}
    return {"upload": number, **about}


def explain_upload(
    session: Session, number: int, *, labels: tuple[str, ...] = (), operations: Any = ()
) -> dict[str, Any]:
    """An uploaded picture with the experts behind its logits.

    Raises:
        UserError: If it was not uploaded, or newer ones have replaced it.
    """
    if number not in session.uploads:
        raise UserError(f"{WHO}: expected a picture that was dropped in, got number {number}. Drop it in again.")
    shown = _positions(session, labels)
    return take_apart(session.run, session.uploads[number], labels=shown, operations=operations) | {"truth": []}


class Thumbnails:
    """Small pictures of the data's images; the most recent ones are cached.

    Args:
        session: The session.
        most: How many are kept.
    """

    def __init__(self, session: Session, most: int = 4000) -> None:
        self._data = session.run.data
        self._drawn = functools.lru_cache(most)(self._draw)

    def get(self, image: int, size: int) -> bytes:
        """A WebP picture.

        Raises:
            UserError: If there is no such image or size.
            JobError: If the image cannot be opened.
        """
        if size not in SIZES:
            raise unknown_name(WHO, "size", str(size), map(str, SIZES))
        if not 0 <= image < len(self._data):
            raise UserError(f"{WHO}: expected an image of the data, got {image}. Count from 0.")
        return self._drawn(image, size)

    def _draw(self, image: int, size: int) -> bytes:
        try:
            return encoded(thumbnail(self._data.open_image(image), size), "WEBP")
        except OSError as error:
            raise JobError(f"{WHO}: expected an image that can be opened, got {error}. Check the data.") from error
