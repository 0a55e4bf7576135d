"""From files to a language model and back: tokenize, train, evaluate, analyze, generate, on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import mumoe
from mumoe import cli

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from made_up_training import make_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tokens, and a run on them."""
    base = tmp_path_factory.mktemp("text")
    tokens = make_text(base)
    (base / "small.toml").write_text(
        'mode = "text"\nbackbone = "gpt2"\nhead = "CPMuMoE-e4"\nnorm = "layer"\nbatch_size = 48\nsteps = 8\n'
        'network_options = ["depth=1", "heads=2", "width=16", "context=24"]\nlr = 0.01\n'
    )
    arguments = [
        "train",
        "--config",
        base / "small.toml",
        "--data",
        f"tokens:{tokens}",
        "--out",
        base / "run",
        "--quiet",
    ]
    assert cli.main(list(map(str, arguments))) == 0
    return base


def call(capsys, *arguments) -> str:
    status = cli.main(list(map(str, arguments)))
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def test_tokenize_says_what_to_do_next(folder, tmp_path, capsys):
    out = tmp_path / "tokens"
    said = call(capsys, "tokenize", folder / "source", "--out", out, "--val", "0.2", "--credits", "made up")
    assert sum(int(line.split()[1]) for line in said.splitlines()[:3]) == 60
    assert f"mumoe train --mode text --data tokens:{out}" in said
    meta = json.loads((out / "meta.json").read_text())
    assert sum(split["documents"] for split in meta["splits"].values()) == 60
    assert meta["credits"] == ["made up"]


def test_evaluate_and_analyze_a_language_model(folder, capsys):
    said = call(capsys, "evaluate", folder / "run", "--classes", 9)
    assert "lower case" in said
    assert "windows, " in said
    assert "bits per byte (step 8)" in said
    said = call(capsys, "analyze", folder / "run", "--windows", 8, "--ablated-windows", 4, "--quiet")
    assert "bits per byte on 192 tokens of the test split" in said
    assert said.endswith(f"Written to {folder / 'run' / 'analysis'}. Open experts.html.\n")
    assert "transformer.h.0.mlp: 4 experts" in said
    assert {"experts.html", "experts.json", "experts.png"} <= {p.name for p in (folder / "run" / "analysis").iterdir()}


def test_generate_and_scale_experts(folder, capsys):
    common = ["generate", folder / "run", "--prompt", "def", "--tokens", 16, "--temperature", 0]
    plain = call(capsys, *common)
    assert plain.startswith("def")
    assert call(capsys, *common) == plain
    scaled = [call(capsys, *common, "--scale", *(f"0:{n}={factor}" for n in range(4))) for factor in (1, -3)]
    assert scaled[0] == plain != scaled[1]
    opened = mumoe.load(folder / "run")
    assert opened.generate("def", 16, temperature=0) + "\n" == plain
    assert opened.generate("def", 16, temperature=0, scale={(0, n): -3.0 for n in range(4)}) + "\n" == scaled[1]
    assert call(capsys, *common[:2], "--samples", 2, "--tokens", 4).count("---\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "RUN", "--scale", "0:1"], "expected --scale LAYER:EXPERT=FACTOR, got '0:1'. Write e.g. 0:17=3."),
        (["generate", "RUN", "--scale", "7:1=2"], "expected a layer in 0..0, got 7"),
        (["generate", "RUN", "--scale", "0:9=2"], "expected an expert in 0..3, got 9"),
        (["generate", "RUN", "--tokens", "99"], "expected at most 24 tokens, the model's context"),
        (["generate", "RUN", "--samples", "0"], "expected samples >= 1, got 0"),
        (["analyze", "RUN", "--windows", "0"], "expected --windows >= 1, got 0"),
        (["export", "RUN", "--to", "onnx"], "which trained a whole network"),
        (["predict", "RUN", "x.png"], "which trained a whole network"),
        (["fairness", "RUN", "--target", "x", "--sensitive", "studio"], "which trained a whole network"),
    ],
)
def test_wrong_calls_are_one_line(folder, capsys, arguments, words):
    status = cli.main([str(folder / "run") if argument == "RUN" else argument for argument in arguments])
    said = capsys.readouterr().err
    assert status == 2
    assert words in said
    assert said.count("\n") == 1
