"""Backbones: timm's models by name, their weights, preprocessing and fingerprints."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from mumoe.errors import UserError
from mumoe.models.backbones import PRESETS, create_backbone

SMALL = "test_vit"


def random_image(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", [SMALL, "test_efficientnet", "test_resnet", "mobilenetv3_small_050"])
def test_features_are_timms(name: str) -> None:
    backbone = create_backbone(name, pretrained=False)
    assert not backbone.training
    size = backbone.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    plain = timm.create_model(name, pretrained=False).eval()
    plain.load_state_dict(backbone.model.state_dict(), strict=False)
    with torch.inference_mode():
        features = backbone(images)
        expected = plain.forward_head(plain.forward_features(images), pre_logits=True)
    assert features.shape == (2, backbone.num_features)
    assert torch.equal(features, expected)


def test_presets_are_timm_names() -> None:
    assert PRESETS["clip-b32"] == "vit_base_patch32_clip_224.openai"
    assert PRESETS["dino-s16"] == "vit_small_patch16_224.dino"
    published = timm.list_pretrained()
    assert all(name in published for name in list(PRESETS.values())[:2])
    backbone = create_backbone("dino-s16", pretrained=False)
    assert (backbone.name, backbone.num_features, backbone.image_size) == ("dino-s16", 384, 224)
    assert backbone.data_config["mean"] == (0.485, 0.456, 0.406)


def test_evaluation_preprocessing_is_timms() -> None:
    backbone = create_backbone(SMALL, pretrained=False)
    config = resolve_model_data_config(backbone.model)
    image = random_image(200, 300)
    torch.manual_seed(0)
    transform = pickle.loads(pickle.dumps(backbone.transform()))  # noqa: S301
    assert torch.equal(transform(image), create_transform(**config)(image))


def test_training_preprocessing_crops_and_flips_at_random() -> None:
    backbone = create_backbone(SMALL, pretrained=False, image_size=64)
    transform = pickle.loads(pickle.dumps(backbone.transform(train=True)))  # noqa: S301
    image = random_image(100, 100)
    first, second = transform(image), transform(image)
    assert first.shape == (3, 64, 64)
    assert not torch.equal(first, second)
    grey = transform(Image.new("RGB", (100, 100), (128, 128, 128)))
    torch.testing.assert_close(grey, torch.full_like(grey, (128 / 255 - 0.5) / 0.5))


@pytest.mark.parametrize("name", [SMALL, "test_efficientnet"])
def test_another_image_size(name: str) -> None:
    backbone = create_backbone(name, pretrained=False, image_size=96)
    assert backbone.image_size == 96
    assert backbone(torch.zeros(1, 3, 96, 96)).shape == (1, backbone.num_features)
    image = random_image(96, 96)
    whole = backbone.transform()(image)
    expected = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 0.5
    if backbone.data_config["mean"] == (0.5, 0.5, 0.5):
        torch.testing.assert_close(whole, expected)
    assert whole.shape == (3, 96, 96)


FAMILIES = {
    "xcit_nano_12_p16_224": 64,
    "pvt_v2_b0": 64,
    "mixer_s32_224": 64,
    "swin_tiny_patch4_window7_224": 64,
    "cait_xxs24_224": 64,
    "convit_tiny": 64,
    "poolformer_s12": 64,
    "visformer_tiny": 64,
    "resnet10t": 64,
}


@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_size_that_timm_runs_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a fraction of their depth, which does not affect sizes."""
    real = timm.create_model
    depths = {"xcit": {"depth": 2}, "cait": {"depth": 2}, "convit": {"depth": 2}}
    small = depths.get(name.partition("_")[0], {})
    monkeypatch.setattr(timm, "create_model", lambda *arguments, **options: real(*arguments, **options, **small))
    size = FAMILIES[name]
    backbone = create_backbone(name, pretrained=False, image_size=size)
    assert backbone.image_size == size
    with torch.no_grad():
        y = backbone(torch.randn(2, 3, size, size))
    assert y.shape == (2, backbone.num_features)
    assert bool(y.isfinite().all())
    assert not torch.equal(y[0], y[1])


