"""``folder:PATH``: one folder per class, inside split folders or not.

    PATH/cat/1.png  PATH/dog/7.jpg                  split at random (seeded, stratified)
    PATH/train/cat/1.png  PATH/val/...  PATH/test/...    split by folder; val or test may be missing

A class is the name of a folder, and every image below it, at any depth, belongs to it. Names that start with a
dot are skipped; files without the extension of an image are counted and reported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mumoe.data.base import SPLITS, ImageData
from mumoe.data.build import UNDECIDED, FileImages, build
from mumoe.data.decode import EXTENSIONS
from mumoe.data.layout import SPLIT_WORDS, existing, files_below, list_folder
from mumoe.data.registry import Request, register
from mumoe.errors import UserError

__all__ = ["Listing", "class_folders", "list_classes"]


@dataclass
class Listing:
    """Image files found below class folders, in a fixed order.

    Attributes:
        classes: Folder names, sorted.
        paths: Relative to the set's folder, with ``/``.
        labels: Position in `classes` per path.
        split: Position in SPLITS per path, or UNDECIDED.
        strangers: Files without the extension of an image.
        closed: Folders that cannot be listed, each with the reason.
    """

    classes: list[str]
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    split: list[int] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """One line on the files that are not images and one on the folders that cannot be listed, if there are any."""
        found = []
        if self.strangers:
            found.append(f"files left out because they lack an image extension: {_first(self.strangers)}")
        if self.closed:
            found.append(f"folders left out because they cannot be listed: {_first(self.closed)}")
        return found


@register("folder", "a folder per class, with split folders or without", argument="PATH")
def load_folder(request: Request) -> ImageData:
    """Load ``folder:PATH``.

    Raises:
        UserError: If there is no such folder, or fewer than two class folders in it.
    """
    root = existing(request.name, request.path(), folder=True)
    splits, ignored = _split_folders(request.name, root)
    places = [(root / name, part) for name, part in splits.items()] or [(root, UNDECIDED)]
    listing = list_classes(request.name, root, places)
    loose = [entry for place, _ in places for entry in _loose_images(request.name, place)]
    problems = listing.problems() + [f"folder {name!r} is not a split, left out" for name in ignored]
    if loose:
        problems.append(f"images left out because they have no class folder: {len(loose)} ({loose[0]} ...)")
    return build(
        request,
        FileImages(root, tuple(listing.paths)),
        classes=listing.classes,
        labels=listing.labels,
        ids=listing.paths,
        split=listing.split,
        problems=problems,
    )


def class_folders(who: str, folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones.

    Raises:
        UserError: If the folder cannot be listed.
    """
    return [entry.name for entry in list_folder(who, folder) if entry.is_dir() and entry.name[0] != "."]


def list_classes(who: str, root: Path, places: Sequence[tuple[Path, int]], *, skip: Sequence[str] = ()) -> Listing:
    """List the images in the class folders of each place.

    Args:
        who: Prefix of errors.
        root: Folder that paths are relative to.
        places: Folders of class folders, with the split that their images belong to.
        skip: Folders that are not classes.

    Raises:
        UserError: If there are fewer than two classes.
    """
    names = {place: [name for name in class_folders(who, place) if name not in skip] for place, _ in places}
    classes = sorted(set().union(*names.values()))
    if len(classes) < 2:
        raise UserError(
            f"{who}: expected a folder for each of two or more classes in {str(places[0][0])!r}, "
            f"got {', '.join(map(repr, classes)) or 'none'}. Name the folder that holds the class folders."
        )
    listing, labels = Listing(classes), {name: label for label, name in enumerate(classes)}
    for place, part in places:
        for name in names[place]:
            for path in files_below(place / name, listing.closed):
                _add(listing, path.relative_to(root).as_posix(), labels[name], part)
    return listing


def _add(listing: Listing, path: str, label: int, part: int) -> None:
    if os.path.splitext(path)[1].lower() not in EXTENSIONS:
        listing.strangers.append(path)
        return
    listing.paths.append(path)
    listing.labels.append(label)
    listing.split.append(part)


def _first(names: Sequence[str]) -> str:
    """Number of names, and the first few."""
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _loose_images(who: str, folder: Path) -> list[str]:
    files = (entry.name for entry in list_folder(who, folder) if entry.is_file())
    return sorted(name for name in files if os.path.splitext(name)[1].lower() in EXTENSIONS)


def _split_folders(who: str, root: Path) -> tuple[dict[str, int], list[str]]:
    """Split folders by name, and the other folders beside them; both empty if the folders are classes.

    A folder called ``train`` is a split only if it holds folders and no images; else it could be a class.
    """
    names = class_folders(who, root)
    splits = {name: SPLIT_WORDS[name.lower()] for name in names if name.lower() in SPLIT_WORDS}
    train = [name for name, part in splits.items() if part == SPLIT_WORDS["train"]]
    if not train or not class_folders(who, root / train[0]) or _loose_images(who, root / train[0]):
        return {}, []
    for part, what in enumerate(SPLITS):
        same = [name for name in splits if splits[name] == part]
        if len(same) > 1:
            raise UserError(f"{who}: expected one folder for {what}, got {same}. Merge or rename them.")
    return splits, [name for name in names if name not in splits]
