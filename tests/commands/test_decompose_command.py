"""`mumoe decompose` on a tiny model: prints the table and experts, writes files, answers wrong calls in one line."""

import pytest

pytest.importorskip("transformers")

from mumoe import cli
from tiny_llama import sentences, tiny_llama, tiny_tokenizer

SMALL = ["--layer", "1", "--k", "4", "--width", "4", "--tokens", "600", "--context", "17", "--lr", "4e-3", "--quiet"]
SMALL += ["--batch-size", "64", "--contexts", "4", "--precision", "float32", "--device", "cpu"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path / "cache"))
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text").mkdir()
    for seed in range(60):
        (tmp_path / "text" / f"{seed:02}.txt").write_text(sentences(seed, 40).text)
    return tmp_path


def call(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main(["decompose", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_prints_the_table_with_the_controls_and_experts(place, capsys):
    given = ["--model", str(place / "model"), "--text", f"folder:{place / 'text'}", "--out", str(place / "out"), *SMALL]
    extra = ["--kind", "transcoder", "--transcoder", str(place / "other"), "--coefficients", str(place / "a.parquet")]
    status, out, err = call(capsys, *given, *extra)
    assert status == 0, err
    for text in ("contexts of 17 tokens", "constant gate", "shuffled coefficients", "expert share", "are used by"):
        assert text in out
    assert (place / "other" / "layer_1.safetensors").is_file()
    assert (place / "a.parquet").is_file()
    assert "mumoe.load(" in out
    status, again, _ = call(capsys, *given, "--kind", "transcoder")
    assert status == 0
    table = out[out.index("in place of the MLP") : out.index("mean ablation")]
    assert table in again


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--kind", "cp-liner"], "Did you mean 'cp-linear'?"),
        (["--text", "browm"], "expected --text brown, stdlib, folder:PATH or tokens:FOLDER, got 'browm'."),
        (["--text", "folder:nowhere"], "expected a path in --text, got 'nowhere', which does not exist."),
        (["--model", "gpt2"], "expected --model smollm2, hf:NAME or a folder with a config.json, got 'gpt2'."),
        (["--contexts", "0"], "expected --contexts above 0"),
    ],
)
def test_wrong_calls_are_one_line(capsys, arguments, expected):
    status, _, err = call(capsys, *arguments)
    assert status == 2
    assert expected in err
    assert err.count("\n") == 1


def test_a_layer_that_is_not_there_names_the_flag(place, capsys):
    given = ["--model", str(place / "model"), "--text", f"folder:{place / 'text'}", "--out", str(place / "out"), *SMALL]
    status, _, err = call(capsys, *given, "--layer", "9")
    assert status == 2
    assert "expected --layer in 0..2" in err
    assert "Traceback" not in err