@pytest.mark.parametrize(
    ("name", "fits"), [("xcit_nano_12_p16_224", True), ("cait_xxs24_224", False), ("mixer_s32_224", False)]
)
def test_trained_weights_are_kept_at_another_size_or_it_is_refused(
    name: str, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, small = timm.create_model, {} if "mixer" in name else {"depth": 1}
    monkeypatch.setattr(timm, "create_model", lambda *arguments, **options: real(*arguments, **options, **small))
    model = create_backbone(name, pretrained=False).model
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    if not fits:
        with pytest.raises(UserError, match=r"got 64 \(its weights are for another size: .*Its own is 224\.$"):
            create_backbone(name, weights=tmp_path / "w.safetensors", image_size=64)
        return
    resized = create_backbone(name, weights=tmp_path / "w.safetensors", image_size=64).model.state_dict()
    same = [key for key, value in model.state_dict().items() if torch.equal(value, resized[key])]
    assert len(same) == len(resized) == len(model.state_dict()) > 10


def test_fingerprint_follows_weights_and_preprocessing() -> None:
    a = create_backbone(SMALL, pretrained=False)
    assert a.fingerprint == create_backbone(SMALL, pretrained=False).fingerprint
    other_size = create_backbone("test_efficientnet", pretrained=False, image_size=96)
    assert other_size.fingerprint != create_backbone("test_efficientnet", pretrained=False).fingerprint
    before = a.fingerprint
    with torch.no_grad():
        next(a.model.parameters()).view(-1)[0] += 1e-6
    assert a.fingerprint != before


# Weights --------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Weights of a whole small model, classifier included."""
    state = {k: v.clone() for k, v in timm.create_model(SMALL, pretrained=False).state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", state


def test_local_weights_without_their_classifier(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = saved
    assert "head.weight" in state
    backbone = create_backbone(SMALL, weights=path)
    loaded = backbone.model.state_dict()
    assert loaded.keys() == state.keys() - {"head.weight", "head.bias"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_local_weights_are_resampled_to_another_size(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = saved
    backbone = create_backbone(SMALL, weights=path, image_size=96)
    assert backbone.model.state_dict()["pos_embed"].shape[1] < state["pos_embed"].shape[1]
    assert torch.equal(backbone.model.state_dict()["norm.weight"], state["norm.weight"])


def test_weights_under_published_names_are_translated(tmp_path: Path) -> None:
    """timm reads original DINO checkpoints, wrapped in `model`, through its family's filter."""
    model = timm.create_model(SMALL, pretrained=False)
    save_file({f"module.{k}": v.clone() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="missing"):
        create_backbone(SMALL, weights=tmp_path / "w.safetensors")
    flat = {k: v.clone() for k, v in model.state_dict().items()}
    weight = flat.pop("patch_embed.proj.weight")
    flat["patch_embed.proj.weight"] = weight.flatten(1)
    save_file(flat | {"extra": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"1 unexpected \(extra\)"):
        create_backbone(SMALL, weights=tmp_path / "w.safetensors")


def test_misfits_are_named(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = saved
    del state["norm.bias"]
    state["norm.weight"] = torch.zeros(3)
    state["surplus"] = torch.zeros(1)
    save_file(state, path)
    with pytest.raises(UserError) as caught:
        create_backbone(SMALL, weights=path)
    text = str(caught.value)
    assert "1 missing (norm.bias)" in text
    assert "1 unexpected (surplus)" in text
    assert "1 of another shape (norm.weight (3,) instead of (64,))" in text


def test_pickled_weights_are_refused_with_the_conversion(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"Convert it with: python -c .*'w\.pth', weights_only=True.*'w\.safetensors'"):
        create_backbone(SMALL, weights=tmp_path / "w.pth")


def test_damaged_weights(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = saved
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"expected an intact safetensors file, got .*Get it again\."):
        create_backbone(SMALL, weights=path)
    with pytest.raises(UserError, match="got no file"):
        create_backbone(SMALL, weights=path.with_name("none.safetensors"))


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "pvt_v2_b0"])
def test_an_image_size_that_timm_runs_is_not_refused(name: str) -> None:
    backbone = create_backbone(name, pretrained=False, image_size=96)
    assert backbone(torch.zeros(1, 3, 96, 96)).shape == (1, backbone.num_features)
    assert not backbone.training


@pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning", "ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("vit_tny_patch16_224", {}, "Did you mean 'vit_tiny_patch16_224'?"),
        ("clip-b23", {}, "Did you mean 'clip-b32'?"),
        ("vit_base_patch32_clip_224.openia", {}, "Did you mean 'vit_base_patch32_clip_224.openai'?"),
        (
            SMALL,
            {"pretrained": False, "image_size": 97},
            "A multiple of 16 is 96. Its own is 160.",
        ),
        (SMALL, {"pretrained": False, "image_size": 0}, "expected image_size of at least 8 pixels, got 0"),
        ("maxvit_pico_rw_256", {"pretrained": False, "image_size": 100}, "takes, got 100 (height (25)"),
    ],
)
def test_wrong_calls(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        create_backbone(name, **options)
    assert text in str(caught.value)


def test_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no\nroute to host")

    monkeypatch.setattr("huggingface_hub.get_session", fail)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError) as caught:
        create_backbone("dino-s16")
    assert str(caught.value) == (
        "backbone: expected the pretrained weights of 'vit_small_patch16_224.dino', got no download "
        "(no route to host). Give a local safetensors file as `weights`, or use the embedded "
        "efficientnet-lite0."
    )


def test_weights_in_the_hubs_cache_need_no_network(
    monkeypatch: pytest.MonkeyPatch, saved: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    path, state = saved
    monkeypatch.setattr("huggingface_hub.get_session", None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(path))
    loaded = create_backbone(SMALL).model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_random_weights_are_a_function_of_their_seed_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first = create_backbone(SMALL, pretrained=False).fingerprint
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert create_backbone(SMALL, pretrained=False).fingerprint == first
    assert create_backbone(SMALL, pretrained=False, seed=1).fingerprint != first
