"""The feature cache: right numbers, right keys, written once; and features from files."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mumoe
from mumoe.data.base import ImageData
from mumoe.errors import JobError, UserError
from mumoe.models import features as module
from mumoe.models.backbones import Backbone, create_backbone
from mumoe.models.feature_files import load_feature_data
from mumoe.models.features import extract_features, feature_key


@dataclasses.dataclass(frozen=True)
class Noise:
    """Random images of several sizes; one may be broken."""

    seed: int = 0
    broken: int = -1

    def __call__(self, index: int) -> Image.Image:
        if index == self.broken:
            raise OSError("image file is truncated")
        rng = np.random.default_rng((self.seed, index))
        height, width = rng.integers(40, 80, 2)
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def noise(count: int = 10, **options: Any) -> ImageData:
    images = Noise(**options)
    return ImageData(
        name="noise",
        classes=("a",),
        multi_label=False,
        labels=np.zeros(count, np.int64),
        split=np.zeros(count, np.int8),
        ids=tuple(f"noise/{k}" for k in range(count)),
        open_image=images,
        fingerprint=repr((images, count)),
    )


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    made = create_backbone("test_efficientnet", pretrained=False, image_size=64)
    return made.train()


def extract(data: ImageData, backbone: Backbone, tmp_path: Path, **options: Any) -> module.Features:
    settings: dict[str, Any] = {"batch_size": 4, "progress": False, **options}
    return extract_features(data, backbone, cache_dir=tmp_path, **settings)


def plain_loop(data: ImageData, backbone: Backbone) -> torch.Tensor:
    """The features computed without a cache."""
    model, transform = backbone.model.eval(), backbone.transform()
    with torch.inference_mode():
        images = [transform(data.open_image(k)) for k in range(len(data))]
        rows = [model(torch.stack(images[k : k + 4])) for k in range(0, len(images), 4)]
    backbone.train()
    return torch.cat(rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_equal_to_a_plain_loop(backbone: Backbone, tmp_path: Path, workers: int) -> None:
    data = noise()
    found = extract(data, backbone, tmp_path, workers=workers)
    assert found.x.shape == (10, backbone.num_features)
    assert found.x.dtype == np.float32
    assert isinstance(found.x, np.memmap)
    assert not found.x.flags.writeable
    assert (found.extracted, found.reused) == (10, 0)
    torch.testing.assert_close(torch.from_numpy(np.array(found.x)), plain_loop(data, backbone), atol=1e-6, rtol=1e-5)


def test_transformer_features(tmp_path: Path) -> None:
    vit, data = create_backbone("vit_tiny_patch16_224", pretrained=False, image_size=32), noise(3)
    found = extract(data, vit, tmp_path)
    expected = plain_loop(data, vit)
    torch.testing.assert_close(torch.from_numpy(np.array(found.x)), expected, atol=1e-6, rtol=1e-6)


def test_backbone_is_given_back_as_it_came(backbone: Backbone, tmp_path: Path) -> None:
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in backbone.state_dict().items()}
    extract(noise(), backbone, tmp_path)
    with pytest.raises(JobError):
        extract(noise(broken=9), backbone, tmp_path)
    assert all(module.training for module in backbone.modules())
    for name, tensor in backbone.state_dict().items():
        assert tensor.is_contiguous()
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_a_float64_backbone_runs_on_a_device_without_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU plays the device: without the conversion its float64 weights meet float32 images."""
    made = create_backbone("test_efficientnet", pretrained=False, image_size=64)
    expected = np.array(extract(noise(), made, tmp_path / "single").x)
    wide = create_backbone("test_efficientnet", pretrained=False, image_size=64).double()
    monkeypatch.setattr("mumoe.devices.WITHOUT_FLOAT64", {"cpu"})
    assert np.array_equal(extract(noise(), wide, tmp_path / "wide").x, expected)
    assert next(wide.parameters()).dtype == torch.float64


