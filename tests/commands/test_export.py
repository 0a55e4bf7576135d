"""`mumoe export`: where it writes, what it says, and what it refuses before any work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnxruntime
import pytest
import torch

from mumoe import cli
from mumoe.deploy.model import ImageClassifier
from mumoe.editing.edit_files import load_edits, save_edits
from mumoe.editing.expert_edits import Ablate, Rewrite
from mumoe.editing.stack import EditStack
from training.made_up_training import made_up_image


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = cli.main(["export", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_safetensors_into_the_run_and_on_from_there(run: Path, tmp_path: Path, capsys) -> None:
    made_up_image(0).save(tmp_path / "0.png")
    status, out, err = call(capsys, run, "--to", "safetensors", "--images", tmp_path / "0.png")
    assert (status, err) == (0, "")
    saved = run / "export" / "safetensors"
    assert re.search(rf"^{re.escape(str(saved / 'model.safetensors'))}  [\d,]+ bytes$", out, re.MULTILINE)
    assert "Checked on 9 images: logits differ by at most 0; the largest" in out
    status, _, err = call(capsys, run, "--to", "safetensors")
    assert status == 2
    assert "which exists. Pass --overwrite" in err
    assert call(capsys, saved, "--to", "safetensors", "--out", tmp_path / "again")[0] == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
    assert cli.main(["predict", str(tmp_path / "again"), str(tmp_path / "0.png"), "--top", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--to", "onnxx"], "--to"),
        (["--to", "onnx", "--out", "model.pb"], "expected a file that ends in .onnx"),
        (["--to", "torch-export", "--out", "model.onnx"], "expected a file that ends in .pt2"),
        (["--to", "onnx", "--out", "taken.onnx"], "taken.json', which exists"),
    ],
)
def test_wrong_calls_write_nothing(run: Path, tmp_path: Path, monkeypatch, capsys, arguments, expected) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.json").write_text("{}")
    status, out, err = call(capsys, run, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert [file.name for file in tmp_path.iterdir()] == ["taken.json"]


def test_an_unreadable_image_stops_it(run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    status, _, err = call(
        capsys, run, "--to", "safetensors", "--out", tmp_path / "saved", "--images", tmp_path / "bad.png"
    )
    assert status == 1
    assert "bad.png" in err
    assert not (tmp_path / "saved").exists()


# Edited models --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edits(attribute_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Edits of the attribute run, a rewriting among them, so that the ranks grow."""
    layer = ImageClassifier.from_run(attribute_run).head.layer
    stack = EditStack(layer)
    stack.add(Rewrite.of(0, torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]), 4.0), "ants")
    stack.add(Ablate(2))
    file = tmp_path_factory.mktemp("edits") / "edits.json"
    save_edits(file, stack)
    return file


def test_an_edited_model_is_an_ordinary_one(attribute_run: Path, edits: Path, tmp_path: Path, capsys) -> None:
    saved = tmp_path / "saved"
    status, out, err = call(capsys, attribute_run, "--to", "safetensors", "--edits", edits, "--out", saved)
    assert (status, err) == (0, "")
    assert "logits differ by at most 0; the largest" in out
    original, edited = ImageClassifier.from_run(attribute_run), ImageClassifier.from_pretrained(saved)
    assert json.loads((saved / "config.json").read_text())["head"] == "CPMuMoE-r5-e5"
    x = torch.randn(4, *original.input_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = original(x)
        with load_edits(edits, original.head.layer):
            expected = original(x)
        torch.testing.assert_close(edited(x), expected, atol=1e-5, rtol=1e-5)
    assert (expected - before).abs().max() > 0.1
    card = (saved / "README.md").read_text()
    assert "Not evaluated since it was edited." in card
    assert "- ants: rewrite output 0 by +4 x mean coefficients" in card
    status, _, err = call(capsys, saved, "--to", "safetensors", "--edits", edits, "--out", tmp_path / "twice")
    assert status == 2
    assert "expected edits of this model (CPMuMoE-r5-e5, " in err


@pytest.mark.slow
def test_edited_onnx_gives_the_edited_models_logits(attribute_run: Path, edits: Path, capsys) -> None:
    assert call(capsys, attribute_run, "--to", "onnx", "--edits", edits)[0] == 0
    file = attribute_run / "export" / "edited" / "model.onnx"
    beside = json.loads(file.with_suffix(".json").read_text())
    assert (beside["head"], beside["edits"][1]) == ("CPMuMoE-r5-e5", "ablate-1: ablate expert 2 of level 0")
    original = ImageClassifier.from_run(attribute_run)
    x = torch.randn(3, *original.input_size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode(), load_edits(edits, original.head.layer):
        expected = original(x)
    got = onnxruntime.InferenceSession(file).run(["logits"], {"images": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), expected, atol=1e-4, rtol=0)


def test_edits_that_do_not_belong_are_refused(run: Path, attribute_run: Path, edits: Path, tmp_path, capsys) -> None:
    out = tmp_path / "deep" / "saved"
    for model, file, expected in [
        (run, edits, "load_edits: expected edits of this model (CPMuMoE-r4-e3x2, "),
        (attribute_run, tmp_path / "missing.json", "load_edits: expected a readable file, got No such file"),
        (attribute_run, attribute_run / "run.json", "expected a file written by `mumoe edit`, got run.json"),
    ]:
        status, said, err = call(capsys, model, "--to", "safetensors", "--out", out, "--edits", file)
        assert (status, said, err.count("\n")) == (2, "", 1)
        assert expected in err
        assert not list(tmp_path.iterdir())
