"""Text as tokens: what is written is read back, whole, split by document, in windows that never overlap."""

import json

import numpy as np
import pytest

from mumoe.data.stdlib_text import docstrings, stdlib_documents
from mumoe.data.text import TOKEN_CLASSES, classify, load_text, open_text
from mumoe.data.tokenizing import ByteTokenizer, split_of, tokenize
from mumoe.errors import JobError, UserError

DOCUMENTS = [f"Document {number}: wer für {'x' * (number % 7)}\n" for number in range(200)]


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "lines.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    tokenize([source], tmp_path / "tokens", val=0.2, test=0.1, credits=["made up"])
    return tmp_path / "tokens"


def test_every_document_is_in_one_split_and_comes_back(folder):
    data = open_text(folder, context=8)
    found = []
    for split, tokens in data.tokens.items():
        assert tokens.dtype == np.uint8
        texts = data.tokenizer.decode(tokens).split("\0")[:-1]
        assert all(split_of(text, 0.2, 0.1) == split for text in texts)
        assert data.text_bytes[split] == sum(len(text.encode()) for text in texts)
        found += texts
    assert sorted(found) == sorted(DOCUMENTS)
    assert data.credits == ("made up",)
    assert len(data.tokens["val"]) > 500


def test_the_split_does_not_depend_on_the_order(folder, tmp_path):
    source = tmp_path / "other.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in reversed(DOCUMENTS)))
    tokenize([source], tmp_path / "again", val=0.2, test=0.1)
    one, two = open_text(folder, context=8), open_text(tmp_path / "again", context=8)
    for split in ("train", "val", "test"):
        assert sorted(one.tokens[split].tobytes().split(b"\0")) == sorted(two.tokens[split].tobytes().split(b"\0"))
    assert one.fingerprint != two.fingerprint


def test_windows_cover_a_split_once_and_shift_in_train_alone(folder):
    data = open_text(folder, context=8)
    for split in ("train", "val", "test"):
        rows, tokens = data.indices(split), data.tokens[split]
        read = np.concatenate([data.window(row)[:-1] for row in rows])
        assert np.array_equal(read, tokens[: len(read)])
        assert len(tokens) - len(read) <= (16 if split == "train" else 8)
        assert all(len(data.window(row, 7)) == 9 for row in rows)
    first, last = data.indices("train")[[0, -1]]
    assert np.array_equal(data.window(first, 3), data.tokens["train"][3:12])
    assert np.array_equal(data.window(data.indices("val")[0], 3), data.tokens["val"][:9])
    assert data.window(last, 7)[-1] == data.tokens["train"][last * 8 + 15]
    assert len(data) == sum(len(data.indices(split)) for split in ("train", "val", "test"))


