"""The scripts of examples/, on tiny models: they run, and need mumoe's top-level names alone."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import mumoe

SCRIPTS = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def names_of(path: Path) -> dict[str, Any]:
    return runpy.run_path(str(path), run_name="example")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_of_ours_an_example_imports_mumoe_alone(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert "mumoe" in imported
    assert not [name for name in imported | modules if name.startswith("mumoe.")]
    assert "mumoe" not in modules


def test_a_loop_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = names_of(SCRIPTS[0].with_name("own_loop.py"))
    torch.manual_seed(0)
    model = names["Network"]()
    model.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 12), torch.nn.ReLU())
    model.fc = torch.nn.Linear(12, 4)
    names["main"](model, out=str(tmp_path), count=128, epochs=1)
    said = capsys.readouterr().out
    assert "ablate-1: ablate expert" in said
    assert " on 64 images" in said
    assert isinstance(model.fc, mumoe.MuMoE)
    program = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(program(images), model(images))


def test_timms_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = names_of(SCRIPTS[0].with_name("timm_loop.py"))
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    names["main"](model, out=str(tmp_path / "saved"), count=128, epochs=2)
    said = capsys.readouterr().out
    assert "epoch 1: loss" in said
    assert "Checked on 8 images: logits differ by at most 0" in said
    again, _ = mumoe.load(tmp_path / "saved", device="cpu")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))


def test_hugging_faces_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names = names_of(SCRIPTS[0].with_name("hf_trainer.py"))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=16, num_labels=3)
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config)
    names["main"](model, out=str(tmp_path), count=64, epochs=1)
    assert isinstance(model.classifier, mumoe.MuMoE)
    program = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(program(images), model(images).logits)