def test_second_call_reuses(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = extract(noise(), backbone, tmp_path)
    monkeypatch.setattr(module, "_fill", None)
    second = extract(noise(), backbone, tmp_path)
    assert (second.extracted, second.reused, second.path) == (0, 10, first.path)
    assert np.array_equal(first.x, second.x)


def test_key_changes_with_every_input(backbone: Backbone) -> None:
    data = noise()
    keys = [
        feature_key(data, backbone),
        feature_key(noise(seed=1), backbone),
        feature_key(noise(9), backbone),
        feature_key(data, backbone, "bfloat16"),
        feature_key(data, create_backbone("test_efficientnet", pretrained=False, image_size=64, seed=1)),
        feature_key(data, Backbone(backbone.name, backbone.model, {**backbone.data_config, "crop_pct": 0.9})),
        feature_key(data, Backbone(backbone.name, backbone.model, {**backbone.data_config, "input_size": (3, 32, 32)})),
    ]
    assert len(set(keys)) == len(keys)
    assert feature_key(noise(), backbone) == keys[0]


def test_other_labels_share_features_where_images_have_a_fingerprint(backbone: Backbone) -> None:
    @dataclasses.dataclass(frozen=True)
    class Known(Noise):
        fingerprint: str = "pixels"

    data = dataclasses.replace(noise(), open_image=Known())
    relabelled = dataclasses.replace(data, fingerprint="other labels")
    assert feature_key(data, backbone) == feature_key(relabelled, backbone)
    assert feature_key(data, backbone) != feature_key(dataclasses.replace(data, ids=data.ids[:5]), backbone)


def test_bfloat16_is_close_and_stored_as_float32(backbone: Backbone, tmp_path: Path) -> None:
    full = extract(noise(), backbone, tmp_path)
    half = extract(noise(), backbone, tmp_path, dtype="bfloat16")
    assert half.x.dtype == np.float32
    assert half.path != full.path
    difference = np.abs(half.x - full.x).max() / np.abs(full.x).max()
    assert 0 < difference < 0.1


def test_damaged_cache_is_made_anew(backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = extract(noise(), backbone, tmp_path)
    expected = np.array(first.x)
    size = first.path.stat().st_size
    os.truncate(first.path, size - 40)
    with caplog.at_level(logging.WARNING, "mumoe"):
        again = extract(noise(), backbone, tmp_path)
    assert f"{size - 40} bytes in features.npy instead of {size}" in caplog.text
    assert again.extracted == 10
    assert np.array_equal(again.x, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_named_and_leaves_nothing(backbone: Backbone, tmp_path: Path, workers: int) -> None:
    with pytest.raises(JobError) as caught:
        extract(noise(broken=6), backbone, tmp_path, workers=workers)
    assert str(caught.value) == (
        "features: expected an image at 'noise/6', got OSError: image file is truncated. "
        "Leave it out of the set or replace it."
    )
    assert [path for path in (tmp_path / "features").iterdir() if path.suffix != ".lock"] == []


def test_outputs_that_are_wrong(backbone: Backbone, tmp_path: Path) -> None:
    flat = create_backbone("test_efficientnet", pretrained=False, image_size=64)
    flat.num_features = 7
    with pytest.raises(
        JobError, match=r"expected 7 features per image from 'test_efficientnet', got an output of shape"
    ):
        extract(noise(), flat, tmp_path)
    sick = create_backbone("test_efficientnet", pretrained=False, image_size=64)
    with torch.no_grad():
        next(sick.model.parameters()).fill_(float("nan"))
    with pytest.raises(JobError, match="got nan or inf after image 0"):
        extract(noise(), sick, tmp_path)


def test_empty_set(backbone: Backbone, tmp_path: Path) -> None:
    assert extract(noise(0), backbone, tmp_path).x.shape == (0, backbone.num_features)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dtype": "bfloat"}, "Did you mean 'bfloat16'?"),
        ({"batch_size": 0}, "expected batch_size of at least 1, got 0"),
        ({"workers": -1}, "expected workers of at least 0, got -1"),
    ],
)
def test_wrong_options(backbone: Backbone, tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        extract(noise(), backbone, tmp_path, **options)
    assert text in str(caught.value)


SCRIPT = """
import sys
import numpy as np, torch
from PIL import Image
from mumoe.data.base import ImageData
from mumoe.models.backbones import create_backbone
from mumoe.models.features import extract_features

def open_image(index):
    with open(sys.argv[1] + "/opened", "a") as file:
        file.write("x")
    return Image.new("RGB", (64, 64), (index, 0, 0))

zeros, ids = np.zeros(40, np.int64), tuple(map(str, range(40)))
data = ImageData("grey", ("a",), False, zeros, zeros.astype(np.int8), ids, open_image, "fingerprint")
torch.manual_seed(0)
backbone = create_backbone("test_efficientnet", pretrained=False, image_size=64)
print(extract_features(data, backbone, cache_dir=sys.argv[1], batch_size=4).extracted)
"""


@pytest.mark.slow
def test_two_processes_extract_once(tmp_path: Path) -> None:
    source = str(Path(mumoe.__file__).parents[1])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": source}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    answers = sorted(int(process.communicate(timeout=120)[0]) for process in running)
    assert answers == [0, 40]
    assert (tmp_path / "opened").read_text() == "x" * 40


# Files ----------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
LABELS = np.arange(30) % 3
SPLIT = np.repeat([0, 1, 2], 10)
GROUP = np.arange(30) % 2


def write_npy(folder: Path) -> Path:
    np.save(folder / "clip.npy", X)
    np.save(folder / "labels.npy", LABELS)
    np.save(folder / "split.npy", np.array(["train", "val", "test"])[SPLIT])
    np.save(folder / "group_sex.npy", np.array(["f", "m"])[GROUP])
    return folder / "clip.npy"


def write_safetensors(folder: Path) -> Path:
    tensors = {"features": X, "labels": LABELS, "split": SPLIT, "group_sex": GROUP}
    names = {"classes": json.dumps(["0", "1", "2"]), "group_sex": json.dumps(["f", "m"])}
    path = folder / "f.safetensors"
    save_file({key: torch.from_numpy(value) for key, value in tensors.items()}, path, metadata=names)
    return path


def write_parquet(folder: Path) -> Path:
    columns = {
        "features": pa.array(list(X)),
        "labels": pa.array(LABELS),
        "split": pa.array([["train", "val", "test"][k] for k in SPLIT]),
        "group_sex": pa.array([["f", "m"][k] for k in GROUP]),
        "id": pa.array([f"row {k}" for k in range(30)]),
    }
    pq.write_table(pa.table(columns), folder / "f.parquet", row_group_size=7)
    return folder / "f.parquet"


@pytest.mark.parametrize("write", [write_npy, write_safetensors, write_parquet])
def test_files_of_features(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path)
    data, found = load_feature_data(path)
    assert np.array_equal(found.x, X)
    assert not found.x.flags.writeable
    assert np.array_equal(data.labels, LABELS)
    assert np.array_equal(data.split, SPLIT)
    assert data.classes == ("0", "1", "2")
    assert data.attributes["sex"].values == ("f", "m")
    assert np.array_equal(data.attributes["sex"].codes, GROUP)
    assert len(set(data.ids)) == 30
    with pytest.raises(JobError, match="expected an image, got a set with features only"):
        data.open_image(0)


def test_npy_is_memory_mapped(tmp_path: Path) -> None:
    assert isinstance(load_feature_data(write_npy(tmp_path))[1].x, np.memmap)


def test_ids_beside_an_array_and_in_safetensors(tmp_path: Path) -> None:
    path = write_npy(tmp_path)
    np.save(tmp_path / "id.npy", np.array([f"row {k}" for k in range(30)]))
    assert load_feature_data(path)[0].ids[:2] == ("row 0", "row 1")
    tensors = {"features": torch.from_numpy(X), "labels": torch.from_numpy(LABELS), "id": torch.arange(100, 130)}
    save_file(tensors, tmp_path / "g.safetensors")
    assert load_feature_data(tmp_path / "g.safetensors")[0].ids[:2] == ("100", "101")
    np.save(tmp_path / "id.npy", np.array(["same"] * 30))
    with pytest.raises(UserError, match=r"expected a different 'id' in every row of .*clip.npy, got 29 repeated"):
        load_feature_data(path)
    np.save(tmp_path / "id.npy", np.arange(29))
    with pytest.raises(UserError, match=r"expected 30 rows of 'id' in .*clip.npy, got 29"):
        load_feature_data(path)


def test_split_is_made_and_names_become_classes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.astype(np.float64))
    np.save(tmp_path / "labels.npy", np.array(["cat", "ant", "bee"])[LABELS])
    data, found = load_feature_data(tmp_path / "x.npy")
    assert found.x.dtype == np.float64  # kept as it is in the file; batches are float32
    assert data.classes == ("ant", "bee", "cat")
    assert data.classes[data.labels[0]] == "cat"
    assert np.bincount(data.split).tolist() == [21, 3, 6]


def test_multi_label_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "labels.npy", np.eye(3, dtype=np.int64)[LABELS])
    data, _ = load_feature_data(tmp_path / "x.npy")
    assert data.multi_label
    assert data.labels.shape == (30, 3)
    assert data.labels.dtype == np.uint8


