"""A tiny random Llama with a tokenizer of bytes, and documents with labels; imported where transformers is there."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from mumoe.data.documents import Document, Span  # noqa: E402

WORDS = {"the": "at", "cat": "nn", "dog": "nn", "sees": "vb", "hears": "vb", "red": "jj", "old": "jj", "not": "rb"}


def tiny_tokenizer():
    """Every byte a token, and one special token."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, **{letter: place + 1 for place, letter in enumerate(letters)}}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>")


def tiny_llama(layers: int = 3, seed: int = 0):
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=259,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)  # so that MLPs matter
    return model.eval()


def sentences(seed: int, words: int) -> Document:
    """A document of random words with their tags."""
    generator = torch.Generator().manual_seed(seed)
    text, spans = "", []
    for number in torch.randint(len(WORDS), (words,), generator=generator).tolist():
        word = list(WORDS)[number]
        text += " " if text else ""
        spans.append(Span(len(text), len(text) + len(word), WORDS[word]))
        text += word
    split = {7: "val", 8: "test", 9: "test"}.get(seed % 10, "train")
    return Document(f"d{seed}", text, "odd" if seed % 2 else "even", tuple(spans), split)
