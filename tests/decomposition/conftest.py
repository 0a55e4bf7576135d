"""A tiny language model in a folder, and the settings of a decomposition that takes a second."""

from pathlib import Path

import pytest

pytest.importorskip("transformers")

import mumoe
from mumoe.data.documents import Document
from mumoe.models.language import LanguageModel, open_language
from tiny_llama import sentences, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def language(model_folder) -> LanguageModel:
    return open_language(model_folder)


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    return [sentences(seed, 60) for seed in range(20)]


@pytest.fixture
def small(tmp_path: Path, documents) -> dict:
    """Settings of a decomposition that takes a second."""
    return {
        "text": documents,
        "layer": 1,
        "k": 4,
        "width": 4,
        "tokens": 1500,
        "context": 17,
        "lr": (4e-3,),
        "batch_size": 64,
        "val_contexts": 8,
        "precision": "float32",
        "device": "cpu",
        "cache_dir": tmp_path / "cache",
        "progress": False,
    }


@pytest.fixture(scope="session")
def analyzed(model_folder, documents, tmp_path_factory):
    place = tmp_path_factory.mktemp("analyzed")
    given = {
        "k": 4,
        "width": 4,
        "init": "random",
        "tokens": 1500,
        "context": 17,
        "lr": (4e-3,),
        "batch_size": 64,
        "val_contexts": 8,
    }
    held = {"precision": "float32", "device": "cpu", "cache_dir": place / "cache", "progress": False}
    dec = mumoe.decompose(model_folder, layer=1, text=documents, out=place / "dec", **given, **held)
    dec.found = dec.analyze(8, ablations=4, least=5)
    return dec
