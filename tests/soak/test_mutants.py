"""Mutants: drawn from a seed, written as JSON, and really other files."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from safetensors.numpy import save

from mumoe.files import read_json
from soak.damage import CORPUS
from soak.mutants import changed, draw_change

CONTENT = {
    "x.json": json.dumps({"a": [1, 2.5, {"b": "text"}], "c": None, "d": True}).encode(),
    "x.jsonl": b'{"step": 1}\n{"step": 2, "loss": 0.5}\n',
    "x.toml": b'[a]\nb = 1\nc = "x"\n',
    "x.safetensors": save({"a": np.zeros((2, 3), np.float32), "b": np.arange(4)}, {"note": "n"}),
    "x.bin": bytes(range(200)),
}


@pytest.mark.parametrize("name", CONTENT)
def test_a_recipe_repeats_and_changes_the_file(name: str) -> None:
    content, differ, kinds = CONTENT[name], 0, set()
    for number in range(400):
        change = draw_change(random.Random(number), name, content, ["other"], ["decoy"])
        assert change == draw_change(random.Random(number), name, content, ["other"], ["decoy"])
        kinds.add(change[0])
        if change[0] in ("swap", "gone", "folder", "pipe", "link"):
            continue
        repeated = json.loads(json.dumps(change))
        assert changed(content, change, "/out") == changed(content, repeated, "/out")
        differ += changed(content, change, "/out") != content
    assert len(kinds) > 8
    assert differ > 280


def test_odd_values_go_to_their_place() -> None:
    content = CONTENT["x.json"]
    assert json.loads(changed(content, ["odd", ["a", 1], "absolute", "f"], "/out"))["a"] == [1, "/out/f", {"b": "text"}]
    assert json.loads(changed(content, ["odd", ["a", 1], "infinite", "f"], "/out"))["a"][1] == float("inf")
    assert b'"c": null, "a"' in changed(content, ["twice", ["c"]], "/out")
    array = save({"a": np.zeros((2, 3), np.float32)})
    shape = changed(array, ["header", ["put", ["a", "shape"], [6]]], "/out")
    assert len(shape) != len(array) or b'"shape": [6]' in shape
    assert b"\x00\x00\xc0\x7f" in changed(array, ["number", "a", 4, "nan"], "/out")


def test_the_corpus_names_each_recipe_once() -> None:
    corpus = read_json(CORPUS)
    assert len({json.dumps(recipe) for recipe in corpus}) == len(corpus) > 40
