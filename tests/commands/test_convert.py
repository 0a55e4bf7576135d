"""`mumoe convert`: the table, the files, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from models.tiny_networks import NETWORKS, VIT_ARGUMENTS, network, output
from mumoe import cli
from mumoe.deploy.converted import load_converted, save_converted


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = cli.main(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    model, _ = network("vit")
    return save_converted(model, tmp_path / "vit", arguments=VIT_ARGUMENTS | {"num_classes": 5})


def test_a_folder_is_planned_converted_and_checked(vit: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "converted"
    common = (vit, "--experts", 4, "--init", "upcycle")
    status, planned, err = call(capsys, *common, "--dry-run")
    assert (status, err) == (0, "")
    assert re.search(r"^blocks.1.mlp +mlp 32 -> 128 -> 32 +CPMuMoE-r33/32-e4 +8,352 +10,853 +40,960", planned, re.M)
    assert not out.exists()
    status, said, err = call(capsys, *common, "--out", out)
    assert (status, err) == (0, "")
    assert planned in said
    assert "Loaded again: bit-identical output" in said
    assert float(re.search(r"relative to its largest output: (\S+)\.\n", said)[1]) < 1e-4
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(output(load_converted(out), x), output(load_converted(vit), x), atol=1e-5)
    assert "which has files. Name another" in call(capsys, *common, "--out", out)[2]
    more = (out, "--experts", 2, "--pattern", "head", "--rank", 2)
    assert call(capsys, *more, "--out", out, "--overwrite")[0] == 0
    status, said, _ = call(capsys, out, "--targets")
    assert status == 0
    assert "blocks.0.attn.qkv  linear 32 -> 96\n" in said
    assert "mlp" not in said
    assert "head" not in said


def test_a_folder_of_hugging_face(tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    model, x = NETWORKS["gpt2"]()
    model.save_pretrained(tmp_path / "gpt2")
    capsys.readouterr()
    out = tmp_path / "out"
    status, _, err = call(capsys, tmp_path / "gpt2", "--experts", 2, "--init", "upcycle", "--out", out)
    assert (status, err) == (0, "")
    assert torch.allclose(output(load_converted(out), x), output(model, x), atol=1e-5)
    (tmp_path / "gpt2" / "model.safetensors").write_bytes(b"no")
    status, _, err = call(capsys, tmp_path / "gpt2", "--experts", 2, "--dry-run")
    assert status == 1
    assert "expected an intact model with safetensors, got" in err


def test_a_timm_name(capsys) -> None:
    status, out, err = call(capsys, "vit_tiny_patch16_224", "--experts", 16, "--num-classes", 10, "--dry-run")
    assert (status, err) == (0, "")
    assert re.search(r"^these 12 +3,550,464 +3,554,064 ", out, re.M)


REFUSED = {
    "no output": (("--experts", 2), "mumoe convert: expected --out FOLDER, or --dry-run to look first"),
    "no experts": ((), "mumoe convert: expected --experts with a number, got none"),
    "rank": (("--experts", 2, "--rank", "big", "--dry-run"), "expected --rank matched, exact or a number, got 'big'"),
    "pattern": (
        ("--experts", 2, "--pattern", "blocks.*.mpl", "--dry-run"),
        "replace_modules: nothing matches 'blocks.*.mpl'. Closest: 'blocks.0.mlp'. All targets:",
    ),
    "folder": (("--experts", 2, "--dry-run", "--num-classes", 3), "expected no --pretrained or --num-classes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str, vit: Path, capsys) -> None:
    arguments, message = REFUSED[case]
    status, _, err = call(capsys, vit, *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_an_unknown_model(tmp_path: Path, capsys) -> None:
    err = call(capsys, "vit_tiny_patch16_244", "--experts", 2, "--dry-run")[2]
    assert "expected a timm model or a folder, got 'vit_tiny_patch16_244'. Did you mean 'vit_tiny_patch16_224'?" in err
    assert "config.json cannot be read" in call(capsys, tmp_path, "--experts", 2, "--dry-run")[2]
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    assert "expected a class of transformers out of" in call(capsys, tmp_path, "--experts", 2, "--dry-run")[2]
