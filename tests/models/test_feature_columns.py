"""Labels, subgroups and names of feature files: checked, converted or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from mumoe.errors import UserError
from mumoe.models.feature_files import load_feature_data
from mumoe.training.sources import FeatureSource

X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
LABELS = np.arange(12) % 3


def save(folder: Path, **columns: Any) -> Path:
    for name, column in {"x": X, "labels": LABELS, **columns}.items():
        np.save(folder / f"{name}.npy", column)
    return folder / "x.npy"


def tensors(folder: Path, metadata: dict[str, str] | None = None, **columns: torch.Tensor) -> Path:
    path = folder / "x.safetensors"
    content = {"features": torch.from_numpy(X), "labels": torch.from_numpy(LABELS), **columns}
    save_file(content, path, metadata=metadata)
    return path


def parquet(folder: Path, metadata: dict[str, str] | None = None, **columns: Any) -> Path:
    table = pa.table({"features": pa.array(list(X)), "labels": pa.array(LABELS), **columns})
    pq.write_table(table.replace_schema_metadata(metadata), folder / "x.parquet")
    return folder / "x.parquet"


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_feature_data(path)
    assert str(caught.value).startswith("features: expected")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("missing", ["", "nan", "None", " ", "<NA>"])
def test_a_missing_group_is_unknown_and_no_subgroup(tmp_path: Path, missing: str) -> None:
    sex = np.array(["f", missing, "m"] * 4)
    column = load_feature_data(save(tmp_path, group_sex=sex))[0].attributes["sex"]
    assert column.values == ("f", "m")
    assert column.codes.tolist() == [0, -1, 1] * 4
    empty = pa.array([None if value == missing else value for value in sex.tolist()])
    column = load_feature_data(parquet(tmp_path, group_sex=empty))[0].attributes["sex"]
    assert column.values == ("f", "m")
    assert column.codes.tolist() == [0, -1, 1] * 4


@pytest.mark.parametrize(
    ("group", "values", "codes"),
    [
        (np.array([1, 0, -1] * 4), ("no", "yes"), [1, 0, -1]),
        (np.array([1.0, np.nan, 0.0] * 4), ("no", "yes"), [1, -1, 0]),
        (np.array([1, -1, 1] * 4), ("no", "yes"), [1, 0, 1]),
        (np.array([True, False, True] * 4), ("no", "yes"), [1, 0, 1]),
        (np.array([2, 0, -1] * 4), ("0", "1", "2"), [2, 0, -1]),
        (np.array([b"caf\xc3\xa9", b"", b"bar"] * 4), ("bar", "café"), [1, -1, 0]),
        (np.array(["2", "10", "2.0"] * 4), ("2", "10"), [0, 1, 0]),
    ],
)
def test_what_a_group_means(tmp_path: Path, group: Any, values: tuple[str, ...], codes: list[int]) -> None:
    column = load_feature_data(save(tmp_path, group_sex=group))[0].attributes["sex"]
    assert column.values == values
    assert column.codes.tolist() == codes * 4


def test_a_missing_label_is_an_error(tmp_path: Path) -> None:
    for labels, count in (
        (np.where(LABELS == 1, "", "a"), "4 of 12 rows (4 empty)"),
        (np.where(LABELS == 1, np.nan, LABELS), "4 of 12 rows (4 'nan')"),
        (np.where(np.arange(12) == 1, np.inf, LABELS), "1 of 12 rows (1 'inf')"),
        (np.where(LABELS == 2, -1, LABELS), "4 of 12 rows (4 '-1')"),
    ):
        assert f"got none in {count}. Leave such rows out." in refused(save(tmp_path, labels=labels))
    assert "got none in 1 of 12 rows (1 'None')" in refused(
        parquet(tmp_path, labels=pa.array([None, *LABELS[1:].tolist()]))
    )


def test_labels_of_bytes_floats_and_numbers_as_text(tmp_path: Path) -> None:
    names = np.array(["hûs", "boat", "äpple"])
    data, _ = load_feature_data(save(tmp_path, labels=np.char.encode(names, "utf-8")[LABELS]))
    assert data.classes == ("boat", "hûs", "äpple")
    assert [data.classes[label] for label in data.labels] == names[LABELS].tolist()
    data, _ = load_feature_data(save(tmp_path, labels=LABELS.astype(np.float64)))
    assert data.classes == ("0", "1", "2")
    data, _ = load_feature_data(save(tmp_path, labels=np.array(["10", "9.0", "2"])[LABELS]))
    assert data.classes == ("2", "9", "10")
    for value in (pa.array([name.encode() for name in names[LABELS]]), pa.array(names[LABELS]).dictionary_encode()):
        assert load_feature_data(parquet(tmp_path, labels=value))[0].classes == ("boat", "hûs", "äpple")
    assert "expected text in UTF-8 in" in refused(save(tmp_path, labels=np.array([b"a", b"\xff"] * 6)))


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float64"])
def test_features_of_other_floats_are_converted(tmp_path: Path, kind: str) -> None:
    features = torch.from_numpy(X).to(getattr(torch, kind))
    found = load_feature_data(tensors(tmp_path, features=features))[1].x
    assert found.dtype == np.float32
    assert np.array_equal(found, features.float().numpy())
    assert np.abs(found - X).max() < 0.5


def test_features_that_float32_cannot_hold(tmp_path: Path) -> None:
    path = tensors(tmp_path, features=torch.full((12, 5), 1e300, dtype=torch.float64))
    assert "got nan or inf in row 0" in refused(path)


NAMES = ("cat", "dog", "ant")


@pytest.mark.parametrize("write", [tensors, parquet])
@pytest.mark.parametrize(
    "metadata",
    [
        {"classes": '["cat", "dog", "ant"]'},
        {"classes": '{"dog": 1, "ant": 2, "cat": 0}'},
        {"classes": '{"2": "ant", "0": "cat", "1": "dog"}'},
        {"id2label": '{"1": "dog", "0": "cat", "2": "ant"}'},
        {"label2id": '{"dog": 1, "ant": 2, "cat": 0}', "id2label": '{"1": "dog", "0": "cat", "2": "ant"}'},
    ],
)
def test_names_of_classes_keep_their_positions(tmp_path: Path, write: Any, metadata: dict[str, str]) -> None:
    data, _ = load_feature_data(write(tmp_path, metadata))
    assert data.classes == NAMES
    assert data.labels.tolist() == LABELS.tolist()


def test_names_order_labels_that_are_names(tmp_path: Path) -> None:
    text = pa.array(np.array(NAMES)[LABELS])
    data, _ = load_feature_data(parquet(tmp_path, {"classes": json.dumps(NAMES)}, labels=text))
    assert (data.classes, data.labels.tolist()) == (NAMES, LABELS.tolist())
    assert "out of aunt, cat, dog, got 'ant'" in refused(
        parquet(tmp_path, {"classes": '["cat", "dog", "aunt"]'}, labels=text)
    )


def test_names_that_the_datasets_library_records(tmp_path: Path) -> None:
    features = {"labels": {"names": list(NAMES), "_type": "ClassLabel"}, "group_sex": {"names": ["f", "m"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    data, _ = load_feature_data(parquet(tmp_path, metadata, group_sex=pa.array([0, 1, -1] * 4)))
    assert data.classes == NAMES
    assert data.attributes["sex"].values == ("f", "m")
    assert data.attributes["sex"].codes.tolist() == [0, 1, -1] * 4


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"classes": '["cat", "dog", "cat"]'}, "got 'cat' twice"),
        ({"classes": '["cat", "", "dog"]'}, "got '' as a name"),
        ({"classes": '["cat", null, "dog"]'}, 'got ["cat", null, "dog"]'),
        ({"classes": '{"cat": 0, "dog": 2, "ant": 3}'}, "got the positions 0, 2, 3"),
        ({"classes": '{"cat": 0, "dog": 1, "ant": 1}'}, "got the positions 0, 1, 1"),
        ({"classes": "cat, dog, ant"}, "got no JSON"),
        ({"classes": '["cat", "dog", "ant"]', "id2label": '{"0": "dog", "1": "cat", "2": "ant"}'}, "got another in"),
        ({"classes": '["cat", "dog"]'}, "expected numbers from 0 to 1 in 'labels'"),
        ({"group_sex": '["f", "f"]'}, "got 'f' twice"),
    ],
)
def test_names_that_are_refused(tmp_path: Path, metadata: dict[str, str], text: str) -> None:
    for write in (tensors, parquet):
        assert text in refused(write(tmp_path, metadata))


def test_numbers_too_large_to_be_positions(tmp_path: Path) -> None:
    assert "expected numbers from 0 to 999999" in refused(save(tmp_path, labels=LABELS + 10**9))


def test_splits_and_ids(tmp_path: Path) -> None:
    split = np.array(["training", "validation", "test"])
    assert load_feature_data(save(tmp_path, split=split[LABELS]))[0].split.tolist() == LABELS.tolist()
    assert load_feature_data(save(tmp_path, split=LABELS.astype(float)))[0].split.tolist() == LABELS.tolist()
    assert "got ''" in refused(save(tmp_path, split=np.array(["train", "", "test"])[LABELS]))
    ids = pa.array([None, *(f"row {k}" for k in range(11))])
    assert "expected a different 'id' in every row" in refused(parquet(tmp_path, id=ids))


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_halves_stay_halves_and_batches_are_float32(tmp_path: Path, kind: str) -> None:
    """Converted at once, a file of float16 would take twice its size in memory."""
    half = X.astype(np.float16)
    path = save(tmp_path, x=half) if kind == "npy" else tensors(tmp_path, features=torch.from_numpy(half))
    data, found = load_feature_data(path)
    assert found.x.dtype == np.float16
    assert kind != "npy" or isinstance(found.x, np.memmap)
    (x, _), *_ = FeatureSource(found.x, data.labels).stream([np.array([3, 1])], None)
    assert x.dtype == torch.float32
    assert np.array_equal(x.numpy(), half[[3, 1]].astype(np.float32))


def test_doubles_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    wide = X.astype(np.float64)
    wide[5, 2] = 1e300
    assert "got nan or inf in row 5" in refused(save(tmp_path, x=wide))
