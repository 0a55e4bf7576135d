"""Compressed files have a limit: a bomb is refused in one line before it fills the memory or the disk."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mumoe.data import archives, load_data
from mumoe.data.npm import read_members
from mumoe.data.packed import read_idx
from mumoe.data.tokenizing import documents_of
from mumoe.data.wheels import Wheel, _unpack
from mumoe.errors import JobError, UserError
from mumoe.models.feature_files import load_feature_data

LIMIT = 1 << 16
BOMB = bytes(1 << 20)
SAID = r"^[^\n]*expands to at most 131,072 bytes, got more in [^\n]*$"


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    monkeypatch.setattr(archives, "MOST_BYTES", 2 * LIMIT)
    monkeypatch.setattr(archives, "MOST_RATIO", 10)


def test_gzip_of_images(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(BOMB))
    with pytest.raises(UserError, match=SAID):
        read_idx(tmp_path / "x", dimensions=3)


def test_a_larger_file_may_expand_to_more(tmp_path):
    noise = np.random.default_rng(0).bytes(3 * LIMIT)
    (tmp_path / "x.gz").write_bytes(gzip.compress(noise))
    assert archives.read_gzip(tmp_path / "x.gz", "test") == noise


def test_a_tarball_whose_other_members_are_large(tmp_path):
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        for name, content in (("large", BOMB), ("package/a.json", b"{}")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(JobError, match=SAID):
        read_members(tmp_path / "x.tgz", ["package/a.json"], "icons")


def test_a_member_of_a_wheel(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.json", BOMB)
    wheel = Wheel("x", "1", "x.whl", "0", {"a/data.json": "data.json"})
    with pytest.raises(UserError, match=SAID):
        _unpack(wheel, tmp_path / "x.whl", tmp_path, "emoji")


def test_parquet_of_features_and_of_texts(tmp_path):
    rows = pyarrow.array([[0.0] * 256] * 2000, pyarrow.list_(pyarrow.float32()))
    pyarrow.parquet.write_table(pyarrow.table({"features": rows, "labels": [0, 1] * 1000}), tmp_path / "f.parquet")
    with pytest.raises(UserError, match=SAID):
        load_feature_data(tmp_path / "f.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * 1000] * 5000}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=SAID):
        list(documents_of(tmp_path / "t.parquet"))


@pytest.mark.parametrize("name", ["train.zip", "train.jsonl.gz", "train.tar.gz"])
def test_sets_that_datasets_would_unpack(tmp_path, name):
    pytest.importorskip("datasets")
    place = tmp_path / "set"
    place.mkdir()
    if name.endswith(".zip"):
        with zipfile.ZipFile(place / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/1.png", BOMB)
    else:
        (place / name).write_bytes(gzip.compress(BOMB))
    with pytest.raises(UserError, match=SAID):
        load_data(f"hf:{place}", progress=False)


@pytest.mark.parametrize("name", ["x.zip", "x.gz", "x.bz2", "x.xz", "x.parquet"])
def test_damaged_archives_are_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=rf"^test: expected an intact [^\n]*{name}[^\n]*$"):
        archives.check_expanded(tmp_path / name, "test")
