"""Everything that leaves can be written: to terminals that know ASCII alone, with names that are not UTF-8."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mumoe import cli
from mumoe.printable import printable

STRANGE = os.fsdecode(b"caf\xe9")
READABLE = r"caf\xe9"


def test_bytes_that_are_not_utf8_are_escaped():
    assert printable(STRANGE) == READABLE
    assert printable("plain") == "plain"
    assert printable("Füße → 日本") == "Füße → 日本"


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_a_terminal_without_these_characters_gets_others(settings, tmp_path):
    script = tmp_path / "prints.py"
    script.write_text(
        "import sys\n"
        "from mumoe import cli\n"
        "from mumoe.commands import tokenize\n"
        "tokenize.run = lambda options: sys.stdout.write('0.91 → 0.93 ± 0.01 é caf\\udce9')\n"
        "sys.exit(cli.main(['tokenize', 'x', '--out', 'y']))",
        encoding="utf-8",
    )
    settings = {**os.environ, "PYTHONUTF8": "0", **settings}
    run = subprocess.run([sys.executable, str(script)], capture_output=True, env=settings, check=False)
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout == rb"0.91 -> 0.93 +- 0.01 \xe9 caf\xe9"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on a folder of two classes, the name of one of which is not UTF-8, and of one of its images too."""
    folder = tmp_path_factory.mktemp("strange")
    for shade, name in ((60, STRANGE), (200, "tea")):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(16):
            pixels = np.random.default_rng(index).integers(0, 50, (32, 32, 3), dtype=np.uint8) + np.uint8(shade)
            Image.fromarray(pixels).save(folder / "images" / name / f"{name}{index}.png")
    out = folder / "run"
    words = f"train --data folder:{folder / 'images'} --image-size 32 --epochs 2 --batch-size 8 --spec CPMuMoE-r4-e4"
    assert cli.main([*words.split(), "--out", str(out), "--quiet"]) == 0
    return out


@pytest.mark.slow
def test_a_class_that_is_not_utf8_trains_and_is_read_everywhere(run, tmp_path, capsys):
    assert json.loads((run / "run.json").read_text("utf-8"))["classes"] == [READABLE, "tea"]
    assert cli.main(["evaluate", str(run), "--quiet"]) == 0
    assert READABLE in capsys.readouterr().out
    assert cli.main(["analyze", str(run), "--quiet", "--resamples", "0"]) == 0
    assert json.loads((run / "analysis" / "analysis.json").read_text("utf-8"))["classes"] == [READABLE, "tea"]
    assert cli.main(["report", str(run), "-o", str(tmp_path / "report")]) == 0
    assert any(READABLE in page.read_text("utf-8") for page in (tmp_path / "report").rglob("*.html"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_a_class_that_is_not_utf8_is_exported(run, tmp_path, form):
    assert cli.main(["export", str(run), "--to", form, "--out", str(tmp_path / "out" / "model.onnx")]) == 0
    written = [json.loads(path.read_text("utf-8")) for path in tmp_path.rglob("*.json")]
    assert any(content.get("classes") == [READABLE, "tea"] for content in written)
