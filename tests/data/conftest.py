"""Tiny data sets in their real layouts, written by the tests."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mumoe.data import load_data


@pytest.fixture(autouse=True)
def homes(tmp_path, monkeypatch):
    """No test reads or writes outside its own folder."""
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MUMOE_DATA", str(tmp_path / "data"))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def draw():
    """Write an image of one colour, which the seed decides, and return the colour."""

    def write(path, seed=0, size=(9, 7)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        colour = tuple(np.random.default_rng(seed).integers(0, 256, 3).tolist())
        Image.new("RGB", size, colour).save(path)
        return colour

    return write


@pytest.fixture
def forbid(monkeypatch):
    """Make folders or files unreadable as they are to an ordinary user; permissions do not bind root."""
    listed, allowed = os.scandir, os.access

    def close(*paths):
        closed = {os.fspath(path) for path in paths}

        def scandir(path="."):
            if os.fspath(path) in closed:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return listed(path)

        monkeypatch.setattr(os, "scandir", scandir)
        monkeypatch.setattr(os, "access", lambda path, mode: os.fspath(path) not in closed and allowed(path, mode))

    return close


@pytest.fixture
def load():
    """`load_data` without progress."""

    def quiet(name, **options):
        return load_data(name, **{"progress": False, **options})

    return quiet


@pytest.fixture
def class_tree(root, draw):
    """A folder of two classes of ten images each."""
    for label, name in enumerate(("cat", "dog")):
        for image in range(10):
            draw(root / "pets" / name / f"{image}.png", seed=100 * label + image)
    return root / "pets"
