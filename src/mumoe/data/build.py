"""Build an `ImageData` from what a loader read: complete the splits, check the files, report problems."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from mumoe.data.base import SPLITS, Attribute, ImageData
from mumoe.data.decode import read_image
from mumoe.data.fingerprint import fingerprint
from mumoe.data.inside import require_inside
from mumoe.data.registry import Request
from mumoe.data.same import same_files
from mumoe.data.splits import TEST, TRAIN, VAL, carve, stratified_split
from mumoe.data.verify import Checked, check_files, is_full
from mumoe.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["UNDECIDED", "ArrayImages", "FileImages", "Images", "build"]

UNDECIDED = -1
"""Marks an image, in the `split` that a loader passes to `build`, whose split the set does not fix."""


class Images(Protocol):
    """Images by position: picklable, so that loader workers can hold them."""

    @property
    def side(self) -> int:
        """Side in pixels, common to all images; 0 if they differ or it is unknown."""
        ...

    def __len__(self) -> int: ...

    def __call__(self, index: int) -> Image.Image:
        """The RGB image; raises `mumoe.data.decode.ImageError` if it cannot be read."""
        ...

    def subset(self, kept: npt.NDArray[np.int64]) -> Images:
        """Only the images at these positions."""
        ...

    def repeated(self) -> dict[int, int]:
        """For each image that is the same file as an earlier one: its position -> that of the earlier one."""
        ...

    def check(self, request: Request) -> Checked:
        """Digests of the content, and which images cannot be read."""
        ...


@dataclass(frozen=True)
class FileImages:
    """Image files below a folder.

    Attributes:
        root: The folder.
        paths: Relative paths.
    """

    root: Path
    paths: tuple[str, ...]
    side = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, index: int) -> Image.Image:
        return read_image(self.root / self.paths[index])

    def subset(self, kept: npt.NDArray[np.int64]) -> FileImages:
        return FileImages(self.root, tuple(self.paths[index] for index in kept))

    def repeated(self) -> dict[int, int]:
        return same_files([os.path.join(self.root, path) for path in self.paths])

    def check(self, request: Request) -> Checked:
        return check_files(
            self.root,
            self.paths,
            full=is_full(request.verify, len(self)),
            cache_dir=request.cache_dir,
            progress=request.progress,
        )


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images of one size held in memory.

    Attributes:
        pixels: (num_images, height, width) or (num_images, height, width, 3) uint8.
    """

    pixels: npt.NDArray[np.uint8]

    @property
    def side(self) -> int:
        height, width = self.pixels.shape[1:3]
        return int(height) if height == width else 0

    def __len__(self) -> int:
        return len(self.pixels)

    def __call__(self, index: int) -> Image.Image:
        from PIL import Image

        return Image.fromarray(self.pixels[index]).convert("RGB")

    def subset(self, kept: npt.NDArray[np.int64]) -> ArrayImages:
        return self if len(kept) == len(self) else ArrayImages(self.pixels[kept])

    def repeated(self) -> dict[int, int]:
        return {}

    def check(self, request: Request) -> Checked:
        rows = (hashlib.sha256(image.tobytes()).digest() for image in self.pixels)
        digests = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32)
        return Checked(digests, {})


def build(
    request: Request,
    images: Images,
    *,
    classes: Sequence[str],
    labels: npt.ArrayLike,
    ids: Sequence[str],
    split: npt.ArrayLike | None = None,
    attributes: Mapping[str, Attribute] | None = None,
    credits: Sequence[str] = (),
    problems: Sequence[str] = (),
) -> ImageData:
    """Make an `ImageData` from what a loader read.

    Splits are assigned before unreadable files are left out, so a damaged file never changes the split of another one.

    Args:
        request: The call of `load_data`.
        images: The images.
        classes: Names of the classes or 0/1 targets.
        labels: Position in `classes` per image, or one 0/1 row per image.
        ids: A unique name per image; if several images share one, only the first is kept.
        split: Position in SPLITS per image, UNDECIDED if the set does not fix it; None if it fixes none.
        attributes: Subgroup columns.
        credits: Licence lines.
        problems: One line for each item that the loader itself left out.

    Raises:
        UserError: If no image is left to train on, or, with `strict`, if anything was left out.
    """
    _require_images(request, len(images), problems)
    if isinstance(images, FileImages) and not request.allow_outside:
        require_inside(request.name, [images.root], [os.path.join(images.root, path) for path in images.paths])
    found = _checked_labels(request, classes, np.asarray(labels))
    decided = _complete(np.full(len(found), UNDECIDED) if split is None else split, found, request)
    checked = images.check(request)
    wrong = _repeated(ids, images) | _out_of_range(found, classes) | checked.problems
    kept = np.array([index for index in range(len(ids)) if index not in wrong], np.int64)
    said = [*problems, *(f"{ids[index]}: {text}" for index, text in sorted(wrong.items()))]
    _require_images(request, len(kept), said)
    columns = {
        name: Attribute(column.codes[kept].astype(np.int64), column.values)
        for name, column in (attributes or {}).items()
    }
    data = ImageData(
        name=request.name,
        classes=tuple(classes),
        multi_label=found.ndim == 2,
        labels=found[kept],
        split=decided[kept],
        ids=tuple(ids[index] for index in kept),
        open_image=images.subset(kept),
        fingerprint="",
        attributes=columns,
        credits=tuple(credits),
        image_size=images.side,
        split_by=_split_words(split, decided, request),
    )
    return _finish(data, request, said, checked.digests[kept])