def test_key_follows_the_files_beside_it(tmp_path: Path) -> None:
    path = write_npy(tmp_path)
    before = load_feature_data(path)[0].fingerprint
    np.save(tmp_path / "labels.npy", (LABELS + 1) % 3)
    assert load_feature_data(path)[0].fingerprint != before


def save(folder: Path, **columns: np.ndarray[Any, Any]) -> Path:
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    return folder / "x.npy"


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"x": X}, "expected labels with"),
        ({"x": X[0], "labels": LABELS}, "expected (images, features) floats"),
        ({"x": LABELS[:, None], "labels": LABELS}, "got int64 of shape (30, 1)"),
        ({"x": np.where(X > 2, np.nan, X), "labels": LABELS}, "got nan or inf in row"),
        ({"x": X, "labels": LABELS[:-1]}, "expected 30 rows of 'labels'"),
        ({"x": X, "labels": LABELS - 1}, "expected labels from 0"),
        ({"x": X, "labels": LABELS - 5}, "expected numbers from 0 to"),
        ({"x": X, "labels": X[:, 0]}, "expected whole numbers or names in 'labels'"),
        ({"x": X, "labels": X[:, :2]}, "expected rows of 0 and 1"),
        ({"x": X, "labels": LABELS, "split": np.full(30, "trian")}, "Did you mean 'train'?"),
        ({"x": X, "labels": LABELS, "split": SPLIT + 1}, "got '3'"),
        ({"x": np.array([{}], dtype=object), "labels": LABELS}, "without pickle"),
    ],
)
def test_wrong_content(tmp_path: Path, columns: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        load_feature_data(save(tmp_path, **columns))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got no file"):
        load_feature_data(tmp_path / "none.npy")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"expected a kind of file out of \.npy, \.parquet, \.safetensors"):
        load_feature_data(tmp_path / "x.csv")
    for write in (write_npy, write_safetensors, write_parquet):
        path = write(tmp_path)
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(UserError, match="Write it again, without pickle"):
            load_feature_data(path)
    save_file({"x": torch.zeros(2, 2)}, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match=r"expected a tensor 'features' in .*, got \['x'\]"):
        load_feature_data(tmp_path / "y.safetensors")


def test_ragged_and_missing_parquet_values(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"features": pa.array([[1.0, 2.0], [1.0]])}), path)
    with pytest.raises(UserError, match=r"expected lists of one length in 'features'"):
        load_feature_data(path)
    pq.write_table(pa.table({"features": pa.array([[1.0, 2.0], None])}), path)
    with pytest.raises(UserError, match="got 1 empty"):
        load_feature_data(path)
