"""`mumoe export`: where it writes, what it says, and what it refuses before any work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mumoe import cli
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
    assert "which exists. Add --overwrite" in err
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
