"""Exported files give the model's logits, carry their preprocessing, and replace nothing by half."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import mumoe
from mumoe.deploy import formats
from mumoe.deploy.export_files import check_ready
from mumoe.deploy.formats import export, preprocessing
from mumoe.deploy.model import ImageClassifier
from mumoe.errors import JobError, UserError
from mumoe.models.backbones import create_backbone
from mumoe.models.heads import build_head
from training.made_up_training import CLASSES, made_up_image


@pytest.fixture(scope="module")
def model(run: Path) -> ImageClassifier:
    return ImageClassifier.from_run(run)


@pytest.fixture(scope="module")
def real(model: ImageClassifier) -> torch.Tensor:
    return torch.stack([model.transform(made_up_image(row)) for row in range(3)])


@pytest.fixture(scope="module")
def traced_once(model: ImageClassifier) -> Iterator[None]:
    """One trace of the model for both formats, as tracing takes seconds."""
    trace, found = formats._traced, {}

    def once(subject: Any) -> Any:
        if subject.model not in found:
            found[subject.model] = trace(subject)
        return found[subject.model]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_traced", once)
        yield


@pytest.fixture(scope="module")
def onnx_report(
    model: ImageClassifier, real: torch.Tensor, traced_once: None, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    return export(model, tmp_path_factory.mktemp("onnx") / "deep" / "model.onnx", images=real)


@pytest.mark.slow
def test_onnx_gives_the_models_logits(model: ImageClassifier, real: torch.Tensor, onnx_report: Any) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_report.path)
    for images in (real, real[:1], torch.randn(7, 3, 32, 32)):
        with torch.inference_mode():
            expected = model(images)
        got = session.run(["logits"], {"images": images.numpy()})[0]
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)
    assert onnx_report.max_difference < 1e-4
    assert onnx_report.checked == 1 + 2 + 5 + 3


@pytest.mark.slow
def test_onnx_is_one_file_that_carries_its_preprocessing(model: ImageClassifier, onnx_report: Any) -> None:
    import onnx

    assert sorted(file.name for file in Path(onnx_report.path).parent.iterdir()) == ["model.json", "model.onnx"]
    beside = json.loads(Path(onnx_report.path).with_suffix(".json").read_text())
    proto = onnx.load(onnx_report.path)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(metadata["mumoe.preprocessing"]) == beside
    assert json.loads(metadata["mumoe.classes"]) == list(CLASSES)
    assert beside["resize"]["interpolation"] == "bicubic"
    assert beside["crop"] == {"from": "center", "height": 32, "width": 32}
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {str(path): path.stat().st_size for path in Path(onnx_report.path).parent.iterdir()} == onnx_report.files


@pytest.mark.slow
def test_onnx_replaces_when_told_and_only_by_a_file_that_passes(
    model: ImageClassifier, onnx_report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    monkeypatch.setattr(formats, "_onnx_proto", lambda _: onnx.load(onnx_report.path))
    target = tmp_path / "model.onnx"
    target.write_text("before")
    with pytest.raises(UserError, match=r"expected a new file or folder, got .*model\.onnx'.*Pass `overwrite=True`"):
        export(model, target)
    other = ImageClassifier(**model._hub_mixin_config)
    with pytest.raises(JobError, match=r"expected the model's logits from model\.onnx within 0\.0001, got"):
        export(other, target, overwrite=True)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.onnx", "before")]
    export(model, target, overwrite=True)
    assert target.stat().st_size > 100_000
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.onnx"]


@pytest.mark.slow
def test_torch_export_holds_no_pickle_and_needs_no_mumoe(
    model: ImageClassifier, real: torch.Tensor, traced_once: None, tmp_path: Path
) -> None:
    report = export(model, tmp_path / "model.pt2", images=real)
    assert report.max_difference < 1e-4
    with zipfile.ZipFile(report.path) as archive:
        for entry in archive.infolist():
            content = archive.read(entry)
            assert not content.startswith(b"PK")
            assert not content.startswith(b"\x80") or "weight" in entry.filename
            assert b"mumoe." not in content or entry.filename.endswith(".json")
    extra: dict[str, Any] = {"preprocessing.json": ""}
    program = torch.export.load(report.path, extra_files=extra)
    assert json.loads(extra["preprocessing.json"])["classes"] == list(CLASSES)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(real), model(real), atol=1e-4, rtol=1e-4)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in operators if "mumoe" in name]


FULL = """
import resource, sys
import torch
import mumoe

network = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.ReLU(), torch.nn.Linear(300, 4)).eval()
x = torch.zeros(2, 300)
for name in ("one.pt2", "other.pt2"):
    mumoe.export(network, name, x)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    mumoe.export(network, "third.pt2", x)
except mumoe.JobError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_torch_export_names_no_temporary_file_repeats_and_survives_a_full_disk(tmp_path: Path) -> None:
    """In a process of its own, which torch ends where it cannot write the end of an archive."""
    source = str(Path(mumoe.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, "-W", "ignore", "-c", FULL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.startswith("export: expected room on the disk of '.', got: the disk is full.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.pt2", "other.pt2"]
    assert (tmp_path / "one.pt2").read_bytes() == (tmp_path / "other.pt2").read_bytes()
    assert b"mumoe-part" not in (tmp_path / "one.pt2").read_bytes()


def test_safetensors_folder(model: ImageClassifier, real: torch.Tensor, tmp_path: Path) -> None:
    report = export(model, tmp_path / "saved", images=real)
    assert report.max_difference == 0
    assert sorted(Path(name).name for name in report.files) == ["README.md", "config.json", "model.safetensors"]
    with pytest.raises(UserError, match="which exists"):
        export(model, tmp_path / "saved")
    (tmp_path / "saved" / "README.md").write_text("old")
    export(model, tmp_path / "saved", overwrite=True)
    assert "old" not in (tmp_path / "saved" / "README.md").read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]


def test_overwrite_spares_what_is_no_export(model: ImageClassifier, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    for kind, target in (
        ("safetensors", precious),
        ("safetensors", precious / "thesis.tex"),
        ("torch-export", precious.rename(tmp_path / "p.pt2")),
    ):
        target = target if target.exists() else tmp_path / "p.pt2" / target.relative_to(precious)
        with pytest.raises(UserError, match="which is something else"):
            export(model, target, to=kind, overwrite=True)
    assert (tmp_path / "p.pt2" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(("kind", "name", "ending"), [("onnx", "model", ".onnx"), ("torch-export", "m.pt", ".pt2")])
def test_a_wrong_ending_is_told_before_any_work(tmp_path: Path, kind: str, name: str, ending: str) -> None:
    with pytest.raises(UserError, match=f"expected a file that ends in {ending}, got .*{name}"):
        check_ready(kind, tmp_path / name, False)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"expected the package 'onnxruntime'.*pip install 'mumoe\[export\]'"):
        check_ready("onnx", tmp_path / "model.onnx", False)
    check_ready("torch-export", tmp_path / "model.pt2", False)


def test_a_full_disk_leaves_what_was_there(
    model: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(model, tmp_path / "saved")
    before = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(JobError, match="got: the disk is full. Free some space. Existing files are kept"):
        export(model, tmp_path / "saved", overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]


def test_a_model_that_cannot_be_traced_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ImageClassifier.from_run(run)

    def branch(self: Any, images: torch.Tensor) -> torch.Tensor:
        return images if float(images.sum()) > 0 else -images

    monkeypatch.setattr(ImageClassifier, "forward", branch)
    with pytest.raises(JobError, match=r"expected a model that torch\.export can trace.*Use `to=safetensors`"):
        formats._traced(formats._subject(model, None, ()))


def test_a_sparse_moe_is_traced_over_all_experts() -> None:
    head = build_head("sparse-moe-e4-k2", 6, 3).eval()
    torch.nn.init.normal_(head.layer.gate_weight)
    traced = formats._AllExperts(head.layer).eval()
    x = torch.randn(9, 6)
    torch.testing.assert_close(traced(x), head.layer(x))
    program = torch.export.export(traced, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(x), head.layer(x))


# The user's own network -------------------------------------------------------------------------------------


@pytest.fixture
def own() -> torch.nn.Module:
    """A small network in training mode, with a sparse-moe layer in it, which no trace follows as it is."""
    torch.manual_seed(0)
    experts = mumoe.SparseMoE(5, 4, num_experts=3)
    torch.nn.init.normal_(experts.gate_weight)
    head = mumoe.MuMoE(4, 2, num_experts=3, factorization="cp", rank=3)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), experts, torch.nn.Dropout(), head)


@pytest.mark.slow
def test_any_network_is_exported_with_an_example_and_left_as_it_was(own: torch.nn.Module, tmp_path: Path) -> None:
    import onnxruntime

    x, layers = torch.randn(3, 6), list(own)
    report = mumoe.export(own, tmp_path / "own.onnx", x, labels=["no", "yes"])
    assert list(own) == layers
    assert own.training
    own.eval()
    got = onnxruntime.InferenceSession(tmp_path / "own.onnx").run(["outputs"], {"inputs": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), own(x).detach(), atol=1e-5, rtol=1e-5)
    described = json.loads((tmp_path / "own.json").read_text())
    assert described["classes"] == ["no", "yes"]
    assert (described["shape"], described["dtype"]) == ([6], "float32")
    assert report.checked == 1 + 2 + 5
    assert mumoe.export(own, tmp_path / "own.pt2", x).max_difference < 1e-5


def test_a_network_of_timm_becomes_a_folder_that_loads(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    mumoe.replace_head(model, "CPMuMoE-r4-e5")
    x = torch.randn(2, 3, 32, 32)
    assert mumoe.export(model, tmp_path / "saved", x).max_difference == 0
    again, transform = mumoe.load(tmp_path / "saved", device="cpu")
    assert transform is None
    assert torch.equal(again(x), model.eval()(x))


def test_what_cannot_be_exported_says_what_is_needed(own: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a batch of inputs as example, got none\."):
        mumoe.export(own, tmp_path / "own.pt2")
    with pytest.raises(UserError, match="expected a model that returns one tensor, got tuple"):
        mumoe.export(torch.nn.LSTM(6, 4), tmp_path / "own.pt2", torch.randn(3, 6))
    with pytest.raises(UserError, match="got Sequential. Save its state_dict"):
        mumoe.export(own, tmp_path / "saved", torch.randn(3, 6))
    assert not list(tmp_path.iterdir())


# The description of the preprocessing ---------------------------------------------------------------------


def by_description(image: Image.Image, steps: dict[str, Any]) -> np.ndarray:
    """The described steps with Pillow and numpy alone."""
    resize, crop = steps["resize"], steps["crop"]
    ratios = [resize["width"] / image.width, resize["height"] / image.height]
    if resize["to"] != "stretch":
        ratios = [max(ratios) if resize["to"] == "shorter side" else min(ratios)] * 2
    size = [int(image.width * ratios[0] + 1e-9), int(image.height * ratios[1] + 1e-9)]
    image = image.resize(size, Image.Resampling[resize["interpolation"].upper()])
    left, top = round((image.width - crop["width"]) / 2), round((image.height - crop["height"]) / 2)
    canvas = Image.new("RGB", (crop["width"], crop["height"]), tuple(round(255 * mean) for mean in steps["mean"]))
    canvas.paste(image, (-left, -top))
    pixels = np.asarray(canvas).astype(np.float64) * steps["scale"]
    return ((pixels - steps["mean"]) / steps["std"]).transpose(2, 0, 1)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("share", [0.875, 1.0])
@pytest.mark.parametrize("size", [(64, 48), (40, 80)])
def test_the_described_steps_are_the_transform(mode: str, share: float, size: tuple[int, int]) -> None:
    backbone = create_backbone("test_vit", pretrained=False, image_size=32)
    backbone.data_config |= {"crop_mode": mode, "crop_pct": share, "mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    image = made_up_image(0).resize(size)
    steps = preprocessing(backbone.data_config, ["a", "b"], multi_label=False)
    expected = backbone.transform(train=False)(image).numpy()
    np.testing.assert_allclose(by_description(image, json.loads(json.dumps(steps))), expected, atol=1e-5)