def test_parquet_and_text_files_give_the_tokens_of_json_lines(folder, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": DOCUMENTS}), tmp_path / "rows.parquet")
    tokenize([tmp_path / "rows.parquet"], tmp_path / "parquet", val=0.2, test=0.1)
    texts = tmp_path / "texts"
    texts.mkdir()
    for number, text in enumerate(DOCUMENTS):
        (texts / f"{number:03}.txt").write_text(text)
    tokenize([texts], tmp_path / "plain", val=0.2, test=0.1)
    prints = {open_text(path, context=8).fingerprint for path in (folder, tmp_path / "parquet", tmp_path / "plain")}
    assert len(prints) == 1


def test_a_tokenizer_of_ones_own(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(DOCUMENTS, trainer)
    from tokenizers import decoders

    made.decoder = decoders.ByteLevel()
    made.save(str(tmp_path / "mine.json"))
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    meta = tokenize([source], tmp_path / "tokens", tokenizer=str(tmp_path / "mine.json"), val=0.2, test=0.1)
    (tmp_path / "mine.json").unlink()
    data = open_text(tmp_path / "tokens", context=8)
    assert meta["dtype"] == "uint16"
    assert data.tokenizer.decode(data.tokens["train"].tolist()).split("<|endoftext|>")[0] in DOCUMENTS
    tokens, size = len(data.tokens["val"]), data.text_bytes["val"]
    assert tokens < size
    assert data.bits_per_byte(np.log(2), "val") == pytest.approx(tokens / size)


def test_classes_of_tokens_by_hand():
    text = "for x in range(10):\n  If = Forest._y\t"
    names = [TOKEN_CLASSES[code] for code in classify(list(text))]
    expected = ["keyword"] * 3 + ["space", "lower case", "space"] + ["keyword"] * 2 + ["space"] + ["lower case"] * 5
    expected += ["bracket", "digit", "digit", "bracket", "punctuation", "newline", "space", "space", "upper case"]
    expected += ["lower case", "space", "punctuation", "space", "upper case"] + ["lower case"] * 5 + ["punctuation"]
    assert names == [*expected, "lower case", "lower case", "space"]
    assert [TOKEN_CLASSES[code] for code in classify(["ret", "urn", " the", "\ufffd", ""])] == [
        "keyword",
        "keyword",
        "lower case",
        "other",
        "other",
    ]


def test_bytes_there_and_back():
    text = "für \u20ac\n"
    tokens = ByteTokenizer().encode_all([text])[0]
    assert tokens == list(text.encode())
    assert ByteTokenizer().decode(np.array(tokens)) == text


def test_docstrings_of_a_source_file():
    source = '"""Module."""\nclass A:\n    """Is a class."""\n    def f(self, x=1):\n        """Does it."""\n'
    assert (
        docstrings(source.encode() + b"def g(): pass\n")
        == "Module.\n\nclass A:\nIs a class.\n\ndef f(self, x=1):\nDoes it.\n"
    )
    assert docstrings(b"def broken(:") == ""


def test_the_text_of_every_installation_begins_with_the_help_topics():
    from itertools import islice
    from pydoc_data.topics import topics

    assert list(islice(stdlib_documents(), 3)) == [topics[name] for name in sorted(topics)[:3]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stdlip", "expected a text out of stdlib, tokens:FOLDER, got 'stdlip'. Did you mean 'stdlib'?"),
        ("tokens:nowhere", "expected a folder of tokens, got 'nowhere' without meta.json. Write one with: mumoe tok"),
    ],
)
def test_unknown_texts(name, words):
    with pytest.raises(UserError, match=words):
        load_text(name, context=8)


def test_a_context_longer_than_the_text(folder):
    with pytest.raises(UserError, match="expected a training text of at least 20,000 tokens for a context of 10,000"):
        open_text(folder, context=10_000)


def test_damaged_tokens_are_told(folder):
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-1])
    with pytest.raises(JobError, match=r"expected intact tokens, got: train.bin of \d+ bytes instead of \d+"):
        open_text(folder, context=8)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"files": ["gone.txt"]}, UserError, "expected a file or folder, got 'gone.txt', which does not exist"),
        ({"column": "body"}, JobError, "expected a column 'body', got none. Name it with `column`"),
        ({"val": 0.9, "test": 0.2}, UserError, "expected shares that leave some for train, got val=0.9, test=0.2"),
        ({"tokenizer": "gone.json"}, UserError, "expected 'bytes' or a tokenizer.json, got 'gone.json'"),
        ({"val": 0.999, "test": 0.0009}, UserError, "expected documents for the training split, got none"),
    ],
)
def test_a_failed_tokenization_leaves_nothing(tmp_path, change, error, words):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one"}\n')
    options = {"files": [source], **change}
    with pytest.raises(error, match=words):
        tokenize(options.pop("files"), tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="expected a new folder"):
        tokenize([source], tmp_path / "out")


def test_a_folder_that_cannot_be_listed_is_no_shorter_text(tmp_path, forbid):
    (tmp_path / "texts/deep").mkdir(parents=True)
    (tmp_path / "texts/a.txt").write_text("one")
    (tmp_path / "texts/deep/b.txt").write_text("two")
    forbid(tmp_path / "texts/deep")
    with pytest.raises(JobError, match=r"expected folders that can be listed, got .*deep: Permission denied"):
        tokenize([tmp_path / "texts"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_without_text_are_left_out_and_counted(folder, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [None, *DOCUMENTS, "", None, float("nan")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    binary = [None if row is None or row != row else row.encode() for row in rows]
    pq.write_table(pa.table({"text": pa.array(binary, pa.binary())}), tmp_path / "rows.parquet")
    for kind in ("jsonl", "parquet"):
        meta = tokenize([tmp_path / f"rows.{kind}"], tmp_path / kind, val=0.2, test=0.1)
        assert meta["without_text"] == 4
        assert sum(counts["documents"] for counts in meta["splits"].values()) == len(DOCUMENTS)
        assert open_text(tmp_path / kind, context=8).fingerprint == open_text(folder, context=8).fingerprint
    (tmp_path / "numbers.jsonl").write_text('{"text": 5}\n')
    with pytest.raises(JobError, match="expected text, got: a row of type int"):
        tokenize([tmp_path / "numbers.jsonl"], tmp_path / "numbers")
    described = open_text(folder, context=8).describe()
    assert "windows of 8 tokens out of 256; split by document: train " in described


def test_tokenize_prints_how_many(tmp_path, capsys):
    from mumoe.cli import main

    (tmp_path / "rows.jsonl").write_text(
        '{"text": null}\n' + "".join(json.dumps({"text": d}) + "\n" for d in DOCUMENTS)
    )
    assert main(["tokenize", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]) == 0
    assert "1 documents without text in 'text' were left out." in capsys.readouterr().out