def _checked_labels(
    request: Request, classes: Sequence[str], labels: npt.NDArray[Any]
) -> npt.NDArray[np.int64] | npt.NDArray[np.uint8]:
    """Labels in the dtype of `ImageData`; rejects repeated class names and targets other than 0 and 1."""
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise UserError(f"{request.name}: expected distinct class names, got {repeated[0]!r} twice. Rename one.")
    if labels.ndim == 2 and not np.isin(labels, (0, 1)).all():
        odd = labels[~np.isin(labels, (0, 1))][0]
        raise UserError(f"{request.name}: expected targets of 0 and 1, got {odd}. Correct them.")
    return labels.astype(np.uint8) if labels.ndim == 2 else labels.astype(np.int64)


def _finish(data: ImageData, request: Request, said: list[str], content: npt.NDArray[np.uint8]) -> ImageData:
    """Report empty classes, raise if strict, and set the fingerprint."""
    if not (data.split == TRAIN).any():
        reason = f"Left out: {_shown(said)}." if said else "Add some."
        raise UserError(f"{request.name}: expected images in the split 'train', got none. {reason}")
    problems = (*said, *_empty_classes(data))
    if request.strict and problems:
        raise UserError(
            f"{request.name}: expected no problems, got {len(problems)}: {_shown(problems)}. "
            "Repair or remove these, or load without strict."
        )
    digest = fingerprint(
        classes=data.classes,
        labels=data.labels,
        split=data.split,
        ids=data.ids,
        content=content,
        attributes=data.attributes,
    )
    return replace(data, fingerprint=digest, problems=problems)


def _complete(split: npt.ArrayLike, labels: npt.NDArray[Any], request: Request) -> npt.NDArray[np.int8]:
    """Assign what the set leaves open: all images, the undecided ones (to train), its val or its test."""
    val, test = _shares(request)
    decided = np.asarray(split).astype(np.int8)
    if (decided == UNDECIDED).all():
        return stratified_split(labels, fractions=(1 - val - test, val, test), seed=request.split_seed)
    decided = np.where(decided == UNDECIDED, TRAIN, decided).astype(np.int8)
    for part, share in ((TEST, test), (VAL, val)):
        if not (decided == part).any():
            decided = carve(decided, labels, part, fraction=share, seed=request.split_seed)
    return decided


def _split_words(split: npt.ArrayLike | None, decided: npt.NDArray[np.int8], request: Request) -> str:
    """Says which splits the set fixes, and which were drawn at random."""
    given = set() if split is None else set(np.unique(np.asarray(split)).tolist()) - {UNDECIDED}
    drawn = [SPLITS[part] for part in (VAL, TEST) if part not in given and (decided == part).any()]
    if not given:
        return f"at random by class (seed {request.split_seed})"
    return f"as given, {' and '.join(drawn)} drawn from train (seed {request.split_seed})" if drawn else "as given"


def _shares(request: Request) -> tuple[float, float]:
    val, test = request.val_fraction, request.test_fraction
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UserError(
            f"load_data: expected val_fraction and test_fraction >= 0 that leave images to train on, "
            f"got {val} and {test}. Use 0.1 and 0.2, for example."
        )
    return val, test


def _repeated(ids: Sequence[str], images: Images) -> dict[int, str]:
    """Images listed more than once, also under different paths; in both train and test they would bias the test."""
    seen: set[str] = set()
    again = {
        index: f"is the same file as {ids[first]}; only the first is used" for index, first in images.repeated().items()
    }
    for index, name in enumerate(ids):
        if name in seen:
            again[index] = "listed again; only the first is used"
        seen.add(name)
    return again


def _out_of_range(labels: npt.NDArray[Any], classes: Sequence[str]) -> dict[int, str]:
    if labels.ndim == 2:
        return {}
    bad = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    return {int(index): f"label {labels[index]} is not in 0..{len(classes) - 1}" for index in bad}


def _empty_classes(data: ImageData) -> list[str]:
    """Reports classes without training images. They stay in the list, so that the others keep their positions."""
    train = data.labels[data.split == TRAIN]
    if data.multi_label:
        here, trained = data.labels.sum(0), train.sum(0)
    else:
        here, trained = (np.bincount(part, minlength=len(data.classes)) for part in (data.labels, train))
    what = "target" if data.multi_label else "class"
    lines = []
    for name, count, learnt in zip(data.classes, here, trained, strict=True):
        if not learnt:
            lines.append(f"{what} {name!r} has no image{f' in {SPLITS[TRAIN]}' if count else ''}")
    return lines


def _require_images(request: Request, count: int, problems: Sequence[str]) -> None:
    if not count:
        reason = f"Left out: {_shown(problems)}." if problems else "Check the path."
        raise UserError(f"{request.name}: expected images that can be read, got none. {reason}")


def _shown(problems: Sequence[str], most: int = 5) -> str:
    rest = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + rest
